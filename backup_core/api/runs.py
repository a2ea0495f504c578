"""Calls about runs: start a backup, follow, list, cancel."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from backup_core.api.answers import RestoreAnswer, RunAnswer, RunsAnswer, slot_shown
from backup_core.api.bodies import BackupBody
from backup_core.api.context import RETRY_AFTER_SECONDS, Api
from backup_core.api.http import (
    REPEATABILITY,
    Answer,
    Request,
    answer,
    disk_of,
    id_of,
    parsed,
    repeatability_key,
    time_of,
    top_of,
    word_of,
)
from backup_core.api.lists import newest_runs
from backup_core.api.plans import next_steps, warnings
from backup_core.domain.digests import digest_of, digest_of_request
from backup_core.domain.ending import cancellation
from backup_core.domain.errors import RowChangedError, RowExistsError, ServiceUnavailableError
from backup_core.domain.naming import disk_of_run, http_run_id, is_disk_id
from backup_core.domain.records import RequestKey, Run, RunError, RunState
from backup_core.domain.redaction import redacted
from backup_core.operations.refusal import RefusedError
from backup_core.protocol.ownership import run_at_work
from backup_core.protocol.run_rows import emit_phase, write_run
from backup_core.steps.backup import BackupRequest
from backup_core.steps.restore import RestoreRequest

if TYPE_CHECKING:
    from datetime import datetime

    from backup_core.domain.records import Versioned
    from backup_core.steps.messages import Message

START_BACKUP, START_RESTORE = "backup_disk", "restore_disk"
RUN_STATES = get_args(RunState)


async def post_backup(api: Api, request: Request) -> Answer:
    """Back a disk up now. Repeated under the same key it is the same run."""
    disk = disk_of(request)
    body = parsed(request, BackupBody)
    key = repeatability_key(request)
    digest = digest_of(f"backup {disk} {body.model_dump_json()}")
    if key and (known := await api.catalogue.request(disk, key)):
        return await repeated(api, request, known, digest)
    registration = (await api.registration(disk)).value
    if not registration.protected:
        message = f"protection of disk {disk} was stopped; PUT /api/disks/{disk} takes it up again"
        raise RefusedError(409, "NotProtected", message, "disk")
    if registration.unprotected:
        raise RefusedError(409, "NotProtected", f"disk {disk}: {registration.unprotected}", "disk")
    row = await api.catalogue.head(disk)
    running = await run_at_work(api.tools, row.value if row else None)
    if running:
        url = request.run_url(running)
        message = f"run {running} is at work on disk {disk}; follow it at {url}"
        raise RefusedError(409, "BackupRunning", message, url, headers={"Location": url})
    return await begun(api, request, new_run(api, disk, full=body.kind == "full"), key, digest)


async def begun(api: Api, request: Request, run: Run, key: str = "", digest: str = "") -> Answer:
    """Write the run's row, under its key if there is one, and start it; an equal request that was faster is answered."""
    try:
        if key:
            await api.catalogue.begin_request(run, RequestKey(run.disk, key, digest, run.run))
            emit_phase(api.tools, None, run)
        else:
            await write_run(api.tools, None, run)
    except RowExistsError:
        known = await api.catalogue.request(run.disk, key) if key else None
        if known is None:
            raise
        return await repeated(api, request, known, digest)
    except ServiceUnavailableError:
        # The row may be there, and only the answer be lost: nobody would ever start that run.
        if await api.catalogue.run(run.disk, run.run) is None:
            raise
    return await started(api, request, run)


async def repeated(api: Api, request: Request, known: RequestKey, digest: str) -> Answer:
    """The run that a request of the same key and the same words has started."""
    if known.request != digest:
        message = f"{REPEATABILITY} {known.key} was used for another request, of run {known.run}; use a new one"
        raise RefusedError(409, "RepeatabilityConflict", message, REPEATABILITY)
    row = await api.catalogue.run(known.disk, known.run)
    if row is None:
        message = f"run {known.run} of this {REPEATABILITY} is not known any more; use a new one"
        raise RefusedError(409, "RepeatabilityConflict", message, REPEATABILITY)
    if row.value.state == "NotStarted":
        # The first call may have died between the row and the start; starting twice is one start.
        return await started(api, request, row.value)
    return _accepted(api, request, row.value)


def new_run(api: Api, disk: str, *, full: bool) -> Run:
    """A run asked for now, not begun."""
    now = api.now()
    name = http_run_id(disk, now, secrets.token_hex(4))
    return Run(disk=disk, run=name, state="NotStarted", trigger="http", full=full, created=now)


async def started(api: Api, request: Request, run: Run) -> Answer:
    """Start the run's orchestration; its row, which exists, says so when that fails."""
    wanted: Message
    if run.operation == "restore":
        name = START_RESTORE
        wanted = RestoreRequest(
            disk=run.disk,
            run=run.run,
            wave=api.wave_shards,
            full_copy=api.full_copy,
            verification=api.restore_verification,
            wanted=digest_of_request(run.restore) if run.restore else "",
        )
    else:
        name = START_BACKUP
        wanted = BackupRequest(
            disk=run.disk,
            run=run.run,
            trigger="http",
            full=run.full,
            wave=api.wave_shards,
            full_copy=api.full_copy,
            prune=api.prune_after_backup,
        )
    try:
        await request.start(name, run.run, wanted.model_dump(mode="json"))
    except Exception as error:
        reason = RunError("StartFailed", redacted(f"the orchestration could not be started: {error}"))
        row = await api.catalogue.run(run.disk, run.run)
        if row and row.value.state == "NotStarted":
            await write_run(api.tools, row, replace(row.value, state="Failed", ended=api.now(), error=reason))
        raise
    return _accepted(api, request, run)


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


def _accepted(api: Api, request: Request, run: Run) -> Answer:
    headers = {"Operation-Location": request.run_url(run.run), "Retry-After": RETRY_AFTER_SECONDS}
    if repeatability_key(request):
        headers["Repeatability-Result"] = "accepted"
    return answer(202, run_shown(run, api.now()), headers)


async def get_run(api: Api, request: Request) -> Answer:
    """Show a run."""
    row = await _run(api, request)
    headers = {} if row.value.ended_for_good else {"Retry-After": RETRY_AFTER_SECONDS}
    return answer(200, run_shown(row.value, api.now()), headers)


async def _run(api: Api, request: Request) -> Versioned[Run]:
    name = request.route.get("run", "")
    disk = disk_of_run(name)
    if disk is None:
        message = f"{name[:120]!r} is not a run id; expected the id a backup's answer gave"
        raise RefusedError(400, "InvalidRunId", message, "run")
    row = await api.catalogue.run(disk, name)
    if row is None:
        message = f"no run {name} is known"
        raise RefusedError(404, "RunNotFound", message, "run")
    return row


async def post_cancel(api: Api, request: Request) -> Answer:
    """Ask a run to end. One that nobody is at work on ends at once."""
    row = await _run(api, request)
    needed = "Restore.Operator" if row.value.operation == "restore" else "Backup.Operator"
    if request.roles is not None and needed not in request.roles:
        message = f"run {row.value.run} is a {row.value.operation}: canceling it needs role {needed}; nothing was changed"
        raise RefusedError(403, "RoleMissing", message, "run")
    if row.value.state == "Canceled":
        return answer(200, run_shown(row.value, api.now()))
    if row.value.ended_for_good:
        message = f"run {row.value.run} has ended: {row.value.state}; nothing was changed"
        raise RefusedError(409, "RunEnded", message, "run")
    canceled = cancellation(row, await api.catalogue.now(), api.now())
    if canceled != row.value:
        try:
            await write_run(api.tools, row, canceled)
        except RowChangedError:
            return await post_cancel(api, request)  # the run has come further in between, so this ends
    headers = {"Operation-Location": request.run_url(canceled.run), "Retry-After": RETRY_AFTER_SECONDS}
    return answer(202, run_shown(canceled, api.now()), headers)


async def get_runs(api: Api, request: Request) -> Answer:
    """List runs, newest first, of one `disk` or all, in one `state` or all, asked for `from` and before `to`."""
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
