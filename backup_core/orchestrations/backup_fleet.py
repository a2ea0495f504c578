"""A window of the schedule: one backup_disk orchestration per registered disk, none of which stops another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.domain.identity import page_id
from backup_core.domain.shown import named
from backup_core.orchestrations import backup_disk
from backup_core.orchestrations.calls import Crashed, Flow, Retries, call, settled, show
from backup_core.steps.backup import LIST_DISKS, BackupRequest, FleetPage, FleetRequest

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context

NAME = "backup_fleet"


class FleetFailedError(Exception):
    """At least one disk of the window has no new restore point; the others went on. The text names them."""


def backup_fleet(context: Context) -> Flow[dict[str, Any]]:
    """The orchestrator. Returns the runs' results by disk; raises when a run failed, after all have ended."""
    request = FleetRequest.model_validate(context.get_input())
    page = yield from call(context, LIST_DISKS, FleetPage(window=request.window, after=request.after), Retries())
    show(context, {"window": request.window, "disks": len(page.runs), "more": page.more})
    tasks = {
        one.disk: context.call_sub_orchestrator(
            backup_disk.NAME,
            BackupRequest(
                disk=one.disk,
                run=one.run,
                trigger="timer",
                window=request.window,
                wave=request.wave,
                full_copy=request.full_copy,
                prune=request.prune,
            ).model_dump(mode="json"),
            one.run,
        )
        for one in page.runs
    }
    if page.more:
        rest = request.model_copy(update={"after": page.runs[-1].disk, "page": request.page + 1})
        instance = page_id(context.instance_id, rest.page)
        tasks[f"disks after {rest.after}"] = context.call_sub_orchestrator(NAME, rest.model_dump(mode="json"), instance)
    ends = yield from settled(context, list(tasks.values()))
    results = dict(zip(tasks, ends, strict=True))
    failed = [f"{name}: {end.why}" for name, end in results.items() if isinstance(end, Crashed)]
    if failed:
        message = f"window {request.window}: {len(failed)} of {len(tasks)} failed: {named(failed)}"
        raise FleetFailedError(message)
    return {"window": request.window, "runs": results}
