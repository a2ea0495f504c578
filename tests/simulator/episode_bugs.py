"""Planted bugs that only repeated episodes show, in the product or in what the host guarantees. Each must be caught."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from backup_core.activities import copies, images, shards, verification
from backup_core.orchestrations import backup_disk, clean_up_disks, restore_disk
from tests.doubles.instance import Answer, DirectInstance, DrivenContext, Execution
from tests.simulator import engine

if TYPE_CHECKING:
    from tests.doubles.instance import Task


@contextmanager
def lease_from_the_clock() -> Iterator[None]:
    """The lease depends on when the episode runs, as the SDK's own uuids do: a repeated one has another."""
    moment, play = datetime.min.replace(tzinfo=UTC), Execution.play

    def timed(self: Execution, at: datetime, answer: Any) -> None:  # noqa: ANN401  as the method it replaces
        nonlocal moment
        moment = at
        play(self, at, answer)

    def timely(instance: str, purpose: str, of: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{instance}/{purpose}/{of}/{moment}"))

    with patch.object(Execution, "play", timed), ExitStack() as patches:
        for module in (backup_disk, restore_disk, clean_up_disks):
            patches.enter_context(patch.object(module, "lease_id", timely))
        yield


@contextmanager
def one_child_id_for_two() -> Iterator[None]:
    """Children are named after their parent only: the two copies of a restore begin under one id."""
    with patch.object(restore_disk, "child_id", lambda parent, *_: f"{parent}~"):
        yield


@contextmanager
def one_child_id_in_all_lives() -> Iterator[None]:
    """Every child is named after its parent and its kind: a former episode's child replaces the one this episode waits for."""
    call = DrivenContext.call_sub_orchestrator

    def named(self: DrivenContext, name: str, input_: Any, instance_id: str = "") -> Task:  # noqa: ANN401  any JSON
        return call(self, name, input_, instance_id or f"{self.instance_id}~{name}")

    with patch.object(DrivenContext, "call_sub_orchestrator", named), _children_started_twice():
        yield


@contextmanager
def answer_taken_twice() -> Iterator[None]:
    """The second answer to a call is taken for the next call's."""
    answer = DirectInstance._answer  # noqa: SLF001  the guard to be removed

    def whichever(self: DirectInstance, task: Task, result: Any, error: Exception | None) -> Answer | None:  # noqa: ANN401  as the method it replaces
        own = answer(self, task, result, error)
        if own or not self.waiting or task.kind != "activity":
            return own
        return answer(self, self.waiting[0], result, error)

    with patch.object(DirectInstance, "_answer", whichever):
        yield


def _children_started_twice() -> AbstractContextManager[object]:
    """A repeated episode seldom starts at the moment that matters: let most children have one."""
    return patch.object(engine, "REFUSED_WITH_CHILDREN", 0.9)


@contextmanager
def own_finished_image_is_a_stranger() -> Iterator[None]:
    """No step looks whether an image was proved: a repeated step finds a blob without the run's mark, and fails the run."""

    async def unknown(*_: object) -> None:
        return

    with ExitStack() as patches, _children_started_twice():
        for module in (copies, images, verification):
            patches.enter_context(patch.object(module, "proof", unknown))
        yield


@contextmanager
def own_closed_image_is_a_fence() -> Iterator[None]:
    """No step looks whether a shard is done: a repeated step writes to the blob that was closed for its comparison."""
    stored = shards._stored  # noqa: SLF001  the guard to be removed

    async def no_end(tools: Any, name: str, shard: Any) -> Any:  # noqa: ANN401  as the function it replaces
        return None if name.endswith("-end.json") else await stored(tools, name, shard)

    with patch.object(shards, "_stored", no_end), _children_started_twice():
        yield


EPISODE_BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "lease from the clock": lease_from_the_clock,
    "one child id for two": one_child_id_for_two,
    "one child id in all lives": one_child_id_in_all_lives,
    "answer taken twice": answer_taken_twice,
    "own finished image is a stranger": own_finished_image_is_a_stranger,
    "own closed image is a fence": own_closed_image_is_a_fence,
}
"""Faults of the second life of an episode: shown by gentle histories, in which a repeated episode fails no run."""
