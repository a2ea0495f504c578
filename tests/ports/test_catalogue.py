"""The Catalogue contract, for both implementations."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backup_core.domain.errors import (
    RecordUnreadableError,
    RowChangedError,
    RowExistsError,
    ServiceUnavailableError,
    UnexpectedAnswerError,
)
from backup_core.domain.fleet import Turns
from backup_core.domain.naming import run_key
from backup_core.domain.records import (
    EXPIRED_NAMED_MAX,
    CommonPair,
    Head,
    Owner,
    Pin,
    Registration,
    RequestKey,
    RestorePoint,
    Restoring,
    Retention,
    Run,
    RunError,
    Slot,
)
from backup_core.ports import ROWS_PER_COMMIT

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
DISK = "disk-1"
BIG = 8 * 1024**4


def point_of(number):
    stamp = f"2026-11-22T12:00:00.{number:07d}Z"
    return RestorePoint(
        disk=DISK, point=stamp.replace("-", "").replace(":", "").replace(".", ""), kind="full", reason="first backup",
        generation=1, head="d/1/disk.vhd", source="https://s/c/b", source_snapshot=stamp, previous_source_snapshot="",
        backup_snapshot=stamp, size=BIG, write_bytes=BIG - 512, clear_bytes=0, requests=5, epoch=1, run="r", digest="d",
        page_map="p", verified="v", committed=NOW,
    )  # fmt: skip


def run_of(number, **fields):
    return Run(
        disk=DISK,
        run=f"{DISK}.20261122T1200{number:02d}Z.timer",
        state="Running",
        trigger="timer",
        full=False,
        created=NOW,
        **fields,
    )


async def test_rows_are_read_as_they_were_written(ports):
    """Large numbers, times to the microsecond, nested and absent values are equal after the read."""
    registration = Registration(DISK, "https://s/c/b", "with 'quotes' and ünicode", NOW, NOW, retention=Retention(7, 30))
    head = Head(
        DISK, epoch=7, owner=Owner("r", "l", 7), source="https://s/c/b", generation=2, head="h", head_etag='"e"',
        pair=CommonPair("p", "s", "b", BIG), automatic_fulls=1,
    )  # fmt: skip
    run = run_of(1, started=NOW, bytes_total=BIG, points=("a", "b"), expired=("c",), error=RunError("Code", "text"))
    await ports.catalogue.put_registration(registration, None)
    await ports.catalogue.put_head(head, None)
    await ports.catalogue.put_run(run, None)

    assert (await ports.catalogue.registration(DISK)).value == registration
    assert (await ports.catalogue.head(DISK)).value == head
    assert (await ports.catalogue.run(DISK, run.run)).value == run
    assert await ports.catalogue.head("other") is None


DAMAGE = {
    "a word of a newer version": {"state": "Paused"},
    "text for a number": {"percent": "many"},
    "half a nested value": {"error": '{"code": "x"'},
    "a nested value of another kind": {"restore": "[1]"},
    "a missing column": {"created": None},
    "another row's values": {"run": f"{DISK}.20261122T120002Z.timer"},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_row_that_cannot_be_read_is_named(ports, damage):
    """By itself and in a list; rows of another disk are read as before."""
    run, other = run_of(1), replace(run_of(1), disk="disk-2", run="disk-2.20261122T120001Z.timer")
    await ports.catalogue.put_run(run, None)
    await ports.catalogue.put_run(other, None)
    key = run_key(run.run)
    if ports.kind == "memory":
        ports.catalogue.damaged.add((DISK, key))
    else:
        entity = await ports.catalogue._table.get_entity(DISK, key)
        changed = {**entity, **damage}
        await ports.catalogue._table.update_entity(
            {name: value for name, value in changed.items() if value is not None}, mode="replace"
        )

    for reading in (ports.catalogue.run(DISK, run.run), ports.catalogue.runs(DISK, 5)):
        with pytest.raises(RecordUnreadableError, match=f"disk {DISK}: row '{key}'"):
            await reading
    assert await ports.catalogue.runs("disk-2", 5) == [other]


async def test_a_list_that_is_too_long_for_a_column_is_refused(ports):
    """A text column holds 32 Ki characters, and a list is stored as one text. Refused, the row is as before."""
    run = run_of(1)
    etag = await ports.catalogue.put_run(run, None)
    with pytest.raises(UnexpectedAnswerError, match="PropertyValueTooLarge"):
        await ports.catalogue.put_run(replace(run, expired=("20261122T1200000000000Z",) * 1250), etag)

    assert (await ports.catalogue.run(DISK, run.run)).value == run
    await ports.catalogue.put_run(replace(run, expired=("20261122T1200000000000Z",) * EXPIRED_NAMED_MAX), etag)


async def test_updates_name_their_version(ports):
    first = await ports.catalogue.put_head(Head(DISK), None)
    with pytest.raises(RowExistsError):
        await ports.catalogue.put_head(Head(DISK, epoch=5), None)
    second = await ports.catalogue.put_head(Head(DISK, epoch=1), first)
    with pytest.raises(RowChangedError):
        await ports.catalogue.put_head(Head(DISK, epoch=5), first)

    row = await ports.catalogue.head(DISK)
    assert (row.value.epoch, row.etag) == (1, second)


async def test_absent_values_are_forgotten(ports):
    """An update replaces the row: a released owner is gone."""
    etag = await ports.catalogue.put_head(Head(DISK, owner=Owner("r", "l", 1)), None)
    await ports.catalogue.put_head(Head(DISK), etag)

    assert (await ports.catalogue.head(DISK)).value.owner is None


async def test_the_service_dates_rows(ports):
    """`changed` grows with every write: it is the heartbeat."""
    run = run_of(1)
    etag = await ports.catalogue.put_run(run, None)
    before = (await ports.catalogue.run(DISK, run.run)).changed
    await ports.catalogue.put_run(replace(run, percent=5), etag)

    assert (await ports.catalogue.run(DISK, run.run)).changed >= before
    assert before.tzinfo is not None
    assert abs(await ports.catalogue.now() - before) < timedelta(seconds=5), "the same clock"


async def test_a_window_begins_once(ports):
    run = run_of(1, window="20261122T120000Z")
    await ports.catalogue.begin_window(run)
    with pytest.raises(RowExistsError):
        await ports.catalogue.begin_window(run)
    other = run_of(2, window="20261122T120000Z")
    with pytest.raises(RowExistsError):
        await ports.catalogue.begin_window(other)

    assert await ports.catalogue.run(DISK, other.run) is None


async def test_a_commit_is_one_transaction(ports):
    """Point and head together, or neither."""
    etag = await ports.catalogue.put_head(Head(DISK), None)
    after = await ports.catalogue.commit([point_of(1)], Head(DISK, epoch=1), etag)
    with pytest.raises(RowChangedError):
        await ports.catalogue.commit([point_of(2)], Head(DISK, epoch=2), etag)
    with pytest.raises(RowExistsError):
        await ports.catalogue.commit([point_of(1)], Head(DISK, epoch=3), after)
    with pytest.raises(RowExistsError):
        await ports.catalogue.commit([point_of(2)], Head(DISK, epoch=3), None)

    assert (await ports.catalogue.head(DISK)).value.epoch == 1
    assert [row.value for row in await ports.catalogue.points(DISK, 10)] == [point_of(1)]
    assert await ports.catalogue.point(DISK, point_of(2).point) is None


async def test_many_points_are_inserted_and_changed_together(ports):
    """A transaction of a hundred rows, the head row inserted with them; a changed point names its version."""
    points = [point_of(number) for number in range(1, ROWS_PER_COMMIT + 1)]
    etag = await ports.catalogue.commit(points, Head(DISK), None)
    (newest,) = await ports.catalogue.points(DISK, 1)
    lost = replace(newest, value=replace(newest.value, state="lost"))
    etag = await ports.catalogue.commit([], Head(DISK, epoch=2), etag, [lost])
    with pytest.raises(RowChangedError):
        await ports.catalogue.commit([], Head(DISK, epoch=3), etag, [lost])

    assert (await ports.catalogue.head(DISK)).value.epoch == 2
    assert len(await ports.catalogue.points(DISK, 1000)) == ROWS_PER_COMMIT
    assert [row.value for row in await ports.catalogue.points(DISK, 1000, state="lost")] == [lost.value]


async def test_points_newest_first_in_pages(ports):
    etag = await ports.catalogue.put_head(Head(DISK), None)
    for number in (3, 1, 2, 5, 4):
        etag = await ports.catalogue.commit([point_of(number)], Head(DISK), etag)

    newest = await ports.catalogue.points(DISK, 2)
    older = await ports.catalogue.points(DISK, 10, after=newest[-1].value.point)
    assert [row.value.source_snapshot[-3:-1] for row in newest + older] == ["05", "04", "03", "02", "01"]
    assert await ports.catalogue.points("other", 10) == []


async def test_points_and_runs_by_time_and_state(ports):
    """Half-open in time, newest first."""
    etag = await ports.catalogue.put_head(Head(DISK), None)
    for number in (10, 20, 30):
        etag = await ports.catalogue.commit([point_of(number)], Head(DISK), etag)
        await ports.catalogue.put_run(replace(run_of(number), state="Failed" if number == 20 else "Succeeded"), None)
    base = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)

    def micros(number):
        return base + timedelta(microseconds=number)

    between = await ports.catalogue.points(DISK, 10, since=micros(2), until=micros(3))
    assert [row.value.source_snapshot[-3:-1] for row in between] == ["20"]
    runs = await ports.catalogue.runs(DISK, 10, since=base + timedelta(seconds=10), until=base + timedelta(seconds=30))
    assert [run.run[-9:-7] for run in runs] == ["20", "10"]
    assert [run.state for run in await ports.catalogue.runs(DISK, 10, state="Failed")] == ["Failed"]
    assert [run.run[-9:-7] for run in await ports.catalogue.runs(DISK, 10, after=runs[0].run)] == ["10"]
    assert len(await ports.catalogue.runs(DISK, 2)) == 2
    restore = replace(run_of(5), state="Failed", operation="restore")
    await ports.catalogue.put_run(restore, None)
    assert await ports.catalogue.runs(DISK, 9, operation="restore") == [restore]
    assert await ports.catalogue.runs(DISK, 9, state="Succeeded", operation="restore") == []


async def test_runs_whose_end_was_not_emitted_are_listed(ports):
    for number in range(1, 4):
        await ports.catalogue.put_run(run_of(number), None)
    lost = replace(run_of(4), state="Failed", unreported=True)
    await ports.catalogue.put_run(lost, None)
    await ports.catalogue.put_run(run_of(5), None)

    assert await ports.catalogue.runs(DISK, 9, unreported=True) == [lost]
    assert await ports.catalogue.runs(DISK, 9, after=lost.run, unreported=True) == []


async def test_a_source_has_one_disk(ports):
    assert await ports.catalogue.claim_source("https://s/c/b", "one") == "one"
    assert await ports.catalogue.claim_source("https://s/c/b", "two") == "one"
    assert await ports.catalogue.claim_source("https://s/c/other", "two") == "two"
    assert await ports.catalogue.disks() == ["one", "two"]
    await ports.catalogue.release_source("https://s/c/b", "two")
    assert await ports.catalogue.source_holder("https://s/c/b") == "one"
    await ports.catalogue.release_source("https://s/c/b", "one")
    await ports.catalogue.release_source("https://s/c/b", "one")

    assert await ports.catalogue.claim_source("https://s/c/b", "two") == "two"


@pytest.mark.parametrize("ports", ["azure"], indirect=True)
@pytest.mark.parametrize("lost", ["POST table", "PUT table"])
async def test_a_claim_whose_answer_is_lost(ports, calm, lost):
    """Made and renewed: what is sent again finds the disk's own claim."""
    source = "https://s/c/b"
    for _ in range(2):
        calm.faults({"verb": lost, "loseReply": True})
        with contextlib.suppress(ServiceUnavailableError):
            assert await ports.catalogue.claim_source(source, "one") == "one"
    calm.faults()

    assert await ports.catalogue.claim_source(source, "two") == "one"
    assert [claim.value for claim in await ports.catalogue.claims("one")] == [source]


async def test_claims_have_versions(ports):
    """Claiming again renews: who saw the former version releases nothing by it."""
    await ports.catalogue.claim_source("https://s/c/b", "one")
    await ports.catalogue.claim_source("https://s/c/other", "one")
    await ports.catalogue.claim_source("https://s/c/third", "two")
    former = {claim.value: claim for claim in await ports.catalogue.claims("one")}
    await ports.catalogue.claim_source("https://s/c/b", "one")
    (renewed,) = [claim for claim in await ports.catalogue.claims("one") if claim.value == "https://s/c/b"]

    assert set(former) == {"https://s/c/b", "https://s/c/other"}
    assert renewed.etag != former["https://s/c/b"].etag
    assert renewed.changed >= former["https://s/c/b"].changed
    for claim in former.values():
        await ports.catalogue.release_source(claim.value, "one", "")
        assert claim.value in {held.value for held in await ports.catalogue.claims("one")}, "an empty version is none at all"
        await ports.catalogue.release_source(claim.value, "one", claim.etag)
    assert [claim.value for claim in await ports.catalogue.claims("one")] == ["https://s/c/b"]
    assert await ports.catalogue.claims("nobody") == []


async def committed(ports):
    """A disk with one point; the point's row."""
    etag = await ports.catalogue.put_head(Head(DISK), None)
    await ports.catalogue.commit([point_of(1)], Head(DISK), etag)
    return await ports.catalogue.point(DISK, point_of(1).point)


async def test_a_point_is_marked_then_deleted(ports):
    """Each under the version it was decided on; gone is gone."""
    row = await committed(ports)
    marked = await ports.catalogue.mark_deleting(row)
    with pytest.raises(RowChangedError):
        await ports.catalogue.mark_deleting(row)
    with pytest.raises(RowChangedError):
        await ports.catalogue.delete_point(row)

    assert (await ports.catalogue.point(DISK, point_of(1).point)).value == marked.value == replace(row.value, state="deleting")
    await ports.catalogue.delete_point(marked)
    await ports.catalogue.delete_point(marked)
    assert await ports.catalogue.point(DISK, point_of(1).point) is None


async def test_a_point_is_marked_lost(ports):
    """Under the version it was decided on."""
    row = await committed(ports)
    marked = await ports.catalogue.mark_lost(row)
    with pytest.raises(RowChangedError):
        await ports.catalogue.mark_lost(row)

    assert marked == await ports.catalogue.point(DISK, point_of(1).point)
    assert marked.value == replace(row.value, state="lost")


async def test_pins_compete_with_deletion(ports):
    """A pin changes the point's version; the same pin twice is one; a stale version pins nothing."""
    etag = await ports.catalogue.put_head(Head(DISK), None)
    await ports.catalogue.commit([point_of(1)], Head(DISK), etag)
    row = await ports.catalogue.point(DISK, point_of(1).point)
    pin = Pin(DISK, row.value.point, run_of(1).run)
    await ports.catalogue.pin(pin, row)
    await ports.catalogue.pin(pin, await ports.catalogue.point(DISK, row.value.point))
    with pytest.raises(RowChangedError):
        await ports.catalogue.mark_deleting(row)
    with pytest.raises(RowChangedError):
        await ports.catalogue.pin(Pin(DISK, row.value.point, run_of(2).run), row)

    assert await ports.catalogue.pins(DISK) == [pin]
    assert (await ports.catalogue.point(DISK, row.value.point)).value == row.value
    await ports.catalogue.unpin(pin)
    await ports.catalogue.unpin(pin)
    assert await ports.catalogue.pins(DISK) == []
    assert await ports.catalogue.pins("other") == []


async def test_a_row_that_was_deleted_was_changed(ports):
    """Whoever has read it before finds another version of it: none. The service answers 404 there, not 412."""
    deleted = await ports.catalogue.mark_deleting(await committed(ports))
    await ports.catalogue.delete_point(deleted)
    head = await ports.catalogue.head(DISK)
    runs = [replace(run_of(number), state="Succeeded", created=NOW) for number in (1, 2)]
    etags = [await ports.catalogue.put_run(run, None) for run in runs]
    assert await ports.catalogue.forget_runs(DISK, NOW + timedelta(days=1), 10) == 1

    for change in (
        ports.catalogue.put_run(runs[0], etags[0]),
        ports.catalogue.mark_lost(deleted),
        ports.catalogue.pin(Pin(DISK, deleted.value.point, run_of(2).run), deleted),
        ports.catalogue.commit([point_of(2)], Head(DISK), head.etag, changed=[deleted]),
    ):
        with pytest.raises(RowChangedError):
            await change

    assert await ports.catalogue.points(DISK, 10) == []
    assert await ports.catalogue.pins(DISK) == []
    assert await ports.catalogue.head(DISK) == head
    assert await ports.catalogue.run(DISK, runs[0].run) is None


async def test_a_request_and_its_run_begin_together(ports):
    request = RequestKey(DISK, "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "digest", run_of(1).run)
    await ports.catalogue.begin_request(run_of(1), request)
    with pytest.raises(RowExistsError):
        await ports.catalogue.begin_request(run_of(2), replace(request, run=run_of(2).run))

    assert await ports.catalogue.request(DISK, request.key) == request
    assert await ports.catalogue.request(DISK, "other") is None
    assert await ports.catalogue.run(DISK, run_of(2).run) is None


async def test_the_holder_of_a_source(ports):
    assert await ports.catalogue.source_holder("https://s/c/b") is None
    await ports.catalogue.claim_source("https://s/c/b", "one")
    assert await ports.catalogue.source_holder("https://s/c/b") == "one"


async def test_a_registration_moves_with_a_commit(ports):
    """Point, head row and registration in one transaction: all, or, at a version that is gone, none."""
    registration = Registration(DISK, "https://s/c/old", "", NOW, NOW, machine=Slot("/vm", 3))
    await ports.catalogue.put_registration(registration, None)
    head_etag = await ports.catalogue.put_head(Head(DISK), None)
    row = await ports.catalogue.registration(DISK)
    moved = replace(row, value=replace(registration, source="https://s/c/new"))
    with pytest.raises(RowChangedError):
        await ports.catalogue.commit(
            [point_of(1)], Head(DISK, epoch=1), head_etag, registration=replace(moved, etag='W/"gone"')
        )
    assert await ports.catalogue.point(DISK, point_of(1).point) is None
    assert (await ports.catalogue.head(DISK)).value == Head(DISK)
    await ports.catalogue.commit([point_of(1)], Head(DISK, epoch=1), head_etag, registration=moved)

    assert (await ports.catalogue.registration(DISK)).value == moved.value
    assert (await ports.catalogue.head(DISK)).value == Head(DISK, epoch=1)
    assert (await ports.catalogue.point(DISK, point_of(1).point)).value == point_of(1)


async def test_rows_of_restores(ports):
    wanted = Restoring(
        "p", "https://s/c/new", "/disk", Slot("/vm"), repoint=True, stop_vm=True, old_disk="o", end="in words; 'so'"
    )
    run = run_of(5, operation="restore", restore=replace(wanted, downtime_seconds=7))
    await ports.catalogue.put_run(run, None)

    assert (await ports.catalogue.run(DISK, run.run)).value == run


async def test_a_pin_is_of_one_execution(ports):
    await ports.catalogue.commit([point_of(1)], Head(DISK), None)
    pin = Pin(DISK, point_of(1).point, "r", "lease-1")
    await ports.catalogue.pin(pin, await ports.catalogue.point(DISK, pin.point))
    again = replace(pin, lease="lease-2")
    await ports.catalogue.pin(again, await ports.catalogue.point(DISK, pin.point))

    assert await ports.catalogue.pins(DISK) == [pin], "the first one stays"


# -- forgetting ------------------------------------------------------------------------------------------------------------


async def test_old_runs_are_forgotten_with_their_windows(ports):
    """Only what has ended, never the newest; a few per call."""
    for number in range(1, 6):
        state = "Running" if number == 2 else "Succeeded"
        await ports.catalogue.begin_window(replace(run_of(number, window=f"w{number}"), state=state))
    before = datetime(2026, 11, 22, 12, 0, 4, tzinfo=UTC)

    assert await ports.catalogue.forget_runs(DISK, before, 1) == 1
    assert await ports.catalogue.forget_runs(DISK, before, 9) == 1
    assert [run.window for run in await ports.catalogue.runs(DISK, 9)] == ["w5", "w4", "w2"]
    with pytest.raises(RowExistsError):
        await ports.catalogue.begin_window(run_of(14, window="w4"))
    await ports.catalogue.begin_window(run_of(11, window="w1"))
    assert await ports.catalogue.forget_runs(DISK, before, 9) == 0


async def test_the_newest_run_is_kept_however_old(ports):
    """It says how the last one ended."""
    await ports.catalogue.put_run(replace(run_of(1), state="Failed"), None)

    assert await ports.catalogue.forget_runs(DISK, datetime(2027, 1, 1, tzinfo=UTC), 9) == 0
    assert len(await ports.catalogue.runs(DISK, 9)) == 1


async def test_old_requests_are_forgotten(ports):
    request = RequestKey(DISK, "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "digest", run_of(1).run)
    await ports.catalogue.begin_request(run_of(1), request)
    now = await ports.catalogue.now()

    assert await ports.catalogue.forget_runs(DISK, now - timedelta(hours=1), 9) == 0
    assert await ports.catalogue.request(DISK, request.key) == request
    assert await ports.catalogue.forget_runs(DISK, now + timedelta(hours=1), 9) == 1
    assert await ports.catalogue.request(DISK, request.key) is None


async def test_the_row_of_turns_is_updated_under_its_version(ports):
    """When two lanes request a turn at the same time, one gets the disk, and the other reads the row again."""
    assert await ports.catalogue.turns() is None
    turns = Turns.first("20261122T120000Z", "digest", 10_000, 64, NOW)
    etag = await ports.catalogue.put_turns(turns, None)
    with pytest.raises(RowExistsError):
        await ports.catalogue.put_turns(turns, None)
    row = await ports.catalogue.turns()
    assert (row.value, row.etag) == (turns, etag)

    one, _ = turns.given(3, 1, NOW)
    other, _ = turns.given(4, 1, NOW)
    await ports.catalogue.put_turns(one, etag)
    with pytest.raises(RowChangedError):
        await ports.catalogue.put_turns(other, etag)
    assert (await ports.catalogue.turns()).value == one
    assert await ports.catalogue.disks() == []
