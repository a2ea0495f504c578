# Long: the records of the catalogue, which refer to each other.
"""Rows of the catalogue as values. Times are UTC."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Generic, Literal, TypeVar

EXPIRED_NAMED_MAX = 500
"""Restore points that a run's row names at most: a column holds 32 Ki characters, and a longer one would be refused."""
RunState = Literal["NotStarted", "Running", "Succeeded", "Failed", "Skipped", "Canceled"]
TERMINAL_STATES: frozenset[str] = frozenset({"Succeeded", "Failed", "Skipped", "Canceled"})
Phase = Literal[
    "waiting", "preparing", "snapshot", "planning", "copying", "verifying", "committing", "cleaning", "done",
    "importing", "queued", "comparing", "repointing", "undoing", "promoting", "adopting",
]  # fmt: skip
"""The phase of a run. `queued`: it waits until another run releases the disk. `comparing`: the first snapshot of an imported
disk, with the restore point.
"""
Kind = Literal["full", "incremental", "restored"]
"""`restored`: the first point of the generation that a restore begins."""
Operation = Literal["backup", "restore"]
PointState = Literal["available", "lost", "quarantined", "deleting"]


KEEP_LAST_MAX, MIN_AGE_DAYS_MAX = 10_000, 36_500


@dataclass(frozen=True)
class Retention:
    """Rule for the restore points that a disk keeps: the newest `keep_last`, and all younger than `min_age_days`.

    ValueError for what no call may ask for: a row or document that says so is not believed.
    """

    keep_last: int
    min_age_days: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of bounds."""
        if not 1 <= self.keep_last <= KEEP_LAST_MAX or not 0 <= self.min_age_days <= MIN_AGE_DAYS_MAX:
            message = (
                f"retention of the newest {self.keep_last} and {self.min_age_days} days: expected 1 to {KEEP_LAST_MAX} points "
                f"and 0 to {MIN_AGE_DAYS_MAX} days"
            )
            raise ValueError(message)


@dataclass(frozen=True)
class Slot:
    """The place of a disk: a virtual machine by its resource id, and the LUN; None is the OS disk."""

    vm: str
    lun: int | None = None

    def __str__(self) -> str:
        """In words."""
        place = "OS disk" if self.lun is None else f"data disk at LUN {self.lun}"
        return f"{place} of VM {self.vm.rpartition('/')[2]}"


@dataclass(frozen=True)
class Registration:
    """A protected disk: where it is and how it is kept."""

    disk: str
    source: str
    """URL of the page blob."""
    description: str
    created: datetime
    updated: datetime
    verification: Literal["sampled", "full"] = "sampled"
    """How much content is compared before a point is committed."""
    retention: Retention | None = None
    """None keeps everything."""
    protected: bool = True
    """False once protection was stopped: no more backups, the restore points stay."""
    machine: Slot | None = None
    """The virtual machine that uses the disk, if a caller has named it."""
    source_since: datetime | None = None
    """When the disk got its present source; None is since it was registered."""
    unprotected: str = ""
    """Reason why the machine's present disk is not backed up, in words: its VM was given a managed disk."""

    @property
    def since(self) -> datetime:
        """When the disk got its present source."""
        return self.source_since or self.created


@dataclass(frozen=True)
class Owner:
    """The run that may change the disk's head now."""

    run: str
    lease: str
    epoch: int


@dataclass(frozen=True)
class CommonPair:
    """The newest restore point whose source snapshot still exists: the base of the next diff."""

    point: str
    source_snapshot: str
    backup_snapshot: str
    size: int


@dataclass(frozen=True)
class Head:
    """The disk's state of protection. `epoch` only grows; `head` and `pair` change together, in a commit."""

    disk: str
    epoch: int = 0
    owner: Owner | None = None
    source: str = ""
    """URL of the blob the pair was taken from."""
    generation: int = 0
    head: str = ""
    """Name of the backup blob in its container; empty before the first commit."""
    head_etag: str = ""
    """ETag of the backup blob when its last run released it."""
    pair: CommonPair | None = None
    automatic_fulls: int = 0
    """Full backups in a row that nobody asked for."""
    doubt: str = ""
    """Reason why the head must not be built upon any more: a quarantine, lifted by the commit of a new generation."""
    repoint: str = ""
    """Name of the stored VM change that was begun and neither completed nor undone; the next owner of the disk settles it."""
    repoint_digest: str = ""
    """Digest of that document; empty in rows of versions without it."""

    def settled(self) -> Head:
        """The same head without a change of a machine in progress."""
        return replace(self, repoint="", repoint_digest="")

    def owned_by(self, owner: Owner) -> Head:
        """The same head under a new owner and its epoch."""
        return replace(self, owner=owner, epoch=owner.epoch)


@dataclass(frozen=True)
class RestorePoint:
    """A committed, verified pair of snapshots. Never changed once written, but for its state."""

    disk: str
    point: str
    kind: Kind
    reason: str
    """Reason for this kind."""
    generation: int
    head: str
    source: str
    source_snapshot: str
    previous_source_snapshot: str
    backup_snapshot: str
    size: int
    write_bytes: int
    clear_bytes: int
    requests: int
    epoch: int
    run: str
    digest: str
    page_map: str
    verified: str
    """The extent of the verification, in words."""
    committed: datetime
    """Time of its backup snapshot, by the catalogue's clock."""
    automatic_fulls: int = 0
    """Full backups in a row that nobody asked for, this one included; 0 when this is none."""
    state: PointState = "available"
    """`lost`: its backup snapshot is gone. `quarantined`: it is there, but not what was committed. `deleting`:
    its retention has ended, its backup snapshot may be gone already.
    """


def pair_of(point: RestorePoint) -> CommonPair:
    """The common pair that a point is while its source snapshot exists."""
    return CommonPair(point.point, point.source_snapshot, point.backup_snapshot, point.size)


@dataclass(frozen=True)
class RunError:
    """Why a run failed."""

    code: str
    message: str


@dataclass(frozen=True)
class Restoring:
    """The request of a restore, and its result."""

    point: str
    target: str
    """URL of the new disk blob; resource id of a managed disk that is uploaded."""
    managed_disk: str = ""
    """Resource id of the managed disk to be made, of that blob or by an upload; empty for a page blob."""
    slot: Slot | None = None
    """The machine that uses the disk, as far as it is known."""
    repoint: bool = False
    """Whether that machine gets the new disk."""
    stop_vm: bool = False
    adopt: bool = False
    """Whether backups continue from the new disk."""
    old_disk: str = ""
    """The machine's former disk: kept, never deleted."""
    attention: str = ""
    """Reason why a person should look at the run, which continues to retry."""
    end: str = ""
    """The declared end state, in words."""
    downtime_seconds: int | None = None
    """Seconds for which the machine was without the disk, or off."""

    @property
    def uploads(self) -> bool:
        """Whether the managed disk is uploaded; else it is imported from the target, or none is made."""
        return bool(self.managed_disk) and self.target == self.managed_disk


@dataclass(frozen=True)
class Run:
    """One execution, from its request to its end."""

    disk: str
    run: str
    state: RunState
    trigger: Literal["timer", "http"]
    full: bool
    """Whether a full backup was requested."""
    created: datetime
    window: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    phase: Phase = "waiting"
    kind: str = ""
    reason: str = ""
    percent: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    bytes_streamed: int = 0
    """Bytes of them that passed through the worker: none where the backup account fetches itself."""
    ranges_total: int = 0
    requests_total: int = 0
    requests_done: int = 0
    requests_verified: int = 0
    """Requests that read content of either side for its comparison."""
    retries: int = 0
    points: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    """Restore points the run deleted, because their retention had ended: the first EXPIRED_NAMED_MAX of them."""
    warnings: tuple[str, ...] = ()
    """Failures after the restore point was committed; the point stands."""
    source_snapshots: tuple[str, ...] = ()
    """Snapshots of a disk that the run took, written as soon as it knew of each: only these may be removed as its leftovers."""
    error: RunError | None = None
    cancel_requested: datetime | None = None
    """Time at which a caller requested the cancel; the run ends at its next report."""
    unreported: bool = False
    """Whether the run has ended and its end was not emitted yet."""
    operation: Operation = "backup"
    restore: Restoring | None = None
    """Of a restore only."""

    @property
    def ended_for_good(self) -> bool:
        """Whether the run is in a terminal state."""
        return self.state in TERMINAL_STATES


@dataclass(frozen=True)
class Pin:
    """A restore point in use by a run: not deleted while that run lives."""

    disk: str
    point: str
    run: str
    lease: str = ""
    """The lease of the run's execution that set it: another execution of the same run has no right to act."""


@dataclass(frozen=True)
class RequestKey:
    """A call that may be repeated: its caller's key, the digest of its request, and the run that it started."""

    disk: str
    key: str
    request: str
    """Digest of the request."""
    run: str


T = TypeVar("T")


@dataclass(frozen=True)
class Versioned(Generic[T]):
    """A row with the version it was read at, and the service's time of its last change."""

    value: T
    etag: str
    changed: datetime = field(compare=False)
