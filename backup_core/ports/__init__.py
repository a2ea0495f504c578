"""The ports: services that the app needs, as Protocols. The semantics in their docstrings are the contract: one port suite in
the tests holds the Azure adapters and the in-memory ports to it.

All methods may raise ServiceUnavailableError, AccessDeniedError and UnexpectedAnswerError besides what they name.
"""

from backup_core.ports.blobs import (
    BlobProperties,
    CopyState,
    CopyStatus,
    FailedSnapshot,
    Fence,
    Guard,
    ListedBlob,
    PageBlobs,
    SnapshotInfo,
)
from backup_core.ports.catalogue import ROWS_PER_COMMIT, Catalogue
from backup_core.ports.documents import Documents, ListedDocument
from backup_core.ports.journal import Journal
from backup_core.ports.machines import Machines

__all__ = [
    "ROWS_PER_COMMIT",
    "BlobProperties",
    "Catalogue",
    "CopyState",
    "CopyStatus",
    "Documents",
    "FailedSnapshot",
    "Fence",
    "Guard",
    "Journal",
    "ListedBlob",
    "ListedDocument",
    "Machines",
    "PageBlobs",
    "SnapshotInfo",
]
