"""Calls that start restores: everything is looked at first, nothing is touched; a dry run ends there, with a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.api.bodies import RestoreBody
from backup_core.api.http import Answer, Request, answer, disk_of, parsed, repeatability_key
from backup_core.api.plan_answers import RestorePlanAnswer
from backup_core.api.plans import shown_plan
from backup_core.api.runs import begun, new_run, repeated
from backup_core.domain.digests import digest_of
from backup_core.domain.managed import differences
from backup_core.domain.naming import run_of_stamp
from backup_core.operations.allocation import allocation_of
from backup_core.operations.permissions import Probe, probes_of
from backup_core.operations.refusal import RefusedError
from backup_core.operations.restores import DIGEST_LENGTH, RestoreInputs, looked_at, restore_at_work

if TYPE_CHECKING:
    from backup_core.api.context import Api


async def post_restore(api: Api, request: Request) -> Answer:
    """Restore a disk to a restore point, or show what that would do. Repeated under the same key it is the same restore."""
    disk = disk_of(request)
    body = parsed(request, RestoreBody)
    key = repeatability_key(request)
    digest = digest_of(f"restore {disk} {body.model_dump_json()}")
    if key and not body.dry_run and (known := await api.catalogue.request(disk, key)):
        return await repeated(api, request, known, digest)
    run = replace(new_run(api, disk, full=False), operation="restore")
    planned = run_of_stamp(disk, (body.plan_hash or "")[DIGEST_LENGTH:]) or run.run
    inputs = await looked_at(api.restore_tools, disk, body.wish, run.run, planned)
    probes = await probes_of(api.restore_tools, inputs)
    if body.dry_run:
        return answer(200, await _plan(api, inputs, probes))
    if body.plan_hash and body.plan_hash != inputs.hash:
        message = (
            f"disk {disk}: the plan is of another restore than this one to restore point {inputs.point.point}: this request "
            "differs from its dry run, or the restore point, the registration or the machine has changed since; nothing was "
            "done; make the dry run again with this very body"
        )
        raise RefusedError(412, "PlanChanged", message, "planHash")
    denied = [probe.action for probe in probes if probe.state == "denied"]
    if denied:
        may_not = f"the app's identity may not {', '.join(denied)}"
        message = f"{may_not}; grant it the role Pagekeeper machine there (docs/security.md); nothing was done"
        raise RefusedError(403, "PermissionMissing", message)
    if other := await restore_at_work(api.restore_tools, inputs):
        url = request.run_url(other)
        message = f"restore {other} of disk {disk} is at work and will change its source; follow it at {url}"
        raise RefusedError(409, "RestoreRunning", message, url, headers={"Location": url})
    return await begun(api, request, replace(run, restore=inputs.restoring), key, digest)


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
    told = differences(inputs.former, inputs.made) if inputs.made else []
    return plan.model_copy(update={"warnings": [*plan.warnings, *told]})
