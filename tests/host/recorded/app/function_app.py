"""The orchestrators whose answers were recorded. Inputs come as {"value": …}: the SDK would decode a bare text once more."""

import datetime as dt

import azure.durable_functions as df
import azure.functions as func

app = df.DFApp(http_auth_level=func.AuthLevel.ANONYMOUS)


# -- activities


@app.activity_trigger(input_name="given")
def echo(given):
    return given


@app.activity_trigger(input_name="given")
def nothing(given):
    return None


@app.activity_trigger(input_name="given")
def sized(given):
    return "x" * given


@app.activity_trigger(input_name="given")
def broken(given):
    raise ValueError(given)


# -- values


def value_of(context):
    return (context.get_input() or {}).get("value")


@app.orchestration_trigger(context_name="context")
def one(context):
    return (yield context.call_activity("echo", value_of(context)))


@app.orchestration_trigger(context_name="context")
def straight(context):
    return value_of(context)


@app.orchestration_trigger(context_name="context")
def many(context):
    return (yield context.task_all([context.call_activity("echo", number) for number in range(value_of(context))]))


@app.orchestration_trigger(context_name="context")
def big(context):
    text = yield context.call_activity("sized", value_of(context))
    return [len(text), text]


@app.orchestration_trigger(context_name="context")
def void(context):
    none = yield context.call_activity("nothing", None)
    empty = yield context.call_activity("echo", "")
    return [none, empty]


@app.orchestration_trigger(context_name="context")
def status_of(context):
    context.set_custom_status("s" * value_of(context))
    yield context.call_activity("echo", None)
    return "told"


# -- events and timers


@app.orchestration_trigger(context_name="context")
def forever(context):
    context.set_custom_status({"state": "waiting"})
    return (yield context.wait_for_external_event("go"))


@app.orchestration_trigger(context_name="context")
def race(context):
    timer = context.create_timer(context.current_utc_datetime + dt.timedelta(minutes=1))
    event = context.wait_for_external_event("go")
    if (yield context.task_any([timer, event])) == timer:
        return ["timer", None]
    timer.cancel()
    return ["event", event.result]


@app.orchestration_trigger(context_name="context")
def events(context):
    """Events that came early, in another order than they are waited for: three calls take less than the nap."""
    yield context.create_timer(context.current_utc_datetime + dt.timedelta(seconds=6))
    first = yield context.wait_for_external_event("a")
    second = yield context.wait_for_external_event("a")
    other = yield context.wait_for_external_event("b")
    return [["a", first], ["a", second], ["b", other]]


@app.orchestration_trigger(context_name="context")
def two_waiters(context):
    waiters = [context.wait_for_external_event("a") for _ in range(2)]
    yield context.task_all(waiters)
    return [waiter.result for waiter in waiters]


@app.orchestration_trigger(context_name="context")
def again(context):
    rounds = value_of(context)
    if rounds == 0:
        return ["end", (yield context.wait_for_external_event("kept"))]
    yield context.create_timer(context.current_utc_datetime + dt.timedelta(seconds=1))
    context.continue_as_new({"value": rounds - 1})
    return None


# -- children


@app.orchestration_trigger(context_name="context")
def child(context):
    given = context.get_input()
    if given.get("fail"):
        raise RuntimeError("child failed")
    if given.get("wait"):
        yield context.wait_for_external_event("go")
    echoed = yield context.call_activity("echo", given)
    return [context.instance_id, context.parent_instance_id, echoed]


@app.orchestration_trigger(context_name="context")
def parent(context):
    with_an_id = yield context.call_sub_orchestrator("child", {"n": 1}, context.get_input()["child"])
    without = yield context.call_sub_orchestrator("child", {"n": 2})
    return [with_an_id, without]


@app.orchestration_trigger(context_name="context")
def parent_twice(context):
    first = yield context.call_sub_orchestrator("child", {"n": 1}, context.get_input()["child"])
    second = yield context.call_sub_orchestrator("child", {"n": 2}, context.get_input()["child"])
    return [first, second]


@app.orchestration_trigger(context_name="context")
def parent_of_one(context):
    given = context.get_input()
    try:
        return ["done", (yield context.call_sub_orchestrator("child", given["input"], given.get("child")))]
    except Exception as error:
        return ["failed", type(error).__name__, str(error)]


# -- failures


@app.orchestration_trigger(context_name="context")
def raises(context):
    yield context.call_activity("echo", 1)
    raise KeyError("orchestrator's own fault")


@app.orchestration_trigger(context_name="context")
def lets_through(context):
    yield context.call_activity("broken", "let through")


# -- what a replay is handed


@app.orchestration_trigger(context_name="context")
def history(context):
    """One of each: an activity, a timer, a child, a failure, an event. The answer is the history as the SDK has read it."""
    yield context.call_activity("echo", {"a": 1})
    yield context.create_timer(context.current_utc_datetime + dt.timedelta(seconds=1))
    yield context.call_sub_orchestrator("straight", {"value": "text"}, f"{context.instance_id}-child")
    try:
        yield context.call_activity("broken", "b")
    except Exception:
        yield context.wait_for_external_event("go")
    return [
        {
            name.lstrip("_"): value if isinstance(value, str | int | float) else str(value)
            for name, value in vars(event).items()
            if value is not None and name != "_is_processed"
        }
        for event in context.histories
    ]
