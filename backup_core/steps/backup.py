# Long: the messages of one run, which are stored in its history, beside each other.
"""The steps of a backup, and the inputs of its orchestrations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from backup_core.domain.fleet import ACTIVE_DISKS
from backup_core.domain.records import Kind
from backup_core.steps.copying import (
    ComparisonProgress,
    ComparisonResult,
    CopyProgress,
    FullCopy,
    ImageCopy,
    OpenResult,
    PlanResult,
    TransferCounts,
    Verification,
)
from backup_core.steps.messages import Actor, Fault, Message, Nothing, Step, always


class FleetRequest(Message):
    """Input of the backup_fleet orchestration."""

    window: str
    """ISO 8601."""
    wave: int
    full_copy: FullCopy = "pages"
    prune: bool = True
    lanes: int = ACTIVE_DISKS
    """Disks that are backed up side by side."""
    former: str = ""
    """The window before: what had no turn in it comes first in this one."""


class LaneResult(Message):
    """The ends of runs: counts by state, the number of failures, and the names of some failed runs, with the reason."""

    ended: dict[str, int] = Field(default_factory=dict)
    failed: int = 0
    names: list[str] = Field(default_factory=list)
    closed: bool = False
    """Whether the next window has begun before every disk had its turn."""


class LaneRequest(Message):
    """Input of the backup_lane orchestration; `turn` and `end` are the position of a continued-as-new instance."""

    fleet: FleetRequest
    lane: int
    turn: int = 0
    end: LaneResult = LaneResult()


class FleetPage(Message):
    """The disks of a window. More than `lanes` are put in an order, which is stored, and have their turns."""

    window: str
    former: str = ""
    lanes: int = ACTIVE_DISKS


class FleetRun(Message):
    """A disk and the run it gets in this window."""

    disk: str
    run: str


class FleetPageResult(Message):
    """The disks, which begin together; or only how many there are, and how many lanes give them their turns."""

    runs: list[FleetRun]
    disks: int
    lanes: int = 0


class TakeTurn(Message):
    """The lane is done with its disk and wants its turn of that number, counted from 0."""

    window: str
    lane: int
    turn: int


class TakeTurnResult(Message):
    """The run of the disk whose turn it is, and the number of the turn; none when every disk has had one, or the window is
    `closed`: the next one has begun.
    """

    run: FleetRun | None = None
    turn: int = 0
    closed: bool = False


class BackupRequest(Message):
    """Input of the backup_disk orchestration. `checkpoint` is the position of a continued-as-new instance."""

    disk: str
    run: str
    trigger: Literal["timer", "http"]
    full: bool = False
    window: str = ""
    wave: int = 4
    """Shards copied side by side."""
    full_copy: FullCopy = "pages"
    prune: bool = True
    """Whether expired restore points are deleted at the end."""
    checkpoint: BackupCheckpoint | None = None


class BeginBackup(Message):
    """Request the ownership of the disk."""

    disk: str
    run: str
    lease: str
    trigger: Literal["timer", "http"]
    full: bool
    window: str


class BeginBackupResult(Message):
    """Whether the run may continue, and with which kind of backup."""

    state: Literal["go", "skipped", "ended", "unsettled"]
    """`ended`: this run has ended already, or another instance of it is at work; nothing was changed. `unsettled`: the run owns
    the disk, but an abandoned restore was changing its machine; that is settled first, then `begin` is called again.
    """
    why: str = ""
    epoch: int = 0
    source: str = ""
    kind: Kind = "full"
    reason: str = ""
    automatic: bool = False
    generation: int = 0
    head: str = ""
    head_etag: str = ""
    leased_head: str = ""
    """The head leased until now, if any: with a new generation another one is written."""
    base: str = ""
    """Source snapshot to diff against; empty for a full copy."""
    finish_target: str = ""
    """Source snapshot of an interrupted run, to be brought to a point before a fresh one is taken."""
    finish_size: int = 0
    verification: Verification = "sampled"
    """How much content is compared before the point is committed."""
    repoint: str = ""
    """The change of a machine that has to be settled first."""
    repoint_digest: str = ""
    points: list[str] = Field(default_factory=list)
    """Restore points that the run has committed in an earlier life, and does not reach again."""


class TakeSourceSnapshot(Message):
    """Snapshot the source for this run."""

    actor: Actor


class SourceSnapshotResult(Message):
    """The source snapshot S."""

    snapshot: str
    size: int
    percent: int = 100
    """Percent of it that can be read; below 100 the step is called again later."""


class SnapshotWaitRequest(Message):
    """Input of the wait_for_snapshot orchestration; the fields after the actor are a continued instance's position."""

    actor: Actor
    reason: str
    kind: Kind
    pause: float = 0.0
    waited: float = 0.0
    """Seconds of the pauses between the polls until now."""
    retries: int = 0


class SnapshotWaitResult(Message):
    """Output of the wait_for_snapshot orchestration: the snapshot once it can be read, or the failure."""

    taken: SourceSnapshotResult | None = None
    canceled: bool = False
    fault: Fault | None = None
    retries: int = 0


class BeginNewGeneration(Message):
    """Abandon the increment: the same run continues as a full copy."""

    actor: Actor
    reason: str


class RaiseEpoch(Message):
    """Fence off requests of the run's own first transfer still in flight, before a second one begins on the same head."""

    actor: Actor
    head: str


class RaiseEpochResult(Message):
    """The run's next epoch, and the head's version under it."""

    epoch: int
    etag: str


class Transfer(ImageCopy):
    """A head, the destination, being brought to a source snapshot: what all steps of a round of a backup share."""

    reason: str
    automatic: bool
    head_etag: str

    @property
    def head(self) -> str:
        """Name of the backup blob."""
        return self.destination

    @property
    def image(self) -> ImageCopy:
        """The part that the copying steps need: history carries each input."""
        return ImageCopy(**{name: getattr(self, name) for name in ImageCopy.model_fields})


class VerifyHead(ComparisonProgress):
    """Compare head and source snapshot, from the position of an earlier call."""

    transfer: Transfer


class TakeBackupSnapshot(Message):
    """Snapshot the verified head, with the description of the whole restore point."""

    transfer: Transfer
    etag: str
    applied: TransferCounts
    compared: int
    """Bytes of content the verification compared."""


class BackupSnapshotResult(Message):
    """The backup snapshot B."""

    snapshot: str


class CommitPoint(Message):
    """Make the pair visible as a restore point."""

    transfer: Transfer
    etag: str
    backup_snapshot: str
    moves_from: str = ""
    """The source the disk had before, when its registration moves to the transfer's own with this point: a restore's."""


class CommitResult(Message):
    """The restore point."""

    point: str


class DropPreviousSnapshot(Message):
    """Delete the source snapshot the new pair replaced."""

    transfer: Transfer


class PrunePoints(Message):
    """Delete the disk's expired restore points."""

    actor: Actor


class PruneResult(Message):
    """The restore points that are deleted now."""

    expired: list[str]
    more: bool


class FinishRun(Message):
    """End the run and release the disk."""

    disk: str
    run: str
    lease: str
    state: Literal["Succeeded", "Failed", "Canceled"]
    points: list[str] = Field(default_factory=list)
    expired: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    """Failures after the restore point was committed."""
    fault: Fault | None = None
    heads: list[str] = Field(default_factory=list)
    """Every head the run leased, so that none stays leased, committed or not."""
    retries: int = 0
    """All of the run's, those after its last report of progress included."""


class BackupCheckpoint(CopyProgress):
    """The position of a continued-as-new backup, in the middle of a transfer."""

    transfer: Transfer
    planned: PlanResult
    retries: int
    points: list[str]
    heads: list[str]
    started: str
    """Shown only."""
    warnings: list[str]
    verification: Verification
    fresh_after: bool
    """A fresh source snapshot follows after this transfer."""


LIST_DISKS = Step("list_disks", FleetPage, FleetPageResult)
TAKE_TURN = Step("take_turn", TakeTurn, TakeTurnResult)
BEGIN_BACKUP = Step("begin_backup", BeginBackup, BeginBackupResult)
TAKE_SOURCE_SNAPSHOT = Step("take_source_snapshot", TakeSourceSnapshot, SourceSnapshotResult)
BEGIN_NEW_GENERATION = Step("begin_new_generation", BeginNewGeneration, BeginBackupResult)
RAISE_EPOCH = Step("raise_epoch", RaiseEpoch, RaiseEpochResult)
OPEN_HEAD = Step("open_head", Transfer, OpenResult)
VERIFY_HEAD = Step("verify_head", VerifyHead, ComparisonResult)
TAKE_BACKUP_SNAPSHOT = Step("take_backup_snapshot", TakeBackupSnapshot, BackupSnapshotResult)
COMMIT_POINT = Step("commit_point", CommitPoint, CommitResult)
DROP_PREVIOUS_SNAPSHOT = Step("drop_previous_snapshot", DropPreviousSnapshot, Nothing)
PRUNE_POINTS = Step("prune_points", PrunePoints, PruneResult, always("retention"))
FINISH_RUN = Step("finish_run", FinishRun, Nothing)

BackupRequest.model_rebuild()

BACKUP_STEPS: tuple[Step[Any, Any], ...] = (
    LIST_DISKS,
    TAKE_TURN,
    BEGIN_BACKUP,
    TAKE_SOURCE_SNAPSHOT,
    BEGIN_NEW_GENERATION,
    RAISE_EPOCH,
    OPEN_HEAD,
    VERIFY_HEAD,
    TAKE_BACKUP_SNAPSHOT,
    COMMIT_POINT,
    DROP_PREVIOUS_SNAPSHOT,
    PRUNE_POINTS,
    FINISH_RUN,
)
