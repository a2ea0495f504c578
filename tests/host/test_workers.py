"""Several processes on one hub: the work is divided, each may die, and only one commits an episode."""

from __future__ import annotations

import itertools

import pytest

from devhost.functions.hub import Hub
from devhost.functions.partitions import Partitions
from devhost.platform import awaited
from tests.conftest import SEED
from tests.host.conftest import SampleWorkers

pytestmark = pytest.mark.development_host


@pytest.fixture
def both(tmp_path):
    running = SampleWorkers(tmp_path, DEVHOST_INVISIBLE_SECONDS="2")
    yield running
    running.stop()


def test_activities_and_orchestrations_are_divided_among_the_workers(both):
    """Each does some of both, once the partitions are divided; the answers come together whoever gave them."""
    rounds = itertools.count()

    def divided():
        # Ids of their own: by chance, all of them may fall to one worker.
        number = next(rounds)
        instances = [both.begin("workers", {"count": 8}, f"divided{number}-{one}") for one in range(8)]
        ended = [both.until(instance)["output"] for instance in instances]
        activities = {process for *processes, _ in ended for process in processes}
        return len(activities) == 2 and activities == {process for *_, process in ended}

    awaited(divided, "activities and orchestrations in both workers")


def test_a_worker_takes_over_the_work_of_a_dead_worker(both, rng):
    """The living worker takes over the partitions of the dead one without any notification."""
    instances = [both.begin("rounds", {"waves": 3}) for _ in range(4)]
    long = both.begin("workers", {"count": 8, "seconds": 0.5})
    both.until_notes(rng.randrange(20, 40))
    both.kill()

    for instance in instances:
        assert both.until(instance)["output"] == sum(n * n for n in range(12)) + 100, f"seed {SEED}"
    *_, process = both.until(long)["output"]
    assert process == (both if both.runs else both._others[0]).pid


def test_an_activity_that_takes_longer_than_it_is_invisible_runs_once(both):
    """The worker renews the activity's message while it runs."""
    instance = both.begin("workers", {"count": 4, "seconds": 3.0})

    both.until(instance)
    assert len(both.notes()) == 4


def test_workers_start_and_stop_while_runs_continue(both, rng):
    """Partitions move each time; each episode of a run is committed once, by one worker or the other."""
    instances = [both.begin("rounds", {"waves": 6}) for _ in range(4)]
    # Of the 96 notes there are at least: the runs may be over before this looks again.
    for count in sorted(rng.sample(range(4, 90), 3)):
        both.until_notes(count)
        both.kill()
        both.start()

    for instance in instances:
        assert both.until(instance)["output"] == sum(n * n for n in range(24)) + 100, f"seed {SEED}"


def partitions_of(hub, now, seconds=9.0):
    made = Partitions(hub, {"messages": seconds, "work": seconds})
    made.renew(now)
    return made


def test_each_id_belongs_to_one_worker_and_those_of_a_dead_worker_are_reassigned(tmp_path):
    hub = Hub(tmp_path / "hub.sqlite")
    first = partitions_of(hub, 0.0)
    second = partitions_of(hub, 1.0)
    ids = [f"instance{number}" for number in range(50)]
    assert first.renew(2.0)

    assert all(first.has(one) != second.has(one) for one in ids)
    assert {first.has(one) for one in ids} == {True, False}
    assert second.renew(11.5), "the first one's last sign of life is too old"
    assert all(second.has(one) for one in ids)
    hub.close()


def test_leases_of_a_living_worker_are_renewed(tmp_path):
    """The worker renews its leases, and stops once it has released them."""
    hub = Hub(tmp_path / "hub.sqlite")
    worker = partitions_of(hub, 0.0)
    number = hub.add_work("one", "execution", 0, "activity", None).number
    hub.post("one", {})
    assert hub.take_work(number, worker.worker, 0.0, 9.0)
    (message,) = hub.take_messages("one", 0.0, 9.0)
    with worker.holding("work", [number]), worker.holding("messages", [message["number"]]):
        worker.renew(8.0)
    worker.renew(16.0)

    assert (hub.visible_work(16.9), hub.messages("one", 16.9)) == ([], [])
    assert (len(hub.visible_work(17.0)), len(hub.messages("one", 17.0))) == (1, 1)
    hub.close()


def test_work_that_another_has_taken_is_neither_taken_nor_forgotten(tmp_path):
    """Another worker's message is left alone until it expires; then its former worker can no longer finish it."""
    hub = Hub(tmp_path / "hub.sqlite")
    number = hub.add_work("instance", "execution", 0, "activity", None).number

    assert hub.take_work(number, "first", 0.0, 5.0)
    assert not hub.take_work(number, "second", 4.9, 9.0)
    hub.hold_work([number], "first", 7.0)
    assert not hub.take_work(number, "second", 6.9, 9.0)
    assert hub.take_work(number, "second", 7.0, 12.0)
    hub.hold_work([number], "first", 99.0)
    hub.finish_work(number, "first")
    assert [work.number for work in hub.visible_work(12.0)] == [number]
    hub.finish_work(number, "second")
    assert hub.visible_work(99.0) == []
    hub.close()


def test_an_episode_is_committed_on_the_history_it_began_with_only(tmp_path):
    """A commit is refused after another worker's commit, and for an ended or replaced instance."""
    hub = Hub(tmp_path / "hub.sqlite")
    hub.create("one", "any", None, None)
    instance = hub.instance("one")
    assert hub.is_unchanged(instance, 0)
    hub.append("one", 0, ["{}"])
    assert not hub.is_unchanged(instance, 0)
    assert hub.is_unchanged(instance, 1)
    hub.update("one", status="Terminated")
    assert not hub.is_unchanged(instance, 1)
    hub.create("one", "any", None, None)
    assert not hub.is_unchanged(instance, 0)
    hub.close()
