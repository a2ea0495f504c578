"""The host's HTTP face: the app's routes, the admin addresses, and the durable management API (public and RPC)."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import azure.functions as func
from aiohttp import web

from devhost.functions import faults
from devhost.functions.management import Management

if TYPE_CHECKING:
    from devhost.functions.engine import Engine
    from devhost.functions.index import AppFunction
    from devhost.functions.timers import Timers

log = logging.getLogger("devhost.functions")

BODY_BYTES_MAX = 100 * 1024 * 1024
ALL_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")


def application(engine: Engine, timers: Timers) -> web.Application:
    """The aiohttp application that serves the app behind `engine`."""
    served = web.Application(client_max_size=BODY_BYTES_MAX)
    for function in engine.app.http:
        _add_route(served, engine, function)
    management = Management(engine)
    for prefix in ("/runtime/webhooks/durabletask", "/durabletask"):
        served.router.add_route("*", prefix + "/{tail:.*}", management.handle)

    async def fire(request: web.Request) -> web.Response:
        found = timers.fire_soon(request.match_info["name"])
        return web.Response(status=202 if found else 404)

    async def status(_: web.Request) -> web.Response:
        functions = [{"name": function.name, "trigger": function.kind} for function in engine.app.functions]
        return web.json_response({"state": "Running", "functions": functions})

    served.router.add_post("/admin/functions/{name}", fire)
    served.router.add_get("/admin/host/status", status)
    served.router.add_route("*", faults.PATH, engine.faults.handle)
    served.router.add_get(faults.QUEUED_PATH, engine.faults.queued)
    return served


def _add_route(served: web.Application, engine: Engine, function: AppFunction) -> None:
    path = re.sub(r"\{\*(\w+)\}", r"{\1:.*}", function.trigger.route or function.name)
    prefix = f"/{engine.app.route_prefix}/" if engine.app.route_prefix else "/"
    optional = re.search(r"/?\{(\w+)\?\}$", path)
    paths = [path[: optional.start()], path.replace("?}", "}")] if optional else [path]

    async def handle(request: web.Request) -> web.Response:
        handed = func.HttpRequest(
            request.method,
            str(request.url),
            headers=dict(request.headers),
            params=dict(request.query),
            route_params={name: unquote(value) for name, value in request.match_info.items()},
            body=await request.read(),
        )
        try:
            return _response(await engine.invoke(function, {function.trigger.name: handed}))
        except Exception:
            log.exception("HTTP function %s failed", function.name)
            return web.Response(status=500)

    for method in [getattr(method, "value", method) for method in function.trigger.methods or ALL_METHODS]:
        for one in paths:
            served.router.add_route(str(method), prefix + one, handle)


def _response(value: Any) -> web.Response:  # noqa: ANN401  whatever an HTTP function may return
    if value is None:
        return web.Response(status=204)
    if isinstance(value, str):
        return web.Response(text=value)
    headers = {name: text for name, text in value.headers.items() if name.lower() != "content-type"}
    kind = value.headers.get("content-type") or value.mimetype
    return web.Response(status=value.status_code, body=value.get_body(), headers={**headers, "Content-Type": kind})
