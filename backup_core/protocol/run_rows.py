"""A run's row: written, ended, and its events emitted."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.churn import POINTS_LOOKED_AT, churn_ratio
from backup_core.domain.errors import RowChangedError
from backup_core.domain.events import PhaseBegun, RunEnded, RunWarned, attention_of
from backup_core.domain.records import EXPIRED_NAMED_MAX, RunError
from backup_core.protocol.updates import update_row
from backup_core.steps.backup import FinishRun
from backup_core.steps.restore import FinishRestore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from backup_core.domain.records import Run, Versioned
    from backup_core.protocol.tools import Tools
    from backup_core.steps.messages import Fault

ERROR_LENGTH_MAX = 4000
"""A table's text column holds 32 Ki characters; an error that long helps nobody."""
WARNINGS_MAX = 20
"""Warnings a run's row names, each of at most 500 characters; the log has all."""


async def write_run(tools: Tools, former: Versioned[Run] | None, run: Run) -> None:
    """Insert the run's row, or replace the one it was decided on, then emit its events.

    The write is conditional: one of several deliveries emits. Raises RowExistsError, RowChangedError, and emits nothing.
    """
    run = replace(run, unreported=run.ended_for_good)
    etag = await tools.catalogue.put_run(run, former.etag if former else None)
    if run.ended_for_good:
        await emit_run_end(tools, run, etag)
    else:
        emit_phase(tools, former.value if former else None, run)


async def give_sign_of_life(tools: Tools, disk: str, run: str) -> None:
    """Write the row of a run in progress as it is, so that its silence begins anew. A row that another changes meanwhile has
    its sign of life.
    """
    row = await tools.catalogue.run(disk, run)
    if row and row.value.state == "Running":
        with suppress(RowChangedError):
            await tools.catalogue.put_run(row.value, row.etag)


def emit_phase(tools: Tools, former: Run | None, run: Run) -> None:
    """Emit a new phase, or a new need for attention, of the row that was just written."""
    if former is None or (former.phase, attention_of(former)) != (run.phase, attention_of(run)):
        tools.journal.write(PhaseBegun.of(run))


async def emit_run_end(tools: Tools, run: Run, etag: str) -> None:
    """Emit the end of a run, unless it was emitted, and note that on its row, read or written at `etag`.

    When the writer dies before the note, the next reader of the row emits again: two alerts are better than none.
    """
    if not run.unreported:
        return
    # G48: emitted before it is noted.
    tools.journal.write(RunEnded.of(run, await _churn(tools, run)))
    try:
        await tools.catalogue.put_run(replace(run, unreported=False), etag)
    except RowChangedError:
        return  # another delivery has emitted it too


async def _churn(tools: Tools, run: Run) -> float | None:
    if run.state != "Succeeded" or run.kind != "incremental":
        return None
    return churn_ratio([row.value for row in await tools.catalogue.points(run.disk, POINTS_LOOKED_AT)])


def run_error(fault: Fault) -> RunError:
    """The fault in the form of a run's row."""
    return RunError(fault.code, fault.message[:ERROR_LENGTH_MAX])


def emit_warnings(tools: Tools, disk: str, run: str, warnings: Sequence[str]) -> None:
    """Emit failures that came after the run's success."""
    for words in warnings:
        tools.journal.write(RunWarned(disk=disk, run=run, message=words))


def in_one(known: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """The entries of both, each once, in order."""
    return tuple(dict.fromkeys((*known, *more)))


async def end_row(tools: Tools, request: FinishRun | FinishRestore) -> None:
    """Write the run's end to its row, once, and emit it."""

    async def end() -> bool:
        row = await tools.catalogue.run(request.disk, request.run)
        if row and row.value.ended_for_good:
            await emit_run_end(tools, row.value, row.etag)
        elif row:
            # G55: everything that the row names is bounded: a longer row would be refused.
            await write_run(tools, row, _ended(row.value, request, await tools.catalogue.now()))
        return True

    await update_row(end, f"run {request.run}: its row", "its end was written")


def _ended(run: Run, request: FinishRun | FinishRestore, now: datetime) -> Run:
    """The row with its end; notes of steps stay."""
    restored = run.restore
    if restored and isinstance(request, FinishRestore):
        restored = replace(
            restored,
            attention="",
            end=request.end,
            old_disk=request.old_disk or restored.old_disk,
            downtime_seconds=request.downtime_seconds,
        )
    backup = request if isinstance(request, FinishRun) else None
    return replace(
        run,
        state=request.state,
        ended=now,
        retries=max(run.retries, request.retries),
        phase="done" if request.state == "Succeeded" else run.phase,
        percent=100 if request.state == "Succeeded" else run.percent,
        points=tuple(request.points),
        expired=in_one(run.expired, backup.expired)[:EXPIRED_NAMED_MAX] if backup else (),
        warnings=tuple(backup.warnings[:WARNINGS_MAX]) if backup else (),
        error=run_error(request.fault) if request.fault else None,
        restore=restored,
    )
