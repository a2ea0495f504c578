"""The shards of a plan, a wave at a time: the page copy of backups and restores."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, NoReturn

from backup_core.orchestrations.calls import Flow, wave
from backup_core.steps.copying import APPLY_SHARD, ApplyShard, TransferCounts

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context, Retries
    from backup_core.steps.copying import ImageCopy, PlanResult

CALLS_PER_EXECUTION = 48
"""After so many calls of shards the instance continues as new, so that its history stays small whatever the disk's size and the
service's speed. A restarted wave continues where its shards are: their cursors say so.
"""


def applied_shards(
    context: Context,
    image: ImageCopy,
    planned: PlanResult,
    progress: tuple[int, TransferCounts],
    side_by_side: int,
    retries: Retries,
    *,
    report: Callable[[TransferCounts], Flow[None]],
    continue_as_new: Callable[[int, TransferCounts], NoReturn],
) -> Flow[TransferCounts]:
    """All shards from `progress` (next shard, what is done) on. A shard answers its counts until now, and is called again
    until it is done. `continue_as_new` leaves the generator.
    """
    next_shard, applied = progress
    calls = 0
    while next_shard < planned.shards:
        shards = range(next_shard, min(next_shard + side_by_side, planned.shards))
        open_, reached = list(shards), applied
        finished: list[TransferCounts] = []
        while open_:
            if calls >= CALLS_PER_EXECUTION:
                continue_as_new(next_shard, applied)
            request = [ApplyShard(image=image, shard=shard) for shard in open_]
            answers = yield from wave(context, APPLY_SHARD, request, retries)
            calls += len(request)
            finished += [one.applied for one in answers if one.done]
            under_way = [one.applied for one in answers if not one.done]
            open_ = [shard for shard, one in zip(open_, answers, strict=True) if not one.done]
            reached = reduce(TransferCounts.plus, [*finished, *under_way], applied)
            yield from report(reached)
        next_shard, applied = shards.stop, reached
    return applied
