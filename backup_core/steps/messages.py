"""Types of all steps: messages in JSON, outcomes as values, the actor, and a step's name with its types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Message(BaseModel):
    """A step's input or output."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(Message):
    """An expected failure as a value."""

    code: str
    message: str
    retryable: bool
    wait_seconds: int = 0
    """Seconds for which a retry certainly fails."""
    silent_seconds: int = Field(default=0, exclude_if=lambda seconds: not seconds)
    """Seconds that the step took, where its run could not be given a sign of life at its end."""


class StepOutcome(Message):
    """The answer of every activity: a value, or a fault."""

    value: dict[str, Any] | None = None
    fault: Fault | None = None
    step: str = ""
    """The step that answers; empty from a version without this field."""


class Actor(Message):
    """The actor of a step: the run, with the lease and epoch that make it the owner."""

    disk: str
    run: str
    lease: str
    epoch: int
    source: str
    """URL of the disk's blob when the run began."""
    pin: str = ""
    """The restore point a restore has pinned: while it copies, that pin is its right to act, and not the disk's ownership."""


def run_of(request: Message) -> tuple[str, str] | None:
    """The disk and run for which a step with this input acts; None for a step of no run."""
    for name in ("actor", "transfer", "image"):
        if isinstance(inner := getattr(request, name, None), Message):
            return run_of(inner)
    disk, run = getattr(request, "disk", ""), getattr(request, "run", "")
    return (disk, run) if disk and run else None


class Nothing(Message):
    """No answer is needed."""


RequestT = TypeVar("RequestT", bound=Message)


ResultT = TypeVar("ResultT", bound=Message)


Duty = Literal["backup", "restore", "retention"]
"""The duty that a step serves, which decides its identities. Backups never write to a source account and delete no backup,
retention only deletes, and restores alone write new disks and change machines.
"""


def always(duty: Duty) -> Callable[[Any], Duty]:
    """The same duty for every input."""
    return lambda _: duty


_BACKUP = always("backup")


def duty_of(actor: Actor) -> Duty:
    """The duty of a step that both backups and restores take: a restore has pinned its point."""
    return "restore" if actor.pin else "backup"


@dataclass(frozen=True)
class Step(Generic[RequestT, ResultT]):
    """A named activity with its types."""

    name: str
    takes: type[RequestT]
    answers: type[ResultT]
    duty: Callable[[RequestT], Duty] = _BACKUP
    former: tuple[tuple[str, str], ...] = ()
    """Its names in orchestrations that began with an older version: pairs of version and name. A pair stays as long as
    histories of its version are recorded.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Every name by which a run in progress may call it; the app registers an activity for each."""
        return (self.name, *(name for _, name in self.former))

    def name_for(self, version: str | None) -> str:
        """The name in orchestrations that began with `version`."""
        return dict(self.former).get(version or "", self.name)
