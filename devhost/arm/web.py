"""The stand-in's HTTP face: Azure Resource Manager's paths, and a control address for tests.

POST   /__control/faults      [{"method", "path", "status", "code", "message", "times", "skip", "retry_after",
                                "operation", "after", "held", "canceled"}]
POST   /__control/switches    {"operation_seconds", "retired", "actions", "not_actions", "elsewhere", "import_lists_keys", …}
PUT    /__control/machines    {"id", "storageProfile", "power"}: make or replace a machine, leases and all
DELETE /__control/machines    {"id"}
PUT    /__control/disks       {"id", "bytes" or "from": a page blob's URL, "properties", "more"}: make or replace a managed disk
POST   /__control/disks       {"id", "bytes"}: resize a managed disk, whether or not a machine runs with it
POST   /__control/filled      {"id", "percent", "error"}: how far a snapshot is filled; with an error, it never will be
GET    /__control/            machines, disks (`content`: where a guest writes), snapshots, `open` accesses, leases, requests
DELETE /__control/            no faults, default switches
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from devhost.arm.answers import following, operation_url, refusal
from devhost.arm.disk_web import DISK, SNAPSHOT, SNAPSHOTS, DiskFace
from devhost.arm.leases import RefusedError
from devhost.arm.refusals import ConflictError, security_type
from devhost.arm.snapshots import described
from devhost.arm.state import Fault, Switches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from devhost.arm.state import Cloud

    Route = Callable[[web.Request, re.Match[str], Fault | None], Awaitable[web.Response]]

_GROUP = r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.Compute"
_MACHINE = re.compile(rf"(?P<id>{_GROUP}/virtualMachines/[^/]+)(?:/(?P<verb>deallocate|start|instanceView))?", re.IGNORECASE)
_OPERATION = re.compile(
    r"/subscriptions/[^/]+/providers/Microsoft\.Compute/locations/[^/]+/(?P<kind>operations|DiskOperations)/(?P<number>[^/]+)"
)
_PERMISSIONS = re.compile(r"(?P<id>/subscriptions/.+)/providers/Microsoft\.Authorization/permissions", re.IGNORECASE)


_ACTIONS = {
    ("GET", ""): "read",
    ("GET", "instanceview"): "instanceView/read",
    ("PUT", ""): "write",
    ("PATCH", ""): "write",
    ("POST", "start"): "start/action",
    ("POST", "deallocate"): "deallocate/action",
}


def application(cloud: Cloud) -> web.Application:
    """The aiohttp application."""
    served = web.Application(client_max_size=4 * 1024 * 1024)
    face = _Face(cloud)
    served.router.add_route("*", "/__control/{what:.*}", face.control)
    served.router.add_route("*", "/{path:.*}", face.handle)
    return served


class _Face:
    """Requests to answers."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.disks = DiskFace(cloud)

    async def handle(self, request: web.Request) -> web.Response:
        """Any request of the SDK."""
        path = request.path
        self.cloud.requests.append(f"{request.method} {path}")
        fault = self._fault(request.method, path)
        if fault and not fault.operation:
            return refusal(fault.status or 500, fault.code, fault.message, fault.retry_after)
        try:
            for pattern, answer in self._routes():
                match = pattern.fullmatch(path)
                if match:
                    return await answer(request, match, fault)
        except ConflictError as conflict:
            return refusal(conflict.status, conflict.code, str(conflict))
        return refusal(404, "InvalidResourceType", f"{request.method} {path} is not served by the stand-in")

    def _routes(
        self,
    ) -> list[tuple[re.Pattern[str], Callable[[web.Request, re.Match[str], Fault | None], Awaitable[web.Response]]]]:
        return [
            (_PERMISSIONS, self._permissions),
            (_MACHINE, self._machine),
            (DISK, self.disks.disk),
            (SNAPSHOT, self.disks.snapshot),
            (SNAPSHOTS, self.disks.snapshots),
            (_OPERATION, self._operation),
        ]

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.cloud.switches.faults:
            if fault.times > 0 and method == fault.method and fault.path in path:
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if not fault.held:
                    fault.times -= 1
                return fault
        return None

    # -- what the SDK asks -------------------------------------------------------------------------------------------------

    async def _machine(self, request: web.Request, match: re.Match[str], fault: Fault | None) -> web.Response:
        vm, verb = match["id"], (match["verb"] or "").lower()
        action = _ACTIONS.get((request.method, verb))
        if action is None:
            return refusal(405, "MethodNotAllowed", request.method)
        self.cloud.authorize(f"Microsoft.Compute/virtualMachines/{action}", vm)
        if request.method == "GET" and verb == "instanceview":
            return web.json_response(_view(self.cloud.machine(vm)))
        if request.method == "GET":
            return web.json_response(self._shown(self.cloud.machine(vm), expand=request.query.get("$expand", "")))
        if request.method in ("PUT", "PATCH"):
            etag, body = request.headers.get("If-Match", ""), await request.json()
            self.cloud.authorize_linked(body, vm, "Microsoft.Compute/virtualMachines/write")
            change = self.cloud.put_machine if request.method == "PUT" else self.cloud.patch_machine
            found, operation = change(vm, body, etag, fault)
            return web.json_response(self._shown(found), headers=following(request, match, operation))
        if verb == "start":
            operation = self.cloud.power(vm, "running", fault)
            return web.Response(status=202, headers=following(request, match, operation))
        # The other way of polling: by Location alone.
        operation = self.cloud.power(vm, "deallocated", fault)
        return web.Response(status=202, headers={"Location": operation_url(request, match, operation, result=True)})

    @staticmethod
    def _shown(vm: dict[str, Any], expand: str = "") -> dict[str, Any]:
        shown = {name: value for name, value in vm.items() if name != "power"}
        if expand.lower() == "instanceview":
            shown["properties"] = {**vm["properties"], "instanceView": _view(vm)}
        return shown

    async def _operation(self, request: web.Request, match: re.Match[str], _: Fault | None) -> web.Response:
        # Its address is not that of a resource: Azure asks for a right of its own, in the resource group.
        kind = match["kind"][0].lower() + match["kind"][1:]
        self.cloud.authorize(f"Microsoft.Compute/locations/{kind}/read", request.path)
        operation = self.cloud.operations[match["number"]]
        if "monitor" not in request.query:
            shown: dict[str, Any] = {"name": operation.number, "status": operation.status}
            if operation.error and operation.error.code and operation.status in ("Failed", "Canceled"):
                shown["error"] = {"code": operation.error.code, "message": str(operation.error)}
            elif operation.result and operation.status == "Succeeded":
                shown["properties"] = {"output": operation.result}
            return web.json_response(shown)
        if operation.status == "InProgress":
            return web.Response(status=202)
        if operation.error:
            return refusal(409, operation.error.code, str(operation.error))
        return web.json_response(operation.result) if operation.result else web.Response(status=200)

    async def _permissions(self, _: web.Request, match: re.Match[str], ___: Fault | None) -> web.Response:
        self.cloud.authorize("Microsoft.Authorization/permissions/read", match["id"])
        switches = self.cloud.switches
        return web.json_response({"value": [{"actions": switches.actions, "notActions": switches.not_actions}]})

    # -- what tests ask ------------------------------------------------------------------------------------------------------

    async def control(self, request: web.Request) -> web.Response:
        """The control address."""
        what = f"{request.method} {request.match_info['what']}"
        body: Any = await request.json() if request.can_read_body else None
        cloud = self.cloud
        try:
            match what:
                case "GET ":
                    pass
                case "DELETE ":
                    cloud.switches = Switches()
                    cloud.requests.clear()
                case "POST faults":
                    cloud.switches.faults = [Fault(**one) for one in body]
                case "POST switches":
                    cloud.switches = replace(cloud.switches, **body)
                case "PUT machines":
                    await self._make_machine(body)
                case "PUT disks" | "POST disks" | "POST filled":
                    await self.disks.control(what, body)
                case "DELETE machines":
                    await cloud.remove(body["id"])
                case _:
                    return web.json_response({"error": f"no such control: {what}"}, status=404)
        except (TypeError, KeyError, RefusedError) as error:
            return web.json_response({"error": str(error)}, status=400)
        shown = {
            "machines": [self._shown(vm, expand="instanceView") for vm in cloud.vms.values()],
            "disks": cloud.managed_disks.described(),
            "snapshots": described(cloud.snapshots),
            "open": sorted(key for key in cloud.snapshots.access.grants if cloud.snapshots.access.granted(key)),
            "leases": cloud.disks.leases,
            "requests": cloud.requests,
            "switches": asdict(cloud.switches),
        }
        return web.json_response(shown)

    async def _make_machine(self, body: dict[str, Any]) -> None:
        if body["id"].lower() in self.cloud.vms:
            await self.cloud.remove(body["id"])
        properties = {"storageProfile": body["storageProfile"], "vmId": "0", **body.get("properties", {})}
        wanted = {"location": "local", "properties": properties, **body.get("more", {})}
        _, operation = self.cloud.put_machine(body["id"], wanted, "", None)
        await operation.work
        self.cloud.machine(body["id"])["power"] = body.get("power", "running")
        if operation.error:
            raise operation.error


def _view(vm: dict[str, Any]) -> dict[str, Any]:
    # Only machines of the second generation have a security type.
    generation = "V2" if security_type(vm) else "V1"
    return {"hyperVGeneration": generation, "statuses": [{"code": f"PowerState/{vm['power']}", "level": "Info"}]}
