"""Runs that callers start and cancel: the row is written first, then the orchestration is started."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from backup_core.domain.digests import digest_of_request
from backup_core.domain.ending import cancellation
from backup_core.domain.errors import RowExistsError, ServiceUnavailableError
from backup_core.domain.naming import disk_of_run, http_run_id
from backup_core.domain.records import RequestKey, Run, RunError
from backup_core.domain.redaction import redacted
from backup_core.operations.refusal import RefusedError
from backup_core.protocol.run_rows import emit_phase, write_run
from backup_core.protocol.updates import update_row
from backup_core.steps.backup import BackupRequest
from backup_core.steps.restore import RestoreRequest

if TYPE_CHECKING:
    from backup_core.domain.records import Registration, Versioned
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import FullCopy, Verification
    from backup_core.steps.messages import Message

START_BACKUP, START_RESTORE = "backup_disk", "restore_disk"
REPEATABILITY = "Repeatability-Request-ID"


Start = Callable[[str, str, dict[str, Any]], Awaitable[None]]
"""Starts an orchestration: (name, instance id, input). An instance that runs already under that id is left alone."""


@dataclass(frozen=True)
class RequestId:
    """The key under which a caller may repeat a request, and the digest of that request; both empty without a key."""

    key: str = ""
    digest: str = ""


@dataclass(frozen=True)
class RunStarter:
    """Starts backups and restores, as the settings say."""

    tools: Tools
    start: Start
    wave_shards: int
    full_copy: FullCopy
    restore_verification: Verification
    prune_after_backup: bool

    async def new_run(self, disk: str, *, full: bool = False) -> Run:
        """A run of this moment, by the table service's clock, under an id of its own; nothing is stored."""
        now = await self.tools.catalogue.now()
        name = http_run_id(disk, now, secrets.token_hex(4))
        return Run(disk=disk, run=name, state="NotStarted", trigger="http", full=full, created=now)

    async def resume_repeated(self, disk: str, request: RequestId) -> Run | None:
        """Resume the run that this request began before; None for a new request.

        Raises RefusedError if the key is of another one.
        """
        known = await self.tools.catalogue.request(disk, request.key) if request.key else None
        return await self._resume(known, request) if known else None

    async def begin(self, run: Run, request: RequestId = RequestId()) -> Run:
        """Store the run and start it. Answers the run of the same request where one was faster."""
        catalogue = self.tools.catalogue
        try:
            if request.key:
                await catalogue.begin_request(run, RequestKey(run.disk, request.key, request.digest, run.run))
                emit_phase(self.tools, None, run)
            else:
                await write_run(self.tools, None, run)
        except RowExistsError:
            known = await catalogue.request(run.disk, request.key) if request.key else None
            if known is None:
                raise
            return await self._resume(known, request)
        except ServiceUnavailableError:
            # The row may exist although its answer was lost. A row without an orchestration would never end.
            if await catalogue.run(run.disk, run.run) is None:
                raise
        return await self._start_run(run)

    async def _resume(self, known: RequestKey, request: RequestId) -> Run:
        if known.request != request.digest:
            message = f"{REPEATABILITY} {known.key} was used for another request, of run {known.run}; use a new one"
            raise RefusedError(409, "RepeatabilityConflict", message, REPEATABILITY)
        row = await self.tools.catalogue.run(known.disk, known.run)
        if row is None:
            message = f"run {known.run} of this {REPEATABILITY} is not known any more; use a new one"
            raise RefusedError(409, "RepeatabilityConflict", message, REPEATABILITY)
        # The first call may have died between the row and the start. Starting twice is one start.
        return await self._start_run(row.value) if row.value.state == "NotStarted" else row.value

    async def _start_run(self, run: Run) -> Run:
        """Start the run's orchestration. When that fails, the run's row is ended as failed."""
        name, wanted = self._orchestration(run)
        try:
            await self.start(name, run.run, wanted.model_dump(mode="json"))
        except Exception as error:
            reason = RunError("StartFailed", redacted(f"the orchestration could not be started: {error}"))
            row = await self.tools.catalogue.run(run.disk, run.run)
            if row and row.value.state == "NotStarted":
                now = await self.tools.catalogue.now()
                await write_run(self.tools, row, replace(row.value, state="Failed", ended=now, error=reason))
            raise
        return run

    def _orchestration(self, run: Run) -> tuple[str, Message]:
        if run.operation == "restore":
            return START_RESTORE, RestoreRequest(
                disk=run.disk,
                run=run.run,
                wave=self.wave_shards,
                full_copy=self.full_copy,
                verification=self.restore_verification,
                wanted=digest_of_request(run.restore) if run.restore else "",
            )
        return START_BACKUP, BackupRequest(
            disk=run.disk,
            run=run.run,
            trigger="http",
            full=run.full,
            wave=self.wave_shards,
            full_copy=self.full_copy,
            prune=self.prune_after_backup,
        )


async def begin_first_backup(starter: RunStarter, registration: Registration) -> Run | None:
    """The disk's first backup, started. None when the source has a restore point, or when a run has not ended yet."""
    catalogue, disk = starter.tools.catalogue, registration.disk
    row = await catalogue.head(disk)
    pending = [run for run in await catalogue.runs(disk, 1) if not run.ended_for_good]
    if pending or (row and row.value.pair and row.value.source == registration.source):
        return None
    return await starter.begin(await starter.new_run(disk))


async def known_run(tools: Tools, name: str) -> Versioned[Run]:
    """The run's row. Raises RefusedError for an unknown run, or for what is no run id."""
    disk = disk_of_run(name)
    if disk is None:
        message = f"{name[:120]!r} is not a run id; expected the id a backup's answer gave"
        raise RefusedError(400, "InvalidRunId", message, "run")
    row = await tools.catalogue.run(disk, name)
    if row is None:
        message = f"no run {name} is known"
        raise RefusedError(404, "RunNotFound", message, "run")
    return row


async def cancel_run(tools: Tools, name: str) -> Run:
    """The run, whose row now asks it to end; one that nobody executes is ended here. Raises RefusedError if it has ended."""

    async def cancel() -> Run:
        row = await known_run(tools, name)
        if row.value.state == "Canceled":
            return row.value
        if row.value.ended_for_good:
            message = f"run {name} has ended: {row.value.state}; nothing was changed"
            raise RefusedError(409, "RunEnded", message, "run")
        canceled = cancellation(row, await tools.catalogue.now())
        if canceled != row.value:
            await write_run(tools, row, canceled)
        return canceled

    return await update_row(cancel, f"run {name}: its row", "it was canceled")
