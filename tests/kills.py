"""Kills of the host at a moment that a test chooses: while a request of the run is in flight."""

from __future__ import annotations

from tests.conftest import SEED

INVISIBLE = {1: "0.5", 2: "2"}
"""The visibility timeout of messages in seconds, by number of workers. With two, the living one must renew its messages in time."""


def killed_while(platform, place, request, begin, states=("NotStarted", "Running")):
    """Begin a run, kill the host, or one of its workers, while the request is in flight, and start it again. Returns the run's id.

    A request with a `method` is sent to Resource Manager, any other to storage. Until the kill, the run is in one of the `states`.
    """
    storage, machines, to_machines = platform.storage, platform.machines, "method" in request
    before = len(machines.control("GET")["requests"])
    slow = {"operation": True, "held": True} if to_machines else {"delayMs": 700}
    (machines if to_machines else storage).faults({**request, **slow})
    run = begin()
    while not (has_arrived(machines, before, request) if to_machines else storage.control("GET")["faults"][0]["times"] == 0):
        state = platform.api("GET", f"/runs/{run}").json()["state"]
        assert state in states, f"seed {SEED}: {state} without reaching {place}"
    platform.host.kill()
    machines.reset()
    storage.reset()
    platform.host.start()
    return run


def has_arrived(machines, before, request):
    """Whether more requests of that kind have arrived than the fault lets pass."""
    made = machines.control("GET")["requests"][before:]
    alike = [one for one in made if one.startswith(request["method"]) and request["path"] in one]
    return len(alike) > request.get("skip", 0)
