"""The durable management API over HTTP, with the answers the real extension gives."""

from __future__ import annotations

import base64
import json
import re
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from aiohttp import web

from devhost.functions import protocol
from devhost.functions.protocol import EventType

if TYPE_CHECKING:
    from devhost.functions.engine import Engine
    from devhost.functions.hub import Instance

PAGE_ROWS = 100
_SIGNALS = {
    "terminate": (EventType.EXECUTION_TERMINATED, "Input"),
    "suspend": (EventType.SUSPENDED, "Reason"),
    "resume": (EventType.RESUMED, "Reason"),
}


def _problem(status: int, message: str, detail: str = "", kind: str = "System.ArgumentException") -> web.Response:
    cause = {"ExceptionMessage": detail, "ExceptionType": kind} if detail else {}
    return web.json_response({"Message": message, **cause}, status=status)


def _no_json(detail: str) -> web.Response:
    return _problem(400, "Invalid JSON content", detail, "Newtonsoft.Json.JsonReaderException")


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
        # The extension reads an id as a form field is read: a plus is a space.
        parts = [unquote_plus(part) for part in request.match_info["tail"].strip("/").split("/")]
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
                    return self._unknown(instance_id, operation)
                return await self._one(request, instance, [part.lower() for part in operation[:1]] + operation[1:])
        return web.Response(status=404)

    async def _start(self, request: web.Request, name: str, instance_id: str) -> web.Response:
        try:
            text = await request.text()
            if text:
                json.loads(text)
        except ValueError as error:
            return _no_json(str(error))
        function = self.engine.app.orchestrators.get(name.lower())
        if function is None:
            detail = f"The function '{name}' doesn't exist, is disabled, or is not an orchestrator function."
            return _problem(400, "One or more of the arguments submitted is incorrect", detail)
        if re.search(r"[?#]", instance_id):
            return _problem(400, "One or more of the arguments submitted is incorrect", f"instance id {instance_id!r}")
        existing = self.hub.instance(instance_id)
        if existing and not existing.ended:
            return _problem(409, f"An Orchestration instance with the status {existing.status} already exists.")
        self.engine.start_new(instance_id, function.durable_name, text or None, request.query.get("version"))
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
                if not instance.ended:
                    words = "Only orchestrations in a terminal state can be purged, but the orchestration with instance ID"
                    return web.json_response(f"{words} {instance.id} has status {instance.status}", status=412)
                with self.hub:
                    return web.json_response({"instancesDeleted": self.hub.purge([instance.id])})
            case ("POST", "raiseevent", name):
                return await self._raise(request, instance, name)
            case ("POST", ("terminate" | "suspend" | "resume") as signal):
                if instance.ended:
                    return web.Response(status=410)
                if signal in ("suspend", "resume") and (signal == "suspend") == (instance.status == "Suspended"):
                    why = f"because instance is in the {instance.status} state."
                    detail = f"Cannot {signal} the orchestration instance {instance.id} {why}"
                    words = "Something went wrong while processing your request"
                    return _problem(500, words, detail, "System.InvalidOperationException")
                kind, key = _SIGNALS[signal]
                self.engine.send(instance.id, protocol.event(kind, -1, **{key: request.query.get("reason")}))
                return web.Response(status=202)
            case ("POST", "restart"):
                same = request.query.get("restartWithNewInstanceId", "true").lower() == "false"
                target = instance.id if same else uuid.uuid4().hex
                self.engine.start_new(target, instance.name, instance.input, instance.version)
                return self._links(request, target)
            case ("POST", "rewind"):
                if instance.status == "Failed":
                    return web.Response(status=501, text="this development host rewinds nothing")
                words = 'but only orchestrations in the "Failed" state can be rewound.'
                return web.json_response(f"This orchestration has status {instance.status}, {words}", status=412)
        return web.Response(status=404)

    @staticmethod
    def _unknown(instance_id: str, operation: list[str]) -> web.Response:
        match operation:
            case ["restart"]:
                detail = f"No instance with ID '{instance_id}' was found. (Parameter 'instanceId')"
                return _problem(400, "InstanceId does not match a valid orchestration instance.", detail)
            case ["rewind"]:
                return web.json_response(f'No orchestration with instance ID "${instance_id}" found.', status=404)
        return web.Response(status=404)

    async def _raise(self, request: web.Request, instance: Instance, name: str) -> web.Response:
        if instance.ended:
            return web.Response(status=410)
        if request.content_type != "application/json":
            return _problem(400, "Only application/json request content is supported")
        try:
            text = await request.text()
            if not text:
                return _no_json("Error reading JToken from JsonReader. Path '', line 0, position 0.")
            data = protocol.written(json.loads(text))
        except ValueError as error:
            return _no_json(str(error))
        self.engine.send(instance.id, protocol.event(EventType.EVENT_RAISED, Name=name, Input=data))
        return web.Response(status=202)

    # -- reading ------------------------------------------------------------------------------------------

    def _status(self, request: web.Request, instance: Instance) -> web.Response:
        body = _shown(instance, with_input=_flag(request, "showInput", default=True))
        if _flag(request, "showHistory") and (
            events := self._history(instance.id, with_output=_flag(request, "showHistoryOutput"))
        ):
            body["historyEvents"] = events
        if not instance.ended:
            return web.json_response(body, status=202, headers={"Location": str(request.url), "Retry-After": "5"})
        failed = instance.status == "Failed" and _flag(request, "returnInternalServerErrorOnFailure")
        return web.json_response(body, status=500 if failed else 200)

    def _history(self, instance_id: str, *, with_output: bool) -> list[dict[str, Any]]:
        """The events as the extension shows them: what was scheduled and has ended is shown by its end only."""
        events = [json.loads(text) for text in self.hub.history(instance_id)]
        ended = {item["TaskScheduledId"] for item in events if "TaskScheduledId" in item}
        scheduled = {
            item["EventId"]: item for item in events if item["EventType"] in (EventType.TASK_SCHEDULED, EventType.SUB_CREATED)
        }
        shown = []
        for item in events:
            kind = EventType(item["EventType"])
            if kind not in _SHOWN or item["EventId"] in ended:
                continue
            one = {"EventType": protocol.EVENT_NAMES[kind], **{key: item.get(key) for key in _SHOWN[kind]}}
            one["Timestamp"] = item["Timestamp"]
            if kind == EventType.EXECUTION_STARTED:
                one["FunctionName"] = item["Name"]
            elif kind == EventType.EXECUTION_COMPLETED:
                one["OrchestrationStatus"] = protocol.STATUS_NAMES[item["OrchestrationStatus"]]
            if (task := scheduled.get(item.get("TaskScheduledId"))) is not None:
                one |= {"ScheduledTime": task["Timestamp"], "FunctionName": task["Name"], "Input": None}
                one |= {"InstanceId": task["InstanceId"]} if "InstanceId" in task else {}
            if with_output and "Result" in item:
                one["Result"] = _value(item["Result"])
            shown.append(one)
        return shown

    def _many(self, request: web.Request) -> web.Response:
        query = request.query
        wanted = {status for status in query.get("runtimeStatus", "").split(",") if status in protocol.STATUS_NUMBERS}
        earliest, latest = query.get("createdTimeFrom", "")[:23], query.get("createdTimeTo", "9999")[:23]
        found = [
            instance
            for instance in self.hub.instances()
            if (not wanted or instance.status in wanted)
            and earliest <= instance.created[:23] <= latest
            and instance.id.startswith(query.get("instanceIdPrefix", ""))
        ]
        if request.method == "GET":
            return self._page(request, found)
        if not earliest:
            return web.json_response("Please provide value for 'createdTimeFrom' parameter.", status=400)
        with self.hub:
            deleted = self.hub.purge(instance.id for instance in found)
        return web.json_response({"instancesDeleted": deleted}) if deleted else web.Response(status=404)

    @staticmethod
    def _page(request: web.Request, found: list[Instance]) -> web.Response:
        """`top` of the instances by their ids, from the one on that the token names; and a token when there are more."""
        first = base64.b64decode(request.headers.get("x-ms-continuation-token", "")).decode()
        left = sorted((one for one in found if one.id >= first), key=lambda one: one.id)
        rows = int(request.query.get("top", PAGE_ROWS))
        shown = [_shown(one, with_input=_flag(request, "showInput", default=True)) for one in left[:rows]]
        answer = web.json_response(shown)
        if left[rows:]:
            answer.headers["x-ms-continuation-token"] = base64.b64encode(left[rows].id.encode()).decode()
        return answer


_TASK = ("Reason", "Details", "FailureDetails")
_SHOWN: dict[EventType, tuple[str, ...]] = {
    EventType.EXECUTION_STARTED: (
        "Input",
        "Correlation",
        "ParentTraceContext",
        "ScheduledStartTime",
        "Generation",
        "GenerateNewTrace",
    ),
    EventType.EXECUTION_COMPLETED: ("OrchestrationStatus", "FailureDetails"),
    EventType.EXECUTION_TERMINATED: ("Input",),
    EventType.TASK_SCHEDULED: ("Name", "Input", "ParentTraceContext", "Tags"),
    EventType.TASK_COMPLETED: (),
    EventType.TASK_FAILED: _TASK,
    EventType.SUB_CREATED: ("Name", "InstanceId", "Input", "ClientSpanId", "Tags"),
    EventType.SUB_COMPLETED: (),
    EventType.SUB_FAILED: _TASK,
    EventType.TIMER_CREATED: ("FireAt",),
    EventType.TIMER_FIRED: ("FireAt",),
    EventType.EVENT_RAISED: ("Name", "Input", "ParentTraceContext"),
    EventType.SUSPENDED: ("Reason",),
    EventType.RESUMED: ("Reason",),
}
"""The events of `historyEvents`, and their fields."""


def _shown(instance: Instance, *, with_input: bool) -> dict[str, Any]:
    return {
        "name": instance.name,
        "instanceId": instance.id,
        **({"parentInstanceId": instance.parent} if instance.parent else {}),
        "runtimeStatus": instance.status,
        "input": _value(instance.input) if with_input else None,
        "customStatus": _value(instance.custom_status),
        "output": _value(instance.output),
        "createdTime": instance.created[:19] + "Z",
        "lastUpdatedTime": instance.updated[:19] + "Z",
    }
