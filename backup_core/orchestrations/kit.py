"""Shared parts of orchestrators: reports of progress, pauses between polls, and the one way to leave."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from backup_core.domain.ending import PAUSE_SECONDS_MAX
from backup_core.domain.progress import eta_seconds
from backup_core.orchestrations.calls import Left, call, now, show
from backup_core.steps.copying import REPORT_PROGRESS

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context, Flow, Retries
    from backup_core.steps.copying import ImageCopy, ReportProgress, ReportResult
    from backup_core.steps.messages import Fault, Message

PAUSE_FIRST, PAUSE_GROWTH = 5.0, 1.5
"""Seconds of the pause before the second poll, and the factor by which pauses grow."""
LOOKS_PER_EXECUTION = 24
"""Polls before the instance continues as new, so that its history stays small."""


def concluded(
    flow: Flow[Message], end: Callable[[Literal["failed", "canceled"], Fault | None], Message]
) -> Flow[dict[str, Any] | None]:
    """A sub-orchestration's output as JSON: the result of `flow`, or of `end` after a failure or a cancel. None when the
    instance continues as new. Never raises for an expected failure.
    """
    try:
        output = yield from flow
    except Left as left:
        if left.state == "continued":
            return None
        output = end(left.state, left.fault)
    return output.model_dump(mode="json")


def begin_anew(context: Context, again: Message) -> None:
    """Start a new execution, with that input and an empty history, once this one returns."""
    context.continue_as_new(again.model_dump(mode="json"))


def continue_as_new(context: Context, again: Message) -> NoReturn:
    """Leave, and begin a new execution with that input and an empty history."""
    begin_anew(context, again)
    raise Left(state="continued")


class Pauses:
    """Pauses between polls: each is longer than the one before, up to PAUSE_SECONDS_MAX."""

    def __init__(self, context: Context, seconds: float = 0.0) -> None:
        """Begin with a pause of `seconds`, the position of an earlier execution; 0 is the shortest one."""
        self._context, self.seconds = context, seconds or PAUSE_FIRST

    @property
    def longest(self) -> bool:
        """Whether the pauses grow no more."""
        return self.seconds >= PAUSE_SECONDS_MAX

    def shorten(self) -> None:
        """Begin again with the shortest pause."""
        self.seconds = PAUSE_FIRST

    def pause(self) -> Flow[float]:
        """Wait; the seconds that were waited."""
        waited = self.seconds
        yield self._context.create_timer(now(self._context) + timedelta(seconds=waited))
        self.seconds = min(waited * PAUSE_GROWTH, PAUSE_SECONDS_MAX)
        return waited


def report(context: Context, progress: ReportProgress, retries: Retries, /, **details: Any) -> Flow[ReportResult]:  # noqa: ANN401  any JSON
    """Report progress to the run's row, which is its heartbeat, and show it in the custom status. The answer has whether the
    run is to end. Raises StepFailedError.
    """
    progress = progress.model_copy(update={"retries": retries.count})
    attention = {"needsAttention": progress.attention} if progress.attention else {}
    shown = {"disk": progress.actor.disk, "phase": progress.phase, **attention, **details}
    if progress.attention:
        # Before the row is written, because that may take long.
        show(context, shown)
    reported = yield from call(context, REPORT_PROGRESS, progress, retries)
    show(context, shown | progress_shown(context, reported))
    return reported


def progress_shown(context: Context, reported: ReportResult) -> dict[str, int]:
    """Percent and, once it is known, the estimated remaining seconds: for the custom status."""
    started = datetime.fromisoformat(reported.started) if reported.started else None
    left = eta_seconds(started, now(context), reported.percent)
    return {"percent": reported.percent} | ({} if left is None else {"etaSeconds": left})


def in_parallel(image: ImageCopy) -> bool:
    """Whether the copy is a restore's promotion, which runs beside the main work of the run."""
    return bool(image.actor.pin) and image.becomes == "head"
