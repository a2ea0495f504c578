"""Taking a blob for a run: its lease, and the sequence number by which every older writer is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.errors import (
    BlobChangedError,
    BlobMissingError,
    FencedError,
    LeaseTakenError,
    ServiceUnavailableError,
)
from backup_core.ports import Guard

if TYPE_CHECKING:
    from backup_core.activities.tools import Tools
    from backup_core.domain.naming import BlobAddress
    from backup_core.ports import BlobProperties

ATTEMPTS = 20
"""Versions a blob may go through while its number is set; what was under way when it was taken comes to an end before."""


async def hold_lease(tools: Tools, blob: BlobAddress, lease: str) -> BlobProperties | None:
    """Hold the head's lease, breaking a former owner's; the head as it was found, or None when it is gone."""
    try:
        try:
            await tools.blobs.acquire_lease(blob, lease)
        except LeaseTakenError:
            # The catalogue says the former owner is over: its lease protects nothing any more.
            await tools.blobs.break_lease(blob)
            await tools.blobs.acquire_lease(blob, lease)
        return await tools.blobs.properties(blob)
    except BlobMissingError:
        return None


async def shut(tools: Tools, blob: BlobAddress, number: int, lease: str) -> str:
    """Raise the blob's sequence number to `number`: from now on whatever was sent under a lower one is refused. Returns the
    ETag.

    It is left alone when it is there already, and set under the version it was read at, never by `max`: a request of a
    delivery that died, arriving late, would give the blob another version in the middle of its comparison. Raises FencedError
    when the number is a higher one, which is a stranger's.
    """
    for _ in range(ATTEMPTS):
        found = await tools.blobs.properties(blob)
        if found.sequence_number == number:
            return found.etag
        if found.sequence_number > number:
            message = (
                f"{blob}: sequence number {found.sequence_number}, expected at most {number}: somebody raised it; "
                "the next run makes a full backup"
            )
            raise FencedError(message)
        try:
            return await tools.blobs.set_sequence_number(blob, number, Guard(lease, found.etag))
        except BlobChangedError:
            continue  # a write that was under way arrived: look again
    message = f"{blob}: it was written to {ATTEMPTS} times while its sequence number was to be {number}; it may pass"
    raise ServiceUnavailableError(message)
