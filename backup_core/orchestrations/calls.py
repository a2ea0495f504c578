"""Calls of steps and sub-orchestrations: the tasks yielded to Durable Functions, and the part of its API that may be used.

Plain calls that answer outcomes, in waves, with durable timers between attempts: `call_activity_with_retry` numbers its
tasks differently from the extension when other work is open (azure-functions-durable 1.x), and a sliding `task_any` window
runs one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from pydantic import ValidationError

from backup_core.domain.ending import WAITS_MAX
from backup_core.domain.shown import bounded, shortened
from backup_core.steps.messages import Fault, Message, Step, StepOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)
ValueT = TypeVar("ValueT")
Flow = Generator[Any, Any, ValueT]
"""A part of an orchestrator: yields durable tasks, returns a value."""

PAUSES = (timedelta(seconds=5), timedelta(seconds=20), timedelta(minutes=1), timedelta(minutes=3))
"""Waits between attempts after a temporary failure; with the adapters' own retries about ten minutes in all."""

BEGINNINGS_MAX = 3
"""Times a sub-orchestration is begun while the answer is another call's."""


class Context(Protocol):
    """The part of the Durable orchestration context that is used: nothing else may be called from an orchestrator."""

    instance_id: str
    current_utc_datetime: datetime
    """When the episode began. A repeated episode has another time: see `now`."""
    version: str | None
    """The `defaultVersion` of host.json when the instance began: an incompatible change keeps the old way for its instances."""

    def get_input(self) -> Any: ...  # noqa: ANN401, D102  the SDK's own names and types
    def call_activity(self, name: str, input_: Any) -> Any: ...  # noqa: ANN401, D102
    def call_sub_orchestrator(self, name: str, input_: Any, instance_id: str | None = None) -> Any: ...  # noqa: ANN401, D102
    def task_all(self, tasks: list[Any]) -> Any: ...  # noqa: ANN401, D102
    def create_timer(self, fire_at: datetime) -> Any: ...  # noqa: ANN401, D102
    def set_custom_status(self, status: Any) -> None: ...  # noqa: ANN401, D102
    def continue_as_new(self, input_: Any) -> None: ...  # noqa: ANN401, D102


class Left(Exception):  # noqa: N818  control flow, not an error of the program
    """Leaves an orchestrator whose end is decided: failed with a fault, canceled, or continued as new."""

    def __init__(self, state: Literal["failed", "canceled", "continued"], fault: Fault | None = None) -> None:
        """Keep both; the exception's message is the fault's."""
        super().__init__(f"{fault.code}: {fault.message}" if fault else state)
        self.state, self.fault = state, fault


class StepFailedError(Left):
    """A step failed for good, with `fault`."""

    fault: Fault

    def __init__(self, fault: Fault) -> None:
        """Keep the fault; its message is the exception's."""
        super().__init__("failed", fault)


class Retries:
    """Counts the attempts beyond the first, for the run's progress."""

    def __init__(self, count: int = 0) -> None:
        """Start at `count`."""
        self.count = count


def now(context: Context) -> datetime:
    """When the episode began: the same in every replay, but another when the episode runs a second time.

    So it has two uses: timers, and times shown to people. No branch depends on it, and it enters no
    input of a step or of another orchestration; activities ask the catalogue what time it is.
    """
    return context.current_utc_datetime


def show(context: Context, status: dict[str, Any]) -> None:
    """Set the custom status, cut to its limit: a longer one would fail the orchestration."""
    context.set_custom_status(bounded(status))


def failure_text(error: Exception) -> str:
    """The failure's text of an activity or sub-orchestration, shortened; no decision depends on it."""
    return shortened(str(error)) or "it failed"


def call(context: Context, step: Step[RequestT, ResultT], request: RequestT, retries: Retries) -> Flow[ResultT]:
    """The result of one step, retried after temporary failures. Raises StepFailedError."""
    answers = yield from wave(context, step, [request], retries)
    return answers[0]


def wave(
    context: Context, step: Step[RequestT, ResultT], requests: Sequence[RequestT], retries: Retries
) -> Flow[list[ResultT]]:
    """The results of the step for each input, side by side; only failed calls are retried, for as long as a run may be silent.
    Raises StepFailedError with the first fault.
    """
    answers: list[ResultT | None] = [None] * len(requests)
    pauses, waits_left = iter(PAUSES), WAITS_MAX
    while True:
        open_ = [position for position, answer in enumerate(answers) if answer is None]
        outcomes = yield from attempt(context, step, [requests[position] for position in open_])
        faults = []
        for position, outcome in zip(open_, outcomes, strict=True):
            if outcome.fault:
                faults.append(outcome.fault)
            else:
                answers[position] = step.answers.model_validate(outcome.value)
        if not faults:
            return [answer for answer in answers if answer is not None]
        final = next((fault for fault in faults if not fault.retryable), None)
        pause = next(pauses, None)
        longest = timedelta(seconds=max(fault.wait_seconds for fault in faults))
        waits_left -= timedelta(seconds=max(fault.silent_seconds for fault in faults))
        # G4: a run that waited on would have no heartbeat, and lose its disk.
        if final or pause is None or max(pause, longest) > waits_left:
            raise StepFailedError(final or faults[0])
        retries.count += len(faults)
        waits_left -= max(pause, longest)
        yield context.create_timer(now(context) + max(pause, longest))


@dataclass(frozen=True)
class Child(Generic[ResultT]):
    """A sub-orchestration to be started: its name, its input, and the type of its output."""

    name: str
    input: Message
    answers: type[ResultT]
    ids: tuple[str, ...] = ()
    """The id of each attempt, where the parent is never started twice. Usually empty: then the ids are the extension's, of this
    execution and the number of the call. Under an id of ours, a child that a former life of the parent has started could start
    late and replace the child that this life waits for; its end would be reported to the former life.
    """

    @property
    def attempts(self) -> list[str | None]:
        """The id of each time that it may be started."""
        return list(self.ids) or [None] * BEGINNINGS_MAX


def sub_orchestration(context: Context, name: str, request: Message, answers: type[ResultT]) -> Flow[ResultT]:
    """Another orchestration's output. Raises StepFailedError when it failed or was terminated: it could not say why itself."""
    (end,) = yield from children(context, [Child(name, request, answers)])
    if isinstance(end, Crashed):
        message = f"{name} of {context.instance_id}: {end.why}"
        raise StepFailedError(Fault(code="Unexpected", message=message, retryable=False))
    return end


def children(context: Context, wanted: Sequence[Child[ResultT]]) -> Flow[list[ResultT | Crashed]]:
    """The output of each sub-orchestration, or its crash, once all have ended. One that another call answered is started
    again.
    """
    ends: list[ResultT | Crashed | None] = [None] * len(wanted)
    for attempt in range(BEGINNINGS_MAX):
        open_ = [n for n, child in enumerate(wanted) if ends[n] is None and attempt < len(child.attempts)]
        tasks = [
            context.call_sub_orchestrator(child.name, child.input.model_dump(mode="json"), child.attempts[attempt])
            for child in (wanted[n] for n in open_)
        ]
        for n, raw in zip(open_, (yield from all_ended(context, tasks)), strict=True):
            ends[n] = raw if isinstance(raw, Crashed) else answer_of(wanted[n].answers, raw)
    return [
        Crashed(f"answered {len(child.attempts)} times with what is not its own") if end is None else end
        for child, end in zip(wanted, ends, strict=True)
    ]


def answer_of(answers: type[ResultT], raw: Any) -> ResultT | None:  # noqa: ANN401  any JSON
    """A sub-orchestration's output; None when it is of another call.

    The host matches answers to calls by number. When an episode's history is lost and the episode then runs again with another
    answer, a call of the second time may have the number of another call of the first time; the answer
    that arrives first is taken for both. The call's own answer is dropped then, so that it has to be made again.
    """
    try:
        # G6: believed only if it reads as this child's.
        return answers.model_validate(raw)
    except ValidationError:
        return None


def attempt(context: Context, step: Step[Any, Any], requests: Sequence[Message]) -> Flow[list[StepOutcome]]:
    """The outcome of the step for each input, side by side, without retries. A crash of one does not fail the others."""
    tasks = [context.call_activity(step.name_for(context.version), one.model_dump(mode="json")) for one in requests]
    ends = yield from all_ended(context, tasks)
    return [
        StepOutcome(fault=Fault(code="Unexpected", message=end.why, retryable=True))
        if isinstance(end, Crashed)
        # G6: believed only if it names this step.
        else _outcome(step, end)
        for end in ends
    ]


def _outcome(step: Step[Any, Any], raw: Any) -> StepOutcome:  # noqa: ANN401  any JSON
    outcome = answer_of(StepOutcome, raw)
    if outcome and outcome.step in ("", *step.names):
        return outcome
    message = f"{step.name} was answered by {outcome.step if outcome else 'what is not a step'}; it is called again"
    return StepOutcome(fault=Fault(code="AnswerLost", message=message, retryable=True))


@dataclass(frozen=True)
class Crashed:
    """An activity or orchestration that ended by an exception."""

    why: str


def all_ended(context: Context, tasks: Sequence[Any]) -> Flow[list[Any]]:
    """Each task's output, or its crash, once all have ended."""
    if not tasks:
        return []
    if len(tasks) > 1:
        # It raises the first failure and forgets the other results, so each task is read below.
        with contextlib.suppress(Exception):
            yield context.task_all(list(tasks))
    ends: list[Any] = []
    for task in tasks:
        try:
            ends.append((yield task))
        except Exception as error:  # noqa: BLE001  a crash arrives as a plain Exception
            ends.append(Crashed(failure_text(error)))
    return ends
