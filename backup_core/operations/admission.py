"""Checks before a run is started: whether it is possible, permitted, and the only one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.operations.refusal import RefusedError
from backup_core.operations.registrations import known_registration
from backup_core.protocol.ownership import is_at_work, older_runs, run_at_work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.operations.permissions import Probe
    from backup_core.operations.restores import RestoreInputs
    from backup_core.protocol.tools import Tools


async def check_backup_possible(tools: Tools, disk: str) -> None:
    """Check that the disk is protected and no run is in progress. Raises RefusedError."""
    registration = (await known_registration(tools, disk)).value
    if not registration.protected:
        message = f"protection of disk {disk} was stopped; PUT /api/disks/{disk} resumes it"
        raise RefusedError(409, "NotProtected", message, "disk")
    if registration.unprotected:
        raise RefusedError(409, "NotProtected", f"disk {disk}: {registration.unprotected}", "disk")
    head = await tools.catalogue.head(disk)
    if running := await run_at_work(tools, head.value if head else None):
        raise RefusedError(409, "BackupRunning", f"run {running} is in progress on disk {disk}", follow=f"runs/{running}")


async def check_restore_possible(tools: Tools, inputs: RestoreInputs, probes: Sequence[Probe], plan_hash: str | None) -> None:
    """Check that this is the restore of the dry run, that the app has its permissions, and that no other one is in progress.

    Raises RefusedError; changes nothing.
    """
    disk = inputs.point.disk
    if plan_hash and plan_hash != inputs.hash:
        message = (
            f"disk {disk}: the plan is of another restore than this one to restore point {inputs.point.point}: this request "
            "differs from its dry run, or the restore point, the registration or the machine has changed since; nothing was "
            "done; make the dry run again with this very body"
        )
        raise RefusedError(412, "PlanChanged", message, "planHash")
    if denied := [probe.action for probe in probes if probe.state == "denied"]:
        may_not = f"the app's identity may not {', '.join(denied)}"
        message = f"{may_not}; grant it the role Pagekeeper machine there (docs/security.md); nothing was done"
        raise RefusedError(403, "PermissionMissing", message)
    if other := await _restore_in_progress(tools, inputs):
        message = f"restore {other} of disk {disk} is in progress and will change its source"
        raise RefusedError(409, "RestoreRunning", message, follow=f"runs/{other}")


async def _restore_in_progress(tools: Tools, inputs: RestoreInputs) -> str:
    """Another restore in progress that will change the disk's source, if this one would too; else empty. The disk's ownership
    decides between two that begin at once.
    """
    mine = inputs.restoring
    if not (mine.repoint or mine.adopt):
        return ""
    # One that has begun has a pin, however many runs were requested since.
    for run in (*inputs.past, *await older_runs(tools, inputs.point.disk, inputs.past)):
        if run.restore is None or run.ended_for_good or not (run.restore.repoint or run.restore.adopt):
            continue
        if await is_at_work(tools, run.disk, run.run):
            return run.run
    return ""
