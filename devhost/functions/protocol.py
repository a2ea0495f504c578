"""The out-of-process protocol of Durable Functions as azure-functions-durable 1.x speaks it, in one place.

Everything that knows the JSON the extension and the Python SDK exchange is here: history events, the orchestrator's input
and answer, activity values, the client binding. Version 2 of the SDK replaces this protocol; then this file is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any
from urllib.parse import quote_plus

from azure.functions import durable_functions, meta

Event = dict[str, Any]
"""One history event, PascalCase as the extension writes it."""

FAILURE_MARK = "\n\n$OutOfProcData$:"
CUSTOM_STATUS_BYTES_MAX = 16 * 1024
_STACK_FRAMES = 40


class EventType(IntEnum):
    """Numbers of the history events in use."""

    EXECUTION_STARTED = 0
    EXECUTION_COMPLETED = 1
    EXECUTION_TERMINATED = 3
    TASK_SCHEDULED = 4
    TASK_COMPLETED = 5
    TASK_FAILED = 6
    SUB_CREATED = 7
    SUB_COMPLETED = 8
    SUB_FAILED = 9
    TIMER_CREATED = 10
    TIMER_FIRED = 11
    ORCHESTRATOR_STARTED = 12
    ORCHESTRATOR_COMPLETED = 13
    EVENT_RAISED = 15
    SUSPENDED = 19
    RESUMED = 20


EVENT_NAMES = {
    EventType.EXECUTION_STARTED: "ExecutionStarted",
    EventType.EXECUTION_COMPLETED: "ExecutionCompleted",
    EventType.EXECUTION_TERMINATED: "ExecutionTerminated",
    EventType.TASK_SCHEDULED: "TaskScheduled",
    EventType.TASK_COMPLETED: "TaskCompleted",
    EventType.TASK_FAILED: "TaskFailed",
    EventType.SUB_CREATED: "SubOrchestrationInstanceCreated",
    EventType.SUB_COMPLETED: "SubOrchestrationInstanceCompleted",
    EventType.SUB_FAILED: "SubOrchestrationInstanceFailed",
    EventType.TIMER_CREATED: "TimerCreated",
    EventType.TIMER_FIRED: "TimerFired",
    EventType.EVENT_RAISED: "EventRaised",
    EventType.SUSPENDED: "ExecutionSuspended",
    EventType.RESUMED: "ExecutionResumed",
}


class ActionType(IntEnum):
    """The actions in an orchestrator's answer."""

    CALL_ACTIVITY = 0
    CALL_ACTIVITY_WITH_RETRY = 1
    CALL_SUB = 2
    CALL_SUB_WITH_RETRY = 3
    CONTINUE_AS_NEW = 4
    CREATE_TIMER = 5
    WAIT_FOR_EVENT = 6
    WHEN_ANY = 11
    WHEN_ALL = 12


STATUS_NUMBERS = {
    "Running": 0,
    "Completed": 1,
    "ContinuedAsNew": 2,
    "Failed": 3,
    "Canceled": 4,
    "Terminated": 5,
    "Pending": 6,
    "Suspended": 7,
}
STATUS_NAMES = {number: name for name, number in STATUS_NUMBERS.items()}
TERMINAL = frozenset({"Completed", "Failed", "Canceled", "Terminated"})


def format_time(moment: datetime) -> str:
    """The moment in UTC with seven decimals, as the extension writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def parse_time(text: str) -> datetime:
    """A UTC moment from a time with up to seven decimals; digits beyond microseconds are dropped."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6] or '0'}").replace(tzinfo=UTC)


def now() -> str:
    """The present moment in the protocol's form."""
    return format_time(datetime.now(UTC))


def event(kind: EventType, event_id: int = -1, **fields: object) -> Event:
    """A new history event, stamped now, not yet played."""
    return {"EventType": int(kind), "EventId": event_id, "IsPlayed": False, "Timestamp": now(), **fields}


def execution_started(
    instance: str,
    execution: str,
    name: str,
    raw_input: str | None,
    version: str | None,
    parent: tuple[str, str, int] | None,
    *,
    first: bool = True,
) -> Event:
    """The first event of an execution, of the instance's `first` or one that continued as new.

    `parent` is (instance, execution, task) of the calling orchestration.
    """
    parent_instance = parent and {
        "TaskScheduleId": parent[2],
        "OrchestrationInstance": {"InstanceId": parent[0], "ExecutionId": parent[1]},
    }
    return event(
        EventType.EXECUTION_STARTED,
        ParentInstance=parent_instance,
        Name=name,
        Version=version,
        Input=raw_input,
        Tags=None,
        Correlation=None,
        ParentTraceContext=None,
        ScheduledStartTime=None,
        Generation=0 if first and parent is None else None,
        GenerateNewTrace=False,
        OrchestrationInstance={"InstanceId": instance, "ExecutionId": execution},
    )


def orchestrator_trigger(
    instance: str, parent: str | None, raw_input: str | None, past: Sequence[str], new: Sequence[Event]
) -> object:
    """The worker's call of an orchestrator: its whole history and input, past events as stored JSON text."""
    head = {
        "input": None if raw_input is None else json.loads(raw_input),
        "instanceId": instance,
        "isReplaying": bool(past),
        "parentInstanceId": parent,
        "upperSchemaVersion": 1,
        "upperSchemaVersionNew": 2,
        "maximumShortTimerDuration": "6.00:00:00",
        "longRunningTimerIntervalDuration": "3.00:00:00",
        "defaultHttpAsyncRequestSleepTimeMillseconds": 30000,
    }
    history = ",".join([*past, *(json.dumps(item) for item in new)])
    body = f'{{"history":[{history}],{json.dumps(head)[1:]}'
    return durable_functions.OrchestrationTriggerConverter.decode(meta.Datum(type="json", value=body), trigger_metadata=None)


def written(value: object) -> str:
    """JSON as the extension writes it, which reads and writes every value that passes through it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def answer_of(text: str) -> dict[str, Any]:
    """The orchestrator's answer: its actions, and output or error."""
    answer: dict[str, Any] = json.loads(text)
    return answer


def answer_of_failure(error: Exception) -> dict[str, Any] | None:
    """The answer inside the exception the SDK raises for a failed orchestrator; None when it is some other exception."""
    _, mark, payload = str(error).partition(FAILURE_MARK)
    return answer_of(payload) if mark else None


def activity_argument(raw_input: str | None) -> object:
    """The decoded input of an activity function."""
    return durable_functions.ActivityTriggerConverter.decode(meta.Datum(type="string", value=raw_input), trigger_metadata=None)


def activity_result(value: object) -> str | None:
    """An activity's return value as it goes into history; None stays none."""
    if value is None:
        return None
    encoded: str = durable_functions.ActivityTriggerConverter.encode(value, expected_type=None).value
    return written(json.loads(encoded))


def activity_failure(function: str, task: int, error: Exception) -> Event:
    """The event a raised activity leaves. The orchestrator sees a text made of both: the reason, and kilobytes of details."""
    text = f" {type(error).__name__}: {error}"
    worker = _dotnet_exception(f"Result: Failure\nException: {text.strip()}\nStack: ", None, _STACK_FRAMES)
    details = _dotnet_exception(text, worker, 0)
    reason = f"Activity function '{function}' failed: {text}"
    return event(EventType.TASK_FAILED, TaskScheduledId=task, Reason=reason, Details=written(details), FailureDetails=None)


def _dotnet_exception(message: str, inner: dict[str, Any] | None, frames: int) -> dict[str, Any]:
    kind = "System.Exception"
    stack = "\n".join(f"   at Development.Host.Frame{number}(Object[] arguments)" for number in range(frames))
    return {"$type": kind, "ClassName": kind, "Message": message, "InnerException": inner, "StackTraceString": stack or None}


def child_failure(task: int, status: str, output: str | None) -> Event:
    """The event that a child which failed, or was terminated, leaves with its parent."""
    cause = (output or "").partition(" failed: ")[2]
    details = f"Message: {cause}, StackTrace:    at Development.Host.Orchestrator()" if status == "Failed" else None
    return event(EventType.SUB_FAILED, TaskScheduledId=task, Reason=output, Details=details, FailureDetails=None)


def custom_status_problem(answer: dict[str, Any]) -> str | None:
    """Why the custom status of an orchestrator's answer fails the orchestration; None when it does not."""
    size = len(written(answer.get("customStatus")).encode("utf-16-le"))
    if size <= CUSTOM_STATUS_BYTES_MAX:
        return None
    limit = "The UTF-16 size of the JSON-serialized payload must not exceed 16 KB."
    return f"{limit} The current payload size is {size // 1024} KB."


def _quoted(instance: str) -> str:
    return quote_plus(instance, safe="!*()").replace("~", "%7E")


def management_urls(base: str, hub: str, instance: str) -> dict[str, str]:
    """The management addresses of one instance, as the durable client and its check-status answer carry them."""
    one, query = f"{base}/instances/{_quoted(instance)}", f"taskHub={hub}&connection=Storage&code=local"
    return {
        "id": instance,
        "statusQueryGetUri": f"{one}?{query}",
        "sendEventPostUri": f"{one}/raiseEvent/{{eventName}}?{query}",
        "terminatePostUri": f"{one}/terminate?reason={{text}}&{query}",
        "purgeHistoryDeleteUri": f"{one}?{query}",
        "restartPostUri": f"{one}/restart?{query}",
        "suspendPostUri": f"{one}/suspend?reason={{text}}&{query}",
        "resumePostUri": f"{one}/resume?reason={{text}}&{query}",
    }


def client_binding(origin: str, hub: str) -> str:
    """The JSON a function with a durable client input receives."""
    base = f"{origin}/runtime/webhooks/durabletask"
    start = f"{base}/orchestrators/{{functionName}}[/{{instanceId}}]?code=local"
    wait = f"{start}&timeout={{timeoutInSeconds}}&pollingInterval={{intervalInSeconds}}"
    return json.dumps(
        {
            "taskHubName": hub,
            "connectionName": None,
            "baseUrl": base,
            "rpcBaseUrl": f"{origin}/durabletask/",
            "httpBaseUrl": None,
            "requiredQueryStringParameters": "code=local",
            "creationUrls": {"createNewInstancePostUri": start, "createAndWaitOnNewInstancePostUri": wait},
            "managementUrls": management_urls(base, hub, "INSTANCEID"),
        }
    )
