"""The protocol of a backup, end to end over in-memory ports: order, recovery, fencing, and what each step refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.metadata import from_point_metadata, run_of_source_snapshot
from backup_core.orchestrations.backup_disk import BackupFailedError
from tests.activities.acts import before_step, names
from tests.scene import PAGE

STEPS_OF_A_BACKUP = [
    "begin_backup", "take_source_snapshot", "plan_transfer", "open_head", "apply_shard", "verify_head",
    "take_backup_snapshot", "commit_point", "drop_previous_snapshot", "prune_points", "finish_run",
]  # fmt: skip
"""In their order, where nothing goes wrong; reports of progress come between them."""


async def test_a_full_then_increments(scene):
    """Every point keeps the bytes its disk had; only the newest source snapshot stays."""
    contents = []
    for round_ in range(4):
        scene.write(round_, 40 + round_, None, 50 + round_)
        contents.append(scene.blobs.blobs[scene.source()].content())
        await scene.back_up()

    points = scene.points()
    assert [point.kind for point in points] == ["full", "incremental", "incremental", "incremental"]
    assert [scene.content(point) for point in points] == contents
    assert list(scene.blobs.blobs[scene.source()].snapshots) == [points[-1].source_snapshot]
    assert scene.head_row().pair.point == points[-1].point
    assert scene.head_row().owner is None
    assert scene.head_blob().lease == ""


async def test_the_order_of_steps(scene):
    """Verified before the backup snapshot, committed before the old source snapshot goes."""
    driver = await scene.back_up()

    assert names(driver) == STEPS_OF_A_BACKUP


async def test_an_empty_diff_commits_a_point_and_transfers_nothing(scene):
    await scene.back_up()
    driver = await scene.back_up()

    assert "apply_shard" not in names(driver)
    first, second = scene.points()
    assert scene.content(first) == scene.content(second)
    assert (second.write_bytes, second.clear_bytes, second.requests) == (0, 0, 0)


async def test_metadata_describes_each_point(scene):
    """The metadata of a backup snapshot is enough to know the point, with matching digests."""
    await scene.back_up()
    scene.write(3, 7)
    await scene.back_up()

    for point in scene.points():
        head = scene.tools.site(scene.tools.head(point.head))
        carried = scene.blobs.blobs[head.blob].snapshots[point.backup_snapshot].metadata
        assert from_point_metadata(carried, head, point.backup_snapshot) == point
        assert from_point_metadata({**carried, "pagekeeper_size": "512"}, head, point.backup_snapshot) is None
    assert scene.mark().state == "committed"


@pytest.mark.parametrize("diffs_end", [False, True])
async def test_growth_reads_the_whole_new_tail(scene, diffs_end):
    """Also where a diff ends at the size that the older snapshot had."""
    scene.blobs.diffs_end = diffs_end
    await scene.back_up()
    blob = scene.blobs.blobs[scene.source()]
    blob.size = 48 * PAGE
    scene.write(40, 7, 8)
    await scene.back_up()

    point = scene.points()[-1]
    assert (point.kind, point.size) == ("incremental", 48 * PAGE)
    assert scene.content(point) == blob.content()


async def test_asking_for_a_full_begins_a_new_generation(scene):
    await scene.back_up()
    await scene.back_up(full=True)

    first, second = scene.points()
    assert (second.kind, second.reason) == ("full", "asked for")
    assert second.generation > first.generation
    assert second.head != first.head
    assert scene.content(first) == scene.content(second)
    assert list(scene.blobs.blobs[scene.source()].snapshots) == [second.source_snapshot]
    assert all(blob.lease == "" for blob in scene.blobs.blobs.values())


def overwrite_source(scene):
    """Copy Blob onto the disk: another blob under the same name, its snapshots kept."""
    old = scene.blobs.blobs[scene.source()]
    fresh = scene.blobs.put(scene.source(), old.size)
    fresh.snapshots = old.snapshots
    fresh.created += timedelta(hours=1)
    scene.write(0, 77)


def shrink_source(scene):
    blob = scene.blobs.blobs[scene.source()]
    blob.size = 24 * PAGE


def delete_head(scene):
    del scene.blobs.blobs[scene.tools.head(scene.head_row().head)]


def alter_head(scene):
    scene.blobs.poke(scene.tools.head(scene.head_row().head), 1, [b"\xee" * PAGE])


def strip_metadata(scene):
    scene.head_blob().metadata = {}


def raise_sequence_number(scene):
    scene.head_blob().sequence_number = 1000


def drop_source_snapshot(scene):
    scene.blobs.blobs[scene.source()].snapshots.clear()


@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        (overwrite_source, "the service refused the diff: "),
        (shrink_source, "the disk shrank"),
        (delete_head, "the backup blob is gone"),
        (alter_head, "the backup blob was changed by somebody else"),
        (raise_sequence_number, "the backup blob was changed by somebody else"),
        (strip_metadata, "the backup blob's metadata is not what was written"),
        (drop_source_snapshot, "the previous source snapshot is gone"),
    ],
)
async def test_a_state_that_cannot_be_trusted_leads_to_a_full_backup(scene, disturb, reason):
    """Never "nothing changed": a new generation, with the reason in words."""
    await scene.back_up()
    disturb(scene)
    await scene.back_up()

    point = scene.points()[-1]
    assert (point.kind, point.reason[: len(reason)]) == ("full", reason)
    assert all(blob.lease == "" for blob in scene.blobs.blobs.values())
    assert scene.content(point) == scene.blobs.blobs[scene.source()].content()


async def test_a_third_automatic_full_in_a_row_waits_for_a_person(scene):
    await scene.back_up()
    for _ in range(2):
        delete_head(scene)
        await scene.back_up()
    delete_head(scene)
    with pytest.raises(BackupFailedError, match="TooManyAutomaticFulls"):
        await scene.back_up()

    assert len(scene.points()) == 3
    await scene.back_up(full=True)
    assert scene.points()[-1].reason == "asked for"


async def test_a_head_changed_only_in_its_version_is_still_the_base(scene):
    """A crash between marking the head and recording its version must not cost a full backup: the diff since B is empty."""
    await scene.back_up()
    row = scene.catalogue.rows["vm", "head"]
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, head_etag='"stale"'))
    scene.write(2, 33)
    await scene.back_up()

    assert scene.points()[-1].kind == "incremental"


async def test_progress_never_decreases_and_ends_at_100(scene):
    scene.with_limits(shard_bytes_max=PAGE, shard_seconds=-1.0)
    driver = await scene.back_up(wave=2)
    percents = [answer["value"]["percent"] for name, _, answer in driver.calls if name == "report_progress"]

    assert percents == sorted(percents)
    assert len(set(percents)) > 5
    assert max(percents) < 100
    run = scene.rows("run!")[0]
    assert (run.percent, run.state, run.phase) == (100, "Succeeded", "done")
    assert run.bytes_done == run.bytes_total == 6 * PAGE + scene.footer_bytes


async def test_a_large_transfer_continues_as_new(scene):
    """History is bounded: after so many shards the instance continues with an empty one, and the result is the same."""
    scene.protect("big", pages=200)
    for page in range(0, 200, 2):
        scene.write(page, 1 + page % 250, disk="big")
    scene.with_limits(shard_bytes_max=PAGE, shard_seconds=-1.0)
    driver = await scene.back_up("big", wave=4)

    assert driver.executions == 3
    assert scene.content(scene.points("big")[0]) == scene.blobs.blobs[scene.source("big")].content()


# -- verification -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["page lost", "page too many", "size"])
async def test_a_damaged_head_is_never_committed(scene, damage):
    """Whatever is wrong with the head's map or size is found before the backup snapshot."""
    request, driver = scene.request(), scene.driver()

    async def perform(name, step_input):
        if name == "verify_head":
            head = scene.blobs.blobs[scene.tools.head(step_input["transfer"]["destination"])]
            if damage == "page lost":
                head.pages.pop(1, None)
            elif damage == "page too many":
                head.pages[30] = b"\x01" * PAGE
            else:
                head.size -= PAGE
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="VerificationMismatch"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []
    run = scene.run_row(request.run)
    assert (run.state, run.error.code) == ("Failed", "VerificationMismatch")


async def test_a_write_during_verification_is_noticed(scene):
    """The mark is written under the version the comparison began with."""
    await scene.back_up()
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()
    original = scene.blobs.allocated
    armed = []

    def allocated(blob, snapshot, window):
        if armed and blob == scene.source():
            armed.clear()
            scene.blobs.poke(scene.tools.head(scene.head_row().head), 5, [b"\xee" * PAGE])
        return original(blob, snapshot, window)

    async def perform(name, step_input):
        if name == "verify_head":
            armed.append(True)
        return await scene.perform(name, step_input)

    scene.blobs.allocated = allocated
    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"BlobChanged|VerificationMismatch"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert len(scene.points()) == 1


async def test_zeros_written_on_one_side_only_are_proved(scene):
    """A page of explicit zeros is allocated on one side only: read, found zero, accepted."""
    scene.write(10, 0)
    await scene.back_up()
    scene.write(11, 0)
    await scene.back_up()

    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


# -- what is kept from history --------------------------------------------------------------------------------------


async def test_history_carries_references_only(scene):
    """No step's input or output grows with the ranges."""
    for page in range(0, 32, 2):
        scene.write(page, page + 1)
    driver = await scene.back_up()

    assert max(len(json.dumps(request)) + len(json.dumps(answer)) for _, request, answer in driver.calls) < 2500


async def test_source_snapshots_say_whose_they_are(scene):
    await scene.back_up()

    (snapshot,) = scene.blobs.blobs[scene.source()].snapshots.values()
    assert run_of_source_snapshot(snapshot.metadata, scene.tools.site(scene.source())).startswith("vm.")


async def test_the_source_is_never_written_or_leased(scene):
    before = scene.blobs.blobs[scene.source()].etag, scene.blobs.blobs[scene.source()].content()
    await scene.back_up()
    await scene.back_up()

    blob = scene.blobs.blobs[scene.source()]
    assert (blob.etag, blob.content(), blob.lease) == (*before, "")


@pytest.mark.parametrize("half", ["source", "backup"])
async def test_the_old_source_snapshot_is_kept_while_the_new_pair_is_in_doubt(scene, half):
    """Both halves of the new pair are looked up before the old snapshot goes; when one is missing, nothing is deleted."""
    await scene.back_up()
    (old,) = scene.blobs.blobs[scene.source()].snapshots
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()

    async def perform(name, step_input):
        if name == "drop_previous_snapshot":
            blob = scene.head_blob() if half == "backup" else scene.blobs.blobs[scene.source()]
            blob.snapshots.pop(getattr(scene.head_row().pair, f"{half}_snapshot"))
        return await scene.perform(name, step_input)

    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert "SnapshotMissing" in scene.run_row(request.run).warnings[0]
    assert old in scene.blobs.blobs[scene.source()].snapshots


@pytest.mark.parametrize("side", ["source only", "head only"])
async def test_one_sided_ranges_with_data_are_found_by_the_maps_alone(scene, monkeypatch, side):
    """Without any content sample: a page that only one side has and that is not zero fails the run."""

    async def nothing(_tools, _image, _pieces, reached):
        return reached

    monkeypatch.setattr("backup_core.protocol.comparison._compare_pieces", nothing)
    await scene.back_up()
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()

    async def perform(name, step_input):
        if name == "verify_head" and side == "source only":
            del scene.head_blob().pages[6]
        elif name == "verify_head":
            scene.head_blob().pages[30] = b"\x01" * PAGE
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"VerificationMismatch.*has none"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)


async def test_a_head_altered_after_begin_is_noticed_before_the_first_write(scene):
    """The intent is written under the version `begin` left; nothing is written on another one."""
    await scene.back_up()
    scene.write(6, 61)
    request = scene.request()
    driver = before_step(
        scene, "open_head", lambda _: scene.blobs.poke(scene.tools.head(scene.head_row().head), 1, [b"\xee" * PAGE])
    )
    with pytest.raises(BackupFailedError, match="HeadAltered"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    assert "apply_shard" not in names(driver)
    await scene.back_up()

    newest = scene.points()[-1]
    assert (newest.kind, newest.reason) == ("full", "the backup blob was changed by somebody else")


async def test_a_backup_snapshot_with_damaged_metadata_is_not_committed(scene):
    request, driver = scene.request(), scene.driver()

    async def perform(name, step_input):
        if name == "commit_point":
            head = scene.blobs.blobs[scene.tools.head(step_input["transfer"]["destination"])]
            head.snapshots[step_input["backup_snapshot"]].metadata["pagekeeper_size"] = "512"
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"UnexpectedAnswer.*description is damaged"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []
