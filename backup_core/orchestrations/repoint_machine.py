"""Giving a machine another disk: moves until the goal is read back. What fails or is canceled goes back to the old disk.

It never ends while the machine has neither disk: through an outage it keeps its state, tries again, and asks for attention.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from backup_core.domain.ending import CANCELED, PAUSE_SECONDS_MAX
from backup_core.orchestrations.calls import Flow, Retries, StepFailedError, call, now, show
from backup_core.steps.copying import REPORT_PROGRESS, Report
from backup_core.steps.messages import Fault
from backup_core.steps.restore import (
    FENCE_MACHINE,
    LOOK_AT_MACHINE,
    MOVE_MACHINE,
    NOTE_FAILURE,
    SETTLE_CHANGE,
    Moved,
    MoveMachine,
    NoteFailure,
    Repointed,
    RepointRequest,
    SettleChange,
)

if TYPE_CHECKING:
    from typing import Literal

    from backup_core.orchestrations.calls import Context

NAME = "repoint_machine"
PAUSE_FIRST, PAUSE_GROWTH = 5.0, 1.5
"""Seconds between looks while the machine is being changed, and between attempts during an outage; how they grow."""
MOVES_PER_EXECUTION = 16
SETTLING_MOVES_MAX = 40
"""With the pauses between them about two hours: then whoever asked fails visibly."""


def repoint_machine(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a Repointed; never raises for an expected failure."""
    request = RepointRequest.model_validate(context.get_input())
    repointing = _Repointing(context, request)
    end: Repointed | None
    try:
        end = yield from (repointing.flow() if request.goal else repointing.settled())
    except StepFailedError as failed:
        end = Repointed(holds="unknown", power="", fault=failed.fault)
    return end.model_dump(mode="json") if end else None


class _Repointing:
    """One execution of the orchestrator."""

    def __init__(self, context: Context, request: RepointRequest) -> None:
        self.context, self.request, self.by = context, request, request.by
        self.retries = Retries(request.retries)
        self.goal: Literal["new", "old"] = "old" if request.goal == "old" else "new"
        self.fault, self.attention = request.fault, request.attention
        self.began = request.began or now(context).isoformat()
        self.pause, self.last = request.pause or PAUSE_FIRST, ""
        self.fenced = False

    # -- forward, or back ---------------------------------------------------------------------------------------------

    def flow(self) -> Flow[Repointed | None]:
        """Moves until the goal is reached; None when it goes on as a new execution."""
        for _ in range(MOVES_PER_EXECUTION):
            yield from self._report()
            try:
                moved = yield from call(self.context, MOVE_MACHINE, self._move(self.goal), self.retries)
                if moved.done and self.goal == "old" and not self.fenced:
                    # A move towards the new disk may still be under way from a worker that died: shut it out, look again.
                    yield from call(self.context, FENCE_MACHINE, self._move("old"), self.retries)
                    self.fenced, self.last = True, ""
                    continue
            except StepFailedError as failed:
                end = yield from self._failed(failed.fault)
                if end:
                    return end
                continue
            if moved.done:
                return (yield from self._reached(moved))
            if moved.move in ("wait", self.last):
                long = self.pause >= PAUSE_SECONDS_MAX
                words = f"Azure takes long: the machine is not through with '{moved.move}'; look at it; the run goes on"
                self.attention = words if long else ""
                yield from self._wait()
            else:
                self.pause, self.attention = PAUSE_FIRST, ""
            self.last = moved.move
        again = self.request.model_copy(
            update={
                "goal": self.goal,
                "fault": self.fault,
                "began": self.began,
                "retries": self.retries.count,
                "attention": self.attention,
                "pause": self.pause,
            }
        )
        self.context.continue_as_new(again.model_dump(mode="json"))
        return None

    def _move(self, goal: Literal["new", "old"]) -> MoveMachine:
        return MoveMachine(by=self.by, change=self.request.change, goal=goal)

    def _reached(self, moved: Moved) -> Flow[Repointed]:
        """The goal was read back. A machine that has its old disk again is done with; the new one waits for its adoption."""
        if self.goal == "old":
            yield from call(self.context, SETTLE_CHANGE, self._settle("old"), self.retries)
        return self._ended(moved)

    def _settle(self, goal: Literal["new", "old"]) -> SettleChange:
        return SettleChange(by=self.by, change=self.request.change, goal=goal)

    def _ended(self, moved: Moved) -> Repointed:
        seconds = int((now(self.context) - datetime.fromisoformat(self.began)).total_seconds())
        return Repointed(holds=moved.holds, power=moved.power, fault=self.fault, seconds=seconds)

    def _failed(self, fault: Fault) -> Flow[Repointed | None]:
        """What may pass is waited out. What does not turns the goal back to the old disk; and when even that is refused, it
        ends only if the machine has one of its disks.
        """
        if fault.retryable:
            self.attention = f"{fault.code}: {fault.message}; nothing is lost, it goes on as soon as Azure answers"
            yield from self._wait()
            return None
        if self.goal == "new":
            self.goal, self.fault, self.last = "old", fault, ""
            yield from self._note(fault)
            return None
        try:
            seen = yield from call(self.context, LOOK_AT_MACHINE, self._move("old"), self.retries)
        except StepFailedError as blind:
            self.attention = f"the machine cannot be seen ({blind.fault.message}); it is not known to have its old disk"
            yield from self._wait()
            return None
        if seen.holds in ("old", "other"):
            self.fault = self.fault or fault
            message = f"{self.fault.message}; going back: {fault.message}"
            self.fault = self.fault.model_copy(update={"message": message})
            yield from call(self.context, SETTLE_CHANGE, self._settle("old"), self.retries)
            return self._ended(seen)
        has = "no disk" if seen.holds == "nothing" else "the new disk"
        self.attention = (
            f"the machine has {has} there and Azure refuses to give it the old one: {fault.message}; correct that, it goes on "
            "by itself"
        )
        yield from self._wait()
        return None

    def _note(self, fault: Fault) -> Flow[None]:
        """Tell why it goes back: another life of this instance cannot learn it from the machine."""
        with suppress(StepFailedError):
            yield from call(self.context, NOTE_FAILURE, NoteFailure(by=self.by, fault=fault), self.retries)

    def _wait(self) -> Flow[None]:
        yield self.context.create_timer(now(self.context) + timedelta(seconds=self.pause))
        self.pause = min(self.pause * PAUSE_GROWTH, PAUSE_SECONDS_MAX)

    def _report(self) -> Flow[None]:
        """A sign of life, and whether the run is to end: then it goes back. When even that fails, it goes on all the same."""
        report = Report(
            by=self.by,
            phase="repointing" if self.goal == "new" else "undoing",
            retries=self.retries.count,
            attention=self.attention,
        )
        shown = {"disk": self.by.disk, "phase": report.phase}
        show(self.context, shown | ({"needsAttention": self.attention} if self.attention else {}))
        try:
            reported = yield from call(self.context, REPORT_PROGRESS, report, self.retries)
        except StepFailedError as failed:
            # Its row cannot be written. Only another owner is a reason to stop: then that one settles the machine.
            if failed.fault.retryable:
                return
            raise
        if reported.cancel and self.goal == "new":
            message = "canceled on request while the machine was being changed"
            self.fault = reported.fault or Fault(code=CANCELED, message=message, retryable=False)
            self.goal, self.last = "old", ""

    # -- what a dead run left -------------------------------------------------------------------------------------------

    def settled(self) -> Flow[Repointed]:
        """Forward when the machine has the new disk, back to the old one when it has neither; a fault when Azure does not let
        it: then the run that asked fails, visibly, and the next one tries again.
        """
        # Whatever the dead run sent may still be under way: from here on it is refused.
        yield from call(self.context, FENCE_MACHINE, self._move("old"), self.retries)
        seen = yield from call(self.context, LOOK_AT_MACHINE, self._move("new"), self.retries)
        self.goal = "new" if seen.done else "old"
        for _ in range(SETTLING_MOVES_MAX):
            try:
                moved = yield from call(self.context, MOVE_MACHINE, self._move(self.goal), self.retries)
            except StepFailedError as failed:
                if failed.fault.retryable or seen.holds == "nothing":
                    return Repointed(holds=seen.holds, power=seen.power, fault=_unsettled(failed.fault))
                break  # it has one of its disks, or somebody gave it a third one: that is its end state
            seen = moved
            if moved.done:
                break
            if moved.move == "wait":
                yield from self._wait()
        else:
            fault = Fault(code="MachineBusy", message="it is being changed without end", retryable=False)
            return Repointed(holds=seen.holds, power=seen.power, fault=_unsettled(fault))
        yield from call(self.context, SETTLE_CHANGE, self._settle("new" if seen.holds == "new" else "old"), self.retries)
        return self._ended(seen)


def _unsettled(fault: Fault) -> Fault:
    words = (
        f"a restore that died was changing a machine, and that could not be brought to an end: {fault.message}; look at the "
        "machine; the next run tries again"
    )
    return fault.model_copy(update={"message": words, "retryable": False})
