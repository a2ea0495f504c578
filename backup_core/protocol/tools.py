"""The tools of every activity: the ports, and the bounds of its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from backup_core.domain.coalescing import GAP_RATIO
from backup_core.domain.ending import STEP_SECONDS_USUAL
from backup_core.domain.errors import AccountIdMissingError, MachineRefusedError, SourceUnfitError
from backup_core.domain.metadata import Site
from backup_core.domain.naming import (
    BlobAddress,
    DiskAddress,
    Source,
    is_resource_id,
    parse_disk,
    parse_resource_id,
    parse_source,
)
from backup_core.domain.ranges import GIB, MIB
from backup_core.domain.records import Slot
from backup_core.domain.sampling import Samples

if TYPE_CHECKING:
    from backup_core.domain.custody import CustodyLimits
    from backup_core.domain.identity import Deployment
    from backup_core.domain.managed import DiskRestore
    from backup_core.ports import Catalogue, Documents, Journal, Machines, PageBlobs
    from backup_core.protocol.copy_route import Copying


@dataclass(frozen=True)
class Custody:
    """The records of an app with custody of the backups, and the limits of what it deletes."""

    documents: Documents
    limits: CustodyLimits


@dataclass(frozen=True)
class Limits:
    """Bounds of one activity's work."""

    shard_bytes_max: int = 1024 * MIB
    """A shard of this size takes about 17 s at the 60 MiB/s of a standard page blob."""
    shard_requests_max: int = 4096
    """About 8 s at the 500 requests/s of a page blob."""
    gap_ratio: float = GAP_RATIO
    """Unchanged bytes copied along to save requests, for each changed byte, at most."""
    gaps_min: int = 64
    """Gaps worth copying along that a diff must have: the check of each takes some requests too."""
    in_flight: int = 16
    """Requests at a time towards one head: 15 times 4 MiB/s is a page blob's limit, at about a second each."""
    wave_requests: int = 64
    """Requests that may be ahead of a shard's stored cursor: a crash inside the shard repeats at most as many."""
    shard_seconds: float = STEP_SECONDS_USUAL
    """A shard returns where to resume after this long."""
    window_bytes: int = 64 * GIB
    """Ranges are listed in windows: a very fragmented blob hits a server time-out on the whole."""
    windows_ahead: int = 4
    """Windows listed at the same time."""
    batch_reads: int = 256
    """Pieces that a full verification compares between two reads of the clock: a GiB of 4 MiB each."""
    samples: Samples = field(default_factory=Samples)
    """The samples of a sampled verification."""
    verify_seconds: float = STEP_SECONDS_USUAL
    """A verification returns where to resume after this long."""
    plan_seconds: float = 20.0
    """How long a dry run counts the bytes to copy: its caller waits, and the front end ends a call after 230 s."""
    prune_points_max: int = 20
    """Restore points one call of a prune deletes at most."""
    sweeps_max: int = 200
    """Leftovers one call of the housekeeping removes at most."""
    sweep_age_seconds: float = 24 * 3600.0
    """How long a leftover is kept after its run has ended."""
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
    """Resource ids of source accounts by their blob endpoint: Azure imports a VHD only with the id of its account."""
    custody: Custody | None = None
    """Set in an app that alone deletes backups: its records, where no other app can write, and its limits."""
    disk_groups: tuple[str, ...] = ()
    """Resource groups, lower case, whose managed disks may be protected: an allow-list."""
    snapshot_group: str = ""
    """The one, lower case, that keeps their snapshots; empty is each disk's own."""
    disk_restore: DiskRestore = "upload"
    """How managed disks are made, where the caller does not say it."""

    def source(self, name: str) -> Source:
        """The source blob or managed disk, with the allow-lists checked once more: a row could have been written by another
        version.
        """
        try:
            return parse_source(name, self.source_accounts, self.disk_groups)
        except ValueError as error:
            setting = "DISK_GROUPS" if is_resource_id(name) else "SOURCE_ACCOUNTS"
            message = f"source {name}: {error}; correct the disk's registration or {setting}"
            raise SourceUnfitError(message) from error

    def disk_blob(self, url: str) -> BlobAddress:
        """The page blob of a restored disk, with the allow-list checked once more."""
        source = self.source(url)
        if isinstance(source, BlobAddress):
            return source
        message = f"{url} is a managed disk; expected the URL of a page blob"
        raise SourceUnfitError(message)

    def may_read(self, name: str) -> bool:
        """Whether the source lies in an account or resource group of the allow-lists."""
        try:
            parse_source(name, self.source_accounts, self.disk_groups)
        except ValueError:
            return False
        return True

    def head(self, name: str) -> BlobAddress:
        """The backup blob of that name."""
        return BlobAddress(self.backup_account, self.heads_container, name)

    def site(self, blob: Source) -> Site:
        """The source or blob, as this deployment marks it."""
        return Site(self.deployment, blob)

    def image(self, place: str) -> Source:
        """The source of an image: a disk named by its URL or resource id, or a backup blob by its name."""
        return self.source(place) if "://" in place or is_resource_id(place) else self.head(place)

    def destination(self, place: str, run: str) -> Source:
        """The place in which the run makes an image: a managed disk that is uploaded, by its resource id, or a blob."""
        return self.upload(place, run) if is_resource_id(place) else self.made_blob(place)

    def made_blob(self, place: str) -> BlobAddress:
        """The blob that an image is made in: a restored disk by its URL, or a backup blob by its name."""
        return self.disk_blob(place) if "://" in place else self.head(place)

    def upload(self, disk: str, run: str) -> DiskAddress:
        """The managed disk that the restore makes beside its machine, with the allow-list checked once more."""
        try:
            return replace(parse_disk(disk, self.machine_groups), run=run)
        except ValueError as error:
            message = f"managed disk {disk}: {error} (setting MACHINE_GROUPS); nothing was done"
            raise SourceUnfitError(message) from error

    def may_make(self, disk: str) -> bool:
        """Whether the managed disk lies in a resource group of the allow-list, in which restores make them."""
        try:
            self.upload(disk, "")
        except SourceUnfitError:
            return False
        return True

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
                "it; add /subscriptions/…/storageAccounts/… to the setting SOURCE_ACCOUNT_IDS, or name another target.account; "
                "an upload (setting DISK_RESTORE, and no blob named in target) needs no account"
            )
            raise AccountIdMissingError(message)
        return self.account_ids[blob.account]
