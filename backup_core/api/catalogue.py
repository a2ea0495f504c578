"""Calls about the app itself: its health, and the rebuild of its catalogue."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING

from backup_core import __version__
from backup_core.activities.rebuild import carry_out, disks_to_survey, survey
from backup_core.api.context import Api, log
from backup_core.api.http import Answer, RefusedError, Request, answer, parsed
from backup_core.api.models import HealthAnswer, QuarantinedAnswer, RebuildAnswer, RebuildAsked, RebuiltDisk
from backup_core.domain.errors import BlobMissingError, ContainerMissingError
from backup_core.domain.naming import BlobAddress, is_disk_id
from backup_core.domain.redaction import redacted

if TYPE_CHECKING:
    from backup_core.activities.rebuild import Survey


HEALTH_PROBE = "pagekeeper-health-probe"


async def post_rebuild(api: Api, request: Request) -> Answer:
    """Compare the catalogue with the blobs, and bring it back where it differs: first as a dry run, then with its hash."""
    asked = parsed(request, RebuildAsked)
    if asked.after and not is_disk_id(asked.after):
        message = f"{asked.after[:80]!r} is not a disk id"
        raise RefusedError(400, "InvalidRequest", message, "after")
    if not asked.dry_run and not asked.plan_hash:
        message = "planHash is missing; make a dry run first, look at what it would do, and present its planHash"
        raise RefusedError(400, "DryRunFirst", message, "planHash")
    disks = await disks_to_survey(api.tools, asked.after)
    surveys = [await survey(api.tools, disk) for disk in disks[: asked.top]]
    after = disks[asked.top - 1] if len(disks) > asked.top else None
    value = [shown for one in surveys if (shown := _shown(one)).state != "unchanged"]
    plan_hash = sha256("\n".join([*(one.model_dump_json() for one in value), after or ""]).encode()).hexdigest()
    if not asked.dry_run:
        if asked.plan_hash != plan_hash:
            message = "the catalogue or the blobs have changed since the dry run; nothing was written; make a new one"
            raise RefusedError(412, "PlanChanged", message, "planHash")
        for one in surveys:
            await carry_out(api.tools, one)
    return answer(
        200, RebuildAnswer(dry_run=asked.dry_run, value=value, examined=len(surveys), plan_hash=plan_hash, after=after)
    )


def _shown(found: Survey) -> RebuiltDisk:
    lost = [row.value.point for row in found.changed if row.value.state == "lost"]
    different = found.adopted or found.changed or found.quarantined or found.head or found.policy or found.claim
    return RebuiltDisk(
        disk=found.disk,
        state="unreadable" if found.unreadable else "busy" if found.busy else "different" if different else "unchanged",
        running=found.busy or None,
        why=found.unreadable or None,
        adopted=[point.point for point in found.adopted],
        corrected=[row.value.point for row in found.changed if row.value.state == "available"],
        lost=lost,
        quarantined=[
            *(QuarantinedAnswer(blob=head, snapshot=snapshot, why=why) for (head, snapshot), why in found.quarantined),
        ],
        head_row="rebuilt" if found.head_differs else "right",
        registration="rebuilt" if found.policy or found.claim else "right",
    )


async def get_health(api: Api, _: Request) -> Answer:
    """Whether the catalogue and the backup account answer, as found out in the last five seconds; no details for strangers."""
    found = await api.health.get(api.tools.monotonic, lambda: _look(api))
    return answer(200 if found.status == "ok" else 503, found)


async def _look(api: Api) -> HealthAnswer:
    checks = {"catalogue": _reach_catalogue(api), "backupAccount": _reach_backups(api)}
    # One after the other: the first prepares what the second looks at.
    results = [(await asyncio.gather(check, return_exceptions=True))[0] for check in checks.values()]
    shown = {
        name: "failed" if isinstance(result, BaseException) else "ok" for name, result in zip(checks, results, strict=True)
    }
    for name, result in zip(checks, results, strict=True):
        if isinstance(result, BaseException):
            log.error("health check %s failed: %s", name, redacted(str(result)))
    well = all(value == "ok" for value in shown.values())
    return HealthAnswer(version=__version__, status="ok" if well else "unhealthy", checks=shown)


async def _reach_catalogue(api: Api) -> None:
    await api.prepare()
    await api.catalogue.now()


async def _reach_backups(api: Api) -> None:
    """Look for a blob that nobody has: nothing of anybody's is listed. That it is missing is what is expected."""
    try:
        await api.tools.blobs.properties(BlobAddress(api.tools.backup_account, api.tools.heads_container, HEALTH_PROBE))
    except ContainerMissingError:
        raise
    except BlobMissingError:
        return
