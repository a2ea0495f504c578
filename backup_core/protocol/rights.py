"""The right to act: whether the run of a step still owns its disk, or has its pin, and the conditions of its writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.errors import DiskUnknownError, NotOwnerError
from backup_core.domain.records import Owner, Pin
from backup_core.ports import Fence, Guard

if TYPE_CHECKING:
    from backup_core.domain.records import Head, Registration, Versioned
    from backup_core.protocol.tools import Tools
    from backup_core.steps.messages import Actor


async def registration_of(tools: Tools, disk: str) -> Registration:
    """The disk's registration; raises DiskUnknownError."""
    row = await tools.catalogue.registration(disk)
    if row is None:
        message = f"disk {disk}: not registered; PUT /api/disks/{disk} with its source"
        raise DiskUnknownError(message)
    return row.value


def owner_of(actor: Actor) -> Owner:
    """The owner that an actor claims to be."""
    return Owner(actor.run, actor.lease, actor.epoch)


async def require_ownership(tools: Tools, actor: Actor) -> Versioned[Head]:
    """The disk's head row, while the actor's run owns it. Raises NotOwnerError: a late or repeated call must not act."""
    row = await tools.catalogue.head(actor.disk)
    # G2: by run, lease and epoch.
    if row is None or row.value.owner != owner_of(actor):
        holder = row.value.owner.run if row and row.value.owner else "no run"
        message = f"disk {actor.disk}: run {actor.run} (epoch {actor.epoch}) does not own it, {holder} does; nothing was done"
        raise NotOwnerError(message)
    return row


async def require_right_to_act(tools: Tools, actor: Actor) -> None:
    """Raise NotOwnerError unless the actor's run owns the disk, or, for a restore, has the pin of its point and
    has not ended.
    """
    if not actor.pin:
        await require_ownership(tools, actor)
        return
    pins = await tools.catalogue.pins(actor.disk)
    row = await tools.catalogue.run(actor.disk, actor.run)
    # G2: by the pin's lease, while the run has not ended.
    if Pin(actor.disk, actor.pin, actor.run, actor.lease) not in pins or row is None or row.value.ended_for_good:
        message = f"disk {actor.disk}: restore {actor.run} has ended, or was begun by another orchestration; nothing was done"
        raise NotOwnerError(message)


def fence_of(actor: Actor) -> Fence:
    """The conditions of the run's page writes."""
    # G8: the epoch as the sequence number.
    return Fence(actor.lease, actor.epoch)


def guard_of(actor: Actor, etag: str) -> Guard:
    """The conditions of the run's other writes to a head."""
    return Guard(actor.lease, etag)
