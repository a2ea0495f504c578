# Long: the messages of one run, which are stored in its history, beside each other.
"""The steps of a restore, and the messages between its orchestrations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from backup_core.domain.naming import is_resource_id
from backup_core.domain.repoint import Holds, Move
from backup_core.steps.backup import Transfer
from backup_core.steps.copying import (
    ComparisonProgress,
    ComparisonResult,
    CopyProgress,
    FullCopy,
    ImageCopy,
    OpenResult,
    PlanResult,
    SlotRef,
    TransferCounts,
    Verification,
)
from backup_core.steps.messages import Actor, Duty, Fault, Message, Nothing, Step, always


class RestoreRequest(Message):
    """Input of the restore_disk orchestration. The run's row has the request."""

    disk: str
    run: str
    wave: int = 4
    full_copy: FullCopy = "pages"
    verification: Verification = "full"
    wanted: str = ""
    """Digest of the request: a row that differs is not carried out. Empty from a version without it."""


class BeginRestore(Message):
    """Request the restore: pin the point."""

    disk: str
    run: str
    lease: str
    wanted: str = ""


class BeginRestoreResult(Message):
    """The pinned point, and the request."""

    state: Literal["go", "ended"]
    why: str = ""
    point: str = ""
    head: str = ""
    snapshot: str = ""
    """The backup snapshot, of the blob `head`."""
    size: int = 0
    source: str = ""
    """URL of the disk as it is registered, or was when the point was taken; empty when this app may not read it any more."""
    target: str = ""
    managed_disk: str = ""
    slot: SlotRef | None = None
    repoint: bool = False
    stop_vm: bool = False
    old_disk: str = ""
    """The machine's disk when the restore was requested."""
    adopt: bool = False
    new_source: str = ""
    """Resource id, as registrations have it, of the managed disk that is adopted; empty where none is."""

    @property
    def uploads(self) -> bool:
        """Whether the target is the managed disk itself, which is uploaded; else one is imported from it, or none is made."""
        return is_resource_id(self.target)


class CopyImageRequest(CopyProgress):
    """Input of the copy_image orchestration: bring a whole image to a new blob and prove it."""

    image: ImageCopy
    wave: int
    full_copy: FullCopy
    verification: Verification
    planned: PlanResult | None = None
    """The position of a continued-as-new instance."""
    retries: int = 0


class CopyImageResult(Message):
    """Output of the copy_image orchestration."""

    state: Literal["success", "failed", "canceled"]
    etag: str = ""
    applied: TransferCounts = TransferCounts()
    compared: int = 0
    page_map: str = ""
    fault: Fault | None = None
    retries: int = 0


class CompareImage(ComparisonProgress):
    """Compare the copy with its source, from the position of an earlier call."""

    image: ImageCopy
    full: bool


class NewDisk(ImageCopy):
    """A restored disk that was imported, as its snapshot: `destination` is its resource id, and `source` what it was made of.

    Its last 512 bytes are its own: Azure may write the footer of a VHD anew.
    """

    snapshot: str


class CompareSnapshot(ComparisonProgress):
    """Compare the first snapshot of an imported disk with the restore point, from where an earlier call came to."""

    image: NewDisk
    full: bool


class SnapshotDiskRequest(Message):
    """Input of the snapshot_disk orchestration: take the first snapshot of an imported disk, and compare it."""

    image: ImageCopy
    """The restore point, and as its destination the resource id of the new disk. Its actor owns the protected disk."""
    verification: Verification
    resumed: bool
    """Whether an earlier life has begun to change the machine: then nobody leaves here any more."""


class SnapshotDiskResult(Message):
    """Output of the snapshot_disk orchestration."""

    snapshot: str = ""
    canceled: bool = False
    fault: Fault | None = None
    retries: int = 0


class DiscardSnapshot(Message):
    """Remove the snapshot of an imported disk that was not adopted, if the run took one."""

    actor: Actor
    disk: str
    """Resource id of the imported disk."""


class SealImage(Message):
    """Release the complete and proved disk: snapshot it if wanted, remove the run's mark, release the lease."""

    image: ImageCopy
    etag: str
    snapshots: bool


class SealResult(Message):
    """The snapshot of the new disk, empty when none was wanted."""

    snapshot: str


class DiscardImage(Message):
    """Remove a blob that this run made and did not finish."""

    image: ImageCopy


class DiscardResult(Message):
    """The remains of it, in words; empty without any."""

    left: str


class OwnDisk(Message):
    """Request the ownership of the disk for a restore."""

    disk: str
    run: str
    lease: str
    supersedes: str = ""
    """Another lease of the same run, whose execution is excluded by this one."""


class OwnDiskResult(Message):
    """The run's epoch, or the run that owns the disk now."""

    state: Literal["owned", "waiting", "unsettled"]
    epoch: int = 0
    source: str = ""
    """URL of the disk's blob as it is registered; empty when it is not."""
    busy: str = ""
    repoint: str = ""
    """The change of a machine that has to be settled first; of an owner, its own that an earlier life has begun and
    may have ended."""
    repoint_digest: str = ""
    """Digest of the change that has to be settled."""
    leased_head: str = ""
    """The present head, leased and fenced against older writers meanwhile."""


class ImportDisk(Message):
    """Make a managed disk of the restored blob."""

    actor: Actor
    disk: str
    target: str
    slot: SlotRef | None


class ImportResult(Message):
    """Whether the managed disk is complete."""

    done: bool


class StoreChange(Message):
    """Store the machine's present disk and its new one, before anything is changed."""

    actor: Actor
    slot: SlotRef
    expected: str
    """The disk to be replaced: the one in the slot when the restore was requested."""
    target: str
    managed_disk: str
    size: int
    stop_vm: bool
    new_source: str = ""
    """The managed disk as the registration's source, when it is adopted."""


class StoreChangeResult(Message):
    """The stored change and its name: all later steps are checked against it."""

    change: str
    old_disk: str
    known: str = ""
    """The stored change; empty from a version without this field."""


class ChangeRef(Message):
    """A stored change of a machine, with the copy that the calling orchestration has."""

    actor: Actor
    change: str
    known: str = ""
    """The change, as the step answered that stored it; empty in a run that settles what another has left."""
    digest: str = ""
    """In such a run: the digest of the document, as the head row says it."""

    def ref(self) -> dict[str, Any]:
        """The reference, as fields."""
        return {name: getattr(self, name) for name in ChangeRef.model_fields}


class MoveMachine(ChangeRef):
    """Bring the machine one move nearer to the goal."""

    goal: Literal["new", "old"]


class MoveResult(Message):
    """The progress of the change. `done`: the goal was read back."""

    done: bool
    move: Move
    holds: Holds
    power: str
    source: str = ""
    """The machine's disk there, read back; empty when it has none, or in answers of a version without this field."""


class CloseChange(ChangeRef):
    """Close the stored change: the machine has its goal. After `new` the registration follows the machine, without a
    point of its own: the next backup is a full one.
    """

    goal: Literal["new", "old"]


class RepointRequest(ChangeRef):
    """Input of the repoint_machine orchestration. An empty `goal` settles the change of an abandoned run: forward or back."""

    goal: Literal["new", "old", ""]
    fault: Fault | None = None
    """Reason why the goal is the old disk again."""
    began: str = ""
    retries: int = 0
    attention: str = ""
    pause: float = 0.0


class RepointResult(Message):
    """Output of the repoint_machine orchestration: the machine's present disk, read back."""

    holds: Literal["new", "old", "nothing", "other", "unknown"]
    """`unknown`: another run took the disk over, and settles the machine."""
    power: str
    fault: Fault | None = None
    seconds: int = 0
    source: str = ""
    """The name of that disk in Azure."""


class DeliverRequest(Message):
    """Input of the deliver_disk orchestration: the new disk, and the machine that gets it."""

    request: RestoreRequest
    actor: Actor
    begun: BeginRestoreResult


class WaitRequest(Message):
    """Input of the wait_for_disk orchestration: become the disk's owner, however long another run takes."""

    actor: Actor
    lease: str = ""
    """The lease to own the disk with, when it is not the run's: then everything that acts under the run's is excluded."""
    pause: float = 0.0
    retries: int = 0
    changes_closed: int = 0
    """Former changes of machines that were settled until now."""


class WaitResult(Message):
    """Output of the wait_for_disk orchestration."""

    ownership: OwnDiskResult | None = None
    canceled: bool = False
    fault: Fault | None = None


class DeliverResult(Message):
    """Output of the deliver_disk orchestration."""

    state: Literal["success", "failed", "canceled"]
    fault: Fault | None = None
    etag: str = ""
    """The new disk's version when it was proved equal to the restore point; empty before."""
    sealed: bool = False
    """Whether the new disk is complete and released, also when the rest failed."""
    snapshot: str = ""
    ownership: OwnDiskResult | None = None
    machine: RepointResult | None = None
    change: str = ""
    known: str = ""
    """The change itself."""
    old_disk: str = ""
    retries: int = 0


class RecordFailure(Message):
    """Record the failure of one part of a run: its other parts then end."""

    actor: Actor
    fault: Fault


class AdoptHead(Message):
    """Make the promoted blob the disk's head: at the run's epoch, equal to the new disk's snapshot."""

    transfer: Transfer
    etag: str
    """Its version when it was proved equal to the restore point."""
    page_map: str
    """Digest of its page map then."""


class FinishRestore(Message):
    """End the restore: its row, its pin, its leases, the disk's ownership."""

    disk: str
    run: str
    lease: str
    state: Literal["Succeeded", "Failed", "Canceled"]
    end: str
    points: list[str] = Field(default_factory=list)
    fault: Fault | None = None
    old_disk: str = ""
    downtime_seconds: int | None = None
    leased: list[str] = Field(default_factory=list)
    owner_lease: str = ""
    """The lease that owns the disk, when it is not the run's."""
    retries: int = 0
    """All of the run's, those after its last report of progress included."""


def _adopting(request: AdoptHead) -> Duty:
    """The duty whose identity adopts the head. The identity of restores may not read an imported disk's snapshots."""
    return "backup" if is_resource_id(request.transfer.source) else "restore"


BEGIN_RESTORE = Step("begin_restore", BeginRestore, BeginRestoreResult, always("restore"))
OPEN_IMAGE = Step("open_image", ImageCopy, OpenResult, always("restore"))
COMPARE_IMAGE = Step("compare_image", CompareImage, ComparisonResult, always("restore"))
# What reads a managed disk's snapshots acts as a backup: the identity of restores may only end access to them and delete them.
COMPARE_SNAPSHOT = Step("compare_snapshot", CompareSnapshot, ComparisonResult)
DISCARD_SNAPSHOT = Step("discard_snapshot", DiscardSnapshot, DiscardResult, always("restore"))
SEAL_IMAGE = Step("seal_image", SealImage, SealResult, always("restore"))
DISCARD_IMAGE = Step("discard_image", DiscardImage, DiscardResult, always("restore"))
OWN_DISK = Step("own_disk", OwnDisk, OwnDiskResult, always("restore"))
IMPORT_DISK = Step("import_disk", ImportDisk, ImportResult, always("restore"))
STORE_CHANGE = Step("store_change", StoreChange, StoreChangeResult, always("restore"))
MOVE_MACHINE = Step("move_machine", MoveMachine, MoveResult, always("restore"))
INSPECT_MACHINE = Step("inspect_machine", MoveMachine, MoveResult, always("restore"))
FENCE_MACHINE = Step("fence_machine", MoveMachine, MoveResult, always("restore"))
CLOSE_CHANGE = Step("close_change", CloseChange, Nothing, always("restore"))
RECORD_FAILURE = Step("record_failure", RecordFailure, Nothing, always("restore"))
ADOPT_HEAD = Step("adopt_head", AdoptHead, OpenResult, _adopting)
FINISH_RESTORE = Step("finish_restore", FinishRestore, Nothing, always("restore"))

RESTORE_STEPS: tuple[Step[Any, Any], ...] = (
    BEGIN_RESTORE,
    OPEN_IMAGE,
    COMPARE_IMAGE,
    COMPARE_SNAPSHOT,
    SEAL_IMAGE,
    DISCARD_IMAGE,
    DISCARD_SNAPSHOT,
    OWN_DISK,
    IMPORT_DISK,
    STORE_CHANGE,
    MOVE_MACHINE,
    INSPECT_MACHINE,
    FENCE_MACHINE,
    CLOSE_CHANGE,
    RECORD_FAILURE,
    ADOPT_HEAD,
    FINISH_RESTORE,
)
