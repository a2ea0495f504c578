"""Planted bugs of managed disks as sources: snapshots, exports and the access to them. Each must be caught.

They are planted in the real adapter and in the rules below it; what they meet is Azure's side, in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from backup_core.activities import images, snapshots, verification
from backup_core.adapters import answers, managed_access, managed_disks
from backup_core.adapters.managed_disks import AzureManagedDisks
from backup_core.adapters.uploads import AzureUploads
from backup_core.domain import redaction
from backup_core.domain.errors import AccessDeniedError
from backup_core.domain.managed import READY, UPLOAD
from backup_core.domain.managed_snapshots import DiskSnapshot, diff_refusal
from backup_core.domain.metadata import source_snapshot_metadata
from backup_core.protocol import cleanup, ownership, source_snapshots
from backup_core.protocol import managed_disks as made_disks
from backup_core.protocol.tools import Tools
from tests.doubles.uploads import MemoryUploads

if TYPE_CHECKING:
    from backup_core.domain.managed import ManagedDisk
    from backup_core.domain.naming import DiskAddress, Source
    from backup_core.domain.ranges import ByteRange, DiffRange
    from backup_core.ports import Guard
    from backup_core.steps.messages import Actor


async def _nothing(*_: object) -> None:
    return


@contextmanager
def access_left_to_expire() -> Iterator[None]:
    """Nobody ends the access that a run has been granted, neither the run nor the night."""
    with patch.object(ownership, "close_access", _nothing), patch.object(cleanup, "close_access", _nothing):
        yield


@contextmanager
def signature_in_the_error() -> Iterator[None]:
    """The message of a refused export is reported unredacted."""
    with ExitStack() as patches:
        for module in (answers, managed_disks, redaction):
            patches.enter_context(patch.object(module, "redacted", str))
        patches.enter_context(patch("backup_core.activities.runner.redacted", str))
        yield


@contextmanager
def reused_name() -> Iterator[None]:
    """The disk's snapshots have one name, and what is there under it is the run's: a request that takes nothing succeeds."""
    with (
        patch.object(managed_disks, "snapshot_name", lambda *_: "pk-vm"),
        patch.object(managed_disks, "strangeness", lambda *_: []),
    ):
        yield


@contextmanager
def name_without_the_deployment() -> Iterator[None]:
    """Two deployments that protect one disk ask for the same name in the same window."""

    def named(disk: DiskAddress, tags: Any, number: int) -> str:  # noqa: ANN401  as the function it replaces
        return f"pk-{disk.name}-{tags.get('pagekeeper_run')}-{number}".replace(".", "-")

    with ExitStack() as patches:
        for place in ("backup_core.adapters.managed_disks.snapshot_name", "tests.simulator.actors.disk_snapshot_name"):
            patches.enter_context(patch(place, named))
        yield


@contextmanager
def any_snapshot_of_the_name() -> Iterator[None]:
    """A snapshot is looked up by its disk's name and its run, not by its time: another one of the family is read."""

    async def newest(self: AzureManagedDisks, disk: DiskAddress, snapshot: str) -> DiskSnapshot:
        found = [one for one in await self._listed(disk) if one.snapshot and not one.failed]
        return max(found, key=lambda one: one.snapshot) if found else await original(self, disk, snapshot)

    original = AzureManagedDisks._found  # noqa: SLF001  see above
    with patch.object(AzureManagedDisks, "_found", newest):
        yield


@contextmanager
def footer_left_to_the_service() -> Iterator[None]:
    """A diff is believed to report footers as well."""

    async def as_reported(
        self: AzureManagedDisks, disk: DiskAddress, snapshot: str, previous: str, window: ByteRange
    ) -> AsyncIterator[DiffRange]:
        taken, base = await self._facts(disk, snapshot), await self._found(disk, previous)
        if diff_refusal(taken, base):
            async for one in original(self, disk, snapshot, previous, window):
                yield one
        async for one in self._ranges(disk, snapshot, previous, window):
            yield one

    original = AzureManagedDisks.diff
    with patch.object(AzureManagedDisks, "diff", as_reported):
        yield


@contextmanager
def diff_across_the_boundary() -> Iterator[None]:
    """A diff is requested that the rules refuse: of other disks, other families, or across 4 TiB."""
    with patch.object(managed_disks, "diff_refusal", lambda *_: ""):
        yield


@contextmanager
def refused_access_is_final() -> Iterator[None]:
    """Access that has expired, or was ended, is not opened once more."""
    opened = AzureManagedDisks._open  # noqa: SLF001  the guard to be removed

    async def once(self: AzureManagedDisks, disk: DiskAddress, snapshot: str, refused: Any = None, seconds: int = 0) -> Any:  # noqa: ANN401  as the method it replaces
        return refused or await opened(self, disk, snapshot, None, seconds)

    with (
        patch.object(AzureManagedDisks, "_open", once),
        patch.object(managed_access, "AccessLostError", AccessDeniedError),
    ):
        yield


@contextmanager
def unfilled_snapshot_is_read() -> Iterator[None]:
    """A snapshot that Azure still fills in the background counts as complete."""
    described = managed_disks._snapshot  # noqa: SLF001  the guard to be removed

    with patch.object(managed_disks, "_snapshot", lambda found: replace(described(found), percent=100)):
        yield


@contextmanager
def deleted_while_open() -> Iterator[None]:
    """Access is not ended before a snapshot is deleted, which Azure refuses; nor does the run's end end it before."""
    with patch.object(AzureManagedDisks, "_close", _nothing):
        yield


def slow_creation_is_anothers() -> AbstractContextManager[object]:
    """A snapshot that is being made is looked at as if it were there: it has no moment, and counts as somebody else's."""
    return patch.object(DiskSnapshot, "unfinished", False)


@contextmanager
def former_snapshots_stay() -> Iterator[None]:
    """Neither the next run nor the night deletes what no increment needs."""
    with patch.object(AzureManagedDisks, "delete_snapshot", _nothing):
        yield


@contextmanager
def each_delivery_takes_a_snapshot() -> Iterator[None]:
    """A delivery does not look whether an earlier one has taken the run's snapshot; the oldest counts all the same."""

    async def again(tools: Tools, actor: Actor, disk: Source, guard: Guard | None = None) -> str:
        await tools.blobs.snapshot(disk, source_snapshot_metadata(tools.site(disk), actor.disk, actor.run), guard)
        return await original(tools, actor, disk, guard)

    original = source_snapshots.take_once
    with patch.object(snapshots, "take_once", again):
        yield


def uploaded_disk_is_compared_while_it_is_open() -> AbstractContextManager[object]:
    """The write access is not ended before the first page is compared."""

    async def unclosed(tools: Tools, disk: str, run: str) -> str:
        found = await made_disks.made_by(tools, disk, run)
        return found.unique if found else made_disks.CLOSED

    return patch.object(verification, "end_upload", unclosed)


@contextmanager
def write_access_granted_again() -> Iterator[None]:
    """A late delivery of the copying opens a disk for writing whose upload has ended: it does not look. Azure refuses that as
    well, which is taken away with it: either of the two keeps the disk closed.
    """

    def grant(self: MemoryUploads, address: DiskAddress, *, write: bool, seconds: int) -> str:
        disk = self._cloud.blobs.disks[address]
        if write and disk.create_option == UPLOAD and not disk.upload:
            disk.upload = READY
        return original(self, address, write=write, seconds=seconds)

    original = MemoryUploads.grant
    with patch.object(AzureUploads, "_require_upload", _nothing), patch.object(MemoryUploads, "grant", grant):
        yield


@contextmanager
def anybodys_upload_is_ended() -> Iterator[None]:
    """A managed disk of the name that a restore was to make counts as made by it, where access is ended."""

    async def found(tools: Tools, disk: str, _: str) -> ManagedDisk | None:
        return await tools.machines.managed_disk(disk)

    def anybodys(tools: Tools, disk: str, _: str) -> DiskAddress:
        return original(tools, disk, "")

    original = Tools.upload
    with (
        patch.object(made_disks, "made_by", found),
        patch.object(images, "made_by", found),
        patch.object(Tools, "upload", anybodys),
    ):
        yield


MANAGED_BUGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "access left to expire": access_left_to_expire,
    "signature in the error": signature_in_the_error,
    "reused name": reused_name,
    "name without the deployment": name_without_the_deployment,
    "any snapshot of the name": any_snapshot_of_the_name,
    "footer left to the service": footer_left_to_the_service,
    "diff across the boundary": diff_across_the_boundary,
    "refused access is final": refused_access_is_final,
    "unfilled snapshot is read": unfilled_snapshot_is_read,
    "deleted while open": deleted_while_open,
    "slow creation is another's": slow_creation_is_anothers,
    "former snapshots stay": former_snapshots_stay,
    "uploaded disk is compared while it is open": uploaded_disk_is_compared_while_it_is_open,
    "write access granted again": write_access_granted_again,
    "anybody's upload is ended": anybodys_upload_is_ended,
    "each delivery takes a snapshot": each_delivery_takes_a_snapshot,
}
"""Faults of managed disks: shown by the histories of one."""
