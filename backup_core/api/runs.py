"""Calls about runs: start a backup, follow, list, cancel."""

from __future__ import annotations

import secrets
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, get_args

from backup_core.api.context import RETRY_AFTER_SECONDS, Api
from backup_core.api.http import (
    REPEATABILITY,
    Answer,
    RefusedError,
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
from backup_core.api.models import BackupAsked, RunAnswer, RunsAnswer
from backup_core.domain.ending import cancellation
from backup_core.domain.errors import RowChangedError, RowExistsError
from backup_core.domain.naming import disk_of_run, http_run_id, is_disk_id, run_key
from backup_core.domain.records import RequestKey, Run, RunError, RunState
from backup_core.domain.redaction import redacted
from backup_core.steps import BackupRequest

if TYPE_CHECKING:
    from backup_core.domain.records import Versioned

START_BACKUP = "backup_disk"
RUN_STATES = get_args(RunState)


async def post_backup(api: Api, request: Request) -> Answer:
    """Back a disk up now. Repeated under the same key it is the same run."""
    disk = disk_of(request)
    asked = parsed(request, BackupAsked)
    key = repeatability_key(request)
    digest = sha256(f"backup {disk} {asked.model_dump_json()}".encode()).hexdigest()
    if key and (known := await api.catalogue.request(disk, key)):
        return await _repeated(api, request, known, digest)
    if not (await api.policy(disk)).value.protected:
        message = f"protection of disk {disk} was stopped; PUT /api/disks/{disk} takes it up again"
        raise RefusedError(409, "NotProtected", message, "disk")
    row = await api.catalogue.head(disk)
    running = await api.running(row.value if row else None)
    if running:
        url = request.run_url(running)
        message = f"run {running} is at work on disk {disk}; follow it at {url}"
        raise RefusedError(409, "BackupRunning", message, url, headers={"Location": url})
    run = new_run(api, disk, full=asked.kind == "full")
    try:
        if key:
            await api.catalogue.begin_request(run, RequestKey(disk, key, digest, run.run))
        else:
            await api.catalogue.put_run(run, None)
    except RowExistsError:
        known = await api.catalogue.request(disk, key) if key else None
        if known is None:
            raise
        return await _repeated(api, request, known, digest)
    return await started(api, request, run)


async def _repeated(api: Api, request: Request, known: RequestKey, digest: str) -> Answer:
    if known.asked != digest:
        message = f"{REPEATABILITY} {known.key} was used for another request, of run {known.run}; use a new one"
        raise RefusedError(409, "RepeatabilityConflict", message, REPEATABILITY)
    row = await api.catalogue.run(known.disk, known.run)
    if row is None:
        message = f"run {known.run} of this {REPEATABILITY} is not known any more; use a new one"
        raise RefusedError(409, "RepeatabilityConflict", message, REPEATABILITY)
    if row.value.state == "NotStarted":
        # The first call may have died between the row and the start; starting twice is one start.
        return await started(api, request, row.value)
    return _accepted(request, row.value)


def new_run(api: Api, disk: str, *, full: bool) -> Run:
    """A run asked for now, not begun."""
    now = api.now()
    name = http_run_id(disk, now, secrets.token_hex(4))
    return Run(disk=disk, run=name, state="NotStarted", trigger="http", full=full, created=now)


async def started(api: Api, request: Request, run: Run) -> Answer:
    """Start the run's orchestration; its row, which exists, says so when that fails."""
    wanted = BackupRequest(
        disk=run.disk, run=run.run, trigger="http", full=run.full, wave=api.wave_shards, full_copy=api.full_copy
    )
    try:
        await request.start(START_BACKUP, run.run, wanted.model_dump(mode="json"))
    except Exception as error:
        reason = RunError("StartFailed", redacted(f"the orchestration could not be started: {error}"))
        row = await api.catalogue.run(run.disk, run.run)
        if row and row.value.state == "NotStarted":
            await api.catalogue.put_run(replace(row.value, state="Failed", ended=api.now(), error=reason), row.etag)
        raise
    return _accepted(request, run)


def _accepted(request: Request, run: Run) -> Answer:
    headers = {"Operation-Location": request.run_url(run.run), "Retry-After": RETRY_AFTER_SECONDS}
    if repeatability_key(request):
        headers["Repeatability-Result"] = "accepted"
    return answer(202, RunAnswer.of(run), headers)


async def get_run(api: Api, request: Request) -> Answer:
    """Show a run."""
    row = await _run(api, request)
    headers = {} if row.value.ended_for_good else {"Retry-After": RETRY_AFTER_SECONDS}
    return answer(200, RunAnswer.of(row.value), headers)


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
    if row.value.state == "Canceled":
        return answer(200, RunAnswer.of(row.value))
    if row.value.ended_for_good:
        message = f"run {row.value.run} has ended: {row.value.state}; nothing was changed"
        raise RefusedError(409, "RunEnded", message, "run")
    canceled = cancellation(row, await api.catalogue.now(), api.now())
    if canceled != row.value:
        try:
            await api.catalogue.put_run(canceled, row.etag)
        except RowChangedError:
            return await post_cancel(api, request)  # the run has come further in between, so this ends
    headers = {"Operation-Location": request.run_url(canceled.run), "Retry-After": RETRY_AFTER_SECONDS}
    return answer(202, RunAnswer.of(canceled), headers)


async def get_runs(api: Api, request: Request) -> Answer:
    """List runs, newest first, of one `disk` or all, in one `state` or all, asked for `from` and before `to`."""
    top, state = top_of(request), word_of(request, "state", RUN_STATES)
    after = id_of(request, "after", disk_of_run, "run id")
    disk = id_of(request, "disk", is_disk_id, "disk id")
    since, until = time_of(request, "from"), time_of(request, "to")
    found: list[Run] = []
    for one in [disk] if disk else await api.catalogue.disks():
        found += await api.catalogue.runs(one, top + 1, after, state, since, until)
    found.sort(key=lambda run: run_key(run.run))
    more = {**request.query, "top": str(top), "after": found[top - 1].run} if len(found) > top else None
    shown = [RunAnswer.of(run) for run in found[:top]]
    return answer(200, RunsAnswer(value=shown, next_link=request.next_link("runs", more)))
