"""What all steps have in common: messages in JSON, outcomes as values, who asks, and a step's name with its types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A step's input or output."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(Message):
    """An expected failure as a value."""

    code: str
    message: str
    retryable: bool
    wait_seconds: int = 0
    """How long trying again is certainly in vain."""


class Outcome(Message):
    """What every activity answers: a value, or a fault."""

    value: dict[str, Any] | None = None
    fault: Fault | None = None


class RunRef(Message):
    """Who asks: the run, with the lease and epoch that make it the owner."""

    disk: str
    run: str
    lease: str
    epoch: int
    source: str
    """URL of the disk's blob when the run began."""
    pin: str = ""
    """The restore point a restore has pinned: while it copies, that pin is its right to act, and not the disk's ownership."""


class Nothing(Message):
    """No answer is needed."""


I = TypeVar("I", bound=Message)


O = TypeVar("O", bound=Message)


@dataclass(frozen=True)
class Step(Generic[I, O]):
    """A named activity with its types."""

    name: str
    takes: type[I]
    answers: type[O]
