"""The stand-in's HTTP face of managed disks and snapshots."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aiohttp import web

from devhost.arm.answers import following, refusal

if TYPE_CHECKING:
    from devhost.arm.state import Cloud, Fault

_GROUP = r"(?P<group>/subscriptions/(?P<subscription>[^/]+)/resourceGroups/[^/]+)/providers/Microsoft\.Compute"
_VERBS = r"(?:/(?P<verb>beginGetAccess|endGetAccess))?"
DISK = re.compile(rf"(?P<id>{_GROUP}/disks/[^/]+){_VERBS}", re.IGNORECASE)
SNAPSHOT = re.compile(rf"(?P<id>{_GROUP}/snapshots/[^/]+){_VERBS}", re.IGNORECASE)
SNAPSHOTS = re.compile(rf"{_GROUP}/snapshots", re.IGNORECASE)
_PAGE = 3
"""Snapshots in one page of a listing: few, so that pages are turned."""


class DiskFace:
    """Requests to answers."""

    def __init__(self, cloud: Cloud) -> None:
        """Of this cloud."""
        self._cloud = cloud

    async def disk(self, request: web.Request, match: re.Match[str], fault: Fault | None) -> web.Response:
        """Disks, Create Or Update, Get, Delete, Grant Access, Revoke Access."""
        disk, cloud = match["id"], self._cloud
        if match["verb"]:
            return await self._access("disks", request, match, fault)
        if request.method == "PUT":
            if_none_match, body = request.headers.get("If-None-Match", ""), await request.json()
            cloud.authorize("Microsoft.Compute/disks/write", disk)
            cloud.authorize_linked(body, disk, "Microsoft.Compute/disks/write")
            found, operation = cloud.managed_disks.put(disk, body, if_none_match, fault)
            return web.json_response(found, status=202, headers=following(request, match, operation))
        if request.method == "GET":
            cloud.authorize("Microsoft.Compute/disks/read", disk)
        found = cloud.managed_disks.get(disk)
        if request.method == "DELETE":
            cloud.managed_disks.delete(disk)
            return web.Response(status=204)
        return web.json_response(found)

    async def snapshot(self, request: web.Request, match: re.Match[str], fault: Fault | None) -> web.Response:
        """Snapshots, Create Or Update, Get, Delete, Grant Access, Revoke Access."""
        snapshot, cloud = match["id"], self._cloud
        if match["verb"]:
            return await self._access("snapshots", request, match, fault)
        action = {"PUT": "write", "GET": "read", "DELETE": "delete"}.get(request.method)
        if action is None:
            return refusal(405, "MethodNotAllowed", request.method)
        cloud.authorize(f"Microsoft.Compute/snapshots/{action}", snapshot)
        if request.method == "PUT":
            body = await request.json()
            # As Azure asks for it on the disk (Azure/OpenShift#186).
            cloud.authorize("Microsoft.Compute/disks/beginGetAccess/action", snapshot)
            cloud.authorize_linked(body, snapshot, "Microsoft.Compute/snapshots/write")
            found, operation = cloud.snapshots.put(snapshot, body, fault)
            return web.json_response(found, status=202, headers=following(request, match, operation, both=True))
        if request.method == "GET":
            return web.json_response(cloud.snapshots.get(snapshot))
        deletion = cloud.snapshots.delete(snapshot, fault)
        if deletion is None:
            return web.Response(status=204)
        return web.Response(status=202, headers=following(request, match, deletion, both=True))

    async def snapshots(self, request: web.Request, match: re.Match[str], _: Fault | None) -> web.Response:
        """Snapshots, List By Resource Group."""
        self._cloud.authorize("Microsoft.Compute/snapshots/read", match["group"])
        begin = int(request.query.get("$skiptoken", "0"))
        found = self._cloud.snapshots.listed(match["group"])
        page = {"value": found[begin : begin + _PAGE]}
        if len(found) > begin + _PAGE:
            url = request.url.with_query({**request.query, "$skiptoken": str(begin + _PAGE)})
            return web.json_response({**page, "nextLink": str(url)})
        return web.json_response(page)

    async def control(self, what: str, body: dict[str, Any]) -> None:
        """Carry out a request to the control address, for disks and snapshots. Raises KeyError, RefusedError."""
        if what == "PUT disks":
            await self._cloud.managed_disks.make(body)
        elif what == "POST disks":
            await self._cloud.managed_disks.grow(body["id"], body["bytes"])
        else:
            self._cloud.snapshots.fill(body["id"], body["percent"], body.get("error", ""))

    async def _access(self, kind: str, request: web.Request, match: re.Match[str], fault: Fault | None) -> web.Response:
        cloud, begins = self._cloud, match["verb"].lower() == "begingetaccess"
        if request.method != "POST":
            return refusal(405, "MethodNotAllowed", request.method)
        cloud.authorize(f"Microsoft.Compute/{kind}/{'begin' if begins else 'end'}GetAccess/action", match["id"])
        found = cloud.managed_disks.get(match["id"]) if kind == "disks" else cloud.snapshots.get(match["id"])
        if begins:
            operation = cloud.snapshots.grant(found, await request.json(), fault)
        else:
            if kind == "disks":
                await cloud.managed_disks.refuse_end(found)
            operation = cloud.snapshots.revoke(found, fault)
        return web.Response(status=202, headers=following(request, match, operation, both=True))
