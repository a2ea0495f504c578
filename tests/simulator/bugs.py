# Long: every planted bug beside the list that names them.
"""Planted bugs: one guard of the protocol removed each. The simulation must catch every one of them.

Each is a context manager that changes the product, or what the service guarantees, for as long as it is open.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from backup_core.activities import copies, machines, points, runner, shards, transfer, verification
from backup_core.domain import coalescing, decision, disk_delivery, machine_change
from backup_core.domain import retention as rules
from backup_core.domain.coalescing import Request
from backup_core.domain.identity import Deployment
from backup_core.domain.ranges import ByteRange, Mapped, mapped, requests
from backup_core.operations import watch
from backup_core.orchestrations import backup_disk, clean_up_disks, deliver_disk, repoint_machine, restore_disk
from backup_core.protocol import cleanup, comparison, listings, page_maps, pruning, rights
from backup_core.steps.backup import COMMIT_POINT
from backup_core.steps.copying import CHECK_COPY, TransferCounts
from backup_core.steps.restore import MOVE_MACHINE
from tests.doubles.catalogue import MemoryCatalogue
from tests.doubles.page_blobs import Blob, MemoryPageBlobs
from tests.simulator import actors, simulation, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.ranges import DiffRange
    from backup_core.protocol.tools import Tools


def _long_histories() -> AbstractContextManager[object]:
    """Late faults show in a longer history: restores at their machine, takeovers, strangers on the head."""
    return patch.object(simulation, "STEPS_PER_HISTORY", 600)


async def _any_owner(toolbox: Tools, actor: Any) -> Any:  # noqa: ANN401  as the function it replaces
    row = await toolbox.catalogue.head(actor.disk)
    assert row is not None
    return row


@contextmanager
def no_fence() -> Iterator[None]:
    """Neither ownership, nor lease, nor sequence number is looked at when a run writes."""

    async def anybody(*_: object) -> None:
        return

    with (
        patch.object(MemoryPageBlobs, "_fenced", lambda self, address, _: self._found(address)),
        patch.object(transfer, "require_ownership", _any_owner),
        patch.object(shards, "require_right_to_act", anybody),
        # All of these histories have the moment that fences are for.
        patch.object(stage, "LATE_EVERY", 1),
        patch.object(stage, "LATE", 0),
        _long_histories(),
    ):
        yield


@contextmanager
def lease_from_the_name() -> Iterator[None]:
    """The lease id is derived from the disk's name alone: all runs have the same one."""

    def lease_id(*_: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "vm"))

    with ExitStack() as patches:
        for module in (backup_disk, clean_up_disks, restore_disk):
            patches.enter_context(patch.object(module, "lease_id", lease_id))
        yield


@contextmanager
def newer_snapshot_after_a_half_applied_diff() -> Iterator[None]:
    """A dirty head is taken for clean: a fresh snapshot is diffed against the last point."""
    decide = decision.decide

    def careless(head: Any, source: str, found: Any, *, full_requested: bool) -> Any:  # noqa: ANN401  as the function it replaces
        if found is not None and found.mark is not None and found.mark.state != "committed":
            found = replace(found, mark=replace(found.mark, state="committed"), head_unchanged=True)
        return decide(head, source, found, full_requested=full_requested)

    with patch("backup_core.activities.backup_run.decide", careless):
        yield


@contextmanager
def clears_dropped() -> Iterator[None]:
    """Cleared ranges are counted, and left as they are."""

    async def forget(_: Any, __: Any, ___: Any, ____: Any) -> None:  # noqa: ANN401  as the method it replaces
        return

    with patch.object(MemoryPageBlobs, "clear", forget):
        yield


@contextmanager
def continuation_ignored() -> Iterator[None]:
    """Only the first page of a diff, two ranges, is read."""
    listed = MemoryPageBlobs.diff

    async def first_page(
        self: MemoryPageBlobs,
        blob: BlobAddress,
        snapshot: str,
        previous: str,
        window: ByteRange,
    ) -> AsyncIterator[DiffRange]:
        count = 0
        async for one in listed(self, blob, snapshot, previous, window):
            count += 1
            if count <= 2:
                yield one

    with patch.object(MemoryPageBlobs, "diff", first_page):
        yield


@contextmanager
def commit_without_verifying() -> Iterator[None]:
    """The head is marked verified without having been compared: whatever is read counts as equal, and as zeros."""

    async def read_nothing(*_: object) -> int:
        return 0

    with (
        patch.object(comparison, "require_equal", read_nothing),
        patch.object(page_maps, "require_equal", read_nothing),
        patch.object(page_maps, "_prove_zero", read_nothing),
    ):
        yield


@contextmanager
def source_snapshot_deleted_before_commit() -> Iterator[None]:
    """The old source snapshot is deleted as soon as the new backup snapshot is there."""
    commit = points.commit_point

    async def hasty(toolbox: Tools, request: Any) -> Any:  # noqa: ANN401  as the function it replaces
        row = await rights.require_ownership(toolbox, request.transfer.actor)
        if row.value.pair and row.value.pair.source_snapshot != request.transfer.target:
            await toolbox.blobs.delete_snapshot(toolbox.source(row.value.source), row.value.pair.source_snapshot)
        return await commit(toolbox, request)

    with patch.dict(runner.ACTIVITIES, {COMMIT_POINT.name: hasty}):
        yield


@contextmanager
def unconditional_commit() -> Iterator[None]:
    """Rows are written whatever their version, and the disk's ownership is not checked before a commit."""
    with patch.object(MemoryCatalogue, "_check", lambda *_: None), patch.object(points, "require_ownership", _any_owner):
        yield


@contextmanager
def altered_head_is_trusted() -> Iterator[None]:
    """No check finds that a stranger changed the head between two runs."""

    async def trust(*_: object) -> bool:
        return True

    # It shows only where the head was altered before an increment that leaves those pages alone: strangers do nothing else.
    with (
        patch("backup_core.activities.backup_run._unchanged", trust),
        patch.object(actors, "ACTS", ("alter head",)),
        _long_histories(),
    ):
        yield


@contextmanager
def cursor_ahead_of_its_puts() -> Iterator[None]:
    """A shard's progress is stored when requests are sent, not when they are answered."""
    start = shards._Copying._start  # noqa: SLF001  the guard to be removed

    def hasty(copying: Any, piece: Any) -> None:  # noqa: ANN401  as the method it replaces
        start(copying, piece)
        written = 0 if piece.cleared else piece.range.size
        copying._ahead[-1].applied = TransferCounts(  # noqa: SLF001  see above
            write_bytes=written, clear_bytes=piece.range.size - written, puts=int(not piece.cleared), clears=int(piece.cleared)
        )

    with patch.object(shards._Copying, "_start", hasty):  # noqa: SLF001  see above
        yield


@contextmanager
def gap_copied_across_a_clear() -> Iterator[None]:
    """Two changes become one put although something between them is cleared."""

    async def careless(changes: Any, gap_bytes_max: int, held: Any) -> AsyncIterator[Request]:  # noqa: ANN401  as the function it replaces
        last: Request | None = None
        crossed = False
        async for change in changes:
            for piece in requests(change):
                one = Request(piece.range, piece.cleared)
                if one.cleared:
                    yield one
                    crossed = True
                    continue
                both = coalescing._joined(last, one, gap_bytes_max) if last else None  # noqa: SLF001  the guard to be removed
                if last and both and (crossed or await held(ByteRange(last.range.end, one.range.start))):
                    last = both
                else:
                    if last:
                        yield last
                    last = one
                crossed = False
        if last:
            yield last

    with patch.object(transfer, "coalesced", careless), patch.object(shards, "coalesced", careless):
        yield


@contextmanager
def gap_copied_that_one_side_holds() -> Iterator[None]:
    """It is enough when either page map has the gap."""

    async def either(left: Any, right: Any) -> AsyncIterator[Mapped]:  # noqa: ANN401  as the function it replaces
        async for part in mapped(left, right):
            yield Mapped(part.range, "both")

    with patch.object(listings, "mapped", either):
        yield


@contextmanager
def prune_of_the_newest() -> Iterator[None]:
    """The newest points expire instead of the oldest."""
    decided = rules.verdicts

    def upside_down(points: Any, *rest: Any, **more: Any) -> Any:  # noqa: ANN401  as the function it replaces
        right = decided(points, *rest, **more)
        return [replace(one, expires=other.expires) for one, other in zip(right, reversed(right), strict=True)]

    with patch.object(pruning, "verdicts", upside_down):
        yield


@contextmanager
def prune_ignoring_pins() -> Iterator[None]:
    """No check finds that a point is in use."""

    async def always(*_: object) -> bool:
        return True

    with patch.object(pruning, "release_dead_pin", always):
        yield


@contextmanager
def restore_onto_an_existing_blob() -> Iterator[None]:
    """A new disk is created whatever has its name already, and whatever that carries is taken for the run's own."""
    create = MemoryPageBlobs.create

    async def over(self: MemoryPageBlobs, blob: BlobAddress, size: int, *rest: Any) -> None:  # noqa: ANN401  as the method it replaces
        if not self.blobs.get(blob, Blob(0, self._world.now, "")).lease:
            self.blobs.pop(blob, None)
        await create(self, blob, size, *rest)

    with patch.object(MemoryPageBlobs, "create", over):
        yield


@contextmanager
def adopt_without_read_back() -> Iterator[None]:
    """A change of the machine is taken for done once it was sent."""
    move = machines.move_machine

    async def believing(toolbox: Tools, request: Any) -> Any:  # noqa: ANN401  as the function it replaces
        moved = await move(toolbox, request)
        return moved.model_copy(update={"done": moved.move in ("none", "attach", "swap"), "holds": request.goal})

    with patch.dict(runner.ACTIVITIES, {MOVE_MACHINE.name: believing}), _long_histories():
        yield


@contextmanager
def metadata_trusted_after_an_aborted_copy() -> Iterator[None]:
    """A copy that has ended counts by its metadata, however it ended, and nothing is compared afterwards."""
    check = copies.check_copy

    async def ended_well(toolbox: Tools, request: Any) -> Any:  # noqa: ANN401  as the function it replaces
        seen = await check(toolbox, request)
        return seen if seen.status == "pending" else seen.model_copy(update={"status": "success"})

    async def believe(toolbox: Tools, _: Any, blob: BlobAddress, __: object = ()) -> Any:  # noqa: ANN401  as the function it replaces
        return await toolbox.blobs.properties(blob)

    async def read_nothing(_: Any, __: Any, so_far: Any, ___: int, **____: bool) -> Any:  # noqa: ANN401  as the function it replaces
        return so_far.model_copy(update={"done": True})

    with (
        patch.dict(runner.ACTIVITIES, {CHECK_COPY.name: ended_well}),
        patch.object(copies, "_own_complete_copy", believe),
        patch.object(verification, "compared", read_nothing),
    ):
        yield


@contextmanager
def repoint_not_undone() -> Iterator[None]:
    """A failure on the way to the new disk ends there, wherever the machine is then."""
    rule = machine_change.after

    def giving_up(state: Any, step: Any, result: Any) -> Any:  # noqa: ANN401  as the function it replaces
        if (state.goal, step, result) == ("new", "move", "final"):
            return replace(state, holds="old", end="kept")
        return rule(state, step, result)

    with patch.object(repoint_machine, "after", giving_up), _long_histories():
        yield


@contextmanager
def adopted_snapshot_taken_early() -> Iterator[None]:
    """A disk that is to be adopted is snapshotted as soon as it is complete, while backups go on."""
    rule = disk_delivery.next_step

    def hasty(state: Any) -> Any:  # noqa: ANN401  as the function it replaces
        early = state.end == "success" and "copy" in state.done and "seal" not in state.done
        return "seal" if early else rule(state)

    with (
        patch.object(deliver_disk, "next_step", hasty),
        patch.object(points, "older_than_the_pair", lambda *_: False),
    ):
        yield


@contextmanager
def _sweeping(**guards: Any) -> Iterator[None]:  # noqa: ANN401  methods of the class
    with patch.multiple(cleanup.Cleanup, **guards):
        yield


def sweep_of_the_common_pair() -> AbstractContextManager[None]:
    """No snapshot of a run that is over is kept."""

    async def nothing(*_: object) -> bool:
        return False

    return _sweeping(_may_be_needed=nothing)


def sweep_of_an_interrupted_target() -> AbstractContextManager[None]:
    """Only the common pair's snapshot is kept."""

    async def the_pair(tidying: Any, source: str, snapshot: str, _: str) -> bool:  # noqa: ANN401  as the method it replaces
        row = await tidying.tools.catalogue.head(tidying.request.disk)
        certain = row is not None and row.value.pair is not None and row.value.source == source
        return not certain or snapshot == row.value.pair.source_snapshot

    return _sweeping(_may_be_needed=the_pair)


def sweep_of_the_living() -> AbstractContextManager[None]:
    """No check finds that a run is still alive or has the disk, nor how old its remains are."""
    needed = cleanup.Cleanup._may_be_needed  # noqa: SLF001  the guard to be weakened

    async def always(*_: object) -> bool:
        return True

    async def whoever_owns(tidying: Any, source: str, snapshot: str, _: str) -> bool:  # noqa: ANN401  as the method it replaces
        return await needed(tidying, source, snapshot, "")

    return _sweeping(_end_if_long_silent=always, _old=lambda *_: True, _may_be_needed=whoever_owns)


def sweep_of_what_metadata_names() -> AbstractContextManager[None]:
    """A snapshot is deleted for the run that its metadata name, be it recorded or not."""

    async def always(*_: object) -> bool:
        return True

    return _sweeping(_is_recorded=always)


@contextmanager
def marks_of_any_deployment() -> Iterator[None]:
    """The marks of another deployment count as this one's."""
    with patch.object(Deployment, "wrote", lambda *_: True):
        yield


@contextmanager
def sweep_of_blobs_with_snapshots() -> Iterator[None]:
    """Every backup blob but the head counts as half-made, and is deleted with its snapshots."""
    delete = MemoryPageBlobs.delete_own
    listed = MemoryPageBlobs.listed

    async def whole(self: MemoryPageBlobs, blob: BlobAddress, guard: Any, *, bare: bool = False) -> None:  # noqa: ANN401, ARG001  as the method it replaces
        await delete(self, blob, guard)

    async def bases(self: MemoryPageBlobs, *where: str) -> AsyncIterator[Any]:
        async for one in listed(self, *where):
            if not one.snapshot:
                yield one

    with patch.object(MemoryPageBlobs, "delete_own", whole), patch.object(MemoryPageBlobs, "listed", bases):
        yield


@contextmanager
def ends_emitted_by_their_writer_only() -> Iterator[None]:
    """The watch does not look for unreported ends."""

    async def nothing(*_: object) -> None:
        return

    with patch.object(watch, "_emit_late", nothing):
        yield


@contextmanager
def half_moved_registrations_stay() -> Iterator[None]:
    """Housekeeping does not look at registrations: one that a dead restore has half moved stays half moved."""

    async def nothing(*_: object) -> None:
        return

    with patch.object(cleanup.Cleanup, "registration", nothing), _long_histories():
        yield


@contextmanager
def refused_versions_are_not_looked_into() -> Iterator[None]:
    """A change that a lost or late request has made already is taken for somebody else's."""

    def strict(self: MemoryPageBlobs, address: BlobAddress, guard: Any, **values: object) -> str:  # noqa: ANN401  as the method it replaces
        self._guarded(address, guard)
        return change(self, address, guard, **values)

    change = MemoryPageBlobs._set  # noqa: SLF001  see above
    with patch.object(MemoryPageBlobs, "_set", strict):
        yield


BACKUP_BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no fence": no_fence,
    "lease id from the name": lease_from_the_name,
    "newer snapshot after a half-applied diff": newer_snapshot_after_a_half_applied_diff,
    "clears dropped": clears_dropped,
    "continuation ignored": continuation_ignored,
    "commit without verifying": commit_without_verifying,
    "source snapshot deleted before commit": source_snapshot_deleted_before_commit,
    "unconditional commit": unconditional_commit,
    "altered head is trusted": altered_head_is_trusted,
    "cursor ahead of its puts": cursor_ahead_of_its_puts,
    "gap copied across a clear": gap_copied_across_a_clear,
    "gap copied that one side holds": gap_copied_that_one_side_holds,
    "prune of the newest": prune_of_the_newest,
    "prune ignoring pins": prune_ignoring_pins,
    "ends emitted by their writer only": ends_emitted_by_their_writer_only,
    "sweep of the common pair": sweep_of_the_common_pair,
    "sweep of an interrupted target": sweep_of_an_interrupted_target,
    "sweep of the living": sweep_of_the_living,
    "sweep of blobs with snapshots": sweep_of_blobs_with_snapshots,
    "sweep of what metadata names": sweep_of_what_metadata_names,
    "marks of any deployment": marks_of_any_deployment,
}
"""Faults of backups: shown by histories without restores, in which they do not drown."""
RESTORE_BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "restore onto an existing blob": restore_onto_an_existing_blob,
    "adopt without read-back": adopt_without_read_back,
    "metadata trusted after an aborted copy": metadata_trusted_after_an_aborted_copy,
    "repoint not undone": repoint_not_undone,
    "adopted snapshot taken early": adopted_snapshot_taken_early,
    "half-moved registrations stay": half_moved_registrations_stay,
    "refused versions are not looked into": refused_versions_are_not_looked_into,
}
