"""A window of the schedule: one backup_disk orchestration per registered disk, none of which stops another."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from backup_core.domain.shown import named
from backup_core.orchestrations import backup_disk
from backup_core.orchestrations.calls import Flow, Retries, call, failure_text, show
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
        rest = request.model_copy(update={"after": page.runs[-1].disk})
        tasks[f"disks after {page.runs[-1].disk}"] = context.call_sub_orchestrator(
            NAME, rest.model_dump(mode="json"), f"{context.instance_id}.{page.runs[-1].disk}"
        )
    results, failed = yield from _settled(context, tasks)
    if failed:
        message = f"window {request.window}: {len(failed)} of {len(tasks)} failed: {named(failed)}"
        raise FleetFailedError(message)
    return {"window": request.window, "runs": results}


def _settled(context: Context, tasks: dict[str, Any]) -> Flow[tuple[dict[str, Any], list[str]]]:
    """Every task's result or failure, once all have ended: started together, then awaited one by one."""
    if not tasks:
        return {}, []
    results: dict[str, Any] = {}
    failed: list[str] = []
    # task_all tells the first failure only; the loop below reads each task's own.
    with contextlib.suppress(Exception):
        yield context.task_all(list(tasks.values()))
    for name, task in tasks.items():
        try:
            results[name] = yield task
        except Exception as error:  # noqa: BLE001  a failed sub-orchestration arrives as a plain Exception
            failed.append(f"{name}: {failure_text(error)}")
    return results, failed
