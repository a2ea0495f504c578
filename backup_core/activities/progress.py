"""A run's progress in its row, which is also its heartbeat."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.progress import hears_of_cancel, is_behind, percent
from backup_core.domain.records import Run
from backup_core.protocol.rights import require_right_to_act
from backup_core.protocol.run_rows import write_run
from backup_core.protocol.updates import update_row
from backup_core.steps.copying import ReportProgress, ReportResult
from backup_core.steps.messages import Fault

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools


async def report_progress(tools: Tools, report: ReportProgress) -> ReportResult:
    """Write the run's progress to its row, which is also its heartbeat. Percent and phase never decrease.

    A second life of the run's work gets no request to cancel until it has come as far as the earlier one.
    """
    await require_right_to_act(tools, report.actor)

    async def report_once() -> ReportResult:
        row = await tools.catalogue.run(report.actor.disk, report.actor.run)
        if row is None or row.value.ended_for_good:
            return ReportResult(percent=row.value.percent if row else 0, cancel=False)
        run = row.value
        progressed = run if report.in_parallel else _progressed(run, report)
        await write_run(tools, row, progressed)
        heard = report.in_parallel or hears_of_cancel(run.phase, run.percent, report.phase)
        failed = run.error if run.cancel_requested is None else None
        return ReportResult(
            percent=progressed.percent,
            started=run.started.isoformat() if run.started else "",
            cancel=heard and (run.cancel_requested is not None or failed is not None),
            fault=Fault(code=failed.code, message=failed.message, retryable=False) if heard and failed else None,
        )

    return await update_row(report_once, f"run {report.actor.run}: its row", "its progress was written")


def _progressed(run: Run, report: ReportProgress) -> Run:
    """The row with the report's progress; numbers only grow."""
    return replace(
        run,
        phase=run.phase if is_behind(run.phase, run.percent, report.phase) else report.phase,
        percent=percent(
            report.phase,
            report.done,
            report.total,
            run.percent,
            rounds_left=report.rounds_left,
            verifying=report.verifying_from,
        ),
        kind=report.kind or run.kind,
        reason=report.reason or run.reason,
        bytes_total=max(run.bytes_total, report.bytes_total),
        bytes_done=max(run.bytes_done, report.bytes_done),
        ranges_total=max(run.ranges_total, report.ranges_total),
        bytes_streamed=max(run.bytes_streamed, report.bytes_streamed),
        requests_total=max(run.requests_total, report.requests_total),
        requests_done=max(run.requests_done, report.requests_done),
        requests_verified=max(run.requests_verified, report.requests_verified),
        retries=max(run.retries, report.retries),
        restore=replace(run.restore, attention=report.attention) if run.restore else None,
    )
