"""Writing a run's row and telling of it: a line when it comes to another phase, a line when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.churn import POINTS_LOOKED_AT, churn_ratio
from backup_core.domain.errors import RowChangedError
from backup_core.domain.events import PhaseBegun, RunEnded, attention_of

if TYPE_CHECKING:
    from backup_core.activities.tools import Tools
    from backup_core.domain.records import Run, Versioned


async def write_run(tools: Tools, former: Versioned[Run] | None, run: Run) -> None:
    """Insert the run's row, or replace the one it was decided on, then tell what is new in it.

    The write is conditional: of several deliveries one tells. Raises RowExistsError, RowChangedError, and tells nothing.
    """
    run = replace(run, unreported=run.ended_for_good)
    etag = await tools.catalogue.put_run(run, former.etag if former else None)
    if run.ended_for_good:
        await emit_run_end(tools, run, etag)
    else:
        emit_phase(tools, former.value if former else None, run)


def emit_phase(tools: Tools, former: Run | None, run: Run) -> None:
    """Tell what the row, just written, says that `former` did not."""
    if former is None or (former.phase, attention_of(former)) != (run.phase, attention_of(run)):
        tools.journal.write(PhaseBegun.of(run))


async def emit_run_end(tools: Tools, run: Run, etag: str) -> None:
    """Tell of a run that has ended, unless it was told, and note that on its row, read or written at `etag`.

    What dies before the note is told again by whoever finds the row so: an alert that comes twice is better than none.
    """
    if not run.unreported:
        return
    tools.journal.write(RunEnded.of(run, await _churn(tools, run)))
    try:
        await tools.catalogue.put_run(replace(run, unreported=False), etag)
    except RowChangedError:
        return  # another delivery has told it too


async def _churn(tools: Tools, run: Run) -> float | None:
    if run.state != "Succeeded" or run.kind != "incremental":
        return None
    return churn_ratio([row.value for row in await tools.catalogue.points(run.disk, POINTS_LOOKED_AT)])
