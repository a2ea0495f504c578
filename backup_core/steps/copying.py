# Long: the messages of copying and comparing, which refer to each other.
"""The steps by which images are copied, for backups and restores alike."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field

from backup_core.domain.progress import verifying_from
from backup_core.domain.records import Kind, Phase
from backup_core.steps.messages import Actor, Duty, Fault, Message, Nothing, Step, duty_of

FullCopy = Literal["pages", "blob"]
"""How a full copy is made: page by page, or as one Copy Blob of the service."""


Verification = Literal["sampled", "full"]
"""How much content is compared: samples, or every allocated byte."""


class SlotRef(Message):
    """The place of a disk on a machine."""

    vm: str
    lun: int | None = None


class ImageCopy(Message):
    """An image, or the changes to one, brought from a snapshot to a blob, for the copying steps of backups and restores.

    `source` and `destination` are URLs of disks, or names of backup blobs in their container. A destination may also be the
    resource id of a managed disk that is made by an upload.
    """

    actor: Actor
    source: str
    base: str = ""
    """Snapshot of the source that the destination equals already; empty when it is empty."""
    target: str
    """Snapshot of the source that the destination is brought to."""
    destination: str
    becomes: Literal["head", "disk"] = "head"
    """The purpose of the destination: a head carries its intent, a disk carries nothing of ours once it is complete."""
    kind: Kind
    generation: int
    size: int
    plan: str = ""
    plan_digest: str = ""
    """Of the stored plan: a step refuses another one."""
    # Left out where there is none: as in the histories of before.
    slot: SlotRef | None = Field(default=None, exclude_if=lambda slot: slot is None)
    """Of a managed disk that is uploaded: the slot that it is made for."""


class PlanResult(Message):
    """The stored plan, or the reason why the diff cannot be trusted."""

    plan: str = ""
    digest: str = ""
    shards: int = 0
    write_bytes: int = 0
    clear_bytes: int = 0
    ranges: int = 0
    requests: int = 0
    refused: str = ""
    whole: bool = False
    """Copied as a whole by the service: there are no shards."""
    reads: int = 0
    """About how many requests the verification takes afterwards."""


class OpenResult(Message):
    """The head: it exists, is leased, has the right size, and carries the intent."""

    etag: str


class ApplyShard(Message):
    """Copy a shard of the plan, from the position of an earlier call; then others, while there is time."""

    image: ImageCopy
    shard: int
    then: list[int] = Field(default_factory=list)
    """The shards after it, in this order."""


class TransferCounts(Message):
    """Counts of the work on the head."""

    write_bytes: int = 0
    clear_bytes: int = 0
    puts: int = 0
    clears: int = 0
    streamed_bytes: int = 0
    """Written bytes that passed through the worker."""

    def plus(self, other: TransferCounts) -> TransferCounts:
        """The sum of both."""
        return TransferCounts(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})


class CopyProgress(Message):
    """The position of a continued-as-new instance in its plan's shards."""

    next_shard: int = 0
    """No shard from this one on has been begun."""
    open_shards: list[int] = Field(default_factory=list)
    """Those before it that are not done, begun ones first."""
    applied: TransferCounts = TransferCounts()
    """Counts of all shards that are done."""

    def position(self) -> dict[str, Any]:
        """The position, as fields."""
        return {name: getattr(self, name) for name in CopyProgress.model_fields}


class CopyBlobRequest(Message):
    """Input of the copy_blob orchestration; `copy_id` and the fields after it are a continued instance's position."""

    image: ImageCopy
    reason: str = ""
    copy_id: str = ""
    pause: float = 0.0
    waited: float = 0.0
    """Seconds of the pauses between the polls until now."""
    retries: int = 0
    replaced: int = Field(default=0, exclude_if=lambda number: not number)
    """Number of failed copies that were begun over until now."""


class CopyBlobResult(Message):
    """Output of the copy_blob orchestration."""

    state: Literal["success", "failed", "canceled"]
    copy_id: str = ""
    fault: Fault | None = None
    retries: int = 0


class StartCopy(ImageCopy):
    """An image to be copied by a Copy Blob of the service."""

    replaces: str = Field(default="", exclude_if=lambda copy_id: not copy_id)
    """Id of its Copy Blob that failed, which a new one is begun over; empty for the first."""


class StartCopyResult(Message):
    """The service's id of the copy."""

    copy_id: str


class CopyRef(Message):
    """A Copy Blob of an image."""

    image: ImageCopy
    copy_id: str


class CheckCopyResult(Message):
    """The progress of a copy, in bytes."""

    status: Literal["pending", "success", "failed", "aborted"]
    done: int
    total: int
    why: str = ""


class ShardResult(Message):
    """The progress of a call: of its latest shard, and of those before, which are done."""

    applied: TransferCounts
    """Counts of the latest shard, by this call and those before."""
    at: int
    """Everything of it before this offset is done, durably known."""
    done: bool
    """Whether the latest shard is done."""
    before: TransferCounts = TransferCounts()
    """Counts of the shards before it, by this call and those before."""
    shards_before: int = 0

    @property
    def shards_done(self) -> int:
        """Number of the call's shards that are done: the first ones of those it was given."""
        return self.shards_before + self.done

    @property
    def of_done(self) -> TransferCounts:
        """Their counts."""
        return self.before.plus(self.applied) if self.done else self.before


class Blocks(Message):
    """Blocks of either kind a sampled verification draws from: on the whole disk, or before an offset."""

    kept: int = 0
    """Allocated on both sides, left alone by the diff."""
    changed: int = 0
    """Touched by the diff."""


class ComparisonProgress(Message):
    """The progress of a comparison: first the page maps of the whole disk, then content."""

    content: bool = False
    """Whether the page maps are done and content is compared."""
    offset: int = 0
    proved: int = 0
    """Before this, what only one side has of the window at `offset` is proved to be zeros, while page maps are compared."""
    chain: str = ""
    """Digest of the page map before `offset`."""
    etag: str = ""
    """The blob's version since the comparison began; empty at its beginning."""
    compared: int = 0
    """Bytes of content compared so far."""
    reads: int = 0
    """Requests that read content for it, of both sides."""
    reads_expected: int = 0
    """About how many there will be, once the page maps are done."""
    blocks: Blocks = Blocks()
    """Of the whole disk, once the page maps are done."""
    before: Blocks = Blocks()
    """Of those, the ones before `offset` while content is compared."""

    def position(self) -> dict[str, Any]:
        """The position, as fields."""
        return {name: getattr(self, name) for name in ComparisonProgress.model_fields}

    def reached(self, other: ComparisonProgress) -> Self:
        """The same request, from the position of `other`."""
        return self.model_copy(update=other.position())

    def progress(self, size: int) -> tuple[int, int]:
        """Done and total of the comparison, for a percentage: the maps count as a tenth of it."""
        if not self.content:
            return max(self.offset, self.proved), 10 * size
        return size + (9 * size * self.reads // self.reads_expected if self.reads_expected else 0), 10 * size


class ComparisonResult(ComparisonProgress):
    """The progress of the comparison. Once `done`, the head is marked verified and `etag` is its version."""

    done: bool


class ReportProgress(Message):
    """Progress of the run, for its row."""

    actor: Actor
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
    requests_verified: int = 0
    verifying_from: int = 0
    """The percent at which verifying begins, by the work of this run; 0 where that is not known."""
    retries: int = 0
    attention: str = ""
    """Reason why a person should look at the run, which continues to retry."""
    in_parallel: bool = False
    """A heartbeat from work beside the run's main one: it does not change the row's phase and numbers."""

    def measured(self, planned: PlanResult, applied: TransferCounts) -> ReportProgress:
        """The report with the completed part of the plan."""
        amounts = {
            "bytes_total": planned.write_bytes,
            "bytes_done": applied.write_bytes,
            "bytes_streamed": applied.streamed_bytes,
            "ranges_total": planned.ranges,
            "requests_total": planned.requests,
            "requests_done": applied.puts + applied.clears,
            "verifying_from": verifying_from(planned.requests, planned.reads) if planned.reads else 0,
        }
        return self.model_copy(update=amounts)


class ReportResult(Message):
    """Percent as the row has it now, and whether the run is to be canceled."""

    percent: int
    started: str = ""
    """When the run began, ISO 8601: for an estimate of when it ends."""
    cancel: bool
    """A caller requested it, or a part of the run has failed."""
    fault: Fault | None = None
    """The failure of that part, when no caller requested the cancel."""


def _of_image(request: CopyRef | ApplyShard) -> Duty:
    return duty_of(request.image.actor)


PLAN_TRANSFER = Step("plan_transfer", ImageCopy, PlanResult, lambda request: duty_of(request.actor))
START_COPY = Step("start_copy", StartCopy, StartCopyResult, lambda request: duty_of(request.actor))
CHECK_COPY = Step("check_copy", CopyRef, CheckCopyResult, _of_image)
ABORT_COPY = Step("abort_copy", CopyRef, Nothing, _of_image)
TAKE_OVER_COPY = Step("take_over_copy", CopyRef, OpenResult, _of_image)
APPLY_SHARD = Step("apply_shard", ApplyShard, ShardResult, _of_image)
REPORT_PROGRESS = Step("report_progress", ReportProgress, ReportResult, lambda request: duty_of(request.actor))

COPYING_STEPS: tuple[Step[Any, Any], ...] = (
    PLAN_TRANSFER,
    START_COPY,
    CHECK_COPY,
    ABORT_COPY,
    TAKE_OVER_COPY,
    APPLY_SHARD,
    REPORT_PROGRESS,
)
