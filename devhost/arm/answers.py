"""Answers of the stand-in: refusals, and the headers of long-running operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import re

    from devhost.arm.state import Operation


def refusal(status: int, code: str, message: str, retry_after: str = "") -> web.Response:
    """An error in Azure's form."""
    headers = {"Retry-After": retry_after} if retry_after else None
    return web.json_response({"error": {"code": code, "message": message}}, status=status, headers=headers)


def operation_url(request: web.Request, match: re.Match[str], operation: Operation, *, result: bool = False) -> str:
    """The address of an operation, or of its `result`: that of disks and snapshots is beside that of machines."""
    kind = "operations" if "/virtualmachines/" in request.path.lower() else "DiskOperations"
    place = f"/subscriptions/{match['subscription']}/providers/Microsoft.Compute/locations/local/{kind}/{operation.number}"
    return f"{request.scheme}://{request.host}{place}?{'monitor=true&' if result else ''}api-version=local"


def following(request: web.Request, match: re.Match[str], operation: Operation, *, both: bool = False) -> dict[str, str]:
    """The headers by which an operation is followed: one of the two styles, or both."""
    headers = {"Azure-AsyncOperation": operation_url(request, match, operation)}
    return headers | ({"Location": operation_url(request, match, operation, result=True)} if both else {})
