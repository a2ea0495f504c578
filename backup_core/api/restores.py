"""Calls that start restores: everything is checked first and nothing changed; a dry run ends there, with a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.api.bodies import RestoreBody
from backup_core.api.http import Answer, Request, answer, disk_of, parsed, repeatability_key
from backup_core.api.plan_answers import RestorePlanAnswer
from backup_core.api.plans import shown_plan
from backup_core.api.runs import accepted
from backup_core.domain import managed_source
from backup_core.domain.digests import digest_of
from backup_core.domain.managed import differences
from backup_core.domain.naming import run_of_stamp
from backup_core.operations.admission import check_restore_possible
from backup_core.operations.allocation import allocation_of
from backup_core.operations.permissions import Probe, probes_of
from backup_core.operations.restores import DIGEST_LENGTH, RestoreInputs, restore_inputs
from backup_core.operations.runs import RequestId

if TYPE_CHECKING:
    from backup_core.api.context import Api


async def post_restore(api: Api, request: Request) -> Answer:
    """Restore a disk to a restore point, or with `dryRun` show the plan.

    Repeated under the same key it is the same restore.
    """
    disk = disk_of(request)
    body = parsed(request, RestoreBody)
    request_id = RequestId(repeatability_key(request), digest_of(f"restore {disk} {body.model_dump_json()}"))
    starter = api.starter(request)
    if not body.dry_run and (known := await starter.resume_repeated(disk, request_id)):
        return accepted(api, request, known)
    run = replace(await starter.new_run(disk), operation="restore")
    planned = run_of_stamp(disk, (body.plan_hash or "")[DIGEST_LENGTH:]) or run.run
    inputs = await restore_inputs(api.restore_tools, disk, body.wish, run.run, planned)
    probes = await probes_of(api.restore_tools, inputs)
    if body.dry_run:
        return answer(200, await _plan(api, inputs, probes))
    await check_restore_possible(api.restore_tools, inputs, probes, body.plan_hash)
    return accepted(api, request, await starter.begin(replace(run, restore=inputs.restoring), request_id))


async def _plan(api: Api, inputs: RestoreInputs, probes: list[Probe]) -> RestorePlanAnswer:
    """The plan of a dry run."""
    point = inputs.point
    plan = shown_plan(
        inputs.restoring,
        point,
        await allocation_of(api.restore_tools, point),
        inputs.past,
        probes,
        inputs.hash,
        full=api.restore_verification == "full",
        source=inputs.registration.value.source if inputs.registration else point.source,
    )
    found = differences(inputs.former, inputs.made) if inputs.made else []
    if inputs.why_imported:
        found.append(f"the managed disk is imported from a page blob: {inputs.why_imported}")
    if inputs.made and (inputs.restoring.adopt or inputs.restoring.uploads):
        found += managed_source.private_export(inputs.made)
    if inputs.unfit:
        found.append(f"backups do not continue from the new disk, which is shown as unprotected: {'; '.join(inputs.unfit)}")
    return plan.model_copy(update={"warnings": [*plan.warnings, *found]})
