"""Steps that give a machine its restored disk, one move at a time, each decided anew from the machine's present disk."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.digests import digest_of
from backup_core.domain.errors import (
    MachineBusyError,
    MachineChangedError,
    MachineRefusedError,
    NotOwnerError,
    RecordAlteredError,
)
from backup_core.domain.naming import noted_name, repoint_name, turned_name
from backup_core.domain.records import Slot
from backup_core.domain.repoint import Change, Machine, holds, next_move, same_disk
from backup_core.protocol.documents import held_document, read_document, store_once
from backup_core.protocol.machines import planned_change, replaced_disk
from backup_core.protocol.managed_disks import is_open, make_disk_once, seal_upload, wanted_disk
from backup_core.protocol.registrations import complete_move, prepare_move
from backup_core.protocol.rights import require_ownership, require_right_to_act
from backup_core.steps.messages import Nothing
from backup_core.steps.restore import ImportResult, MoveResult, StoreChangeResult

if TYPE_CHECKING:
    from backup_core.domain.records import Registration
    from backup_core.domain.repoint import Goal, Move
    from backup_core.protocol.tools import Tools
    from backup_core.steps.restore import ChangeRef, CloseChange, ImportDisk, MoveMachine, StoreChange


CHANGE = TypeAdapter(Change)
EMPTY = "{}"
"""The content of a document whose existence is the message."""


async def import_disk(tools: Tools, request: ImportDisk) -> ImportResult:
    """Create the managed disk, or poll its creation. Only what was read back counts, never the answer to a change. Raises
    MachineRefusedError where a disk of that name is not this run's, and AccountIdMissingError.
    """
    await require_right_to_act(tools, request.actor)
    disk, run, target = request.disk, request.actor.run, request.target

    async def make() -> None:
        blob = tools.disk_blob(target)
        size = (await tools.blobs.properties(blob)).size
        wanted, location = await wanted_disk(tools, disk, run, target, size, request.slot)
        await tools.machines.import_disk(wanted, tools.account_id(blob), location)

    found = await make_disk_once(tools, disk, run, target, make)
    return ImportResult(done=found is not None and found.state == "Succeeded")


async def store_change(tools: Tools, request: StoreChange) -> StoreChangeResult:
    """Store the machine's present and its future disk, and note in the head row that a change is in progress. Nothing of the
    machine is changed here. Raises SlotTakenError when the machine does not use the disk that is restored.
    """
    row = await require_ownership(tools, request.actor)
    slot = tools.slot(request.slot.vm, request.slot.lun)
    name = repoint_name(request.actor.disk, request.actor.run)
    stored = await tools.documents.get(name)
    if stored is None:
        change = await planned_change(tools, request, slot)
        # G34: stored before the machine is touched.
        stored = await store_once(tools.documents, name, CHANGE.dump_json(change).decode())
    change, digest = read_document(CHANGE, name, stored), digest_of(stored)
    _require_requested(request, name, change)
    if await tools.documents.get(noted_name(name)) is None:
        if row.value.repoint != name:
            await tools.catalogue.put_head(replace(row.value, repoint=name, repoint_digest=digest), row.etag)
        # From now on a change that the head row does not name is closed, and a late delivery does not begin it again.
        await tools.documents.put_if_absent(noted_name(name), EMPTY)
    return StoreChangeResult(change=name, old_disk=change.old.source, known=stored)


def _require_requested(request: StoreChange, name: str, change: Change) -> None:
    """Raise RecordAlteredError unless the stored change is the requested one: it may have existed before."""
    slot, target = Slot(request.slot.vm, request.slot.lun), request.managed_disk or request.target
    deallocates = request.stop_vm or slot.lun is None
    wanted = (request.actor.disk, request.actor.run, slot, request.target, target, deallocates, request.new_source)
    found = (
        change.disk, change.run, change.slot, change.target, change.new.source, change.deallocates, change.new_source
    )  # fmt: skip
    old = replaced_disk(request)
    if found != wanted or (old and not same_disk(change.old.source, old)):
        message = (
            f"document {name}: somebody else wrote it: expected {slot} to get {target} in place of {old or 'what it has'}, "
            f"found {change.slot} to get {change.new.source} in place of {change.old.source}; nothing was done; find out who "
            "may write to the plans container, and restore again"
        )
        raise RecordAlteredError(message)


async def stored_change(tools: Tools, request: ChangeRef, *, compares: bool) -> Change:
    """The change, as the orchestration knows it itself, else as it is stored. `compares`: it must be stored just so in any
    case, which is asked on the way forward only. Raises UnexpectedAnswerError when it is gone, RecordAlteredError for another.
    """
    if compares or not request.known:
        digest = digest_of(request.known) if request.known else request.digest
        gone = (
            "it says what a machine had before a restore; look at the machine yourself, PUT the disk that it has as source, "
            "and POST /api/catalogue/rebuild, which forgets the change"
        )
        stored = await held_document(tools, CHANGE, request.change, digest, gone)
    return read_document(CHANGE, request.change, request.known) if request.known else stored


async def move_machine(tools: Tools, request: MoveMachine) -> MoveResult:
    """Read the machine and make the next move towards the goal. The goal counts as reached only when read back by a call that
    had nothing to do. Raises SlotTakenError when somebody else put a third disk there, and HeadAlteredError where the disk that
    was uploaded is not there, closed, any more.

    A closed change is not resumed, nor a change that this run has begun to undo: such a call only reads the machine,
    and raises NotOwnerError unless the machine has the goal.
    """
    # G37: the machine is read before the ownership is checked.
    change, machine, closed = await _look_at(tools, request)
    if request.goal == "old" and not closed:
        # Stored after the machine was read and before it is written, so that a move decided on an older state is refused.
        await tools.documents.put_if_absent(turned_name(request.change, request.actor.epoch), EMPTY)
    # G38: a change that was closed or turned back from moves nothing.
    if closed or (request.goal == "new" and await _has_turned_back(tools, request)):
        if holds(change, machine) == request.goal:
            return _seen(change, machine, done=True)
        raise NotOwnerError(_closed_words(request))
    move = next_move(change, machine, request.goal)
    gives_upload = request.goal == "new" and change.uploads
    if gives_upload and move not in ("wait", "none"):
        # G73: also before the old disk is taken out.
        await seal_upload(tools, change.target, change.run)
    try:
        await _make(tools, change, machine, request.goal, move)
    except MachineRefusedError as error:
        if gives_upload and await is_open(tools, change.target):
            message = f"{error}; somebody has access to {change.target}: it is ended, and the change retried; temporary failure"
            raise MachineBusyError(message) from error
        raise
    # G35: reached only when read back by a call without a move.
    return _seen(change, machine, done=move == "none", move=move)


async def _make(tools: Tools, change: Change, machine: Machine, goal: Goal, move: Move) -> None:
    """Make the move; one that waits, or has nothing to do, changes nothing. Raises what Azure says of it."""
    slot, wanted = change.slot, change.new if goal == "new" else change.old
    match move:
        case "deallocate":
            await tools.machines.deallocate(slot.vm)
        case "detach":
            await tools.machines.put_disk(machine, slot.lun, None)
        case "attach" | "swap":
            await tools.machines.put_disk(machine, slot.lun, wanted)
        case "start":
            await tools.machines.start(slot.vm)


def _seen(change: Change, machine: Machine, *, done: bool, move: Move = "none") -> MoveResult:
    """The machine's disk, as it was read."""
    present = machine.at(change.slot.lun)
    source = present.source if present else ""
    return MoveResult(done=done, move=move, holds=holds(change, machine), power=machine.power, source=source)


async def inspect_machine(tools: Tools, request: MoveMachine) -> MoveResult:
    """The machine's present disk; nothing is changed. `done` is whether its last change succeeded and it has the goal."""
    change, machine, _ = await _look_at(tools, request)
    return _seen(change, machine, done=holds(change, machine) == request.goal and machine.state == "Succeeded")


async def fence_machine(tools: Tools, request: MoveMachine) -> MoveResult:
    """Write the machine's present disk once more, which gives the machine another version. From now on Azure refuses a move
    that was decided before and is still in flight. Answers the disk that was written. Nothing is written once the change is
    closed.
    """
    change, machine, closed = await _look_at(tools, request)
    present = machine.at(change.slot.lun)
    if present is not None and not closed:
        # Refused, somebody was faster: then the machine has another version, too.
        with suppress(MachineChangedError):
            # G37: the write gives the machine another version.
            await tools.machines.put_disk(machine, change.slot.lun, present)
    return _seen(change, machine, done=False)


async def _look_at(tools: Tools, request: MoveMachine) -> tuple[Change, Machine, bool]:
    """The stored change, its machine, and whether the change is closed. Raises NotOwnerError unless the run owns the disk.

    The machine is read first: the next owner of the disk writes the machine before anything else, and so a move that is
    decided on this state is refused. In the other order a late delivery could be the owner, wait, and see the later state.
    """
    change = await stored_change(tools, request, compares=request.goal == "new")
    machine = await tools.machines.machine(tools.slot(change.slot.vm, change.slot.lun).vm)
    row = await require_ownership(tools, request.actor)
    if row.value.repoint and row.value.repoint != request.change:
        raise NotOwnerError(_closed_words(request))
    return change, machine, not row.value.repoint


def _closed_words(request: MoveMachine) -> str:
    return f"disk {request.actor.disk}: the change {request.change} of its machine was closed or turned back; nothing was done"


async def _has_turned_back(tools: Tools, request: MoveMachine | CloseChange) -> bool:
    """Whether this owner of the disk has begun to undo the change."""
    return await tools.documents.get(turned_name(request.change, request.actor.epoch)) is not None


async def close_change(tools: Tools, request: CloseChange) -> Nothing:
    """Close the change: forget it, and after `new` have the registration follow the machine. Each part is found done on a
    repeat.
    """
    row = await require_ownership(tools, request.actor)
    change = await stored_change(tools, request, compares=False)
    # G38: the way forward is closed once the restore has turned back.
    if request.goal == "new" and await _has_turned_back(tools, request):
        message = (
            f"disk {request.actor.disk}: {request.actor.run} has turned back from {request.change}; the next run completes the "
            "change of the machine"
        )
        raise NotOwnerError(message)
    registration = await tools.catalogue.registration(request.actor.disk)
    follows = request.goal == "new" and registration is not None and registration.value.protected
    source = change.new_source if change.new.managed else change.target
    moved = None
    if follows and registration is not None:
        moved = (
            await prepare_move(tools, request.actor.disk, source)
            if source
            else replace(registration, value=_unprotected(registration.value, change))
        )
    # G34: the head row names the change until it is settled.
    if row.value.repoint == request.change:
        await tools.catalogue.commit([], row.value.settled(), row.etag, registration=moved)
    if follows and source:
        # A managed disk may take the place of one that was never the source.
        former = request.actor.source if change.new.managed else change.old.source
        await complete_move(tools, request.actor.disk, former)
    return Nothing()


def _unprotected(registration: Registration, change: Change) -> Registration:
    words = (
        f"{change.slot} uses managed disk {change.new.source} since {change.run}; the new disk is not backed up: PUT "
        f'/api/disks/{registration.disk} with it as the source and "followsOn": true, or protect the VM by other means and '
        "DELETE this disk (its restore points stay)"
    )
    return replace(registration, unprotected=words)
