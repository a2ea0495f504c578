"""The contract between orchestrations and activities: each step's name, what goes in, what comes out.

A step never raises an expected failure: it answers an Outcome, because values keep their type on the way to an orchestrator
and exceptions do not. Everything here is JSON; history carries references (plan names, snapshot ids), never payloads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from backup_core.domain.records import Kind, Phase

FullCopy = Literal["pages", "blob"]
"""How a full copy is made: page by page, or as one Copy Blob of the service."""


class Message(BaseModel):
    """A step's input or output."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(Message):
    """An expected failure as a value."""

    code: str
    message: str
    retryable: bool
    wait_seconds: int = 0
    """How long trying again is certainly in vain."""


class Outcome(Message):
    """What every activity answers: a value, or a fault."""

    value: dict[str, Any] | None = None
    fault: Fault | None = None


class RunRef(Message):
    """Who asks: the run, with the lease and epoch that make it the owner."""

    disk: str
    run: str
    lease: str
    epoch: int
    source: str
    """URL of the disk's blob when the run began."""


# -- fleet ------------------------------------------------------------------------------------------------------


class FleetRequest(Message):
    """Input of the backup_fleet orchestration: the window, and the slice of disks after the id `after`."""

    window: str
    """ISO 8601."""
    wave: int
    full_copy: FullCopy = "pages"
    after: str = ""


class FleetPage(Message):
    """A slice of the registered disks, after the id `after`."""

    window: str
    after: str


class FleetRun(Message):
    """A disk and the run it gets in this window."""

    disk: str
    run: str


class FleetDisks(Message):
    """The slice; `more` when the list goes on after the last one."""

    runs: list[FleetRun]
    more: bool


# -- one backup ---------------------------------------------------------------------------------------------------


class BackupRequest(Message):
    """Input of the backup_disk orchestration. `going` is where a continued-as-new instance goes on."""

    disk: str
    run: str
    trigger: Literal["timer", "http"]
    full: bool = False
    window: str = ""
    wave: int = 4
    """Shards copied side by side."""
    full_copy: FullCopy = "pages"
    going: Going | None = None


class Begin(Message):
    """Ask to own the disk."""

    disk: str
    run: str
    lease: str
    trigger: Literal["timer", "http"]
    full: bool
    window: str
    now: str
    """The orchestrator's time, ISO 8601."""


class Begun(Message):
    """Whether the run may go on, and how."""

    state: Literal["go", "skipped", "ended"]
    """`ended`: this run is over already, or another instance of it is at work; nothing was changed."""
    why: str = ""
    epoch: int = 0
    source: str = ""
    kind: Kind = "full"
    reason: str = ""
    automatic: bool = False
    generation: int = 0
    head: str = ""
    head_etag: str = ""
    held: str = ""
    """The head leased so far, if any: with a new generation it is not the one that will be written."""
    base: str = ""
    """Source snapshot to diff against; empty for a full copy."""
    finish_target: str = ""
    """Source snapshot of an interrupted run, to be brought to a point before a fresh one is taken."""
    finish_size: int = 0


class TakeSnapshot(Message):
    """Snapshot the source for this run."""

    by: RunRef


class Snapshotted(Message):
    """The source snapshot S."""

    snapshot: str
    size: int


class PlanTransfer(Message):
    """List what has to be copied to bring the head from `base` to `target`."""

    by: RunRef
    target: str
    base: str
    size: int


class Planned(Message):
    """The stored plan, or why the diff cannot be trusted."""

    plan: str = ""
    shards: int = 0
    write_bytes: int = 0
    clear_bytes: int = 0
    ranges: int = 0
    requests: int = 0
    refused: str = ""
    whole: bool = False
    """Copied as a whole by the service: there are no shards."""


class NewGeneration(Message):
    """Give up on an increment: the same run goes on as a full copy."""

    by: RunRef
    reason: str


class RaiseEpoch(Message):
    """Shut out what the run's own first transfer may still send, before a second one begins on the same head."""

    by: RunRef
    head: str


class Raised(Message):
    """The run's next epoch, and the head's version under it."""

    epoch: int
    etag: str


class Transfer(Message):
    """One head being brought to one source snapshot: what all steps of a round share."""

    by: RunRef
    kind: Kind
    reason: str
    automatic: bool
    generation: int
    head: str
    head_etag: str
    base: str
    target: str
    size: int
    plan: str


class Opened(Message):
    """The head is there, leased, of the right size, and says what is being done to it."""

    etag: str


class ApplyShard(Message):
    """Copy one shard of the plan, from where an earlier call came to."""

    transfer: Transfer
    shard: int


class Applied(Message):
    """What was done to the head."""

    write_bytes: int = 0
    clear_bytes: int = 0
    puts: int = 0
    clears: int = 0
    streamed_bytes: int = 0
    """How many of the bytes written passed through the worker."""

    def plus(self, other: Applied) -> Applied:
        """Both together."""
        return Applied(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})


class CopyRequest(Message):
    """Input of the copy_blob orchestration; `copy_id` and what follows say where a continued-as-new one goes on."""

    transfer: Transfer
    copy_id: str = ""
    started: str = ""
    pause: float = 0.0
    retries: int = 0


class CopyEnd(Message):
    """Output of the copy_blob orchestration."""

    state: Literal["success", "failed", "canceled"]
    copy_id: str = ""
    fault: Fault | None = None
    retries: int = 0


class CopyStarted(Message):
    """The service's id of the copy."""

    copy_id: str


class CopyRef(Message):
    """A copy onto the head of a transfer."""

    transfer: Transfer
    copy_id: str


class CopyProgress(Message):
    """How far a copy is, in bytes."""

    status: Literal["pending", "success", "failed", "aborted"]
    done: int
    total: int
    why: str = ""


class ShardApplied(Message):
    """How far the shard came. It is called again until `done`."""

    applied: Applied
    """All that was done in the shard, by this call and those before."""
    at: int
    """Everything before this offset is done, durably known."""
    done: bool


class Verify(Message):
    """Compare head and source snapshot from `offset` on: first the page maps of the whole disk, then content."""

    transfer: Transfer
    content: bool = False
    """Whether the page maps are done and content is compared."""
    offset: int = 0
    chain: str = ""
    """Digest of the page map before `offset`."""
    etag: str = ""
    """The head's version since the comparison began; empty at its beginning."""
    compared: int = 0
    """Bytes of content compared so far."""
    changed_bytes: int = 0
    """What the plan says of the diff: bytes it touches, and in how many ranges."""
    ranges: int = 0


class Verified(Message):
    """How far the comparison came. Once `done`, the head is marked verified and `etag` is its version."""

    content: bool
    offset: int
    chain: str
    etag: str
    compared: int
    done: bool


class TakeBackup(Message):
    """Snapshot the verified head, with everything there is to say of the restore point."""

    transfer: Transfer
    etag: str
    applied: Applied
    compared: int
    """Bytes of content the verification compared."""
    now: str


class BackedUp(Message):
    """The backup snapshot B."""

    snapshot: str


class Commit(Message):
    """Make the pair visible as a restore point."""

    transfer: Transfer
    etag: str
    backup_snapshot: str


class Committed(Message):
    """The restore point."""

    point: str


class Clean(Message):
    """Delete the source snapshot the new pair replaced."""

    transfer: Transfer


class Prune(Message):
    """Delete what the disk's retention no longer keeps."""

    by: RunRef


class Pruned(Message):
    """The restore points that are gone now."""

    expired: list[str]
    more: bool


class Report(Message):
    """Progress of the run, for its row."""

    by: RunRef
    phase: Phase
    done: int = 0
    total: int = 0
    rounds_left: int = 0
    kind: str = ""
    reason: str = ""
    bytes_total: int = 0
    bytes_done: int = 0
    ranges_total: int = 0
    bytes_streamed: int = 0
    requests_total: int = 0
    requests_done: int = 0
    retries: int = 0


class Reported(Message):
    """Percent as the row now has it, and whether somebody asked for the run to be canceled."""

    percent: int
    cancel: bool


class Finish(Message):
    """End the run and let go of the disk."""

    disk: str
    run: str
    lease: str
    state: Literal["Succeeded", "Failed", "Canceled"]
    now: str
    points: list[str] = Field(default_factory=list)
    expired: list[str] = Field(default_factory=list)
    fault: Fault | None = None
    heads: list[str] = Field(default_factory=list)
    """Every head the run leased, so that none stays leased, committed or not."""


class Nothing(Message):
    """No answer is needed."""


class Going(Message):
    """Where a continued-as-new backup goes on: in the middle of a transfer."""

    transfer: Transfer
    planned: Planned
    next_shard: int
    applied: Applied
    retries: int
    points: list[str]
    heads: list[str]
    started: str
    fresh_after: bool
    """A fresh source snapshot follows after this transfer."""


BackupRequest.model_rebuild()

I = TypeVar("I", bound=Message)
O = TypeVar("O", bound=Message)


@dataclass(frozen=True)
class Step(Generic[I, O]):
    """A named activity with its types."""

    name: str
    takes: type[I]
    answers: type[O]


LIST_DISKS = Step("list_disks", FleetPage, FleetDisks)
BEGIN = Step("begin", Begin, Begun)
TAKE_SNAPSHOT = Step("take_source_snapshot", TakeSnapshot, Snapshotted)
PLAN_TRANSFER = Step("plan_transfer", PlanTransfer, Planned)
NEW_GENERATION = Step("begin_new_generation", NewGeneration, Begun)
RAISE_EPOCH = Step("raise_epoch", RaiseEpoch, Raised)
OPEN_HEAD = Step("open_head", Transfer, Opened)
START_COPY = Step("start_copy", Transfer, CopyStarted)
CHECK_COPY = Step("check_copy", CopyRef, CopyProgress)
ABORT_COPY = Step("abort_copy", CopyRef, Nothing)
TAKE_OVER_COPY = Step("take_over_copy", CopyRef, Opened)
APPLY_SHARD = Step("apply_shard", ApplyShard, ShardApplied)
VERIFY_HEAD = Step("verify_head", Verify, Verified)
TAKE_BACKUP = Step("take_backup_snapshot", TakeBackup, BackedUp)
COMMIT_POINT = Step("commit_point", Commit, Committed)
DROP_PREVIOUS = Step("drop_previous_snapshot", Clean, Nothing)
PRUNE_POINTS = Step("prune_points", Prune, Pruned)
REPORT_PROGRESS = Step("report_progress", Report, Reported)
FINISH_RUN = Step("finish_run", Finish, Nothing)

STEPS: tuple[Step[Any, Any], ...] = (
    LIST_DISKS, BEGIN, TAKE_SNAPSHOT, PLAN_TRANSFER, NEW_GENERATION, RAISE_EPOCH, OPEN_HEAD, START_COPY, CHECK_COPY,
    ABORT_COPY, TAKE_OVER_COPY, APPLY_SHARD, VERIFY_HEAD, TAKE_BACKUP, COMMIT_POINT, DROP_PREVIOUS, PRUNE_POINTS,
    REPORT_PROGRESS, FINISH_RUN,
)  # fmt: skip
"""Every step; function_app.py registers one activity for each."""
