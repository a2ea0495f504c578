"""Guards of backups, retention, housekeeping and rebuild, one by one: each of these fails when its line is taken out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import AccessDeniedError, FencedError, RowChangedError, UnexpectedError
from backup_core.domain.records import Owner
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.protocol.fencing import fence_off
from backup_core.protocol.ownership import relinquish_ownership
from backup_core.protocol.registrations import complete_move
from backup_core.steps.housekeeping import CleanUpDisk
from tests.activities.acts import before_step, keep, rebuild, stop_before
from tests.scene import PAGE

SOMEBODY = "00000000-0000-0000-0000-000000000009"
DAY = timedelta(hours=25)
SECRET = "q+L/zK1SZF"


async def about_to(scene, step, **fields):
    """The step's input that a run would send next, had it not died."""
    seen = []

    def note(step_input):
        seen.append(step_input)
        raise KeyboardInterrupt

    request, driver = scene.request(**fields), before_step(scene, step, note)
    with pytest.raises(KeyboardInterrupt):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return seen[0]


# -- secrets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AccessDeniedError, RuntimeError])
async def test_no_secret_leaves_a_step(scene, monkeypatch, caplog, error):
    """Neither in a fault that is a value, nor in one of this program, nor in the log."""

    async def fails():
        message = f"https://a.test/c/b?sig={SECRET}&sp=r did not answer"
        raise error(message)

    monkeypatch.setattr(scene.catalogue, "disks", fails)
    request = {"window": "2026-01-01T00:00:00+00:00"}
    if error is RuntimeError:
        with pytest.raises(UnexpectedError) as raised:
            await scene.perform("list_disks", request)
        said, cause = str(raised.value), raised.value.__cause__ or raised.value.__context__
        assert cause is None, "it would be reported with its text"
    else:
        said = (await scene.perform("list_disks", request))["fault"]["message"]

    assert "a.test/c/b" in said
    assert SECRET not in said + caplog.text


# -- copying ----------------------------------------------------------------------------------------------------------------


async def test_a_shard_that_is_listed_otherwise_than_it_was_planned_fails(scene):
    """Snapshots do not change: one of the two listings was wrong, and nobody knows which."""
    await scene.back_up()
    scene.write(10, 1, 2, 3)
    hide = before_step(scene, "apply_shard", lambda _: setattr(scene.blobs, "lies", 1))
    request = scene.request()
    with pytest.raises(BackupFailedError, match="two listings of the same snapshots differ"):
        await hide.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert len(scene.points()) == 1
    await scene.back_up()
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


@pytest.mark.parametrize("scene", ["writes", "content"], indirect=True)
async def test_a_source_that_became_a_block_blob_is_not_backed_up(scene):
    await scene.back_up()
    scene.blobs.blobs[scene.source()].page_blob = False
    with pytest.raises(BackupFailedError, match=r"SourceUnfit: .* is no longer a page blob"):
        await scene.back_up()

    assert len(scene.points()) == 1


async def test_a_new_head_is_not_made_where_something_lies(scene):
    """Somebody's blob of the very name that a new generation would have: it stays as it is."""

    def lies_there(step_input):
        scene.blobs.put(scene.tools.head(step_input["destination"]), 32 * PAGE)

    request = scene.request()
    with pytest.raises(BackupFailedError, match="BlobExists"):
        await before_step(scene, "open_head", lies_there).run("backup_disk", request.model_dump(mode="json"), request.run)

    (theirs,) = [blob for at, blob in scene.blobs.blobs.items() if at.container == "heads"]
    assert (theirs.metadata, theirs.pages, theirs.lease) == ({}, {}, "")


async def test_a_head_that_was_shortened_is_not_built_upon(scene):
    """The lost pages cannot be distinguished from the rest: the next backup is a full one."""
    await scene.back_up()
    blob = scene.head_blob()
    blob.size, blob.etag = 24 * PAGE, '"other"'
    await scene.back_up()

    assert scene.points()[-1].reason == "the backup blob was changed by somebody else"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


# -- the commit ---------------------------------------------------------------------------------------------------------------


OF_ANOTHER = [("target", "2026-01-01T00:00:00.0000001Z"), ("run", "vm.20260101T000000Z.0000abcd")]


@pytest.mark.parametrize(
    ("step", "words", "name", "value"),
    [
        *(("verify_head", "its mark is not that of run", *one) for one in OF_ANOTHER),
        *(("take_backup_snapshot", "no snapshot was taken", *one) for one in [*OF_ANOTHER, ("state", "applying")]),
    ],
)
async def test_a_head_that_is_not_this_runs_becomes_no_point(scene, step, words, name, value):
    """By its mark: of another target, of another run, not verified."""

    def alter(_):
        (blob,) = [blob for at, blob in scene.blobs.blobs.items() if at.container == "heads"]
        blob.metadata[f"pagekeeper_{name}"] = value

    request = scene.request()
    with pytest.raises(BackupFailedError, match=words):
        await before_step(scene, step, alter).run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []
    assert not any(blob.snapshots for at, blob in scene.blobs.blobs.items() if at.container == "heads")


async def test_only_the_version_that_was_compared_is_marked_verified(scene, monkeypatch):
    """A page is written right after it was compared: the comparison finds nothing, the head's version does."""
    await scene.back_up()
    scene.write(3, 4)
    real = scene.blobs.read

    async def read(blob, snapshot, part):
        data = await real(blob, snapshot, part)
        if not snapshot:
            scene.blobs.poke(blob, part.start // PAGE, [b"\xee" * PAGE])
        return data

    monkeypatch.setattr(scene.blobs, "read", read)
    with pytest.raises(BackupFailedError, match="BlobChanged"):
        await scene.back_up()

    assert len(scene.points()) == 1
    assert scene.mark().state == "applying"


async def test_a_write_between_verification_and_snapshot_becomes_no_point(scene):
    def write(_):
        (at,) = [at for at in scene.blobs.blobs if at.container == "heads"]
        scene.blobs.poke(at, 3, [b"\xee" * PAGE])

    request = scene.request()
    with pytest.raises(BackupFailedError, match="BlobChanged"):
        await before_step(scene, "take_backup_snapshot", write).run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []


async def test_a_snapshot_of_another_target_is_not_committed(scene):
    """A restore point of the same head, whole and of this disk, but not the one that this run has taken."""
    await scene.back_up()
    former = scene.points()[0].backup_snapshot
    scene.write(3, 4)
    request = await about_to(scene, "commit_point")
    before = scene.dump()
    answer = await scene.perform("commit_point", request | {"backup_snapshot": former})

    assert "the restore point was not committed" in answer["fault"]["message"]
    assert scene.dump() == before


async def test_a_point_of_another_run_is_not_taken_for_ones_own(scene):
    """The same source snapshot, committed by somebody else: this run's backup snapshot is no restore point."""
    request = await about_to(scene, "commit_point")
    assert (await scene.perform("commit_point", request))["fault"] is None
    key, row = next((key, row) for key, row in scene.catalogue.rows.items() if key[1].startswith("point!"))
    scene.catalogue.rows[key] = replace(row, value=replace(row.value, run="vm.20260101T000000Z.0000abcd"))
    before = scene.dump()
    answer = await scene.perform("commit_point", request)

    assert answer["fault"]["code"] == "RowExists"
    assert scene.dump() == before


async def test_a_commit_that_was_decided_on_an_older_head_row_is_refused(scene):
    """Another run becomes the owner after the check that this one is: the disk stays the other one's."""
    request, look = await about_to(scene, "commit_point"), scene.catalogue.point

    async def meanwhile(disk, point):
        row = scene.catalogue.rows["vm", "head"]
        await scene.catalogue.put_head(row.value.owned_by(Owner("vm.other", SOMEBODY, 99)), row.etag)
        return await look(disk, point)

    scene.catalogue.point = meanwhile
    answer = await scene.perform("commit_point", request)

    assert answer["fault"]["code"] == "RowChanged"
    assert (scene.points(), scene.head_row().owner.run) == ([], "vm.other")


async def test_a_run_that_loses_the_disk_while_it_seals_records_nothing(scene, monkeypatch):
    """The head row is another owner's by then: the version of the head is not this run's to record."""
    request, mark = await about_to(scene, "commit_point"), scene.blobs.set_metadata

    async def meanwhile(*changed):
        etag = await mark(*changed)
        row = scene.catalogue.rows["vm", "head"]
        await scene.catalogue.put_head(row.value.owned_by(Owner("vm.other", SOMEBODY, 99)), row.etag)
        return etag

    monkeypatch.setattr(scene.blobs, "set_metadata", meanwhile)
    answer = await scene.perform("commit_point", request)

    assert answer["fault"]["code"] == "NotOwner"
    assert scene.head_row().head_etag == request["etag"]


@pytest.mark.parametrize("mark", ["of another target", "written to"])
async def test_only_the_verified_head_of_the_point_is_recorded(scene, mark):
    """A change of the head after its snapshot never becomes the version that the next increment starts from."""

    def alter(_):
        at = next(at for at in scene.blobs.blobs if at.container == "heads")
        if mark == "written to":
            scene.blobs.poke(at, 3, [b"\xee" * PAGE])
        else:
            other = {"pagekeeper_target": "2026-01-01T00:00:00.0000001Z", "pagekeeper_state": "committed"}
            scene.blobs.blobs[at].metadata |= other

    request = scene.request()
    with pytest.raises(BackupFailedError, match=r"its mark is not that of source snapshot|BlobChanged"):
        await before_step(scene, "commit_point", alter).run("backup_disk", request.model_dump(mode="json"), request.run)

    await scene.back_up()
    assert scene.points()[-1].kind == "full" or mark == "of another target"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_a_registration_that_did_not_move_keeps_its_claim(scene):
    """The step's input names a move that did not happen: the source that the disk has stays its own."""
    await complete_move(scene.tools, "vm", str(scene.source()))

    assert scene.claims() == {str(scene.source()): "vm"}


# -- what is deleted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["a previous one that is newer", "another pair"])
async def test_a_source_snapshot_in_doubt_is_not_deleted(scene, why):
    """The catalogue names a previous snapshot that is not older, or a pair that is not this run's."""
    await scene.back_up()
    scene.write(3, 4)
    request = await about_to(scene, "drop_previous_snapshot")
    if why == "another pair":
        key = ("vm", "head")
        changed = {"pair": replace(scene.head_row().pair, source_snapshot=scene.points()[0].source_snapshot)}
    else:
        key = next(key for key, row in scene.catalogue.rows.items() if row.value == scene.points()[-1])
        changed = {"previous_source_snapshot": scene.points()[-1].source_snapshot}
    row = scene.catalogue.rows[key]
    scene.catalogue.rows[key] = replace(row, value=replace(row.value, **changed))
    found = set(scene.blobs.blobs[scene.source()].snapshots)
    await scene.perform("drop_previous_snapshot", request)

    assert len(found) == 2
    assert set(scene.blobs.blobs[scene.source()].snapshots) == found


async def test_a_prune_stops_when_its_run_loses_the_disk(scene, monkeypatch):
    """Between two deletions another run became the owner: what it rests on may have changed."""
    for value in range(4):
        scene.write(0, value)
        await scene.back_up()
    request = await about_to(scene, "prune_points")
    keep(scene, 1)
    real, deleted = scene.blobs.delete_snapshot, []

    async def taken_over(blob, snapshot):
        deleted.append(snapshot)
        await real(blob, snapshot)
        row = scene.catalogue.rows["vm", "head"]
        scene.catalogue.rows["vm", "head"] = replace(row, value=row.value.owned_by(Owner("vm.other", SOMEBODY, 99)))

    monkeypatch.setattr(scene.blobs, "delete_snapshot", taken_over)
    answer = await scene.perform("prune_points", request)

    assert answer["fault"]["code"] == "NotOwner"
    assert len(deleted) == 1
    assert len(scene.points()) == 4


async def test_a_young_blob_stays(scene):
    """However little is known of the run that made it: its row may be lost, and the run at work."""
    await scene.back_up()
    run = (await stop_before(scene, "verify_head", full=True)).run
    for key in [key for key in scene.catalogue.rows if key[1].endswith(run)]:
        del scene.catalogue.rows[key]
    request = CleanUpDisk(disk="vm", actor="house.20260105", lease=SOMEBODY, run_days=180)

    def heads():
        return [at for at in scene.blobs.blobs if at.container == "heads"]

    await clean_up_disk(scene.tools, request)
    assert len(heads()) == 2
    scene.world.pass_time(DAY)
    await clean_up_disk(scene.tools, request)
    assert [at.name for at in heads()] == [scene.head_row().head]


# -- ownership --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["another orchestration", "another run meanwhile"])
async def test_only_the_owner_releases_the_disk(scene, monkeypatch, why):
    """Another orchestration of the same run has other leases; another run may become the owner at the last moment."""
    await scene.back_up()
    request = await stop_before(scene, "verify_head")
    owner, release = scene.head_row().owner, scene.blobs.release_lease

    async def meanwhile(blob, lease):
        await release(blob, lease)
        other = Owner("vm.20260101T000000Z.0000abcd", SOMEBODY, 99)
        row = scene.catalogue.rows["vm", "head"]
        await scene.catalogue.put_head(replace(row.value, owner=other), row.etag)

    if why == "another orchestration":
        await relinquish_ownership(scene.tools, "vm", request.run, SOMEBODY, [])
        assert scene.head_row().owner == owner
        assert scene.head_blob().lease == owner.lease
    else:
        monkeypatch.setattr(scene.blobs, "release_lease", meanwhile)
        await relinquish_ownership(scene.tools, "vm", request.run, owner.lease, [])
        assert scene.head_row().owner.lease == SOMEBODY


async def test_an_ownership_that_cannot_be_given_up_is_a_temporary_failure(scene, monkeypatch):
    """Each time somebody else is faster at the head row: it is named, its owner stays, and the step is retried."""
    await scene.back_up()
    request = await stop_before(scene, "verify_head")
    owner, read = scene.head_row().owner, scene.catalogue.head

    async def outdated(disk):
        row = await read(disk)
        await scene.catalogue.put_head(row.value, row.etag)
        return row

    monkeypatch.setattr(scene.catalogue, "head", outdated)
    with pytest.raises(RowChangedError, match=f"disk vm: its head row changed 5 times while run {request.run} gave it up"):
        await relinquish_ownership(scene.tools, "vm", request.run, owner.lease, [])
    assert scene.head_row().owner == owner


async def test_after_a_rebuild_no_epoch_is_given_twice(scene):
    """Runs that died before they marked the head left nothing but its sequence number. The next one is above theirs, so that the
    head can be fenced off to them, and the backup is an increment.
    """
    await scene.back_up()
    for _ in range(2):
        await stop_before(scene, "take_source_snapshot")
        scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    for key in [key for key in scene.catalogue.rows if key[1] != "registration"]:
        del scene.catalogue.rows[key]
    await rebuild(scene)
    scene.write(3, 4)
    await scene.back_up()

    assert scene.points()[-1].kind == "incremental"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_no_backup_of_a_disk_whose_protection_was_stopped(scene):
    """A timer's run that was started before, and begins after it."""
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, protected=False))
    with pytest.raises(BackupFailedError, match="NotProtected"):
        await scene.back_up()

    assert (scene.points(), scene.blobs.blobs[scene.source()].snapshots) == ([], {})


async def finished_another(scene):
    await stop_before(scene, "verify_head")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    return await scene.back_up()


async def shrank(scene):
    scene.blobs.blobs[scene.source()].size = 24 * PAGE
    return await scene.back_up()


async def copied_whole(scene):
    return await scene.back_up(full=True, full_copy="blob")


@pytest.mark.parametrize(
    ("run", "steps"),
    [
        (finished_another, {"raise_epoch"}),
        (shrank, {"begin_new_generation"}),
        (copied_whole, {"start_copy", "check_copy", "take_over_copy", "abort_copy"}),
    ],
)
async def test_rare_steps_delivered_late_change_nothing(scene, run, steps):
    """As those of every backup: once the disk is another run's, or nobody's."""
    await scene.back_up()
    scene.write(6, 61)
    done = await run(scene)
    calls = {name: request for name, request, _ in done.calls if name in steps}
    if "check_copy" in calls:
        calls["abort_copy"] = calls["check_copy"]
    assert set(calls) == steps
    for begins in (False, True):
        if begins:
            await stop_before(scene, "verify_head")
        before = scene.dump()
        for name, request in calls.items():
            assert (await scene.perform(name, request))["fault"]["code"] == "NotOwner", name
            assert scene.dump() == before, name


async def test_a_number_that_a_stranger_raised_is_not_lowered(scene):
    """Whoever raised it relies on it, as we do: what is sent under a lower one is refused."""
    await scene.back_up()
    at = scene.tools.head(scene.head_row().head)
    await scene.blobs.acquire_lease(at, SOMEBODY)
    scene.head_blob().sequence_number = 9
    with pytest.raises(FencedError, match="expected at most 5: somebody else raised it"):
        await fence_off(scene.tools, at, 5, SOMEBODY)

    assert scene.head_blob().sequence_number == 9
