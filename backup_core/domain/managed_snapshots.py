"""Incremental snapshots of a managed disk: their names, the one of a run, when it can be read, which pairs have a diff.

A snapshot's id is the moment at which Azure made it, in the form of a blob snapshot's: the same rules hold for both.
Its content is a fixed VHD, the disk and a footer after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from backup_core.domain.metadata import own
from backup_core.domain.naming import run_moment, snapshot_time
from backup_core.domain.ranges import GIB, ByteRange
from backup_core.domain.vhd import FOOTER_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backup_core.domain.naming import DiskAddress

FILLED_DEADLINE = timedelta(hours=24)
"""How long a run waits for a snapshot that Azure fills in the background (Premium SSD v2, Ultra): some 10 hours for 8 TiB."""
MANAGED_DISK_BYTES_MAX = 8191 * GIB
"""With its footer it must fit into a page blob of at most 8 TiB."""
DIFF_BOUNDARY = 4096 * GIB
"""A disk that has grown from below to above has no diff across it (Azure disks, incremental snapshots)."""
NAMES_TRIED = 10
CLOCK_SKEW = timedelta(minutes=5)
OPEN_STATES = frozenset({"ActiveSAS", "ActiveSASFrozen"})
"""Disk states of a snapshot that somebody has been granted access to."""
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,7})[0-9]*)?(?:Z|\+00:00)")


@dataclass(frozen=True)
class DiskSnapshot:
    """A snapshot of a managed disk as Azure Resource Manager describes it. Properties that Azure does not return are empty."""

    id: str
    """Resource id."""
    name: str
    snapshot: str
    """Its moment, as a blob snapshot's id; empty while Azure does not return it."""
    state: str
    """Provisioning state."""
    access: str
    """Disk state, such as Unattached or ActiveSAS."""
    size: int
    """With the footer."""
    percent: int
    """Percent of it that can be read."""
    failure: str
    """Reason why it will never be complete."""
    disk: str
    """Resource id of its disk, as `DiskAddress` spells it."""
    disk_unique: str
    """Azure's unique id of that disk: a disk that was deleted and made again under its name has another."""
    family: str
    incremental: bool
    tags: Mapping[str, str]

    @property
    def open(self) -> bool:
        """Whether somebody has been granted access."""
        return self.access in OPEN_STATES

    @property
    def unfinished(self) -> bool:
        """Whether it is being made, and Azure does not say yet of which moment."""
        return not self.snapshot and self.state not in ("", "Succeeded", "Failed")

    @property
    def failed(self) -> bool:
        """Whether its creation failed."""
        return self.state == "Failed"


def snapshot_id(time_created: str) -> str:
    """The id of a snapshot that Azure Resource Manager says was made at `time_created`. ValueError for what is no time, UTC."""
    match = _TIME.fullmatch(time_created)
    if match is None:
        message = f"{time_created[:80]!r} is not a time of Azure Resource Manager, UTC"
        raise ValueError(message)
    return f"{match[1]}.{(match[2] or '').ljust(7, '0')}Z"


def snapshot_name(address: DiskAddress, tags: Mapping[str, str], number: int) -> str:
    """The name of the disk's snapshot with those tags: at most 80 letters, digits, '_' and '-', the same in every repeat.

    The tags name run and deployment: of two that protect one disk, each window's run has the same id in both. `number` is how
    many with those tags there are: the name of one that failed is not used again.
    """
    # G61: another run's or deployment's name would be taken over, not refused.
    said = [address.id, *(f"{name}={value}" for name, value in sorted(own(tags).items())), str(number)]
    return f"pk-{tags.get('pagekeeper_disk', '')[:40]}-{sha256(chr(10).join(said).encode()).hexdigest()[:20]}"


def is_named(address: DiskAddress, name: str, tags: Mapping[str, str]) -> bool:
    """Whether that is the name of the disk's snapshot with those tags, the first or one of a few that follow failed ones."""
    return name in {snapshot_name(address, tags, number) for number in range(NAMES_TRIED)}


def strangeness(found: DiskSnapshot, address: DiskAddress, unique: str, tags: Mapping[str, str], run: str) -> list[str]:
    """Why the snapshot is not the one that the run has just requested, in words: expected and found.

    A request for a name that exists succeeds and takes nothing: the answer may be of another run, disk or time.
    """
    # G61: what answers is looked at, not believed.
    began = run_moment(run)
    seen = {
        "disk": (address.id, found.disk),
        "unique id of the disk": (unique, found.disk_unique),
        "incremental": (True, found.incremental),
        "tags": (own(tags), own(found.tags)),
    }
    words = [f"{name}: expected {expected}, found {there}" for name, (expected, there) in seen.items() if expected != there]
    if not found.snapshot:
        words.append("timeCreated: expected a time, found none")
    elif began and snapshot_time(found.snapshot) < began - CLOCK_SKEW:
        words.append(
            f"timeCreated: expected none before {began.isoformat()}, when the run was asked for, found {found.snapshot}"
        )
    return words


def diff_refusal(taken: DiskSnapshot, base: DiskSnapshot | None) -> str:
    """Why there is no diff from `base` to `taken`; empty when there is one."""
    # G63: in doubt there is no diff.
    if base is None:
        return "the snapshot it is measured from is gone"
    if base.disk_unique != taken.disk_unique:
        return f"the disk was made anew: its unique id was {base.disk_unique}, and is {taken.disk_unique}"
    if base.family != taken.family:
        return f"the snapshots are of different families: {base.family or 'none'} and {taken.family or 'none'}"
    if base.size > taken.size:
        return f"the disk shrank from {base.size} to {taken.size} bytes"
    if base.size - FOOTER_BYTES <= DIFF_BOUNDARY < taken.size - FOOTER_BYTES:
        return "the disk has grown over 4 TiB"
    return ""


def footer(size: int) -> ByteRange:
    """The range of the footer of a snapshot of that size."""
    return ByteRange(size - FOOTER_BYTES, size)


def export_fault(url: str, hosts: tuple[str, ...], *, local: bool) -> str:
    """Why nothing is sent to an export URL: never more of it than its host. Empty for one of Azure's own.

    `hosts` are patterns of host names. Only a `local` one, on loopback, may be without TLS.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if not any(fnmatchcase(host, pattern) for pattern in hosts):
        return f"its host {host[:200]!r} is not one of the setting EXPORT_HOSTS ({', '.join(hosts)})"
    if parts.scheme != "https" and not local:
        return f"it would be read from {host[:200]} without TLS"
    if parts.username or parts.password or parts.fragment or not parts.query:
        return f"it has no signature, or more than a path and a query, at {host[:200]}"
    return ""
