"""Virtual machines, managed disks and long-running operations, in memory."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devhost.arm.leases import RefusedError

if TYPE_CHECKING:
    from devhost.arm.leases import Disks

Resource = dict[str, Any]


class ConflictError(RefusedError):
    """Refused at once, with a status."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        """Keep all three."""
        super().__init__(message, code=code)
        self.status = status


@dataclass
class Operation:
    """A long-running operation: under way until `due`, then what it came to."""

    number: str
    due: float
    work: asyncio.Task[None]
    error: RefusedError | None = None

    @property
    def status(self) -> str:
        """As Azure names it."""
        if not self.work.done() or time.monotonic() < self.due:
            return "InProgress"
        return "Failed" if self.error else "Succeeded"


@dataclass
class Fault:
    """A failure to be injected: of requests to a path, or of the operations they begin."""

    method: str
    path: str
    status: int = 0
    code: str = ""
    times: int = 1
    skip: int = 0
    operation: bool = False
    """The request is accepted; the operation fails."""
    after: bool = False
    """The operation fails after its effect."""
    held: bool = False
    """The operation goes on until the fault is lifted."""


@dataclass
class Switches:
    """How the stand-in behaves."""

    operation_seconds: float = 0.05
    retired: bool = False
    """VMs with unmanaged disks do not start: public Azure since 2026-03-31."""
    actions: list[str] = field(default_factory=lambda: ["*"])
    not_actions: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class Cloud:
    """Everything there is."""

    def __init__(self, disks: Disks) -> None:
        """An empty subscription over `disks`."""
        self.disks, self.switches = disks, Switches()
        self.vms: dict[str, Resource] = {}
        self.managed: dict[str, Resource] = {}
        self.operations: dict[str, Operation] = {}
        self.requests: list[str] = []
        """`METHOD path` of each request, in order."""
        self._numbers = itertools.count(1)

    # -- operations -----------------------------------------------------------------------------------------------------

    def begin(self, work: Callable[[], Awaitable[None]], ended: Callable[[str], None], fault: Fault | None) -> Operation:
        """Start a long-running operation; `ended` is told the provisioning state it leaves."""
        number = f"op-{next(self._numbers)}"

        async def run() -> None:
            while fault and fault.held and fault in self.switches.faults:  # noqa: ASYNC110  lifted from outside, no event tells
                await asyncio.sleep(0.02)
            injected = fault if fault and not fault.held else None
            try:
                await _carried_out(work, injected)
            except RefusedError as refused:
                self.operations[number].error = refused
                ended("Failed")
            else:
                ended("Succeeded")

        task = asyncio.get_running_loop().create_task(run())
        self.operations[number] = Operation(number, time.monotonic() + self.switches.operation_seconds, task)
        return self.operations[number]

    def etag(self) -> str:
        """A version."""
        return f'"{next(self._numbers)}"'

    # -- machines ---------------------------------------------------------------------------------------------------------

    def machine(self, vm: str) -> Resource:
        """A machine by its id. Raises ConflictError 404."""
        found = self.vms.get(vm.lower())
        if found is None:
            message = f"The Resource '{vm}' was not found."
            raise ConflictError(message, status=404, code="ResourceNotFound")
        return found

    def idle(self, vm: str) -> Resource:
        """A machine that nothing is done to. Raises ConflictError."""
        found = self.machine(vm)
        if found["properties"]["provisioningState"] == "Updating":
            message = f"Another operation on {vm} is in progress."
            raise ConflictError(message, status=409, code="Conflict")
        return found

    def put_machine(self, vm: str, body: Resource, if_match: str, fault: Fault | None) -> tuple[Resource, Operation]:
        """Create or update; the model is the new one at once, its disks follow in the operation."""
        existing = self.vms.get(vm.lower())
        wanted = copy.deepcopy(body)
        wanted |= {"id": vm, "name": vm.rpartition("/")[2], "type": "Microsoft.Compute/virtualMachines"}
        if existing is not None:
            if if_match and if_match != existing["etag"]:
                message = f"The etag {existing['etag']} does not match {if_match}."
                raise ConflictError(message, status=412, code="PreconditionFailed")
            self.idle(vm)
            _refuse_changes(existing, wanted)
        _refuse_mixtures(wanted)
        before = _sources(existing) if existing else {}
        power = existing["power"] if existing else "running"
        wanted["etag"], wanted["power"] = self.etag(), power
        wanted["properties"]["provisioningState"] = "Updating"
        self.vms[vm.lower()] = wanted

        async def work() -> None:
            await self._exchange(before, _sources(wanted))

        def ended(state: str) -> None:
            # A refused change stays in the model, as Azure leaves it: only the state tells.
            wanted["properties"]["provisioningState"] = state
            wanted["etag"] = self.etag()

        return wanted, self.begin(work, ended, fault)

    async def _exchange(self, before: dict[Any, str], after: dict[Any, str]) -> None:
        """Leases of the disks that go are let go, of those that come are taken."""
        for place, source in before.items():
            if after.get(place) != source:
                await self._let_go(source)
        for place, source in after.items():
            if before.get(place) != source:
                await self._take(source)

    async def _take(self, source: str) -> None:
        if source.startswith("/subscriptions/"):
            if source.lower() not in self.managed:
                message = f"Disk {source} is not found."
                raise RefusedError(message, code="NotFound")
            self.managed[source.lower()]["managedBy"] = "attached"
            return
        await self.disks.attach(source)

    async def _let_go(self, source: str) -> None:
        if source.startswith("/subscriptions/"):
            self.managed.get(source.lower(), {}).pop("managedBy", None)
            return
        await self.disks.detach(source)

    def power(self, vm: str, to: str, fault: Fault | None) -> Operation:
        """Deallocate or start."""
        found = self.idle(vm)
        unmanaged = any(not source.startswith("/subscriptions/") for source in _sources(found).values())
        if to == "running" and self.switches.retired and unmanaged:
            message = "VMs with unmanaged disks are retired and cannot be started."
            raise ConflictError(message, status=409, code="OperationNotAllowed")
        found["power"] = {"running": "starting", "deallocated": "deallocating"}[to]

        before = {"running": "deallocated", "deallocated": "running"}[to]

        async def work() -> None:
            found["power"] = to

        def ended(_: str) -> None:
            if found["power"] != to:
                found["power"] = before

        return self.begin(work, ended, fault)

    # -- managed disks --------------------------------------------------------------------------------------------------------

    def put_disk(self, disk: str, body: Resource, if_none_match: str, fault: Fault | None) -> tuple[Resource, Operation]:
        """Create a managed disk."""
        if if_none_match == "*" and disk.lower() in self.managed:
            message = f"{disk} exists."
            raise ConflictError(message, status=412, code="PreconditionFailed")
        wanted = copy.deepcopy(body)
        wanted |= {"id": disk, "name": disk.rpartition("/")[2], "type": "Microsoft.Compute/disks"}
        inside = wanted.setdefault("properties", {})
        inside["provisioningState"] = "Updating"
        self.managed[disk.lower()] = wanted

        async def work() -> None:
            source = inside.get("creationData", {}).get("sourceUri")
            if source:
                inside["diskSizeBytes"] = await self.disks.imported(source, wanted["name"])

        def ended(state: str) -> None:
            inside["provisioningState"] = state

        return wanted, self.begin(work, ended, fault)


async def _carried_out(work: Callable[[], Awaitable[None]], injected: Fault | None) -> None:
    if injected is None or injected.after:
        await work()
    if injected:
        message = f"injected {'after' if injected.after else 'before'} its effect"
        raise RefusedError(message, code=injected.code)


def _sources(vm: Resource) -> dict[Any, str]:
    """Place to VHD or managed disk, of a machine."""
    storage = vm["properties"].get("storageProfile", {})
    found = {disk["lun"]: _source(disk) for disk in storage.get("dataDisks", [])}
    if "osDisk" in storage:
        found["os"] = _source(storage["osDisk"])
    return found


def _source(disk: Resource) -> str:
    managed = disk.get("managedDisk")
    return str(managed["id"] if managed else disk["vhd"]["uri"])


def _refuse_changes(existing: Resource, wanted: Resource) -> None:
    before, after = _sources(existing), _sources(wanted)
    for place, source in before.items():
        if place == "os":
            if after.get("os") != source and existing["power"] != "deallocated":
                message = "The OS disk of a running VM cannot be exchanged."
                raise ConflictError(message, status=409, code="OperationNotAllowed")
        elif after.get(place, source) != source:
            message = f"Changing property 'dataDisk.source' at LUN {place} is not allowed."
            raise ConflictError(message, status=409, code="PropertyChangeNotAllowed")


def _refuse_mixtures(wanted: Resource) -> None:
    kinds = {source.startswith("/subscriptions/") for source in _sources(wanted).values()}
    if len(kinds) > 1:
        message = "Addition of a managed disk to a VM with blob based disks is not supported."
        raise ConflictError(message, status=409, code="OperationNotAllowed")
