"""The shards of a plan, some calls side by side: the page copy of backups and restores.

A call has several shards, and copies one after another while its time lasts; the calls of a wave have the same time. So as one
ends the next begins, and none waits for the slowest. Before each wave, all shards that are left are dealt anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, NoReturn

from backup_core.domain.plan import dealt
from backup_core.orchestrations.calls import Flow, wave
from backup_core.steps.copying import APPLY_SHARD, ApplyShard, CopyProgress, TransferCounts

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context, Retries
    from backup_core.steps.copying import ImageCopy, PlanResult

CALLS_PER_EXECUTION = 48
"""After so many calls the instance continues as new, so that its history stays small whatever the disk's size and the service's
speed. A shard that is called again continues from its cursor.
"""


def apply_shards(
    context: Context,
    image: ImageCopy,
    planned: PlanResult,
    progress: CopyProgress,
    side_by_side: int,
    retries: Retries,
    *,
    report: Callable[[TransferCounts], Flow[None]],
    continue_as_new: Callable[[CopyProgress], NoReturn],
) -> Flow[TransferCounts]:
    """Apply all shards that `progress` leaves, and return the counts of all that was applied. `continue_as_new` leaves the
    generator.
    """
    calls = 0
    while hands := dealt(progress.open_shards, progress.next_shard, planned.shards, side_by_side):
        if calls >= CALLS_PER_EXECUTION:
            continue_as_new(progress)
        requests = [ApplyShard(image=image, shard=first, then=then) for first, *then in hands]
        answers = yield from wave(context, APPLY_SHARD, requests, retries)
        calls += len(requests)
        left = [rest for hand, one in zip(hands, answers, strict=True) if (rest := hand[one.shards_done :])]
        progress = CopyProgress(
            next_shard=max(progress.next_shard, *(hand[-1] + 1 for hand in hands)),
            # What is begun comes first: each call continues one of them, and its counts stay in the reports.
            open_shards=[*(rest[0] for rest in left), *sorted(shard for rest in left for shard in rest[1:])],
            applied=reduce(TransferCounts.plus, [one.of_done for one in answers], progress.applied),
        )
        yield from report(reduce(TransferCounts.plus, [one.applied for one in answers if not one.done], progress.applied))
    return progress.applied
