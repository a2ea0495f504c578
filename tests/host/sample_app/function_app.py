"""A small app with one orchestrator for each thing the host must do. Activities log to $SAMPLE_LOG."""

import asyncio
import datetime as dt
import json
import os

import azure.durable_functions as df
import azure.functions as func

app = df.DFApp(http_auth_level=func.AuthLevel.FUNCTION)
LOG = os.environ["SAMPLE_LOG"]
VERSION = os.environ.get("SAMPLE_VERSION", "1")


def note(text: str) -> None:
    with open(LOG, "a") as log:
        log.write(text + "\n")


@app.activity_trigger(input_name="request")
async def square(request: dict) -> int:
    note(f"square {request['n']}")
    await asyncio.sleep(request.get("seconds", 0))
    if request.get("fail"):
        raise ValueError(f"cannot square {request['n']}")
    return request["n"] ** 2


@app.activity_trigger(input_name="request")
def slow_square(request: dict) -> int:
    note(f"slow_square {request['n']}")
    return request["n"] ** 2


@app.activity_trigger(input_name="request")
def flaky(request: dict) -> int:
    with open(LOG) as log:
        seen = log.read().count(f"flaky {request['key']}\n")
    note(f"flaky {request['key']}")
    if seen < request["failures"]:
        raise RuntimeError(f"attempt {seen + 1} fails")
    return seen + 1


@app.activity_trigger(input_name="request")
def echo(request: dict) -> str:
    note(f"echo {request['text']}")
    return request["text"]


@app.activity_trigger(input_name="request")
async def worker(request: dict) -> int:
    """The process it ran in."""
    note(f"worker {request['n']} {os.getpid()}")
    await asyncio.sleep(request["seconds"])
    return os.getpid()


@app.orchestration_trigger(context_name="context")
def workers(context):
    """The processes of its activities, and of its last episode."""
    request = context.get_input()
    tasks = [context.call_activity("worker", {"n": n, "seconds": request.get("seconds", 0)}) for n in range(request["count"])]
    return [*(yield context.task_all(tasks)), os.getpid()]


@app.orchestration_trigger(context_name="context")
def stamped(context):
    """Each episode sends another input, because it contains the clock."""
    return (yield context.call_activity("echo", {"text": context.current_utc_datetime.isoformat()}))


@app.orchestration_trigger(context_name="context")
def starts(context):
    """Starts the requested child under the requested id."""
    request = context.get_input()
    return (yield context.call_sub_orchestrator(request["child"], request["input"], request["id"]))


@app.orchestration_trigger(context_name="context")
def fan_out(context):
    request = context.get_input()
    tasks = [context.call_activity("square", {"n": n, "seconds": request.get("seconds", 0)}) for n in range(request["count"])]
    context.set_custom_status({"phase": "out"})
    squares = yield context.task_all(tasks)
    context.set_custom_status({"phase": "in"})
    one = yield context.call_activity("slow_square", {"n": 3})
    return {"sum": sum(squares), "one": one}


@app.orchestration_trigger(context_name="context")
def rounds(context):
    """Waves with a timer between them, then a sub-orchestration: what the product's orchestrators look like."""
    total = 0
    for wave in range(context.get_input()["waves"]):
        squares = yield context.task_all([context.call_activity("square", {"n": wave * 4 + n}) for n in range(4)])
        total += sum(squares)
        yield context.create_timer(context.current_utc_datetime + dt.timedelta(milliseconds=50))
    total += yield context.call_sub_orchestrator("child", {"n": 10}, f"{context.instance_id}.child")
    return total


@app.orchestration_trigger(context_name="context")
def child(context):
    request = context.get_input()
    if request["n"] < 0:
        raise ValueError("negative")
    squared = yield context.call_activity("square", {"n": request["n"]})
    return squared


@app.orchestration_trigger(context_name="context")
def parent_of_a_failure(context):
    try:
        yield context.call_sub_orchestrator("child", {"n": -1})
    except Exception as error:
        return f"caught: {error}"
    return "not raised"


@app.orchestration_trigger(context_name="context")
def waits(context):
    event = context.wait_for_external_event("approve")
    timer = context.create_timer(context.current_utc_datetime + dt.timedelta(seconds=context.get_input()["seconds"]))
    won = yield context.task_any([event, timer])
    if won == timer:
        return "timer"
    timer.cancel()
    return event.result


@app.orchestration_trigger(context_name="context")
def counts(context):
    n = context.get_input()
    yield context.call_activity("square", {"n": n})
    if n < 5:
        context.continue_as_new(n + 1)
        return None
    return n


@app.orchestration_trigger(context_name="context")
def retries(context):
    options = df.RetryOptions(first_retry_interval_in_milliseconds=20, max_number_of_attempts=3)
    return (yield context.call_activity_with_retry("flaky", options, context.get_input()))


@app.orchestration_trigger(context_name="context")
def fails(context):
    yield context.call_activity("square", {"n": 1, "fail": True})


@app.orchestration_trigger(context_name="context")
def changes(context):
    """Its second version calls another activity at the same place: an incompatible deployment."""
    yield context.call_activity("square" if VERSION == "1" else "slow_square", {"n": 1})
    yield context.wait_for_external_event("go")
    return VERSION


@app.orchestration_trigger(context_name="context")
def versioned(context):
    """It makes the calls of `changes`, and keeps the old way for instances that started with it."""
    yield context.call_activity("square" if context.version == "1" else "slow_square", {"n": 1})
    yield context.wait_for_external_event("go")
    child = yield context.call_sub_orchestrator("versioned_child")
    return [context.version, child]


@app.orchestration_trigger(context_name="context")
def versioned_child(context):
    return context.version


@app.timer_trigger(schedule="%SAMPLE_SCHEDULE%", arg_name="timer", run_on_startup=False)
async def tick(timer: func.TimerRequest) -> None:
    note(f"tick past_due={timer.past_due}")
    note("status " + json.dumps({"at": dt.datetime.now(dt.UTC).isoformat(), **timer.schedule_status}))


@app.route(route="start/{name}/{instance?}", methods=["POST"])
@app.durable_client_input(client_name="client")
async def start(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    request = req.get_json() if req.get_body() else None
    instance = await client.start_new(req.route_params["name"], req.route_params.get("instance"), request)
    return client.create_check_status_response(req, instance)


@app.route(route="client/{operation}/{instance}", methods=["POST"])
@app.durable_client_input(client_name="client")
async def operate(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    operation, instance = req.route_params["operation"], req.route_params["instance"]
    if operation == "raise":
        await client.raise_event(instance, "approve", {"by": "client"})
    elif operation == "purge":
        return func.HttpResponse(str((await client.purge_instance_history(instance)).instances_deleted))
    elif operation == "status":
        return func.HttpResponse((await client.get_status(instance)).runtime_status.name)
    else:
        await getattr(client, operation)(instance, "asked for")
    return func.HttpResponse("done")
