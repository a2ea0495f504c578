# Long: every fault is here, so that no two have one code.
"""Expected failures, each with a class of its own. A class has a stable code, and says whether a retry can help. Its message
has the order object, event, expected, found, next move.
"""

from __future__ import annotations

from typing import ClassVar


class BackupError(Exception):
    """Base of all expected failures. `code` is part of the HTTP and catalogue contract."""

    code: ClassVar[str] = "BackupError"
    retryable: ClassVar[bool] = False
    """Whether a retry of the same call may succeed."""
    wait_seconds: int = 0
    """Seconds for which a retry certainly fails; at most some minutes, which a durable timer waits out."""


# -- the service ----------------------------------------------------------------------------------------------


class ServiceUnavailableError(BackupError):
    """The storage service is busy, timed out or could not be reached, beyond the adapter's own retries."""

    code = "ServiceUnavailable"
    retryable = True


class HostUnknownError(ServiceUnavailableError):
    """Name servers know no host of the account's name: it is misspelt, or the account was deleted."""

    code = "HostUnknown"
    retryable = False


class ServiceTimedOutError(ServiceUnavailableError):
    """The request timed out on either side; a smaller request may succeed."""

    code = "ServiceTimedOut"


class AccessDeniedError(BackupError):
    """The service refused the identity; a retry does not help."""

    code = "AccessDenied"
    by_signature: bool = False
    """Whether it was the signature that was refused: its access may have been ended meanwhile."""


class AccessLostError(AccessDeniedError):
    """The signature of an export was refused just after it had been opened anew. Another process may have been granted access
    meanwhile, which may end that of all others.
    """

    code = "AccessLost"
    retryable = True


class UnexpectedAnswerError(BackupError):
    """The service answered with something this program does not know; never treated as success."""

    code = "UnexpectedAnswer"


class TransferDamagedError(BackupError):
    """Bytes arrived incomplete or altered; nothing was written from them."""

    code = "TransferDamaged"
    retryable = True


class CopySourceRefusedError(BackupError):
    """The destination's account could not read the source: a firewall, or the source's authorisation."""

    code = "CopySourceRefused"


class CopySourceUnreachableError(CopySourceRefusedError):
    """The destination's account could not read the source in time: their networks keep them apart, or the source is busy."""

    code = "CopySourceUnreachable"
    retryable = True


class CopySourceKindError(CopySourceRefusedError):
    """The source is an export that the service takes no copy from, whoever asks: its bytes are streamed."""

    code = "CopySourceKind"


class CopyFailedError(BackupError):
    """A Copy Blob did not end as this run's complete copy."""

    code = "CopyFailed"


# -- blobs ----------------------------------------------------------------------------------------------------


class SnapshotsPresentError(BackupError):
    """A blob was to be deleted alone and has snapshots."""

    code = "SnapshotsPresent"


class BlobMissingError(BackupError):
    """The blob, or its container, does not exist."""

    code = "BlobMissing"


class ContainerMissingError(BlobMissingError):
    """The container does not exist; one of this app's own is made again."""

    code = "ContainerMissing"


class ContainerTakenError(BackupError):
    """A container for backups or plans belongs to another deployment's catalogue."""

    code = "ContainerTaken"


class BlobExistsError(BackupError):
    """A blob that was to be created exists already."""

    code = "BlobExists"


class SnapshotMissingError(BackupError):
    """A snapshot that was expected does not exist."""

    code = "SnapshotMissing"


class SnapshotLimitError(BackupError):
    """The blob has as many snapshots as its account type allows; some must be deleted first."""

    code = "SnapshotLimit"


class SnapshotRateError(BackupError):
    """The account type allows another snapshot of the blob only minutes later."""

    code = "SnapshotRate"
    retryable = True
    wait_seconds = 600


class SnapshotUnreadableError(BackupError):
    """The account type does not let a snapshot be read directly."""

    code = "SnapshotUnreadable"


class LeaseTakenError(BackupError):
    """The blob is leased under another lease id."""

    code = "LeaseTaken"


class FencedError(BackupError):
    """A write was refused because its lease or epoch is no longer the current one: a newer run owns the head."""

    code = "Fenced"


class BlobChangedError(BackupError):
    """A conditional write found another version of the blob."""

    code = "BlobChanged"


class DiffRefusedError(BackupError):
    """The service does not answer a page-range diff against the previous snapshot; `reason` is its code."""

    code = "DiffRefused"

    def __init__(self, message: str, reason: str) -> None:
        """Keep the service's own code beside the message."""
        super().__init__(message)
        self.reason = reason


# -- the catalogue ----------------------------------------------------------------------------------------------


class TableMissingError(BackupError):
    """The catalogue's table does not exist. It is created again, empty; a rebuild restores its rows."""

    code = "TableMissing"


STORES_MISSING = (ContainerMissingError, TableMissingError)
"""The app's own store, if the answer was about one."""


class RowExistsError(BackupError):
    """A row that was to be inserted exists."""

    code = "RowExists"


class RowChangedError(BackupError):
    """A row was changed by somebody else between reading and writing."""

    code = "RowChanged"
    retryable = True


class RecordUnreadableError(BackupError):
    """A row or document holds something that this version cannot read: damaged, or written by a newer version."""

    code = "RecordUnreadable"


class RecordAlteredError(BackupError):
    """A row or document differs from the run's own history: somebody else wrote it. It is not used."""

    code = "RecordAltered"


class DiskUnknownError(BackupError):
    """No disk is registered under this id."""

    code = "DiskNotFound"


class NotProtectedError(BackupError):
    """Protection of the disk was stopped; its restore points stay."""

    code = "NotProtected"


class NotOwnerError(BackupError):
    """The run does not own the disk, or owns it no longer; it must not change anything."""

    code = "NotOwner"


class PointUnavailableError(BackupError):
    """The restore point cannot be restored: it is deleted, being deleted, lost or quarantined."""

    code = "RestorePointUnavailable"


# -- virtual machines -------------------------------------------------------------------------------------------


class MachineMissingError(BackupError):
    """The virtual machine, or its resource group, does not exist."""

    code = "MachineNotFound"


class MachineChangedError(BackupError):
    """The virtual machine was changed by somebody else between reading and writing."""

    code = "MachineChanged"
    retryable = True


class MachineBusyError(BackupError):
    """Another operation on the virtual machine or disk is in progress."""

    code = "MachineBusy"
    retryable = True


class MachineRefusedError(BackupError):
    """Azure Resource Manager refuses the change, now and later."""

    code = "MachineRefused"


class AccountIdMissingError(BackupError):
    """The settings do not name the resource id of a storage account, without which no VHD of it is imported."""

    code = "AccountIdMissing"


class SlotTakenError(BackupError):
    """The machine does not use the disk that was expected where it was expected."""

    code = "SlotTaken"


# -- a run ------------------------------------------------------------------------------------------------------


class SnapshotNotReadyError(BackupError):
    """A snapshot of a managed disk was not filled in time, or never will be."""

    code = "SnapshotNotReady"


class ManagedDiskRefusedError(BackupError):
    """Azure Resource Manager refuses the request for a managed disk or for a snapshot of one, now and later."""

    code = "ManagedDiskRefused"


class SourceUnfitError(BackupError):
    """The blob cannot be protected: wrong type, size, age or state."""

    code = "SourceUnfit"


class VerificationError(BackupError):
    """The backup differs from the source snapshot; the point was not committed."""

    code = "VerificationMismatch"


class HeadAlteredError(BackupError):
    """Somebody else changed the backup blob while a run was writing it."""

    code = "HeadAltered"


class CleanupError(BackupError):
    """Some leftovers of a disk could not be removed; the others were."""

    code = "HousekeepingFailed"


class TooManyFullsError(BackupError):
    """The disk needed an automatic full backup too often in a row; a person has to look."""

    code = "TooManyAutomaticFulls"


class UnexpectedError(BackupError):
    """A fault of this program; secrets are removed from its text."""

    code = "Unexpected"
    retryable = True
