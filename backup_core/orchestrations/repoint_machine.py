"""The change of a machine's disk: the steps that `domain/machine_change.py` names, until the goal is read back.

In an outage it keeps its state, retries, and reports that it needs attention.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from backup_core.domain.ending import CANCELED
from backup_core.domain.machine_change import Seen, after, next_step, start
from backup_core.orchestrations.calls import Flow, Retries, StepFailedError, call, now
from backup_core.orchestrations.kit import Pauses, concluded, continue_as_new, report
from backup_core.steps.copying import ReportProgress
from backup_core.steps.messages import Fault
from backup_core.steps.restore import (
    CLOSE_CHANGE,
    FENCE_MACHINE,
    INSPECT_MACHINE,
    MOVE_MACHINE,
    RECORD_FAILURE,
    CloseChange,
    MoveMachine,
    MoveResult,
    RecordFailure,
    RepointRequest,
    RepointResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from backup_core.domain.machine_change import Result, Step
    from backup_core.domain.records import Phase
    from backup_core.domain.repoint import Goal
    from backup_core.orchestrations.calls import Context

NAME = "repoint_machine"
_BUSY = Fault(code="MachineBusy", message="it is being changed without end", retryable=False)
_CANCEL = Fault(code=CANCELED, message="canceled on request while the machine was being changed", retryable=False)


def repoint_machine(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a Repointed; never raises for an expected failure."""
    change = _Change(context, RepointRequest.model_validate(context.get_input()))
    return (yield from concluded(change.flow(), lambda _, fault: RepointResult(holds="unknown", power="", fault=fault)))


class _Change:
    """One execution of the orchestrator: the state of the rule, and the texts for people."""

    def __init__(self, context: Context, request: RepointRequest) -> None:
        self.context, self.request, self.actor = context, request, request.actor
        self.retries, self.pauses = Retries(request.retries), Pauses(context, request.pause)
        self.began = request.began or now(context).isoformat()
        self.state = start(request.goal or None)
        self.power, self.source, self.attention = "", "", request.attention
        self.turned = request.fault
        """Reason why the goal is the old disk again."""
        self.newest = _BUSY
        """The newest failure, or the cancel."""
        self.steps: dict[Step, Callable[[], Flow[Result]]] = {
            "report": self._report,
            "fence": self._fence,
            "look": self._look,
            "move": self._move,
            "record_failure": self._record_failure,
            "pause": self._pause,
            "close_change": self._close_change,
        }

    def flow(self) -> Flow[RepointResult]:
        while (step := next_step(self.state)) != "end":
            if step == "continue_as_new":
                self._continue_as_new()
            before, result = self.state, (yield from self._result(step))
            self.state = after(before, step, result)
            if (before.goal, self.state.goal) == ("new", "old"):
                self.turned = self.newest
            self._explain(step, result)
        return self._ended()

    # -- the steps ------------------------------------------------------------------------------------------------------

    def _result(self, step: Step) -> Flow[Result]:
        try:
            return (yield from self.steps[step]())
        except StepFailedError as failed:
            self.newest = failed.fault
            return "temporary" if failed.fault.retryable else "final"

    def _fence(self) -> Flow[Result]:
        return self._seen((yield from call(self.context, FENCE_MACHINE, self._towards("old"), self.retries)))

    def _look(self) -> Flow[Result]:
        return self._seen((yield from call(self.context, INSPECT_MACHINE, self._towards(self.state.goal), self.retries)))

    def _move(self) -> Flow[Result]:
        return self._seen((yield from call(self.context, MOVE_MACHINE, self._towards(self.state.goal), self.retries)))

    def _pause(self) -> Flow[Result]:
        yield from self.pauses.pause()
        return "done"

    def _record_failure(self) -> Flow[Result]:
        """Record why it goes back: another life of this instance cannot read that from the machine."""
        yield from call(self.context, RECORD_FAILURE, RecordFailure(actor=self.actor, fault=self.turned or _BUSY), self.retries)
        return "done"

    def _close_change(self) -> Flow[Result]:
        goal: Goal = "new" if self.state.holds == "new" else "old"
        settle = CloseChange(**self.request.ref(), goal=goal)
        yield from call(self.context, CLOSE_CHANGE, settle, self.retries)
        return "done"

    def _towards(self, goal: Goal | None) -> MoveMachine:
        return MoveMachine(**self.request.ref(), goal=goal or "new")

    def _seen(self, moved: MoveResult) -> Seen:
        self.power, self.source = moved.power, moved.source
        return Seen(moved.holds, reached=moved.done, move=moved.move)

    def _report(self) -> Flow[Result]:
        phase: Phase = "undoing" if self.state.goal == "old" else "repointing"
        progress = ReportProgress(actor=self.actor, phase=phase, attention=self.attention)
        reported = yield from report(self.context, progress, self.retries)
        if not reported.cancel:
            return "done"
        self.newest = reported.fault or _CANCEL
        return "cancel"

    def _continue_as_new(self) -> None:
        again = {
            "goal": self.state.goal,
            "fault": self.turned,
            "began": self.began,
            "retries": self.retries.count,
            "attention": self.attention,
            "pause": self.pauses.seconds,
        }
        continue_as_new(self.context, self.request.model_copy(update=again))

    # -- progress -------------------------------------------------------------------------------------------------------

    def _explain(self, step: Step, result: Result) -> None:
        """Report why a person should look while the change waits."""
        seen = isinstance(result, Seen)
        if step == "move" and seen and not self.state.pausing and not self.state.reached:
            self.pauses.shorten()
            self.attention = ""
        elif self.state.pausing:
            self.attention = self._waiting_words(step, seen=seen)

    def _waiting_words(self, step: Step, *, seen: bool) -> str:
        fault = self.newest
        if step == "move" and seen:
            words = f"Azure takes long: the machine has not completed '{self.state.last}'; look at it; the run continues"
            return words if self.pauses.longest else ""
        if step == "look" and seen:
            has = "no disk" if self.state.holds == "nothing" else "the new disk"
            refused = f"the machine has {has} there and Azure refuses to give it the old one: {fault.message}"
            return f"{refused}; correct that; the run continues by itself"
        if step == "look":
            return f"the machine cannot be seen ({fault.message}); it is not known to have its old disk"
        return f"{fault.code}: {fault.message}; nothing is lost; the run continues as soon as Azure answers"

    def _ended(self) -> RepointResult:
        """The end, in the one place where there is one."""
        state = self.state
        seconds = int((now(self.context) - datetime.fromisoformat(self.began)).total_seconds())
        fault = self.turned
        match state.end:
            case "lost":
                return RepointResult(holds="unknown", power="", fault=self.newest)
            case "unresolved" | None:
                fault = _unresolved(self.newest if state.end else _BUSY)
                return RepointResult(holds=state.holds, power=self.power, fault=fault)
            case "kept" if not state.abandoned:
                first = fault or self.newest
                fault = first.model_copy(update={"message": f"{first.message}; going back: {self.newest.message}"})
        return RepointResult(holds=state.holds, power=self.power, fault=fault, seconds=seconds, source=self.source)


def _unresolved(fault: Fault) -> Fault:
    words = (
        f"a restore that died was changing a machine, and that could not be brought to an end: {fault.message}; look at the "
        "machine; the next run tries again"
    )
    return fault.model_copy(update={"message": words, "retryable": False})
