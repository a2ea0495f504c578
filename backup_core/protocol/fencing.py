"""The fence of a blob: its lease, and the sequence number by which the service refuses every older writer."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from backup_core.domain.errors import (
    BlobChangedError,
    BlobMissingError,
    FencedError,
    LeaseTakenError,
    NotOwnerError,
    ServiceUnavailableError,
)
from backup_core.ports import Guard

if TYPE_CHECKING:
    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.records import Owner
    from backup_core.ports import BlobProperties
    from backup_core.protocol.tools import Tools

ATTEMPTS = 20
"""Versions a blob may have while its number is set, and leases it may be under while it is taken: requests in flight
end sooner.
"""


async def hold_lease(tools: Tools, disk: str, owner: Owner, blob: BlobAddress) -> BlobProperties | None:
    """Take the head's lease for the disk's owner, breaking a former one's; the head as it was found, or None when it is gone.

    Raises NotOwnerError, and breaks nothing, when somebody else has become the owner meanwhile: the lease is that one's.
    """
    try:
        for _ in range(ATTEMPTS):
            with suppress(LeaseTakenError):
                await tools.blobs.acquire_lease(blob, owner.lease)
                return await tools.blobs.properties(blob)
            # G7: a lease is broken only for the present owner.
            row = await tools.catalogue.head(disk)
            if row is None or row.value.owner != owner:
                message = f"disk {disk}: run {owner.run} (epoch {owner.epoch}) does not own it any more; nothing was done"
                raise NotOwnerError(message)
            # The catalogue says that the former owner has ended: its lease protects nothing any more. A late delivery of it may
            # take the lease once more just after this.
            await tools.blobs.break_lease(blob)
    except BlobMissingError:
        return None
    message = f"{blob}: its lease was broken {ATTEMPTS} times, and each time taken by somebody else; temporary failure"
    raise ServiceUnavailableError(message)


async def fence_off(tools: Tools, blob: BlobAddress, number: int, lease: str) -> str:
    """Raise the blob's sequence number to `number`: the service then refuses requests sent under a lower one. Returns the
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
                f"{blob}: sequence number {found.sequence_number}, expected at most {number}: somebody else raised it; "
                "nothing is built on this blob any more, the next backup is a full one"
            )
            raise FencedError(message)
        try:
            # G8: every put and clear names this number.
            return await tools.blobs.set_sequence_number(blob, number, Guard(lease, found.etag))
        except BlobChangedError:
            continue  # a write that was in flight has arrived: read it again
    message = f"{blob}: it was written to {ATTEMPTS} times while its sequence number was to be {number}; temporary failure"
    raise ServiceUnavailableError(message)
