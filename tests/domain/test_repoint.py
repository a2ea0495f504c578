"""The moves that give a machine another disk: from any state each leads to the goal, and no end leaves it without one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backup_core.domain.errors import SlotTakenError
from backup_core.domain.records import Slot
from backup_core.domain.repoint import Change, Machine, MachineDisk, holds, next_move

VM = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/web"


def change(lun=0, *, was_running=True, stop=False, managed=False):
    old = MachineDisk("data", "/old" if managed else "https://a/vhds/old.vhd", managed=managed, lun=lun)
    new = replace(old, source="/new" if managed else "https://a/vhds/new.vhd")
    return Change("vm", "run", Slot(VM, lun), old, new, was_running, lun is None or stop)


def machine(request, has, power="running", state="Succeeded"):
    disk = {
        "old": request.old,
        "new": request.new,
        "other": replace(request.old, source="https://a/vhds/x.vhd"),
        "nothing": None,
    }[has]
    return Machine(VM, "1", state, power, "local", (disk,) if disk else ())


def after(request, at, move, goal):
    """The machine after the move has happened."""
    wanted = request.new if goal == "new" else request.old
    match move:
        case "deallocate":
            return replace(at, power="deallocated")
        case "start":
            return replace(at, power="running")
        case "detach":
            return replace(at, disks=(), state="Succeeded")
        case "attach" | "swap":
            return replace(at, disks=(wanted,), state="Succeeded")
        case "wait":
            return replace(at, state="Succeeded", power="running" if at.power == "changing" else at.power)
    raise AssertionError(move)


@given(
    lun=st.sampled_from([0, 7, None]),
    stop=st.booleans(),
    was_running=st.booleans(),
    has=st.sampled_from(["old", "new", "nothing"]),
    power=st.sampled_from(["running", "stopped", "deallocated", "changing"]),
    state=st.sampled_from(["Succeeded", "Failed", "Updating"]),
    goal=st.sampled_from(["new", "old"]),
)
def test_every_state_leads_to_the_goal(lun, stop, was_running, has, power, state, goal):
    """Every state reaches the goal in a few moves, after any interruption; a machine that was stopped runs again at the end."""
    request = change(lun, was_running=was_running, stop=stop)
    assume(lun is not None or has != "nothing")  # no machine is without its OS disk
    at, moves = machine(request, has, power, state), []
    while (move := next_move(request, at, goal)) != "none":
        moves.append(move)
        assert len(moves) < 8, moves
        if move == "detach":
            assert lun is not None
        at = after(request, at, move, goal)

    assert holds(request, at) == goal
    assert at.state == "Succeeded"
    if request.deallocates and was_running:
        assert at.power == "running"


@pytest.mark.parametrize("goal", ["new", "old"])
def test_a_third_disk_is_left_alone(goal):
    request = change()
    with pytest.raises(SlotTakenError, match=r"expected .*old\.vhd or .*new\.vhd, found .*x\.vhd; somebody else"):
        next_move(request, machine(request, "other"), goal)


def test_a_refused_change_does_not_count_as_done():
    """When the model has the new disk but the machine's last change failed, the change is sent again."""
    request = change()

    assert next_move(request, machine(request, "new", state="Failed"), "new") == "attach"
    assert next_move(request, machine(request, "new"), "new") == "none"


@pytest.mark.parametrize("has", ["old", "new", "nothing", "other"])
@pytest.mark.parametrize(("power", "state"), [("running", "Updating"), ("changing", "Succeeded")])
def test_the_run_waits_while_the_machine_is_being_changed(has, power, state):
    """The state shown during a change may differ from the final state."""
    request = change()
    assert next_move(request, machine(request, has, power, state), "new") == "wait"


def test_a_running_machine_keeps_running_for_a_data_disk():
    request = change()

    assert next_move(request, machine(request, "old"), "new") == "detach"
    assert next_move(change(stop=True), machine(request, "old"), "new") == "deallocate"
    assert next_move(change(None), machine(change(None), "old"), "new") == "deallocate"


def test_a_machine_that_was_off_stays_off():
    request = change(None, was_running=False)
    assert next_move(request, machine(request, "new", power="deallocated"), "new") == "none"


def test_ids_of_managed_disks_compare_without_case():
    request = change(managed=True)
    shouted = replace(request.new, source=request.new.source.upper())

    assert holds(request, Machine(VM, "1", "Succeeded", "running", "local", (shouted,))) == "new"
    blob = change()
    assert (
        holds(blob, Machine(VM, "1", "Succeeded", "running", "local", (replace(blob.new, source=blob.new.source.upper()),)))
        == "other"
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.blob.core.windows.net/vhds/web.vhd", "http://A.blob.core.windows.net/vhds/web.vhd", True),
        ("https://a.test/vhds/we%20b.vhd", "https://a.test/vhds/we b.vhd", True),
        ("https://a.test/vhds/web.vhd", "https://a.test/vhds/WEB.vhd", False),
        ("https://a.test/vhds/web.vhd", "https://b.test/vhds/web.vhd", False),
        ("https://a.test/vhds/web.vhd", "https://a.test:444/vhds/web.vhd", False),
    ],
)
def test_vhds_are_compared_by_host_and_path(one, other, same):
    """Machines made long ago name their VHDs by http."""
    left, right = (MachineDisk("d", url, managed=False, lun=0) for url in (one, other))
    assert left.is_(right) is same
