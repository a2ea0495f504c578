"""Table of contents of the app: every trigger, orchestrator and activity, with bodies of a few lines."""

import os
from datetime import UTC, datetime
from typing import Any

import azure.durable_functions as df
import azure.functions as func

from backup_core import bootstrap, settings
from backup_core.activities.runner import run_step
from backup_core.api.handlers import Handler, respond
from backup_core.api.http import Answer, Request
from backup_core.domain.naming import fleet_instance_id
from backup_core.domain.windows import window_at
from backup_core.orchestrations import backup_disk, backup_fleet
from backup_core.steps import STEPS, FleetRequest, Step

SETTINGS = settings.load(os.environ)
SERVICES = bootstrap.build(SETTINGS)

app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)

# -- orchestrations and their activities ------------------------------------------------------------------------

for orchestrator in (backup_disk.backup_disk, backup_fleet.backup_fleet):
    app.orchestration_trigger(context_name="context")(orchestrator)


def activity(step: Step[Any, Any]) -> None:
    """Register the activity of a step."""

    async def perform(asked: dict) -> dict:  # type: ignore[type-arg]  # the worker takes bare types only
        return await run_step(step, SERVICES.tools, asked, SERVICES.ready)

    perform.__name__ = step.name
    app.activity_trigger(input_name="asked")(perform)


for one in STEPS:
    activity(one)

# -- timer ------------------------------------------------------------------------------------------------------


@app.timer_trigger(schedule="%BACKUP_SCHEDULE%", arg_name="timer", run_on_startup=False, use_monitor=True)
@app.durable_client_input(client_name="client")
async def scheduled_backup(timer: func.TimerRequest, client: df.DurableOrchestrationClient) -> None:  # noqa: ARG001  the window says when, also past due
    """Fan the present window of the schedule out: once, however often the timer fires in it."""
    window = window_at(SETTINGS.backup_schedule, datetime.now(UTC))
    request = FleetRequest(window=window.isoformat(), wave=SETTINGS.wave_shards)
    instance = fleet_instance_id(window)
    if not (await client.get_status(instance)).instance_id:
        await client.start_new(backup_fleet.NAME, instance, request.model_dump(mode="json"))


# -- HTTP -------------------------------------------------------------------------------------------------------


async def answered(handler: Handler, req: func.HttpRequest) -> func.HttpResponse:
    """Serve a request by a handler."""
    request = Request(req.url.partition("/api/")[0] + "/api", req.route_params, req.params, req.get_body())

    async def ready(ask: Request) -> Answer:
        await SERVICES.ready()
        return await handler(ask)

    reply = await respond(ready, request)
    return func.HttpResponse(reply.body, status_code=reply.status, headers=dict(reply.headers), mimetype="application/json")


@app.route(route="disks/{disk}", methods=["PUT"])
async def put_disk(req: func.HttpRequest) -> func.HttpResponse:
    """Protect a disk, or change its policy."""
    return await answered(SERVICES.api.put_disk, req)


@app.route(route="disks/{disk}", methods=["GET"])
async def get_disk(req: func.HttpRequest) -> func.HttpResponse:
    """Show a disk."""
    return await answered(SERVICES.api.get_disk, req)


@app.route(route="disks/{disk}", methods=["DELETE"])
async def delete_disk(req: func.HttpRequest) -> func.HttpResponse:
    """Stop protecting a disk."""
    return await answered(SERVICES.api.delete_disk, req)


@app.route(route="disks", methods=["GET"])
async def get_disks(req: func.HttpRequest) -> func.HttpResponse:
    """List the protected disks."""
    return await answered(SERVICES.api.get_disks, req)


@app.route(route="disks/{disk}/backups", methods=["POST"])
@app.durable_client_input(client_name="client")
async def post_backup(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    """Back a disk up now."""

    async def start(name: str, instance: str, asked: dict[str, Any]) -> None:
        await client.start_new(name, instance, asked)

    return await answered(lambda request: SERVICES.api.post_backup(request, start), req)


@app.route(route="disks/{disk}/restore-points", methods=["GET"])
async def get_restore_points(req: func.HttpRequest) -> func.HttpResponse:
    """List a disk's restore points."""
    return await answered(SERVICES.api.get_points, req)


@app.route(route="disks/{disk}/restore-points/{point}", methods=["GET"])
async def get_restore_point(req: func.HttpRequest) -> func.HttpResponse:
    """Show a restore point."""
    return await answered(SERVICES.api.get_point, req)


@app.route(route="runs", methods=["GET"])
async def get_runs(req: func.HttpRequest) -> func.HttpResponse:
    """List runs."""
    return await answered(SERVICES.api.get_runs, req)


@app.route(route="runs/{run}", methods=["GET"])
async def get_run(req: func.HttpRequest) -> func.HttpResponse:
    """Show a run."""
    return await answered(SERVICES.api.get_run, req)


@app.route(route="runs/{run}/cancel", methods=["POST"])
async def post_cancel(req: func.HttpRequest) -> func.HttpResponse:
    """Ask a run to end."""
    return await answered(SERVICES.api.post_cancel, req)


@app.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def health(req: func.HttpRequest) -> func.HttpResponse:
    """Whether the app's stores answer."""
    return await answered(SERVICES.api.get_health, req)
