"""Kills of the host at a moment that a test chooses: while a request of the run is on its way."""

from __future__ import annotations

from tests.conftest import SEED

INVISIBLE = {1: "0.5", 2: "2"}
"""Seconds that what a dead worker held stands still. A living one has to renew in time, if another would take it else."""


def killed_while(platform, place, request, begin, states=("NotStarted", "Running")):
    """Begin a run, kill -9 the host, or one of its workers, while the request is on its way, and start it again; the run.

    A request with a `method` is one to Resource Manager, any other to storage. Until then the run is in one of the `states`.
    """
    storage, machines, to_machines = platform.storage, platform.machines, "method" in request
    before = len(machines.control("GET")["requests"])
    slow = {"operation": True, "held": True} if to_machines else {"delayMs": 700}
    (machines if to_machines else storage).faults({**request, **slow})
    run = begin()
    while not (asked(machines, before, request) if to_machines else storage.control("GET")["faults"][0]["times"] == 0):
        state = platform.api("GET", f"/runs/{run}").json()["state"]
        assert state in states, f"seed {SEED}: {state} without coming to {place}"
    platform.host.kill()
    machines.reset()
    storage.reset()
    platform.host.start()
    return run


def asked(machines, before, request):
    """Whether as many requests as are to pass were made of that kind, and one more."""
    made = machines.control("GET")["requests"][before:]
    alike = [one for one in made if one.startswith(request["method"]) and request["path"] in one]
    return len(alike) > request.get("skip", 0)
