"""An app with custody of the backups deletes by its own record and limits, whatever the catalogue says."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.domain.custody import CustodyLimits
from backup_core.domain.naming import point_key
from backup_core.domain.records import Retention
from backup_core.protocol.tools import Custody
from backup_core.steps.housekeeping import CleanUpDisk
from tests.doubles.documents import MemoryDocuments

WEEK = timedelta(days=7)
NIGHT = CleanUpDisk(disk="vm", actor="house.20260102T033000Z", lease="00000000-0000-0000-0000-00000000000a", run_days=180)


def night(number):
    return NIGHT.model_copy(update={"actor": f"house.202601{number:02d}T033000Z"})


@pytest.fixture
async def kept(scene):
    """Six restore points, of which the registration keeps two; custody has not seen the disk."""
    for value in range(6):
        scene.write(0, value)
        await scene.back_up(prune=False)
    register(scene, Retention(2))
    scene.tools = replace(scene.tools, custody=Custody(MemoryDocuments(scene.world), CustodyLimits(WEEK, WEEK, 3)))
    return scene


def register(scene, retention):
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, retention=retention))


def warnings(scene):
    return [one.message for one in scene.journal.events if one.event == "warning"]


async def test_a_shorter_retention_is_reported_and_delayed(kept):
    await clean_up_disk(kept.tools, night(1))
    await clean_up_disk(kept.tools, night(1))
    assert len(kept.points()) == 6
    (warning,) = warnings(kept)
    assert "keeps less than before: the newest 2 and all of 0 days, instead of everything" in warning

    kept.world.pass_time(WEEK)
    assert (await clean_up_disk(kept.tools, night(9))).points == 3


async def test_a_night_deletes_no_more_than_its_limit(kept):
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)
    assert [(await clean_up_disk(kept.tools, night(9))).points for _ in range(3)] == [3, 0, 0]
    assert (await clean_up_disk(kept.tools, night(10))).points == 1
    assert len(kept.points()) == 2


async def test_calls_that_come_twice_at_once_delete_no_more(kept):
    """Each continues where the other one waits; so does one that comes late, with more that has expired meanwhile."""
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)

    async def wait(_):
        await asyncio.sleep(0)

    kept.world.before = kept.world.after = wait
    await asyncio.gather(*(clean_up_disk(kept.tools, night(9)) for _ in range(3)))
    register(kept, Retention(2))
    await clean_up_disk(kept.tools, night(9))
    assert len(kept.points()) == 3


async def test_the_permission_of_a_former_night_is_deleted(kept):
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)
    await clean_up_disk(kept.tools, night(9))
    await clean_up_disk(kept.tools, night(10))
    assert kept.tools.custody.documents.texts.keys() == {"vm/retention.json", "vm/house.20260110T033000Z.json"}


async def test_a_call_of_a_night_that_is_past_deletes_nothing(kept):
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)
    await clean_up_disk(kept.tools, night(10))
    await clean_up_disk(kept.tools, night(9))
    assert len(kept.points()) == 3


async def test_a_point_that_is_young_by_the_services_time_is_kept_whatever_its_row_says(kept):
    """Somebody who writes rows has made it old."""
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)
    for value in (7, 8, 9):
        kept.write(0, value)
        await kept.back_up(prune=False)
    await clean_up_disk(kept.tools, night(9))
    await clean_up_disk(kept.tools, night(10))
    await clean_up_disk(kept.tools, night(11))
    assert [kept.content(point)[:1] for point in kept.points()] == [bytes([7]), bytes([8]), bytes([9])]


def alter(scene, **fields):
    """Somebody else writes the row of the second oldest restore point; the point as it was."""
    key = ("vm", point_key(scene.points()[1].point))
    row = scene.catalogue.rows[key]
    scene.catalogue.rows[key] = replace(row, value=replace(row.value, **fields))
    return row.value


@pytest.mark.parametrize("field", [{"page_map": "0" * 64}, {"size": 512}, {"kind": "full"}])
async def test_a_row_that_differs_from_its_snapshot_deletes_nothing(kept, field):
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)
    point = alter(kept, **field)
    await clean_up_disk(kept.tools, night(9))

    assert point.point in {one.point for one in kept.points()}
    assert point.backup_snapshot in kept.blobs.blobs[kept.tools.head(point.head)].snapshots
    assert any(f"the row of restore point {point.point} differs" in warning for warning in warnings(kept))


async def test_a_row_that_says_it_is_being_deleted_is_judged_anew(kept):
    register(kept, Retention(2, 365))
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)
    point = alter(kept, state="deleting")
    await clean_up_disk(kept.tools, night(9))

    assert point.backup_snapshot in kept.blobs.blobs[kept.tools.head(point.head)].snapshots


async def test_a_record_that_cannot_be_read_deletes_nothing(kept):
    await clean_up_disk(kept.tools, night(1))
    kept.world.pass_time(WEEK)
    await kept.tools.custody.documents.put("vm/retention.json", "{")
    with pytest.raises(Exception, match=r"custody record vm/retention\.json cannot be read"):
        await clean_up_disk(kept.tools, night(9))
    assert len(kept.points()) == 6
