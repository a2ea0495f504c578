"""Table of contents of the app: every trigger, orchestrator and activity, with bodies of a few lines."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from backup_core import bootstrap, settings
from backup_core.activities.runner import run_step
from backup_core.api.context import Api, respond
from backup_core.api.http import Answer, Request, cannot_start
from backup_core.api.routes import ROUTES, Route
from backup_core.domain.naming import cleanup_instance_id, fleet_instance_id
from backup_core.domain.windows import window_before, window_fired
from backup_core.operations.runs import Start
from backup_core.operations.watch import watch
from backup_core.orchestrations import backup_fleet, clean_up_disks
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.steps import STEPS
from backup_core.steps.backup import FleetRequest
from backup_core.steps.housekeeping import CleanupRequest
from backup_core.steps.messages import Step

SETTINGS = settings.load(os.environ)
SERVICES = bootstrap.build(SETTINGS)

DURABLE_BEGAN = datetime(2017, 1, 1, tzinfo=UTC)
"""Purging asks for a beginning; no orchestration is older."""
ENDED = [
    df.OrchestrationRuntimeStatus.Completed,
    df.OrchestrationRuntimeStatus.Failed,
    df.OrchestrationRuntimeStatus.Terminated,
    df.OrchestrationRuntimeStatus.Canceled,
]

app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)

# -- orchestrations and their activities ------------------------------------------------------------------------

for orchestrator in ORCHESTRATORS.values():
    app.orchestration_trigger(context_name="context")(orchestrator)


def activity(step: Step[Any, Any], name: str) -> None:
    """Register the activity of a step under one of its names."""

    async def perform(request: dict) -> dict:  # type: ignore[type-arg]  # the worker takes bare types only
        return await run_step(step, SERVICES.tools_for, request, SERVICES.stores)

    perform.__name__ = name
    app.activity_trigger(input_name="request")(perform)


for step in STEPS:
    for name in step.names:
        activity(step, name)


async def start_once(client: df.DurableOrchestrationClient, name: str, instance: str, request: dict[str, Any]) -> None:
    """Start an orchestration unless there is, or was, an instance of that id."""
    if not (await client.get_status(instance)).instance_id:
        await client.start_new(name, instance, request)


# -- timers -----------------------------------------------------------------------------------------------------


def due_text(timer: func.TimerRequest) -> str:
    """The due time in a timer's trigger, which may fire before it. Empty for none."""
    return str((timer.schedule_status or {}).get("Next") or "")


@app.timer_trigger(schedule="%BACKUP_SCHEDULE%", arg_name="timer", run_on_startup=False, use_monitor=True)
@app.durable_client_input(client_name="client")
async def scheduled_backup(timer: func.TimerRequest, client: df.DurableOrchestrationClient) -> None:
    """Fan the window that the timer was due for out: once, however often it fires for it."""
    window = window_fired(SETTINGS.backup_schedule, due_text(timer), datetime.now(UTC))
    request = FleetRequest(
        window=window.isoformat(),
        wave=SETTINGS.wave_shards,
        full_copy=SETTINGS.full_copy,
        prune=SETTINGS.prune_after_backup,
        lanes=SETTINGS.active_disks,
        former=window_before(SETTINGS.backup_schedule, window).isoformat(),
    )
    await start_once(client, backup_fleet.NAME, fleet_instance_id(window), request.model_dump(mode="json"))


@app.timer_trigger(schedule="%HOUSEKEEPING_SCHEDULE%", arg_name="timer", run_on_startup=False, use_monitor=True)
@app.durable_client_input(client_name="client")
async def housekeeping(timer: func.TimerRequest, client: df.DurableOrchestrationClient) -> None:
    """Remove leftovers of runs: once for each due time."""
    due = window_fired(SETTINGS.housekeeping_schedule, due_text(timer), datetime.now(UTC))
    request = CleanupRequest(run_days=SETTINGS.run_days)
    await start_once(client, clean_up_disks.NAME, cleanup_instance_id(due), request.model_dump(mode="json"))


@app.timer_trigger(schedule="%HOUSEKEEPING_SCHEDULE%", arg_name="timer", run_on_startup=False, use_monitor=True)
@app.durable_client_input(client_name="client")
async def purge_history(timer: func.TimerRequest, client: df.DurableOrchestrationClient) -> None:  # noqa: ARG001  late is as good
    """Remove the history of orchestrations that ended long ago; each app its own, so it is on in both."""
    oldest = datetime.now(UTC) - timedelta(days=SETTINGS.history_days)
    await client.purge_instance_history_by(DURABLE_BEGAN, oldest, ENDED)


@app.timer_trigger(schedule="%WATCH_SCHEDULE%", arg_name="timer", run_on_startup=False, use_monitor=True)
async def watch_disks(timer: func.TimerRequest) -> None:  # noqa: ARG001  the present status counts
    """Emit the status of each disk, for alerts and the workbook."""
    await SERVICES.ready()
    await watch(SERVICES.api.tools, SETTINGS.backup_schedule)


# -- HTTP -------------------------------------------------------------------------------------------------------


async def served(route: Route, req: func.HttpRequest, start: Start = cannot_start) -> func.HttpResponse:
    """Answer a request by its route's handler, for callers that may make it."""
    headers = {name.lower(): value for name, value in req.headers.items()}
    request = Request(SERVICES.api.base(req.url), req.route_params, req.params, req.get_body(), headers, start)

    async def handle(api: Api, step_input: Request) -> Answer:
        roles = api.access.admit(req.url, headers, route.roles)
        if not route.anonymous:  # a stranger's call must not cause work beyond the cached health
            await api.prepare()
        return await route.handler(api, replace(step_input, roles=roles))

    reply = await respond(SERVICES.api, handle, request)
    return func.HttpResponse(reply.body, status_code=reply.status, headers=dict(reply.headers), mimetype="application/json")


def http(route: Route) -> None:
    """Register the function of a call; only one that starts orchestrations gets a durable client."""

    async def call(req: func.HttpRequest) -> func.HttpResponse:
        return await served(route, req)

    async def starting_call(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
        async def start(name: str, instance: str, request: dict[str, Any]) -> None:
            await start_once(client, name, instance, request)

        return await served(route, req, start=start)

    function: Any = starting_call if route.starts else call
    function.__name__, function.__doc__ = route.name, route.summary
    level = func.AuthLevel.ANONYMOUS if route.anonymous else func.AuthLevel.FUNCTION
    bound = app.durable_client_input(client_name="client")(function) if route.starts else function
    app.route(route=route.path, methods=[route.method], auth_level=level)(bound)


for route in ROUTES:
    http(route)
