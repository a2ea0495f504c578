"""Events that the app emits: each phase and each end once, whatever is repeated; the status of disks, from the catalogue."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, fields, replace
from datetime import timedelta

import pytest

from backup_core import __version__
from backup_core.adapters.journal import LogJournal
from backup_core.domain.churn import churn_ratio
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import AccessDeniedError, ServiceUnavailableError
from backup_core.domain.events import EVENTS, PREFIX, DiskSeen, FleetSeen, PhaseBegun, RunEnded
from backup_core.domain.naming import run_key, timer_run_id, window_id
from backup_core.domain.progress import eta_seconds
from backup_core.domain.ranges import MIB
from backup_core.domain.records import Run
from backup_core.domain.status import RUNS_LOOKED_AT
from backup_core.operations.watch import watch
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.restore_disk import RestoreFailedError
from backup_core.steps.backup import FleetPage
from tests.activities.acts import FINAL, RUN, canceled_before, failing, into, stop_before, stopped_before

SCHEDULE = "0 0 */12 * * *"
BACKUP_PHASES = ["preparing", "snapshot", "planning", "copying", "verifying", "committing", "cleaning"]


def emitted(stage, run):
    """The phases and the ends that were emitted for the run."""
    of_run = [one for one in stage.journal.events if isinstance(one, PhaseBegun | RunEnded) and one.run == run]
    return [one.phase for one in of_run if isinstance(one, PhaseBegun)], [one for one in of_run if isinstance(one, RunEnded)]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_backup_emits_each_phase_and_its_end_once(scene, times):
    """Also when every step is delivered twice."""

    async def perform(name, step_input):
        answers = [await scene.perform(name, step_input) for _ in range(times)]
        return answers[-1]

    request, driver = scene.request(), scene.driver()
    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    phases, ends = emitted(scene, request.run)
    assert phases == BACKUP_PHASES
    assert [(end.state, end.operation, end.kind, end.points, end.code) for end in ends] == [
        ("Succeeded", "backup", "full", 1, "")
    ]
    assert ends[0].bytes_done == 6 * 512 + scene.footer_bytes


async def test_failed_skipped_and_canceled_runs_emit_their_ends(scene):
    scene.lose_source()
    with pytest.raises(BackupFailedError):
        await scene.back_up()
    assert [(end.state, end.code, end.severity) for end in emitted(scene, scene.rows("run!")[0].run)[1]] == [
        ("Failed", "BlobMissing", "error")
    ]

    scene.protect("other")
    working = await stop_before(scene, "plan_transfer", disk="other")
    await scene.back_up("other", run="other.20260101T000009Z.timer")
    skipped = emitted(scene, "other.20260101T000009Z.timer")[1]
    assert [(end.state, end.severity) for end in skipped] == [("Skipped", "warning")]
    assert "was at work" in skipped[0].message

    scene.world.pass_time(HEARTBEAT_MAX + timedelta(seconds=1))
    await scene.back_up("other", run="other.20260101T000010Z.timer")
    assert [end.code for end in emitted(scene, working.run)[1]] == ["Abandoned"]

    scene.protect("third")
    run, _ = await canceled_before(scene, "plan_transfer", disk="third")
    assert [end.state for end in emitted(scene, run)[1]] == ["Canceled"]


async def test_an_end_is_emitted_once_though_the_catalogue_fails_in_between(scene):
    """The row says that the run has ended, the points for its churn cannot be read: the repeat of the step emits the end."""
    await scene.back_up()
    scene.write(0, 9)
    points, failures = scene.catalogue.points, [ServiceUnavailableError("away")]

    async def away(*request, **fields):
        if failures and scene.rows("run!")[0].ended_for_good:
            raise failures.pop()
        return await points(*request, **fields)

    scene.catalogue.points = away
    run = (await scene.back_up()).output["run"]

    assert not failures
    assert [end.state for end in emitted(scene, run)[1]] == ["Succeeded"]
    assert not scene.run_row(run).unreported


async def test_the_watch_emits_once_an_end_whose_writer_died(scene):
    """When the run would be taken for dead: until then the writer may be about to emit it."""
    run = (await scene.back_up()).output["run"]
    scene.journal.events.clear()
    key = run_key(run)
    row = scene.catalogue.rows["vm", key]
    scene.catalogue.rows["vm", key] = replace(row, value=replace(row.value, unreported=True))
    late = HEARTBEAT_MAX // timedelta(minutes=1)
    await watched(scene, minutes=late - 1)
    assert not emitted(scene, run)[1]

    await watched(scene, minutes=2)
    assert [end.state for end in emitted(scene, run)[1]] == ["Succeeded"]
    await watched(scene, minutes=late)
    assert not emitted(scene, run)[1]


async def test_the_watch_emits_an_end_that_many_newer_runs_hide(scene):
    """A restore may take longer than twenty windows; its end is not among the disk's newest runs."""
    run = (await scene.back_up()).output["run"]
    key = run_key(run)
    row = scene.catalogue.rows["vm", key]
    for number in range(RUNS_LOOKED_AT + 1):
        later = row.value.created + timedelta(minutes=15 * (number + 1))
        newer = replace(row.value, run=f"vm.{later:%Y%m%dT%H%M%SZ}.timer", created=later)
        await scene.catalogue.put_run(newer, None)
    scene.catalogue.rows["vm", key] = replace(row, value=replace(row.value, unreported=True))

    await watched(scene, hours=6)
    assert [end.state for end in emitted(scene, run)[1]] == ["Succeeded"]
    await watched(scene, minutes=15)
    assert not emitted(scene, run)[1]


async def test_a_takeover_continues_though_another_run_emitted_the_same_end(scene):
    """The other run changed the dead run's row, which is no sign of life."""
    await stop_before(scene, "verify_head")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(seconds=1))
    put, raced = scene.catalogue.put_run, []

    async def racing(run, etag):
        if run.ended_for_good and not run.unreported and not raced:
            raced.append(await put(run, etag))
        return await put(run, etag)

    scene.catalogue.put_run = racing
    driver = await scene.back_up()

    assert raced
    assert driver.output["state"] == "Succeeded"


async def test_a_restore_emits_its_phases_and_its_end(restorable):
    await restorable.restore(restorable.points()[0], **into())

    phases, ends = emitted(restorable, RUN)
    assert phases == ["preparing", "copying", "verifying", "repointing", "promoting", "adopting"]
    assert [(end.state, end.operation, end.kind) for end in ends] == [("Succeeded", "restore", "")]


async def test_a_failed_restore_is_an_error(restorable):
    with pytest.raises(RestoreFailedError):
        await restorable.restore(restorable.points()[0], driver=failing(restorable, "seal_image", FINAL))

    assert [(end.state, end.code, end.severity) for end in emitted(restorable, RUN)[1]] == [("Failed", FINAL["code"], "error")]


# -- lines ----------------------------------------------------------------------------------------------------------------


def test_a_line_is_json_with_the_declared_fields_and_no_secret(caplog):
    """At the event's own level; what looks like a signature is taken out, and nothing else."""
    event = PhaseBegun("vm", "vm.x", "backup", "copying", 5, 10, 1, "https://a.test/x?sig=c2VjcmV0c2VjcmV0c2VjcmV0&se=1")
    with caplog.at_level(logging.INFO, logger="pagekeeper"):
        LogJournal().write(event)

    record = caplog.records[0]
    said = json.loads(record.getMessage().removeprefix(PREFIX))
    assert record.levelname == "WARNING"
    assert said == {
        "event": "phase",
        "version": __version__,
        **asdict(event),
        "attention": "https://a.test/x?sig=REDACTED&se=1",
    }


def test_a_field_is_not_taken_for_a_secret_by_its_name():
    """Each field arrives unchanged, whatever its name: alerts and the workbook read codes."""
    for kind in EVENTS:
        event = kind(**{field.name: f"a-{field.name}" for field in fields(kind)})
        assert json.loads(event.line.removeprefix(PREFIX)) == {"event": kind.event, "version": __version__, **asdict(event)}


def test_events_have_names_of_their_own():
    assert len({one.event for one in EVENTS}) == len(EVENTS)


# -- the watch --------------------------------------------------------------------------------------------------------------


async def watched(stage, **after):
    """The events that a watch emits now, or after that time: one for each disk, and the fleet's."""
    stage.journal.events.clear()
    stage.world.pass_time(timedelta(**after))
    fleet = await watch(stage.tools, SCHEDULE)
    assert stage.journal.events[-1] == fleet
    return {one.disk: one for one in stage.journal.events if isinstance(one, DiskSeen)}, fleet


async def test_a_protected_disk_with_a_fresh_point(scene):
    await scene.back_up()
    seen, fleet = await watched(scene, hours=1)

    point = scene.points()[0]
    one = seen["vm"]
    assert (one.protection, one.newest_point, one.overdue, one.last_status) == ("protected", point.point, False, "Succeeded")
    assert 3600 <= one.rpo_seconds < 3700
    assert (one.quarantined, one.at_work, one.silent_seconds, one.severity) == (False, "", None, "info")
    assert fleet == FleetSeen(disks=1, protected=1, overdue=0, unseen=0, why="")


async def test_a_disk_whose_windows_were_missed_is_overdue(scene):
    await scene.back_up()
    seen, fleet = await watched(scene, hours=25)

    assert (seen["vm"].overdue, seen["vm"].severity, fleet.overdue) == (True, "warning", 1)


async def test_a_window_in_which_no_run_began_is_reported(scene):
    """The report comes half an hour after the window and stays until a backup begins; windows are at midnight and noon."""
    await scene.back_up()
    night = scene.world.now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)

    async def window_at(moment):
        scene.world.pass_time(moment - scene.world.now)
        (seen, _) = await watched(scene)
        return seen["vm"].window_without_run, seen["vm"].severity, seen["vm"].overdue

    scene.world.pass_time(night - timedelta(hours=1) - scene.world.now)
    await scene.back_up()
    assert await window_at(night + timedelta(minutes=29, seconds=59)) == ("", "info", False)
    assert await window_at(night + timedelta(minutes=30)) == (night.isoformat(), "warning", False)
    await scene.back_up()
    assert await window_at(night + timedelta(minutes=45)) == ("", "info", False)


@pytest.mark.parametrize("window", [0, 12])
async def test_a_run_of_the_window_answers_for_it_whenever_it_began(scene, window):
    """Early as timers may be, skipped, or failed: it began. That of the window before does not answer."""
    await scene.back_up()
    noon = scene.world.now.replace(hour=12, minute=0, second=0, microsecond=0)
    of_window = noon - timedelta(hours=12) + timedelta(hours=window)
    scene.world.pass_time(noon - timedelta(seconds=1) - scene.world.now)
    request = scene.request(window=of_window.isoformat(), run=timer_run_id("vm", of_window)).model_copy(
        update={"trigger": "timer"}
    )
    await scene.driver().run("backup_disk", request.model_dump(mode="json"), request.run)

    seen, _ = await watched(scene, minutes=31)
    assert seen["vm"].window_without_run == ("" if window == 12 else noon.isoformat())


async def test_no_run_is_expected_of_a_disk_that_is_newer_or_stopped(scene):
    scene.protect()
    seen, _ = await watched(scene, minutes=10)
    assert seen["vm"].window_without_run == ""
    seen, _ = await watched(scene, hours=13)
    assert seen["vm"].window_without_run != ""
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue._store(replace(row.value, protected=False), "registration")
    seen, _ = await watched(scene)
    assert seen["vm"].window_without_run == ""


@pytest.mark.parametrize(
    ("lanes", "run", "minutes", "others"),
    [
        (2, "ended", 31, "wait"),
        (2, "at work", 120, "wait"),
        (2, "ended", 62, "are reported"),
        (2, "silent", 120, "are reported"),
        (2, "", 31, "are reported"),
        (5, "ended", 31, "are reported"),
    ],
)
async def test_a_disk_whose_turn_is_to_come_is_not_late(scene, lanes, run, minutes, others):
    """As long as any run of the window shows that it continues. One that has had its turn and has no run was forgotten, and is reported."""
    for disk in ("a", "b", "c", "d"):
        scene.protect(disk)
    noon = scene.world.now.replace(hour=12, minute=0, second=0, microsecond=0)
    moment = noon + timedelta(minutes=minutes)
    row = Run("a", timer_run_id("a", noon), "Running", "timer", full=False, created=noon, window=window_id(noon))
    if run == "ended":
        row = replace(row, state="Succeeded", ended=noon + timedelta(minutes=31))
    scene.world.pass_time(noon - scene.world.now)
    await scene.perform("list_disks", FleetPage(window=noon.isoformat(), lanes=lanes).model_dump(mode="json"))
    scene.world.pass_time((noon if run == "silent" else moment) - scene.world.now)
    if run:
        scene.catalogue._store(row, run_key(row.run))
    scene.world.pass_time(moment - scene.world.now)

    seen, _ = await watched(scene)
    reported = {"b"} if others == "wait" else {"a", "b", "c", "d", "vm"} - ({"a"} if run else set())
    assert {disk for disk, one in seen.items() if one.window_without_run} == reported


async def test_turns_of_a_former_window_excuse_nobody(scene):
    """Nor that another disk of this window is at work."""
    scene.protect("a")
    noon = scene.world.now.replace(hour=12, minute=0, second=0, microsecond=0)
    former = noon - timedelta(hours=12)
    await scene.perform("list_disks", FleetPage(window=former.isoformat(), lanes=1).model_dump(mode="json"))
    scene.world.pass_time(noon + timedelta(minutes=31) - scene.world.now)
    row = Run("a", timer_run_id("a", noon), "Running", "timer", full=False, created=noon, window=window_id(noon))
    scene.catalogue._store(row, run_key(row.run))

    seen, _ = await watched(scene)
    assert seen["vm"].window_without_run == noon.isoformat()


async def test_turns_that_cannot_be_read_excuse_nobody_and_are_reported(scene):
    scene.protect("a")
    noon = scene.world.now.replace(hour=12, minute=0, second=0, microsecond=0)
    scene.world.pass_time(noon - scene.world.now)
    await scene.perform("list_disks", FleetPage(window=noon.isoformat(), lanes=1).model_dump(mode="json"))
    scene.documents.texts[f"_fleets/{window_id(noon)}.json"] = "[]"
    scene.world.pass_time(timedelta(minutes=31))
    row = Run("a", timer_run_id("a", noon), "Running", "timer", full=False, created=noon, window=window_id(noon))
    scene.catalogue._store(row, run_key(row.run))

    seen, fleet = await watched(scene)
    assert seen["vm"].window_without_run == noon.isoformat()
    assert (fleet.unseen, fleet.why[:40]) == (1, "turns of the window: RecordAltered: docu")


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("lost", [1, 2])
async def test_a_disk_whose_row_is_lost_counts_as_unseen(scene, lost, claimed):
    """Its registration beside the backups shows it. That of a disk whose protection was stopped has its row."""
    scene.protect("web")
    await scene.back_up()
    await scene.back_up(disk="web")
    rows = scene.catalogue.rows
    for disk in ("vm", "web")[:lost]:
        for key in [key for key in rows if disk in key[0]]:
            del rows[key]
        if not claimed:
            await scene.catalogue.release_source(str(scene.source(disk)), disk)
    if lost == 1:
        scene.catalogue._store(replace(rows["web", "registration"].value, protected=False), "registration")
        await scene.catalogue.release_source(str(scene.source("web")), "web")
    seen, fleet = await watched(scene)

    assert (seen, fleet.disks, fleet.unseen, fleet.severity) == ({}, lost if claimed else 0, lost, "warning")
    assert fleet.why.startswith("vm: DiskNotFound: disk vm is registered beside its backups")
    assert "POST /api/catalogue/rebuild" in fleet.why


async def test_backups_that_cannot_be_listed_are_reported(scene):
    await scene.back_up()

    async def folders(*_):
        message = "no listing today"
        raise AccessDeniedError(message)
        yield

    scene.blobs.folders = folders
    seen, fleet = await watched(scene)

    assert "vm" in seen
    assert fleet.why == "registrations beside the backups: AccessDenied: no listing today"


async def test_a_disk_that_failed_says_how(scene):
    await scene.back_up()
    scene.lose_source()
    with pytest.raises(BackupFailedError):
        await scene.back_up()

    seen, _ = await watched(scene)
    assert (seen["vm"].last_status, seen["vm"].last_code) == ("Failed", "BlobMissing")


async def test_the_seconds_since_the_last_heartbeat_are_reported(scene):
    await stop_before(scene, "apply_shard")
    seen, _ = await watched(scene, minutes=5)
    assert (seen["vm"].at_work != "", seen["vm"].silent_seconds) == (True, 0)

    seen, _ = await watched(scene, minutes=55)
    assert seen["vm"].silent_seconds >= 3600


async def test_quarantine_is_seen_on_the_head_and_on_points(scene):
    await scene.back_up()
    row = scene.catalogue.rows["vm", "head"]
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, doubt="it differs"))
    assert (await watched(scene))[0]["vm"].quarantined

    scene.catalogue.rows["vm", "head"] = row
    key = next(key for key in scene.catalogue.rows if key[1].startswith("point!"))
    point = scene.catalogue.rows[key]
    scene.catalogue.rows[key] = replace(point, value=replace(point.value, state="quarantined"))
    assert (await watched(scene))[0]["vm"].quarantined


async def test_an_unprotected_and_a_stopped_disk(scene):
    await scene.back_up()
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, unprotected="its VM has a managed disk"))
    one = (await watched(scene))[0]["vm"]
    assert (one.protection, one.overdue, one.severity) == ("unprotected", True, "warning")

    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, protected=False))
    one = (await watched(scene, days=9))[0]["vm"]
    assert (one.protection, one.overdue, one.rpo_seconds) == ("stopped", False, None)


async def test_a_restore_that_asks_for_attention_is_seen(restorable):
    request = restorable.restore_request(restorable.points()[0], **into())
    key = run_key(request.run)
    row = restorable.catalogue.rows["vm", key]
    asking = replace(row.value, state="Running", restore=replace(row.value.restore, attention="Azure is out"))
    restorable.catalogue.rows["vm", key] = replace(row, value=asking)

    assert (await watched(restorable))[0]["vm"].attention == "Azure is out"


async def backed_up_later(stage):
    """Backups that were requested after all other runs, as many as a watch looks at."""
    for number in range(RUNS_LOOKED_AT):
        await stage.back_up(run=timer_run_id("vm", stage.world.now + timedelta(days=9, seconds=number)))


async def test_a_silent_restore_is_seen_behind_however_many_backups(restorable):
    """It copies, and died: backups continue beside it, with a schedule of a quarter of an hour a hundred a day."""
    await stopped_before(restorable, "apply_shard")
    await backed_up_later(restorable)
    one = (await watched(restorable, hours=1))[0]["vm"]

    assert (one.at_work, one.silent_seconds >= 3600) == (RUN, True)


async def test_a_restore_that_asks_for_attention_is_seen_behind_the_backups_that_it_keeps_off(restorable):
    """It owns the disk, and waits for Azure to take a disk for the machine."""
    await stopped_before(restorable, "move_machine")
    row = restorable.catalogue.rows["vm", run_key(RUN)]
    asking = replace(row.value, restore=replace(row.value.restore, attention="Azure is out"))
    restorable.catalogue.rows["vm", run_key(RUN)] = replace(row, value=asking)
    await backed_up_later(restorable)

    assert (await watched(restorable))[0]["vm"].attention == "Azure is out"


async def test_a_disk_that_cannot_be_read_is_reported_with_its_reason_and_stops_no_other(scene):
    scene.protect("other")
    registration = scene.catalogue.registration

    async def broken(name):
        if name == "other":
            message = "the table did not answer"
            raise ServiceUnavailableError(message)
        return await registration(name)

    scene.catalogue.registration = broken
    seen, fleet = await watched(scene)
    assert (set(seen), fleet.disks, fleet.unseen) == ({"vm"}, 2, 1)
    assert fleet.why == "other: ServiceUnavailable: the table did not answer"
    assert fleet.severity == "warning"


async def test_no_event_is_emitted_when_the_catalogue_does_not_answer(scene):
    """Silence is what raises the alarm: a fleet line would be a green light that is not true."""

    async def broken():
        raise ServiceUnavailableError

    scene.catalogue.disks = broken
    with pytest.raises(ServiceUnavailableError):
        await watch(scene.tools, SCHEDULE)
    assert not [one for one in scene.journal.events if isinstance(one, FleetSeen)]


# -- rules ------------------------------------------------------------------------------------------------------------------


async def test_churn_is_the_ratio_to_the_usual_amount(scene):
    """Newest first: an increment's bytes over the median of those before it, fulls left out."""
    await scene.back_up()
    point = scene.points()[0]

    def points(*amounts, kind="incremental"):
        return [replace(point, kind=kind, write_bytes=amount * MIB, clear_bytes=amount * MIB) for amount in amounts]

    assert churn_ratio(points(500, 100, 50, 100)) == 5.0
    assert churn_ratio(points(500, 100, 50)) is None
    assert churn_ratio(points(64, 1, 1, 1, 1)) == 2.0
    assert churn_ratio([*points(500), *points(9000, kind="full"), *points(100, 50, 100)]) == 5.0
    assert churn_ratio([*points(9000, kind="full"), *points(500, 100, 50, 100)]) is None
    assert churn_ratio([]) is None


async def test_the_end_of_an_increment_reports_its_churn(scene):
    await scene.back_up()
    for value in range(4):
        scene.write(0, value + 10)
        driver = await scene.back_up()
    ends = emitted(scene, driver.output["run"])[1]

    assert [end.churn_ratio for end in ends] == [0.0]


def test_the_remaining_time_is_estimated_from_the_time_taken(scene):
    start = scene.world.now
    assert eta_seconds(start, start + timedelta(seconds=60), 20) == 240
    assert eta_seconds(start, start + timedelta(seconds=60), 4) is None
    assert eta_seconds(None, start, 50) is None
    assert eta_seconds(start, start - timedelta(seconds=5), 50) == 0
