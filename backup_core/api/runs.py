"""Calls about runs: start a backup, follow, list, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from backup_core.api.answers import RestoreAnswer, RunAnswer, RunsAnswer, slot_shown
from backup_core.api.bodies import BackupBody
from backup_core.api.context import RETRY_AFTER_SECONDS, Api
from backup_core.api.http import Answer, Request, answer, disk_of, id_of, parsed, repeatability_key, time_of, top_of, word_of
from backup_core.api.lists import newest_runs
from backup_core.api.plans import next_steps, warnings
from backup_core.domain.digests import digest_of
from backup_core.domain.naming import disk_of_run, is_disk_id
from backup_core.domain.records import Run, RunState
from backup_core.operations.admission import check_backup_possible
from backup_core.operations.refusal import RefusedError
from backup_core.operations.runs import RequestId, cancel_run, known_run

if TYPE_CHECKING:
    from datetime import datetime

RUN_STATES = get_args(RunState)


async def post_backup(api: Api, request: Request) -> Answer:
    """Back a disk up now.

    The `kind` `full` forces a full backup. Repeated under the same key it is the same run. 409 while a run is at work.
    """
    disk = disk_of(request)
    body = parsed(request, BackupBody)
    request_id = RequestId(repeatability_key(request), digest_of(f"backup {disk} {body.model_dump_json()}"))
    starter = api.starter(request)
    if run := await starter.resume_repeated(disk, request_id):
        return accepted(api, request, run)
    await check_backup_possible(api.tools, disk)
    run = await starter.new_run(disk, full=body.kind == "full")
    return accepted(api, request, await starter.begin(run, request_id))


def run_shown(run: Run, now: datetime) -> RunAnswer:
    """The run as answers show it."""
    wanted = run.restore
    if wanted is None:
        return RunAnswer.of(run, now)
    restore = RestoreAnswer(
        restore_point=wanted.point,
        target=wanted.target,
        managed_disk=wanted.managed_disk or None,
        machine=slot_shown(wanted.slot),
        repoint=wanted.repoint,
        adopt=wanted.adopt,
        old_disk=wanted.old_disk or None,
        needs_attention=wanted.attention or None,
        end_state=wanted.end or None,
        downtime_seconds=wanted.downtime_seconds,
        warnings=warnings(wanted),
        next_steps=next_steps(wanted),
    )
    return RunAnswer.of(run, now, restore)


def accepted(api: Api, request: Request, run: Run) -> Answer:
    """The answer to a call that started a run, or that repeats the one that did."""
    headers = {"Operation-Location": request.run_url(run.run), "Retry-After": RETRY_AFTER_SECONDS}
    if repeatability_key(request):
        headers["Repeatability-Result"] = "accepted"
    return answer(202, run_shown(run, api.now()), headers)


async def get_run(api: Api, request: Request) -> Answer:
    """Show a run.

    The answer has its state, phase, percent, bytes, retries, error and `warnings`, and how many requests verified it.
    """
    run = (await known_run(api.tools, request.route.get("run", ""))).value
    return answer(200, run_shown(run, api.now()), {} if run.ended_for_good else {"Retry-After": RETRY_AFTER_SECONDS})


async def post_cancel(api: Api, request: Request) -> Answer:
    """Request a run to end.

    One that nobody is at work on ends at once. 409 when it has ended otherwise.
    """
    row = await known_run(api.tools, request.route.get("run", ""))
    needed = "Restore.Operator" if row.value.operation == "restore" else "Backup.Operator"
    if request.roles is not None and needed not in request.roles:
        message = f"run {row.value.run} is a {row.value.operation}: canceling it needs role {needed}; nothing was changed"
        raise RefusedError(403, "RoleMissing", message, "run")
    if row.value.state == "Canceled":
        return answer(200, run_shown(row.value, api.now()))
    canceled = await cancel_run(api.tools, row.value.run)
    headers = {"Operation-Location": request.run_url(canceled.run), "Retry-After": RETRY_AFTER_SECONDS}
    return answer(202, run_shown(canceled, api.now()), headers)


async def get_runs(api: Api, request: Request) -> Answer:
    """List runs, newest first, of one `disk` or all, in one `state` or all, created at `from` or later and before `to`.

    Disks whose rows cannot be read are named in `unreadable`, as in the list of disks.
    """
    top, state = top_of(request), word_of(request, "state", RUN_STATES)
    after = id_of(request, "after", disk_of_run, "run id")
    disk = id_of(request, "disk", is_disk_id, "disk id")
    since, until = time_of(request, "from"), time_of(request, "to")

    async def read(one: str, limit: int, last: str) -> list[Run]:
        return await api.catalogue.runs(one, limit, last, state, since, until)

    disks = [disk] if disk else await api.catalogue.disks()
    found, unreadable = await newest_runs(disks, top + 1, after, read)
    last = found[top - 1].run if len(found) > top else None
    shown = [run_shown(run, api.now()) for run in found[:top]]
    link = request.next_link("runs", last, "disk", "state", "from", "to")
    return answer(200, RunsAnswer(value=shown, unreadable=unreadable, next_link=link))
