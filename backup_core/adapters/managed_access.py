"""Access to managed disks and to their snapshots: granted, granted anew at half of its time, ended.

Whoever has an export URL reads the disk, or writes it. The URLs are kept here alone, for as long as they are used; no error,
log line or answer has one.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from azure.mgmt.compute.models import GrantAccessData

from backup_core.adapters.arm import WAIT_SECONDS, Kind, translated
from backup_core.domain.errors import (
    AccessDeniedError,
    AccessLostError,
    BackupError,
    BlobMissingError,
    CopySourceRefusedError,
    ManagedDiskRefusedError,
    ServiceUnavailableError,
    SnapshotMissingError,
    UnexpectedAnswerError,
)
from backup_core.domain.managed_snapshots import export_fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from azure.core.polling import AsyncLROPoller
    from azure.mgmt.compute.aio import ComputeManagementClient
    from azure.mgmt.compute.aio.operations import DisksOperations, SnapshotsOperations

T = TypeVar("T")

_ADVICE = (
    # Code, a part of the message in lower case (either may be empty: any), what to do.
    ("ScopeLocked", "", "a lock forbids it: remove the lock from the resource group of the disk or snapshot"),
    ("InvalidVhd", "", "what was written to the disk is no fixed VHD of its size: delete the disk, and restore again"),
    ("", "quota", "ask for more quota in that region"),
)
DISK = Kind(
    missing=BlobMissingError,
    changed=UnexpectedAnswerError,
    busy=ServiceUnavailableError,
    refused=ManagedDiskRefusedError,
    grant="the role Pagekeeper disks on the disk's resource group and on that of its snapshots (docs/security.md)",
    again="",
    advice=_ADVICE,
)
_LOCKED_SNAPSHOT = (
    "a lock forbids it: remove the lock from the snapshot or its resource group; where the disk's group is to stay locked, "
    "name another group of its subscription in SNAPSHOT_GROUP: later snapshots are made there, beginning with a full backup"
)
SNAPSHOT = replace(DISK, missing=SnapshotMissingError, advice=(("ScopeLocked", "", _LOCKED_SNAPSHOT), *_ADVICE))
UPLOADED = replace(
    DISK,
    grant="the role Pagekeeper machine, that of the night Pagekeeper retention at machines, on the disk's resource group "
    "(docs/security.md)",
)
"""A disk that a restore has made: other identities than those of backups open and close it."""


@dataclass(frozen=True)
class Grant:
    """An export URL, and until when it is used without asking again, by the monotonic clock."""

    url: str = field(repr=False)
    renew_at: float
    seconds: int
    """Seconds it was granted for."""


@dataclass(frozen=True)
class Exporting:
    """The settings by which snapshots are made and exported."""

    snapshot_group: str = ""
    """Id of the resource group that keeps the snapshots; empty is each disk's own."""
    seconds: int = 7200
    """How long access is granted for."""
    hosts: tuple[str, ...] = ()
    """Patterns of the hosts that export URLs may name."""
    whole_pages: bool = False
    """Whether the size of a listing's pages is left to the service."""
    local: bool = False
    """Whether an export may be without TLS: on the development platform."""


@dataclass(frozen=True)
class Door:
    """A snapshot, or a disk itself, that access is granted to."""

    id: str
    """Resource id."""
    words: str
    """The object in words, for messages."""
    subscription: str
    group: str
    name: str
    access: Literal["Read", "Write"] = "Read"
    of_disk: bool = False
    run: str = ""
    """The run that has made the disk: what another one was granted of its name is not used."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Under which its grant is kept."""
        return (self.id, self.access, self.run)

    @property
    def kind(self) -> Kind:
        """Its errors."""
        return UPLOADED if self.of_disk else SNAPSHOT


class Access:
    """The access to disks and snapshots that this process has been granted."""

    def __init__(
        self, client: Callable[[str], ComputeManagementClient], exporting: Exporting, monotonic: Callable[[], float]
    ) -> None:
        """`client` gives the client of a subscription."""
        self._client, self._exporting, self._monotonic = client, exporting, monotonic
        self._grants: dict[tuple[str, str, str], Grant] = {}
        """By resource id, and what it was opened for, and by whom."""
        self._locks: dict[str, asyncio.Lock] = {}

    def lock(self, resource: str) -> asyncio.Lock:
        """Held while access to the resource is granted."""
        return self._locks.setdefault(resource, asyncio.Lock())

    def forget(self, resource: str) -> None:
        """Keep no URL of it."""
        for key in [key for key in self._grants if key[0] == resource]:
            del self._grants[key]

    async def open(
        self,
        door: Door,
        look: Callable[[], Awaitable[object]],
        refused: Grant | None = None,
        seconds: int = 0,
        *,
        looks_first: bool = False,
    ) -> Grant:
        """Access for `seconds` at least, granted anew once half of its time is over. After every grant there is a `look`, which
        raises when it must not be used; there is one before, too, where one was `refused`, or with `looks_first`.
        """
        seconds = seconds or self._exporting.seconds
        async with self.lock(door.id):
            known = self._grants.get(door.key)
            # Another grant may end this one, and with it a Copy Blob that another delivery has started from it.
            if known and known is not refused and known.renew_at > self._monotonic() and known.seconds >= seconds:
                return known
            # G66: once, after a look.
            if refused or looks_first:
                self._grants.pop(door.key, None)
                await look()
            granted = await self._grant_access(door, seconds)
            # G62: what was granted may be another one, made under the name after the last look.
            await look()
            self._grants[door.key] = granted
            return granted

    async def _grant_access(self, door: Door, seconds: int) -> Grant:
        what = f"open {door.words} for {'reading' if door.access == 'Read' else 'writing'}"
        begun = self._monotonic()
        with translated(what, door.kind):
            poller = await self._operations(door).begin_grant_access(
                door.group, door.name, GrantAccessData(access=door.access, duration_in_seconds=seconds)
            )
            granted = await done(what, poller)
        url = granted.access_sas if granted else None
        if not url:
            message = f"{what}: Azure granted it, and named no address; temporary failure"
            raise ServiceUnavailableError(message)
        if fault := export_fault(url, self._exporting.hosts, local=self._exporting.local):
            message = f"{what}: {fault}; nothing was sent there"
            raise UnexpectedAnswerError(message)
        return Grant(url, begun + seconds / 2, seconds)

    async def end(self, door: Door) -> None:
        """Revoke Access, for every user of it. Raises what the service says of a missing one."""
        self.forget(door.id)
        what = f"end the access to {door.words}"
        with translated(what, door.kind):
            await done(what, await self._operations(door).begin_revoke_access(door.group, door.name))

    def _operations(self, door: Door) -> DisksOperations | SnapshotsOperations:
        client = self._client(door.subscription)
        return client.disks if door.of_disk else client.snapshots


async def done(what: str, poller: AsyncLROPoller[T]) -> T:
    """The operation's result. Raises ServiceUnavailableError while it is in progress after the wait."""
    try:
        return await asyncio.wait_for(poller.result(), WAIT_SECONDS)
    except TimeoutError:
        message = f"{what}: in progress, not done within {WAIT_SECONDS:g} s; temporary failure"
        raise ServiceUnavailableError(message) from None


@contextmanager
def anew() -> Iterator[None]:
    """Raise AccessLostError when the signature of access that has just been opened anew is refused."""
    try:
        yield
    except AccessDeniedError as error:
        raise lost(error) from None


def lost(error: BackupError) -> BackupError:
    """The refusal of access that had just been opened anew."""
    by_signature = isinstance(error, AccessDeniedError) and error.by_signature
    if not by_signature and not isinstance(error, CopySourceRefusedError):
        return error
    return AccessLostError(
        f"{error}; its access had been opened anew just before; temporary failure; if it stays, find out who else grants or "
        "ends access to the app's disks and snapshots"
    )
