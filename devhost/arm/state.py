# Long: the resources of one service, which refer to each other.
"""Virtual machines, managed disks and long-running operations, in memory."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devhost.arm.leases import RefusedError
from devhost.arm.managed import ManagedDisks
from devhost.arm.refusals import (
    ConflictError,
    Resource,
    group_of,
    is_managed,
    linked,
    owners,
    refuse_attachment,
    refuse_changes,
    refuse_mixtures,
    refuse_tags,
    sources,
)
from devhost.arm.snapshots import Snapshots

if TYPE_CHECKING:
    from devhost.arm.exports import Contents
    from devhost.arm.leases import Disks

_ROLES = json.loads((Path(__file__).parents[2] / "infra" / "roles.json").read_text())
MACHINE_ROLE = _ROLES["machine"]
"""The caller's rights in the resource group of the requested machine or disk: as deployed, no more."""
DISK_ROLE = _ROLES["disks"]["actions"]
"""Rights for managed disks as sources, in the groups of the disks and of the snapshots."""


@dataclass
class Operation:
    """A long-running operation: in progress until `due`, then its result."""

    number: str
    due: float
    work: asyncio.Task[None]
    error: RefusedError | None = None
    canceled: bool = False
    result: Resource | None = None
    """Its result, besides the resource."""

    @property
    def status(self) -> str:
        """As Azure names it."""
        if not self.work.done() or time.monotonic() < self.due:
            return "InProgress"
        return "Canceled" if self.canceled else "Failed" if self.error else "Succeeded"


@dataclass
class Fault:
    """A failure to be injected: of requests to a path, or of the operations they begin."""

    method: str
    path: str
    status: int = 0
    code: str = ""
    message: str = "injected"
    times: int = 1
    skip: int = 0
    operation: bool = False
    """The request is accepted; the operation fails."""
    after: bool = False
    """The operation fails after its effect."""
    retry_after: str = ""
    """The header of a refusal."""
    held: bool = False
    """The operation stays in progress until the fault is lifted."""
    canceled: bool = False
    """The operation ends as canceled."""


@dataclass
class Switches:
    """Switches of the stand-in's behaviour."""

    operation_seconds: float = 0.05
    retired: bool = False
    """VMs with unmanaged disks do not start: public Azure since 2026-03-31."""
    actions: list[str] = field(default_factory=lambda: [*MACHINE_ROLE["actions"], *DISK_ROLE])
    not_actions: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Other resource groups in which the caller may do the same."""
    import_lists_keys: bool = False
    """An import asks for listKeys on the storage account: nobody knows whether Azure does."""
    ignores_if_none_match: bool = False
    """The condition on making a disk is ignored."""
    grant_extends: bool = True
    """A second grant is the first, extended; otherwise it is a new one and ends the first."""
    footer: str = "constant"
    """`differs`: a disk's footer is written anew before each snapshot."""
    import_signs: bool = False
    """An import gives the disk a footer of its own: nobody knows whether Azure does."""
    upload_signs: bool = False
    """The end of an upload gives the disk a footer of its own: nobody knows whether Azure does."""
    upload_expiry: str = "stays"
    """The state of an upload whose access has expired: `stays` ActiveUpload, or is `ready`, ReadyToUpload. Until access is
    revoked, Azure's documents say, it is one of the two.
    """
    unnamed_grants: int = 0
    """How many accesses are granted whose answer names no address (azure-cli#7413, azure-libraries-for-net#328)."""
    siblings_denied: bool = False
    """After a snapshot's deletion, the SAS of the disk's other snapshots are refused until they are granted again."""
    fill_step: float = 40.0
    """Percent by which a snapshot fills in the background between two reads; 0 stalls it."""
    hidden_looks: int = 0
    """How often a snapshot made anew by a deleted one's name is said to be missing."""
    policy_tags: dict[str, str] = field(default_factory=dict)
    """Tags that an Azure policy gives each snapshot and disk (effect `modify`), whatever the request says."""
    required_tags: list[str] = field(default_factory=list)
    """Tags without which an Azure policy refuses each snapshot and disk (effect `deny`)."""
    snapshots_max: int = 500
    """Of one disk: one more is left in the state Failed."""
    snapshots_per_five_minutes: int = 0
    """Of one disk; 0 is without limit, Azure's is 7."""
    upload_bytes_min: int = 20 * 1024**2
    """The least data of a disk to be uploaded to."""
    faults: list[Fault] = field(default_factory=list)


class Cloud:
    """All resources of the stand-in."""

    def __init__(self, disks: Disks, contents: Contents) -> None:
        """An empty subscription over the blobs of `disks` and the `contents` of managed disks."""
        self.disks, self.contents, self.switches = disks, contents, Switches()
        self.snapshots, self.managed_disks = Snapshots(self), ManagedDisks(self)
        self.vms: dict[str, Resource] = {}
        self.managed: dict[str, Resource] = {}
        self.operations: dict[str, Operation] = {}
        self.requests: list[str] = []
        """`METHOD path` of each request, in order."""
        self._numbers = itertools.count(1)

    # -- operations -----------------------------------------------------------------------------------------------------

    def begin(self, work: Callable[[], Awaitable[None]], ended: Callable[[str], None], fault: Fault | None) -> Operation:
        """Start a long-running operation; `ended` is called with its final provisioning state."""
        number = f"op-{next(self._numbers)}"

        async def run() -> None:
            while fault and fault.held and fault in self.switches.faults:  # noqa: ASYNC110  lifted from outside, there is no event
                await asyncio.sleep(0.02)
            injected = fault if fault and not fault.held else None
            try:
                await _carry_out(work, injected)
            except RefusedError as refused:
                self.operations[number].error = refused
                self.operations[number].canceled = bool(injected and injected.canceled)
                ended("Failed")
            else:
                ended("Succeeded")

        task = asyncio.get_running_loop().create_task(run())
        self.operations[number] = Operation(number, time.monotonic() + self.switches.operation_seconds, task)
        return self.operations[number]

    def etag(self) -> str:
        """A version."""
        return f'"{next(self._numbers)}"'

    # -- rights -----------------------------------------------------------------------------------------------------------

    def granted(self, action: str) -> bool:
        """Whether the caller's role has the action."""

        def matches(patterns: list[str]) -> bool:
            return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)

        return matches(self.switches.actions) and not matches(self.switches.not_actions)

    def authorize(self, action: str, resource: str) -> None:
        """Raise ConflictError 403 unless the caller may do the action in the resource's own group."""
        if not self.granted(action):
            message = f"The client does not have authorization to perform action '{action}' over scope '{resource}'."
            raise ConflictError(message, status=403, code="AuthorizationFailed")

    def authorize_linked(self, body: Resource, resource: str, action: str) -> None:
        """Raise ConflictError 403 unless the caller has the request's rights on every resource that the body names."""
        groups = {group_of(one) for one in (resource, *self.switches.elsewhere)}
        wanted = list(linked(body))
        account = (body.get("properties", {}).get("creationData") or {}).get("storageAccountId")
        if account and self.switches.import_lists_keys:
            wanted.append(("Microsoft.Storage/storageAccounts/listKeys/action", account))
        for needed, other in wanted:
            if group_of(other) not in groups or not self.granted(needed):
                message = (
                    f"The client has permission to perform action '{action}' on scope '{resource}'; however, it does not have "
                    f"permission to perform action(s) '{needed}' on the linked scope(s) '{other}'."
                )
                raise ConflictError(message, status=403, code="LinkedAuthorizationFailed")

    def refuse_without_content(self, disk: Resource) -> None:
        """Raise ConflictError for a disk that nothing can be read from."""
        inside = self.managed_disks.shown(disk)["properties"]
        if "diskSizeBytes" not in inside or inside["diskState"] in ("ReadyToUpload", "ActiveUpload"):
            message = f"Disk {disk['id']} is in state {inside['diskState']} and has no content yet."
            raise ConflictError(message, status=409, code="OperationNotAllowed")

    def tags(self, resource: str, body: Resource) -> dict[str, str]:
        """The tags of a disk or snapshot that is to be made. Raises ConflictError for those that Azure or a policy refuses."""
        tags = {**(body.get("tags") or {}), **self.switches.policy_tags}
        refuse_tags(resource, tags, self.switches.required_tags)
        return tags

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

    def patch_machine(self, vm: str, body: Resource, if_match: str, fault: Fault | None) -> tuple[Resource, Operation]:
        """Update what the body names: objects are merged, lists are replaced."""
        return self.put_machine(vm, _merged(self.machine(vm), body), if_match, fault)

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
            refuse_changes(existing, wanted)
        refuse_mixtures(wanted)
        before = sources(existing) if existing else {}
        for place, source in sources(wanted).items():
            if before.get(place) != source and source.lower() in self.managed:
                refuse_attachment(wanted, place, self.managed_disks.get(source))
        power = existing["power"] if existing else "running"
        wanted["etag"], wanted["power"] = self.etag(), power
        wanted["properties"]["provisioningState"] = "Updating"
        self.vms[vm.lower()] = wanted

        async def work() -> None:
            await self._exchange(vm, before, sources(wanted))

        def ended(state: str) -> None:
            # A refused change stays in the model, as Azure leaves it: only the state shows it.
            wanted["properties"]["provisioningState"] = state
            wanted["etag"] = self.etag()

        return wanted, self.begin(work, ended, fault)

    async def _exchange(self, vm: str, before: dict[Any, str], after: dict[Any, str]) -> None:
        """Release the leases of detached disks, and take those of attached ones."""
        for place, source in before.items():
            if after.get(place) != source:
                await self._let_go(vm, source)
        for place, source in after.items():
            if before.get(place) != source:
                await self._take(vm, source)

    async def remove(self, vm: str) -> None:
        """Delete a machine; its disks are released."""
        for source in sources(self.vms.pop(vm.lower())).values():
            await self._let_go(vm, source)

    async def _take(self, vm: str, source: str) -> None:
        if is_managed(source):
            if source.lower() not in self.managed:
                message = f"Disk {source} is not found."
                raise RefusedError(message, code="NotFound")
            disk = self.managed[source.lower()]
            _own(disk, [*(one for one in owners(disk) if one.lower() != vm.lower()), vm])
            return
        await self.disks.attach(source)

    async def _let_go(self, vm: str, source: str) -> None:
        if is_managed(source):
            disk = self.managed.get(source.lower())
            if disk:
                _own(disk, [one for one in owners(disk) if one.lower() != vm.lower()])
            return
        await self.disks.detach(source)

    def power(self, vm: str, to: str, fault: Fault | None) -> Operation:
        """Deallocate or start."""
        found = self.idle(vm)
        unmanaged = not all(is_managed(source) for source in sources(found).values())
        if to == "running" and self.switches.retired and unmanaged:
            message = "VMs with unmanaged disks are retired and cannot be started."
            raise ConflictError(message, status=409, code="OperationNotAllowed")
        opened = [source for source in sources(found).values() if is_managed(source) and self.snapshots.access.granted(source)]
        if to == "running" and opened:
            message = f"{vm} cannot start while access to its disk {opened[0]} is granted."
            raise ConflictError(message, status=409, code="OperationNotAllowed")
        found["power"] = {"running": "starting", "deallocated": "deallocating"}[to]

        before = {"running": "deallocated", "deallocated": "running"}[to]

        async def work() -> None:
            found["power"] = to

        def ended(_: str) -> None:
            if found["power"] != to:
                found["power"] = before

        return self.begin(work, ended, fault)


def _own(disk: Resource, vms: list[str]) -> None:
    """Have the disk name the machines that have it. What `managedBy` of a shared disk is, is not documented: the first here."""
    for name in ("managedBy", "managedByExtended"):
        disk.pop(name, None)
    disk["properties"].pop("shareInfo", None)
    if vms:
        disk["managedBy"] = vms[0]
    if vms and disk["properties"].get("maxShares", 1) > 1:
        disk["managedByExtended"] = vms
        disk["properties"]["shareInfo"] = [{"vmUri": one} for one in vms]


def _merged(existing: Any, change: Any) -> Any:  # noqa: ANN401  JSON
    """A JSON merge patch: objects are merged, null removes, all else replaces."""
    if not isinstance(existing, dict) or not isinstance(change, dict):
        return copy.deepcopy(change)
    names = [*existing, *(name for name in change if name not in existing)]
    kept = {name: _merged(existing.get(name), change[name]) if name in change else existing[name] for name in names}
    return {name: value for name, value in kept.items() if value is not None}


async def _carry_out(work: Callable[[], Awaitable[None]], injected: Fault | None) -> None:
    if injected is None or injected.after:
        await work()
    if injected:
        message = f"injected {'after' if injected.after else 'before'} its effect"
        raise RefusedError(message, code=injected.code)
