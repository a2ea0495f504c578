"""Draws the rules of a restore as state diagrams: `python -m tools.diagrams` writes docs/restore-rules.md."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

DOCUMENT = Path(__file__).parent.parent / "docs" / "restore-rules.md"


class Rule(Protocol):
    """What a module of a rule has."""

    def next_step(self, state: Any) -> str: ...  # noqa: ANN401, D102  each rule has a state of its own
    def after(self, state: Any, step: Any, result: Any) -> Any: ...  # noqa: ANN401, D102  see above
    def results(self, state: Any, step: Any) -> Iterator[Any]: ...  # noqa: ANN401, D102  see above


@dataclass(frozen=True)
class Transition:
    """A step in a state, one of its results, and the state that follows."""

    before: Any
    step: str
    result: Any
    after: Any


def transitions(rule: Rule, starts: Iterable[Hashable]) -> list[Transition]:
    """Every transition that any order of results leads to. A last step has the result None, and leads nowhere."""
    open_, seen, found = list(starts), set[Any](), []
    while open_:
        state = open_.pop()
        if state in seen:
            continue
        seen.add(state)
        step = rule.next_step(state)
        answers = list(rule.results(state, step))
        found += [Transition(state, step, one, rule.after(state, step, one)) for one in answers]
        found += [] if answers else [Transition(state, step, None, None)]
        open_ += [one.after for one in found[-len(answers) :] if answers]
    return found
