"""The catalogue is a function of the blobs: whatever rows are lost, they come back as they were; nothing untrue is offered."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from backup_core.activities import runner
from backup_core.api import catalogue, disks, points
from backup_core.domain.ending import HEARTBEAT_MAX, STEP_SECONDS_MAX
from backup_core.domain.errors import ServiceTimedOutError
from backup_core.domain.metadata import described, to_point_metadata
from backup_core.domain.naming import REBUILD_AT_WORK, rebuild_name, registration_name
from backup_core.domain.rebuild import DIRTY
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.rebuild_catalogue import RebuildFailedError
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.protocol.rebuilds import give_rebuild_sign_of_life
from tests.activities.acts import accepted_rebuild, call, failing, rebuild, rebuilt, stop_before, without_rebuilds
from tests.doubles.driver import Driver
from tests.scene import PAGE, Scene


@pytest.fixture
async def scene():
    """A disk registered by HTTP, with a full backup, two increments and an automatic full."""
    stage = Scene()
    stage.blobs.put(stage.source(), 32 * PAGE)
    await call(stage, disks.put_disk, {"source": str(stage.source()), "description": "web", "verification": "full"}, disk="vm")
    for number in range(3):
        stage.write(number, 10 + number, None, 12)
        await stage.back_up()
    del stage.blobs.blobs[stage.source()].snapshots[stage.head_row().pair.source_snapshot]
    await stage.back_up()
    assert [point.automatic_fulls for point in stage.points()] == [0, 0, 0, 1]
    return stage


def values(scene):
    return {key: row.value for key, row in scene.catalogue.rows.items() if not key[1].startswith("run!")}


def lose(scene, *prefixes):
    for key in [key for key in scene.catalogue.rows if key[1].startswith(prefixes)]:
        del scene.catalogue.rows[key]


LOSSES = {
    "everything": ("registration", "head", "point!", "run!", "window!"),
    "the points": ("point!",),
    "the head row": ("head",),
    "points and head": ("point!", "head"),
    "the registration": ("registration",),
}


@pytest.mark.parametrize("what", LOSSES)
@pytest.mark.parametrize("claims", ["kept", "lost"])
async def test_lost_rows_come_back_as_they_were(scene, what, claims):
    """Every field of every row; then nothing differs any more, and the next backup is an increment."""
    before, claimed = values(scene), scene.claims()
    lose(scene, *LOSSES[what])
    if claims == "lost":
        scene.catalogue.claimed.clear()
    done, again = await rebuild(scene)

    assert values(scene) == before
    assert scene.claims() == claimed
    assert len(done["value"]) == 1
    assert again["value"] == []
    assert again["examined"] == 1
    scene.write(7, 77)
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_single_points_are_adopted_and_named(scene):
    lost = scene.points()[1]
    lose(scene, next(key for _, key in scene.catalogue.rows if key.endswith(lost.point)))
    done, _ = await rebuild(scene)

    (shown,) = done["value"]
    assert (shown["adopted"], shown["headRow"], shown["registration"]) == ([lost.point], "right", "right")
    assert scene.points()[1] == lost


async def test_an_altered_row_is_corrected(scene):
    (key, row) = next((key, row) for key, row in scene.catalogue.rows.items() if key[1].startswith("point!"))
    scene.catalogue.rows[key] = replace(row, value=replace(row.value, size=512, reason="forged"))
    done, _ = await rebuild(scene)

    assert done["value"][0]["corrected"] == [row.value.point]
    assert scene.catalogue.rows[key].value == row.value


async def test_rows_without_a_blob_are_lost_and_never_offered(scene):
    """Marked, kept for the record, not in the list of what can be restored; available again when the blob comes back."""
    gone = scene.points()[1]
    head = scene.blobs.blobs[scene.tools.head(gone.head)]
    snapshot = head.snapshots.pop(gone.backup_snapshot)
    done, _ = await rebuild(scene)

    assert done["value"][0]["lost"] == [gone.point]
    _, offered = await call(scene, points.get_points, disk="vm")
    assert gone.point not in [one["id"] for one in offered["value"]]
    _, every = await call(scene, points.get_points, query={"state": "all"}, disk="vm")
    assert len(every["value"]) == len(offered["value"]) + 1
    _, shown = await call(scene, points.get_point, disk="vm", point=gone.point)
    assert shown["state"] == "lost"
    head.snapshots[gone.backup_snapshot] = snapshot
    await rebuild(scene)
    assert scene.points()[1] == gone


async def test_the_newest_point_lost_means_the_one_before_counts(scene):
    """The pair goes back to what can be restored; the next backup is a full one, since that pair's source snapshot is gone."""
    newest = scene.points()[-1]
    del scene.blobs.blobs[scene.tools.head(newest.head)]
    await rebuild(scene)

    assert scene.head_row().pair.point == scene.points()[-2].point
    assert [point.state for point in scene.points()] == ["available"] * 3 + ["lost"]
    await scene.back_up()
    assert scene.points()[-1].kind == "full"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


DAMAGES = {
    "a field": lambda metadata, _: metadata.update(pagekeeper_size="512"),
    "the digest": lambda metadata, _: metadata.update(pagekeeper_digest="0" * 64),
    "another disk": lambda metadata, _: metadata.update(pagekeeper_disk="other"),
    "nothing left": lambda metadata, _: metadata.clear(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("row", ["kept", "lost"])
async def test_damaged_descriptions_are_quarantined(scene, damage, row):
    """A row whose snapshot no longer says so is quarantined; without a row the snapshot is reported, not adopted."""
    point = scene.points()[1]
    DAMAGES[damage](scene.blobs.blobs[scene.tools.head(point.head)].snapshots[point.backup_snapshot].metadata, None)
    if row == "lost":
        lose(scene, next(key for _, key in scene.catalogue.rows if key.endswith(point.point)))
    done, again = await rebuild(scene)

    assert [one["snapshot"] for one in done["value"][0]["quarantined"]] == [point.backup_snapshot]
    assert "description" in done["value"][0]["quarantined"][0]["why"]
    states = {one.point: one.state for one in scene.points()}
    assert states.get(point.point) == (None if row == "lost" else "quarantined")
    assert again["value"][0]["adopted"] == []


FORGERIES = {
    "its page map is not the one described": lambda blob: blob.pages.update({30: b"\1" * PAGE}),
    "it has 16896 bytes, its description says 16384": lambda blob: setattr(blob, "size", 33 * PAGE),
}


@pytest.mark.parametrize("why", FORGERIES)
async def test_a_forged_description_is_not_adopted(scene, why):
    """Whole by its digest, but the blob is another: its page map or its size gives it away."""
    point = scene.points()[1]
    FORGERIES[why](scene.blobs.blobs[scene.tools.head(point.head)].snapshots[point.backup_snapshot])
    lose(scene, "point!")
    done, _ = await rebuild(scene)

    (shown,) = done["value"][0]["quarantined"]
    assert (shown["snapshot"], shown["why"]) == (point.backup_snapshot, why)
    assert point.point not in [one.point for one in scene.points()]


async def test_an_uncommitted_twin_is_not_taken_for_the_point(scene):
    """A run died between its backup snapshot and the commit, another finished the target: the later snapshot is the point."""
    scene.write(4, 44)
    await stop_before(scene, "commit_point")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await scene.back_up()
    before = values(scene)
    twins = [one for one in scene.points() if one.reason == "finishes an interrupted run"]
    assert len(twins) == 1
    lose(scene, "point!", "head")
    await rebuild(scene)

    assert values(scene) == before


async def test_a_half_written_head_is_not_built_upon(scene):
    """With the head row the proof is lost that nothing else is wrong with a dirty head: the next backup is full."""
    scene.write(4, 44)
    await stop_before(scene, "verify_head")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    lose(scene, "head")
    await rebuild(scene)

    assert scene.head_row().doubt == DIRTY
    await scene.back_up()
    assert (scene.points()[-1].kind, scene.points()[-1].reason) == ("full", DIRTY)


@pytest.mark.parametrize(("name", "value"), [("state", "verified"), ("target", "2020-01-01T00:00:00.0000000Z")])
async def test_a_head_whose_mark_is_not_of_the_newest_point_is_not_built_upon(scene, name, value):
    """Not committed, or for another snapshot, though its content is the point's: some run has not ended there."""
    scene.head_blob().metadata[f"pagekeeper_{name}"] = value
    lose(scene, "head")
    await rebuild(scene)

    assert scene.head_row().doubt == DIRTY


async def test_a_head_altered_meanwhile_is_not_built_upon(scene):
    scene.blobs.poke(scene.tools.head(scene.head_row().head), 1, [b"\xee" * PAGE])
    lose(scene, "head")
    await rebuild(scene)
    await scene.back_up()

    assert scene.points()[-1].reason == "the backup blob was changed by somebody else"
    assert b"\xee" * PAGE not in scene.content(scene.points()[-1])


async def test_a_zombie_of_before_cannot_write_afterwards(scene):
    """The epoch comes back from the blobs: what an older run still sends is refused."""
    scene.write(4, 44)
    request, driver = scene.request(), scene.driver()

    async def perform(name, step_input):
        if name == "apply_shard":
            lose(scene, "head", "run!")
            await rebuild(scene)
            await scene.back_up(full=True)
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="NotOwner"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.head_row().epoch > 5
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_a_disk_at_work_is_left_alone(scene):
    await stop_before(scene, "commit_point")
    lose(scene, "point!")
    before = without_rebuilds(scene)
    dry = await rebuilt(scene)
    (shown,) = dry["value"]

    assert (shown["state"], shown["adopted"], shown["running"][:3]) == ("busy", [], "vm.")
    done = await rebuilt(scene, dryRun=False, planHash=dry["planHash"])
    assert (done["value"], done["busy"], without_rebuilds(scene)) == ([shown], 1, before)


async def test_a_real_run_needs_its_dry_run(scene):
    """Without a hash it is refused, with a strange one, with that of a run that was no dry one; nothing is written."""
    lose(scene, "point!")
    before = scene.dump(with_runs=True)
    status, refused = await call(scene, catalogue.post_rebuild, {"dryRun": False})
    assert (status, refused["error"]["code"]) == (400, "DryRunFirst")
    for strange in ("0" * 64, "0" * 40 + "20260101000000" + "0000abcd"):
        status, refused = await call(scene, catalogue.post_rebuild, {"dryRun": False, "planHash": strange})
        assert (status, refused["error"]["code"]) == (412, "PlanChanged")
    assert scene.dump(with_runs=True) == before


async def test_a_rebuild_restores_only_the_rows_of_its_dry_run(scene):
    """A row that is lost after the dry run stays lost, its disk is named, and the others come back."""
    scene.protect("other")
    await scene.back_up("other")
    first, second = scene.points()[:2]
    lose(scene, next(key for _, key in scene.catalogue.rows if key.endswith(first.point)))
    gone = next(key for _, key in scene.catalogue.rows if key.endswith(scene.points("other")[0].point))
    lose(scene, gone)
    dry = await rebuilt(scene)
    lose(scene, next(key for _, key in scene.catalogue.rows if key.endswith(second.point)))
    there = len(scene.points())

    done = await rebuilt(scene, dryRun=False, planHash=dry["planHash"])

    assert (done["state"], done["changed"]) == ("Failed", 1)
    assert [(one["disk"], one["state"]) for one in done["value"]] == [("other", "different"), ("vm", "changed")]
    assert "make a new dry run" in done["value"][1]["why"]
    assert (len(scene.points("other")), len(scene.points())) == (1, there)


async def test_rows_that_were_restored_since_the_dry_run_stop_no_rebuild(scene):
    """Of a rebuild that died in the middle: the same dry run is carried out by another one."""
    before = values(scene)
    lose(scene, "point!", "head")
    dry = await rebuilt(scene)
    await rebuild(scene)
    lose(scene, next(key for _, key in scene.catalogue.rows if key.endswith(scene.points()[0].point)))
    done = await rebuilt(scene, dryRun=False, planHash=dry["planHash"])

    assert done["state"] == "Succeeded"
    assert values(scene) == before


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_disks_and_points_come_in_slices(scene, limit):
    """`vm-2/…` comes before `vm/…` in a listing, `vm` before `vm-2` among the disks: none is taken for empty, none left out."""
    for disk in ("vm-2", "vm0", "vm-2-3"):
        scene.protect(disk)
        await scene.back_up(disk)
    scene.protect("empty")
    before, points = values(scene), [point.point for point in reversed(scene.points())]
    scene.with_limits(cleanup_disks_max=limit, rebuilt_points_max=limit)
    assert (await rebuilt(scene))["examined"] == 5
    lose(scene, "point!", "head")
    done, again = await rebuild(scene)

    assert sorted(one["disk"] for one in done["value"]) == sorted(["vm-2", "vm-2-3", "vm0"] + ["vm"] * -(-4 // limit))
    assert [point for one in done["value"] if one["disk"] == "vm" for point in sorted(one["adopted"], reverse=True)] == points
    assert (done["examined"], done["different"], again["value"]) == (5, 4, [])
    assert values(scene) == before


async def test_the_findings_of_a_rebuild_are_listed_by_page(scene):
    for number in range(3):
        scene.protect(f"disk{number}")
        await scene.back_up(f"disk{number}")
    lose(scene, "point!")
    dry = await rebuilt(scene)
    query, seen = {"top": "1"}, []
    while query:
        _, page = await call(scene, catalogue.get_rebuild, query=query, rebuild=dry["id"])
        seen += page["value"]
        query = dict(parse_qsl(urlsplit(page["nextLink"] or "").query))

    assert seen == dry["value"]
    assert len(seen) == 4


async def test_one_rebuild_at_a_time(scene):
    """Another is refused while one is at work, with the address of that one; one that is dead is ended by the next."""
    first, _ = await accepted_rebuild(scene)
    status, refused = await call(scene, catalogue.post_rebuild)
    assert (status, refused["error"]["code"]) == (409, "RebuildRunning")
    assert refused["error"]["target"].endswith(first)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    second, (name, input_, instance) = await accepted_rebuild(scene)

    assert (await call(scene, catalogue.get_rebuild, rebuild=first))[1]["state"] == "Failed"
    await scene.driver().run(name, input_, instance)
    assert (await call(scene, catalogue.get_rebuild, rebuild=second))[1]["state"] == "Succeeded"


@pytest.mark.parametrize("fails", [False, True], ids=["many parts", "many attempts"])
async def test_a_rebuild_that_takes_long_over_one_disk_is_not_taken_for_dead(scene, fails):
    """Each part of a disk takes up to ten minutes, and so does each attempt; the caller follows it meanwhile."""
    scene.with_limits(rebuilt_points_max=1)
    lose(scene, "point!")
    begun, (name, input_, instance) = await accepted_rebuild(scene)
    failures = [ServiceTimedOutError("slow")] * 4 if fails else []
    work = runner.ACTIVITIES["rebuild_disk"]

    async def slow(tools, request):
        scene.world.pass_time(timedelta(seconds=STEP_SECONDS_MAX))
        if failures:
            raise failures.pop()
        return await work(tools, request)

    async def followed(step, request):
        outcome = await scene.perform(step, request)
        await call(scene, catalogue.get_rebuild, rebuild=begun)
        return outcome

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(runner.ACTIVITIES, "rebuild_disk", slow)
        await Driver(ORCHESTRATORS, followed, lambda: scene.world.now).run(name, input_, instance)

    assert (await call(scene, catalogue.get_rebuild, rebuild=begun))[1]["state"] == "Succeeded"


async def test_the_parts_of_a_disk_are_signs_of_life(scene):
    """However quick each is: between two disks there may be a hundred."""
    scene.with_limits(rebuilt_points_max=1)
    lose(scene, "point!")
    begun, (name, input_, instance) = await accepted_rebuild(scene)
    signs = []

    async def noted(step, request):
        scene.world.pass_time(timedelta(minutes=1))
        outcome = await scene.perform(step, request)
        if step == "rebuild_disk":
            signs.append(scene.world.now - scene.documents.changed[rebuild_name(begun)])
        return outcome

    await Driver(ORCHESTRATORS, noted, lambda: scene.world.now).run(name, input_, instance)

    assert len(signs) == 4
    assert max(signs) < timedelta(minutes=1, seconds=1)
    assert signs[0] >= timedelta(minutes=1), "the report before it was its sign"


async def test_a_rebuild_that_has_ended_gets_no_sign_of_life(scene):
    begun, (name, input_, instance) = await accepted_rebuild(scene)
    await scene.driver().run(name, input_, instance)
    ended = scene.documents.changed[rebuild_name(begun)]
    scene.world.pass_time(timedelta(minutes=1))
    await give_rebuild_sign_of_life(scene.tools, begun)
    await give_rebuild_sign_of_life(scene.tools, "catalogue.rebuild.20250101T000000Z.0123abcd")

    assert scene.documents.changed[rebuild_name(begun)] == ended


async def test_a_rebuild_that_was_replaced_writes_nothing(scene):
    """Two calls at the same moment: the steps of the one that is not named find that they may not act."""
    lose(scene, "point!")
    plan = await rebuilt(scene)
    _, (name, input_, instance) = await accepted_rebuild(scene, dryRun=False, planHash=plan["planHash"])
    scene.documents._store(REBUILD_AT_WORK, '"catalogue.rebuild.20260101T000000Z.0000abcd"')
    before = without_rebuilds(scene)
    with pytest.raises(RebuildFailedError, match="NotOwner"):
        await scene.driver().run(name, input_, instance)

    assert without_rebuilds(scene) == before
    assert (await call(scene, catalogue.get_rebuild, rebuild=instance))[1]["state"] == "Failed"


async def test_a_rebuild_is_canceled_between_two_disks(scene):
    """The rows that it has brought back stay; a second cancel changes nothing; one that has succeeded is not canceled."""
    for number in range(9):
        scene.protect(f"disk{number}")
        await scene.back_up(f"disk{number}")
    lose(scene, "point!")
    dry = await rebuilt(scene)
    rebuild_, (name, input_, instance) = await accepted_rebuild(scene, dryRun=False, planHash=dry["planHash"])
    driver = scene.driver()

    async def perform(step, request):
        if step == "rebuild_disk" and request["disk"] == "disk3":
            assert (await call(scene, catalogue.post_rebuild_cancel, rebuild=rebuild_))[0] == 202
        return await scene.perform(step, request)

    driver._perform = perform
    output = await driver.run(name, input_, instance)

    assert output == {"state": "Canceled", "examined": 8, "different": 8}
    assert (len(scene.points("disk7")), len(scene.points("disk8")), len(scene.points())) == (1, 0, 0)
    assert (await call(scene, catalogue.post_rebuild_cancel, rebuild=rebuild_))[0] == 200
    status, refused = await call(scene, catalogue.post_rebuild_cancel, rebuild=dry["id"])
    assert (status, refused["error"]["code"]) == (409, "RebuildEnded")


async def test_a_disk_that_fails_stops_no_other(scene):
    """A fault that may pass is waited out; one that does not is named, after all others were looked at."""
    scene.protect("other")
    await scene.back_up("other")
    lose(scene, "point!")
    driver, faults = scene.driver(), {"vm": 99, "other": 2}

    async def perform(name, request):
        if name == "rebuild_disk" and faults[request["disk"]]:
            faults[request["disk"]] -= 1
            final = request["disk"] == "vm"
            return {"fault": {"code": "Refused", "message": "refused by the test", "retryable": not final}, "value": None}
        return await scene.perform(name, request)

    driver._perform = perform
    dry = await rebuilt(scene, driver)

    assert (dry["state"], dry["failed"], dry["failures"], dry["planHash"]) == (
        "Failed",
        1,
        ["vm: Refused: refused by the test"],
        None,
    )
    assert [one["disk"] for one in dry["value"]] == ["other"]
    assert (faults["vm"], dry["examined"]) == (98, 2)


async def test_a_list_that_cannot_be_read_fails_the_rebuild(scene):
    driver = failing(scene, "list_rebuild_disks", {"code": "AccessDenied", "retryable": False})
    dry = await rebuilt(scene, driver)

    assert (dry["state"], dry["failures"]) == ("Failed", ["the list of disks: AccessDenied: refused by the test"])


async def test_more_points_than_one_transaction_takes(scene, monkeypatch):
    """In several transactions, the newest first, and exact."""
    monkeypatch.setattr("backup_core.protocol.survey.ROWS_PER_COMMIT", 2)
    monkeypatch.setattr("backup_core.protocol.points.ROWS_PER_LISTING", 3)
    for number in range(4):
        scene.write(number, 90 + number)
        await scene.back_up()
    before = values(scene)
    lose(scene, "point!", "head")
    await rebuild(scene)

    assert values(scene) == before


async def test_a_registration_without_its_document_protects_nothing(scene):
    """Its points are shown again; whether it is to be backed up is for a person to say."""
    lose(scene, "registration")
    scene.documents.texts.pop("vm/registration.json")
    await rebuild(scene)
    _, shown = await call(scene, disks.get_disk, disk="vm")

    assert (shown["protected"], shown["source"]) == (False, str(scene.source()))
    assert shown["newestRestorePoint"] == scene.points()[-1].point


async def test_a_rebuild_that_dies_leaves_nothing_untrue(scene, monkeypatch):
    """Between two transactions: the head row never names a point without a row, and the next rebuild does the rest."""
    monkeypatch.setattr("backup_core.protocol.survey.ROWS_PER_COMMIT", 1)
    before, commit, done = values(scene), scene.catalogue.commit, []
    lose(scene, "point!", "head")

    async def dying(*request):
        if done:
            raise ConnectionError("the app is gone")
        done.append(True)
        return await commit(*request)

    dry = await rebuilt(scene)
    monkeypatch.setattr(scene.catalogue, "commit", dying)
    died = await rebuilt(scene, dryRun=False, planHash=dry["planHash"])
    assert (died["state"], died["failed"]) == ("Failed", 1)
    assert scene.head_row().pair.point in [point.point for point in scene.points()]
    monkeypatch.setattr(scene.catalogue, "commit", commit)
    await rebuild(scene)

    assert values(scene) == before


@pytest.mark.parametrize("written", ["on another blob", "on this blob"])
async def test_another_disks_snapshot_is_not_adopted(scene, written):
    """A whole description, of another disk, on a blob that lies under this one's name; be it of that very blob."""
    scene.protect("other")
    await scene.back_up("other")
    point, foreign = scene.points()[1], scene.points("other")[0]
    carried = scene.blobs.blobs[scene.tools.head(foreign.head)].snapshots[foreign.backup_snapshot].metadata
    if written == "on this blob":
        carried = to_point_metadata(described(replace(point, disk="other")), scene.tools.site(scene.tools.head(point.head)))
    scene.blobs.blobs[scene.tools.head(point.head)].snapshots[point.backup_snapshot].metadata = dict(carried)
    lose(scene, next(key for owner, key in scene.catalogue.rows if key.endswith(point.point) and owner == "vm"))
    done, _ = await rebuild(scene)

    assert [one["snapshot"] for one in done["value"][0]["quarantined"]] == [point.backup_snapshot]
    assert all(one.disk == "vm" for one in scene.points())


async def test_a_source_that_another_disk_took_over_is_not_claimed_back(scene):
    lose(scene, "registration")
    scene.catalogue.claim(str(scene.source()), "other")
    await rebuild(scene)
    _, shown = await call(scene, disks.get_disk, disk="vm")

    assert shown["protected"] is False
    assert scene.claims() == {str(scene.source()): "other"}


async def test_quarantine_is_not_lifted_by_a_rebuild(scene):
    """Its description is whole; why it was quarantined a listing cannot know."""
    (key, row) = next((key, row) for key, row in scene.catalogue.rows.items() if key[1].startswith("point!"))
    scene.catalogue.rows[key] = replace(row, value=replace(row.value, state="quarantined"))
    done, _ = await rebuild(scene)

    assert done["value"] == []
    assert scene.catalogue.rows[key].value.state == "quarantined"


async def test_doubt_about_the_head_outlives_a_rebuild(scene):
    newest = scene.points()[-1]
    lose(scene, next(key for _, key in scene.catalogue.rows if key.endswith(newest.point)))
    row = scene.catalogue.rows["vm", "head"]
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, doubt="it failed", pair=None))
    await rebuild(scene)

    assert (scene.head_row().doubt, scene.head_row().pair.point) == ("it failed", newest.point)


FORGED = {
    "a retention that keeps nothing": ({"retention": {"keep_last": 0, "min_age_days": 0}}, "unreadable"),
    "a retention of negative age": ({"retention": {"keep_last": 5, "min_age_days": -1}}, "unreadable"),
    "another disk's registration": ({"disk": "other"}, "unreadable"),
    "a source that nobody may read": ({"source": "https://elsewhere.test/vhds/vm.vhd"}, "different"),
    "an alias of a source": ({"source": "https://source.test/vhds/./vm.vhd"}, "different"),
}


@pytest.mark.parametrize("what", FORGED)
async def test_a_registration_that_no_call_could_have_made_protects_nothing(scene, what):
    """Whoever may write to the backup account may have written it: it is refused, or brought back without protection."""
    change, state = FORGED[what]
    lose(scene, "registration")
    name = registration_name("vm")
    scene.documents.texts[name] = json.dumps(json.loads(scene.documents.texts[name]) | change)
    found, _ = await rebuild(scene)

    assert [disk["state"] for disk in found["value"] if disk["disk"] == "vm"] == [state]
    row = scene.catalogue.rows.get(("vm", "registration"))
    assert row is None if state == "unreadable" else not row.value.protected
    assert len(scene.points()) == 4
