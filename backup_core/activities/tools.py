"""What every activity is handed: the ports, the bounds, and the check that the asking run still owns its disk."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from backup_core.domain.digests import digest_of
from backup_core.domain.ending import STEP_SECONDS_USUAL
from backup_core.domain.errors import (
    AccountIdMissingError,
    DiskUnknownError,
    MachineRefusedError,
    NotOwnerError,
    RecordAlteredError,
    RecordUnreadableError,
    SourceUnfitError,
    UnexpectedAnswerError,
)
from backup_core.domain.fleet import ACTIVE_DISKS_MAX
from backup_core.domain.metadata import Site
from backup_core.domain.naming import BlobAddress, parse_blob_url, parse_resource_id
from backup_core.domain.ranges import GIB, MIB, ByteRange, DiffRange, windows
from backup_core.domain.records import Owner, Pin, Slot
from backup_core.domain.sampling import Samples
from backup_core.ports import Fence, Guard

if TYPE_CHECKING:
    from backup_core.activities.copying import Copying
    from backup_core.domain.identity import Deployment
    from backup_core.domain.records import Head, Registration, Versioned
    from backup_core.ports import Catalogue, Documents, Journal, Machines, PageBlobs
    from backup_core.steps.messages import Actor


P = TypeVar("P")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Limits:
    """Bounds of one activity's work."""

    shard_bytes_max: int = 1024 * MIB
    """A shard of this size takes about 17 s at the 60 MiB/s of a standard page blob."""
    shard_requests_max: int = 4096
    """About 8 s at the 500 requests/s of a page blob."""
    in_flight: int = 16
    """Requests at a time towards one head: 15 times 4 MiB/s is a page blob's limit, at about a second each."""
    wave_requests: int = 64
    """Requests that may be ahead of a shard's stored cursor: what a crash inside the shard repeats at most."""
    shard_seconds: float = STEP_SECONDS_USUAL
    """A shard returns where to resume after this long."""
    window_bytes: int = 64 * GIB
    """Ranges are listed in windows: a very fragmented blob hits a server time-out on the whole."""
    windows_ahead: int = 4
    """Windows listed at the same time."""
    batch_reads: int = 256
    """Pieces a full verification compares between two looks at the clock: a GiB of 4 MiB each."""
    samples: Samples = field(default_factory=Samples)
    """What a sampled verification reads."""
    verify_seconds: float = STEP_SECONDS_USUAL
    """A verification returns where to resume after this long."""
    plan_seconds: float = 20.0
    """How long a dry run counts what a restore would copy: somebody waits for it, and the front end gives up after 230 s."""
    prune_points_max: int = 20
    """Restore points one call of a prune deletes at most."""
    sweeps_max: int = 200
    """Leftovers one call of the housekeeping removes at most."""
    sweep_age_seconds: float = 24 * 3600.0
    """How long a leftover is kept after its run is over."""
    fleet_disks_max: int = ACTIVE_DISKS_MAX
    """Backups one orchestration starts."""
    cleanup_disks_max: int = 100
    """Disks the housekeeping, or a rebuild, lists at a time."""
    rebuilt_points_max: int = 100
    """Restore points without a row that one call of a rebuild checks: of 8 TiB each takes some 130 requests."""


@dataclass(frozen=True)
class Tools:
    """The world, as ports."""

    blobs: PageBlobs
    catalogue: Catalogue
    documents: Documents
    source_accounts: tuple[str, ...]
    backup_account: str
    heads_container: str
    monotonic: Callable[[], float]
    copying: Copying
    machines: Machines
    journal: Journal
    deployment: Deployment
    limits: Limits = Limits()
    machine_groups: tuple[str, ...] = ()
    """Resource groups, lower case, whose machines may be given other disks: an allow-list."""
    account_ids: Mapping[str, str] = field(default_factory=dict)
    """Resource ids of source accounts by their blob endpoint: Azure imports a VHD only when it is told its account's."""

    def source(self, url: str) -> BlobAddress:
        """The source blob, with the allow-list checked once more: a row could have been written by another version."""
        try:
            return parse_blob_url(url, self.source_accounts)
        except ValueError as error:
            message = f"source {url}: {error}; correct the disk's registration or SOURCE_ACCOUNTS"
            raise SourceUnfitError(message) from error

    def may_read(self, url: str) -> bool:
        """Whether the blob lies in an account of the allow-list."""
        try:
            parse_blob_url(url, self.source_accounts)
        except ValueError:
            return False
        return True

    def head(self, name: str) -> BlobAddress:
        """The backup blob of that name."""
        return BlobAddress(self.backup_account, self.heads_container, name)

    def site(self, blob: BlobAddress) -> Site:
        """The blob, as this deployment marks it."""
        return Site(self.deployment, blob)

    def image(self, place: str) -> BlobAddress:
        """The blob of an image: a disk named by its URL, or a backup blob by its name."""
        return self.source(place) if "://" in place else self.head(place)

    def slot(self, vm: str, lun: int | None) -> Slot:
        """The slot of a machine, with the allow-list checked once more. Raises MachineRefusedError."""
        try:
            group = parse_resource_id(vm).group_id
        except ValueError as error:
            raise MachineRefusedError(str(error)) from error
        if group not in self.machine_groups:
            message = f"VM {vm}: its resource group is not one whose machines this app may change (setting MACHINE_GROUPS)"
            raise MachineRefusedError(message)
        return Slot(vm, lun)

    def account_id(self, blob: BlobAddress) -> str:
        """The resource id of the blob's account. Raises AccountIdMissingError."""
        if blob.account not in self.account_ids:
            message = (
                f"account {blob.account}: its resource id is not known, and Azure imports a VHD as a managed disk only with "
                "it; add /subscriptions/…/storageAccounts/… to the setting SOURCE_ACCOUNT_IDS, or name another target.account"
            )
            raise AccountIdMissingError(message)
        return self.account_ids[blob.account]


async def changes_between(
    tools: Tools, blob: BlobAddress, snapshot: str, base: str, part: ByteRange
) -> AsyncGenerator[DiffRange, None]:
    """What changed inside `part` since the snapshot `base`, listed in windows side by side; without a base, everything
    allocated.
    """

    async def listed(window: ByteRange) -> AsyncGenerator[DiffRange, None]:
        if base:
            async for changed in tools.blobs.diff(blob, snapshot, base, window):
                yield changed
        else:
            async for allocated in tools.blobs.allocated(blob, snapshot, window):
                yield DiffRange(allocated, cleared=False)

    async for one in in_order(windows(part.end, tools.limits.window_bytes, part.start), listed, tools.limits.windows_ahead):
        yield one


BATCH, BATCHES_AHEAD = 1000, 10
"""What a listing may be ahead of its reader: a page of the service's answer."""


async def in_order(
    parts: Iterable[P], list_part: Callable[[P], AsyncGenerator[T, None]], ahead: int
) -> AsyncGenerator[T, None]:
    """What `list_part` gives for each part, in the order of the parts, with `ahead` of them listed at the same time.

    Each listing is at most a page ahead of the reader, so the memory is bounded whatever the parts hold.
    """
    waiting: deque[tuple[asyncio.Task[None], asyncio.Queue[list[T]]]] = deque()
    upcoming = iter(parts)

    def start() -> None:
        for part in itertools.islice(upcoming, ahead - len(waiting)):
            queue: asyncio.Queue[list[T]] = asyncio.Queue(BATCHES_AHEAD)
            waiting.append((asyncio.create_task(_fill(queue, list_part(part))), queue))

    try:
        start()
        while waiting:
            task, queue = waiting[0]
            while batch := await queue.get():
                for one in batch:
                    yield one
            await task  # raises what ended the listing
            waiting.popleft()
            start()
    finally:
        for task, _ in waiting:
            task.cancel()
        await asyncio.gather(*(task for task, _ in waiting), return_exceptions=True)


async def _fill(queue: asyncio.Queue[list[T]], items: AsyncGenerator[T, None]) -> None:
    """Put the items on the queue in batches, and an empty one at the end, be the end a failure."""
    batch: list[T] = []
    try:
        async with aclosing(items):
            async for one in items:
                batch.append(one)
                if len(batch) == BATCH:
                    await queue.put(batch)
                    batch = []
    except Exception:
        await _end(queue, batch)
        raise
    await _end(queue, batch)


async def _end(queue: asyncio.Queue[list[T]], batch: list[T]) -> None:
    if batch:
        await queue.put(batch)
    await queue.put([])


async def side_by_side(items: AsyncIterator[T], do: Callable[[T], Coroutine[Any, Any, R]], limit: int) -> AsyncIterator[R]:
    """What `do` answers for each item, as it comes, at most `limit` at a time; the first failure cancels the rest."""
    in_flight: set[asyncio.Task[R]] = set()
    try:
        async for item in items:
            if len(in_flight) >= limit:
                done, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
            in_flight.add(asyncio.create_task(do(item)))
        while in_flight:
            done, in_flight = await asyncio.wait(in_flight)
            for task in done:
                yield task.result()
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)


def read_document(adapter: TypeAdapter[T], name: str, text: str) -> T:
    """The value in a document. Raises RecordUnreadableError, which names it, for anything else."""
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        why = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'text'}: {one['msg']}" for one in error.errors(include_url=False)[:5]
        )
        message = (
            f"document {name} cannot be read: {why}; it is damaged, or a newer version of this app wrote it; use that version, "
            "or delete the document"
        )
        raise RecordUnreadableError(message) from None


async def held_document(tools: Tools, adapter: TypeAdapter[T], name: str, digest: str, gone: str) -> T:
    """The value in the document that the orchestration was handed the digest of; `gone` says what is next without it. An empty
    digest was handed by a version that made none.

    Raises UnexpectedAnswerError when there is none, RecordAlteredError for any other.
    """
    stored = await tools.documents.get(name)
    if stored is None:
        message = f"document {name} is gone; {gone}"
        raise UnexpectedAnswerError(message)
    if digest and digest_of(stored) != digest:
        message = (
            f"document {name}: somebody else wrote it: expected SHA-256 {digest}, as the run has stored it, found "
            f"{digest_of(stored)}; nothing was done by it; find out who may write to the plans container; {gone}"
        )
        raise RecordAlteredError(message)
    return read_document(adapter, name, stored)


async def registration_of(tools: Tools, disk: str) -> Registration:
    """The disk's registration; raises DiskUnknownError."""
    row = await tools.catalogue.registration(disk)
    if row is None:
        message = f"disk {disk}: not registered; PUT /api/disks/{disk} with its source"
        raise DiskUnknownError(message)
    return row.value


def owner_of(actor: Actor) -> Owner:
    """The owner a run claims to be."""
    return Owner(actor.run, actor.lease, actor.epoch)


async def require_ownership(tools: Tools, actor: Actor) -> Versioned[Head]:
    """The disk's head row, while the asking run owns it. Raises NotOwnerError: a late or repeated call must not act."""
    row = await tools.catalogue.head(actor.disk)
    if row is None or row.value.owner != owner_of(actor):
        holder = row.value.owner.run if row and row.value.owner else "no run"
        message = f"disk {actor.disk}: run {actor.run} (epoch {actor.epoch}) does not own it, {holder} does; nothing was done"
        raise NotOwnerError(message)
    return row


async def require_right_to_act(tools: Tools, actor: Actor) -> None:
    """Raise NotOwnerError unless the asking run may act: it owns the disk, or, for a restore, holds the pin of its point and
    has not ended.
    """
    if not actor.pin:
        await require_ownership(tools, actor)
        return
    pins = await tools.catalogue.pins(actor.disk)
    row = await tools.catalogue.run(actor.disk, actor.run)
    if Pin(actor.disk, actor.pin, actor.run, actor.lease) not in pins or row is None or row.value.ended_for_good:
        message = f"disk {actor.disk}: restore {actor.run} has ended, or was begun by another orchestration; nothing was done"
        raise NotOwnerError(message)


def fence_of(actor: Actor) -> Fence:
    """What the run's page writes carry."""
    return Fence(actor.lease, actor.epoch)


def guard_of(actor: Actor, etag: str) -> Guard:
    """What the run's other writes to a head carry."""
    return Guard(actor.lease, etag)
