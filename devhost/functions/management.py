"""The durable management API over HTTP, with the answers the real extension gives."""

from __future__ import annotations

import json
import logging
import re
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aiohttp import web

from devhost.functions import protocol
from devhost.functions.protocol import EventType

if TYPE_CHECKING:
    from devhost.functions.engine import Engine
    from devhost.functions.hub import Instance

log = logging.getLogger("devhost.functions")

INSTANCE_ID_LENGTH_MAX = 100
_SIGNALS = {
    "terminate": (EventType.EXECUTION_TERMINATED, "Input"),
    "suspend": (EventType.SUSPENDED, "Reason"),
    "resume": (EventType.RESUMED, "Reason"),
}


def _problem(status: int, message: str, detail: str = "") -> web.Response:
    body = {"Message": message, "ExceptionMessage": detail or message, "ExceptionType": "System.ArgumentException"}
    return web.json_response(body, status=status)


def _value(text: str | None) -> Any:  # noqa: ANN401  any JSON, or the text itself
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _flag(request: web.Request, name: str, *, default: bool = False) -> bool:
    return request.query.get(name, str(default)).lower() == "true"


class Management:
    """Starts, shows, signals and purges instances."""

    def __init__(self, engine: Engine) -> None:
        """Manage the instances of `engine`'s hub."""
        self.engine, self.hub = engine, engine.hub

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one management call."""
        parts = [unquote(part) for part in request.match_info["tail"].strip("/").split("/")]
        match (request.method, *parts):
            case ("POST", "orchestrators", name):
                return await self._start(request, name, uuid.uuid4().hex)
            case ("POST", "orchestrators", name, instance_id):
                return await self._start(request, name, instance_id)
            case ("GET" | "DELETE", "instances"):
                return self._many(request)
            case (_, "instances", instance_id, *operation):
                instance = self.hub.instance(instance_id)
                if instance is None:
                    return web.Response(status=404)
                return await self._one(request, instance, [part.lower() for part in operation[:1]] + operation[1:])
        return web.Response(status=404)

    async def _start(self, request: web.Request, name: str, instance_id: str) -> web.Response:
        try:
            text = await request.text()
            value = json.loads(text) if text else None
        except ValueError as error:
            return _problem(400, "Invalid JSON content", str(error))
        function = self.engine.app.orchestrators.get(name.lower())
        if function is None:
            detail = f"The function '{name}' doesn't exist, is disabled, or is not an orchestrator function."
            return _problem(400, "One or more of the arguments submitted is incorrect", detail)
        unfit = instance_id.startswith("@") or re.search(r"[/\\?#\x00-\x1f]", instance_id)
        if unfit or len(instance_id) > INSTANCE_ID_LENGTH_MAX:
            return _problem(400, "One or more of the arguments submitted is incorrect", f"instance id {instance_id!r}")
        existing = self.hub.instance(instance_id)
        if existing and not existing.ended:
            detail = f"An Orchestration instance with the status {existing.status} already exists."
            return _problem(500, "Something went wrong while processing your request", detail)
        raw = None if value is None else json.dumps(value)
        self.engine.start_new(instance_id, function.durable_name, raw, request.query.get("version"))
        return self._links(request, instance_id)

    def _links(self, request: web.Request, instance_id: str) -> web.Response:
        base = f"{request.scheme}://{request.host}/runtime/webhooks/durabletask"
        urls = protocol.management_urls(base, self.engine.app.hub, instance_id)
        return web.json_response(urls, status=202, headers={"Location": urls["statusQueryGetUri"], "Retry-After": "10"})

    async def _one(self, request: web.Request, instance: Instance, operation: list[str]) -> web.Response:
        match (request.method, *operation):
            case ("GET",):
                return self._status(request, instance)
            case ("DELETE",):
                with self.hub:
                    return web.json_response({"instancesDeleted": self.hub.purge([instance.id])})
            case ("POST", "raiseevent", name):
                return await self._raise(request, instance, name)
            case ("POST", ("terminate" | "suspend" | "resume") as signal):
                if instance.ended:
                    return web.Response(status=410)
                kind, key = _SIGNALS[signal]
                self.engine.send(instance.id, protocol.event(kind, -1, **{key: request.query.get("reason")}))
                return web.Response(status=202)
            case ("POST", "restart"):
                same = request.query.get("restartWithNewInstanceId", "true").lower() == "false"
                target = instance.id if same else uuid.uuid4().hex
                self.engine.start_new(target, instance.name, instance.input, instance.version)
                return self._links(request, target)
            case ("POST", "rewind"):
                return web.Response(status=501)
        return web.Response(status=404)

    async def _raise(self, request: web.Request, instance: Instance, name: str) -> web.Response:
        if instance.ended:
            return web.Response(status=410)
        if request.content_type != "application/json":
            return _problem(400, "Only application/json request content is supported")
        try:
            text = await request.text()
            data = json.loads(text) if text else None
        except ValueError as error:
            return _problem(400, "Invalid JSON content", str(error))
        self.engine.send(instance.id, protocol.event(EventType.EVENT_RAISED, Name=name, Input=json.dumps(data)))
        return web.Response(status=202)

    # -- reading ------------------------------------------------------------------------------------------

    def _status(self, request: web.Request, instance: Instance) -> web.Response:
        body = _shown(instance, with_input=_flag(request, "showInput", default=True))
        if _flag(request, "showHistory"):
            body["historyEvents"] = self._history(instance.id, with_output=_flag(request, "showHistoryOutput"))
        if not instance.ended:
            return web.json_response(body, status=202, headers={"Location": str(request.url), "Retry-After": "5"})
        failed = instance.status == "Failed" and _flag(request, "returnInternalServerErrorOnFailure")
        return web.json_response(body, status=500 if failed else 200)

    def _history(self, instance_id: str, *, with_output: bool) -> list[dict[str, Any]]:
        events = [json.loads(text) for text in self.hub.history(instance_id)]
        names = {
            (item["EventType"], item["EventId"]): item["Name"]
            for item in events
            if item["EventType"] in (EventType.TASK_SCHEDULED, EventType.SUB_CREATED)
        }
        shown = []
        for item in events:
            kind = EventType(item["EventType"])
            if kind in (EventType.ORCHESTRATOR_STARTED, EventType.ORCHESTRATOR_COMPLETED):
                continue
            one = {"EventType": protocol.EVENT_NAMES[kind], "Timestamp": item["Timestamp"]}
            of_activity = kind in (EventType.TASK_COMPLETED, EventType.TASK_FAILED)
            scheduled = EventType.TASK_SCHEDULED if of_activity else EventType.SUB_CREATED
            one["FunctionName"] = item.get("Name") or names.get((scheduled, item.get("TaskScheduledId")))
            one |= {key: item[key] for key in ("FireAt", "Reason", "Details", "InstanceId", "Input") if item.get(key)}
            if with_output and "Result" in item:
                one["Result"] = _value(item["Result"])
            shown.append(one)
        return shown

    def _many(self, request: web.Request) -> web.Response:
        query = request.query
        wanted = {status for status in query.get("runtimeStatus", "").split(",") if status}
        earliest, latest = query.get("createdTimeFrom", "")[:23], query.get("createdTimeTo", "9999")[:23]
        found = [
            instance
            for instance in self.hub.instances()
            if (not wanted or instance.status in wanted)
            and earliest <= instance.created[:23] <= latest
            and instance.id.startswith(query.get("instanceIdPrefix", ""))
        ]
        if request.method == "GET":
            return web.json_response([_shown(instance, with_input=_flag(request, "showInput")) for instance in found])
        if not earliest:
            return _problem(400, "Please provide value for 'createdTimeFrom' parameter.")
        with self.hub:
            deleted = self.hub.purge(instance.id for instance in found)
        return web.json_response({"instancesDeleted": deleted}) if deleted else web.Response(status=404)


def _shown(instance: Instance, *, with_input: bool) -> dict[str, Any]:
    return {
        "name": instance.name,
        "instanceId": instance.id,
        "runtimeStatus": instance.status,
        "input": _value(instance.input) if with_input else None,
        "customStatus": _value(instance.custom_status),
        "output": _value(instance.output),
        "createdTime": instance.created[:19] + "Z",
        "lastUpdatedTime": instance.updated[:19] + "Z",
    }
