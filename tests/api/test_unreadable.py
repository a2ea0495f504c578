"""One unreadable row or document: its disk is named with the reason; every other disk is shown, watched and rebuilt."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.api import disks, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.api.lists import newest_runs
from backup_core.domain.errors import RecordUnreadableError
from backup_core.domain.naming import registration_name, run_key
from backup_core.domain.records import Run
from backup_core.operations.watch import watch
from backup_core.protocol.documents import PLAN, read_document
from tests.activities.acts import rebuilt
from tests.scene import Scene

NAMES = ("one", "three", "two")


@pytest.fixture
async def scene():
    """A scene of three disks with a restore point each."""
    stage = Scene()
    for name in NAMES:
        stage.protect(name)
        stage.write(0, 1, disk=name)
        await stage.back_up(name)
    return stage


async def call(scene, handler, body=None, **route):
    content = b"" if body is None else json.dumps(body).encode()
    answer = await respond(scene.api(), handler, Request("https://app.test/api", route, {}, content, {}))
    return answer.status, json.loads(answer.body)


def damage(scene, row, disk="two"):
    scene.catalogue.damaged.add(
        (disk, next(key for owner, key in scene.catalogue.rows if owner == disk and key.startswith(row)))
    )


@pytest.mark.parametrize("row", ["registration", "head", "run!"])
async def test_the_list_of_disks(scene, row):
    damage(scene, row)
    status, shown = await call(scene, disks.get_disks)

    assert (status, [disk["id"] for disk in shown["value"]]) == (200, ["one", "three"])
    assert [(one["code"], one["target"]) for one in shown["unreadable"]] == [("RecordUnreadable", "two")]
    assert row in shown["unreadable"][0]["message"]
    status, error = await call(scene, disks.get_disk, disk="two")
    assert (status, error["error"]["code"]) == (502, "RecordUnreadable")


async def test_the_list_of_runs(scene):
    damage(scene, "run!")
    _, shown = await call(scene, runs.get_runs)

    assert [run["disk"] for run in shown["value"]] == ["three", "one"]
    assert [one["target"] for one in shown["unreadable"]] == ["two"]


@pytest.mark.parametrize("row", ["registration", "head", "run!", "point!"])
async def test_the_watch(scene, row):
    """The disk counts as unchecked, which raises an alert, and the reason names the row."""
    damage(scene, row)
    point = row == "point!"
    key, found = next((key, found) for key, found in scene.catalogue.rows.items() if key[0] == "two" and key[1].startswith(row))
    scene.catalogue.rows[key] = replace(found, value=replace(found.value, state="quarantined")) if point else found
    seen = await watch(scene.tools, "0 0 */12 * * *")

    assert (seen.disks, seen.unseen, seen.protected) == (3, 1, 2)
    assert "two: RecordUnreadable" in seen.why


async def test_a_bug_hides_no_disk_from_the_watch(scene):
    async def broken(disk):
        if disk == "two":
            raise KeyError("sig=abcdefghijklmnop")
        return await original(disk)

    original, scene.catalogue.registration = scene.catalogue.registration, broken
    seen = await watch(scene.tools, "0 0 */12 * * *")

    assert (seen.unseen, seen.protected) == (1, 2)
    assert "two: Unexpected: KeyError" in seen.why


@pytest.mark.parametrize("what", ["row", "document"])
async def test_a_rebuild(scene, what):
    """The disk is shown as unreadable and left alone; a lost row of another disk comes back."""
    if what == "row":
        damage(scene, "point!")
    else:
        del scene.catalogue.rows["two", "registration"]
        scene.documents.texts[registration_name("two")] = '{"disk": "two", "verification": "by newer means"}'
    lost = next(key for key in scene.catalogue.rows if key[0] == "one" and key[1].startswith("point!"))
    del scene.catalogue.rows[lost]
    plan = await rebuilt(scene)
    done = await rebuilt(scene, dryRun=False, planHash=plan["planHash"])

    assert {disk["disk"]: disk["state"] for disk in done["value"]} == {"one": "different", "two": "unreadable"}
    why = done["value"][1]["why"]
    assert ("point!" if what == "row" else registration_name("two")) in why
    assert (done["state"], done["unreadable"]) == ("Succeeded", 1)
    assert lost in scene.catalogue.rows


def test_an_unreadable_document_is_named():
    with pytest.raises(RecordUnreadableError, match=r"document vm/run/plan\.json cannot be read: shards"):
        read_document(PLAN, "vm/run/plan.json", '{"shards": 5}')


# -- the newest runs of many disks ----------------------------------------------------------------------------------------

a_list = st.lists(st.integers(0, 500), max_size=40, unique=True)


def run_of(disk, second, base):
    moment = base + timedelta(seconds=second)
    return Run(disk, f"{disk}.{moment:%Y%m%dT%H%M%SZ}.{second:08x}", "Succeeded", "http", full=False, created=moment)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), a_list), st.integers(1, 60), st.integers(-1, 500))
async def test_the_newest_runs_are_those_of_a_whole_list(seconds, limit, cut):
    """Merging a few rows at a time gives the same as sorting all at once."""
    base = Scene().world.now
    lists = {disk: [run_of(disk, one, base) for one in sorted(some, reverse=True)] for disk, some in seconds.items()}
    after = run_of("c", cut, base).run if cut >= 0 else ""

    async def read(disk, number, last):
        return [run for run in lists[disk] if not last or run_key(run.run) > run_key(last)][:number]

    found, unreadable = await newest_runs(sorted(lists), limit, after, read)
    whole = sorted((run for some in lists.values() for run in some), key=lambda run: run_key(run.run))

    assert found == [run for run in whole if not after or run_key(run.run) > run_key(after)][:limit]
    assert unreadable == []


async def test_a_page_of_many_disks_reads_a_few_rows_of_each():
    """A page of a hundred runs, of two thousand disks with a hundred runs each, reads far fewer than all rows."""
    base, read_rows, at_once = Scene().world.now, Counter(), Counter()
    names = [f"disk-{number}" for number in range(2000)]

    async def read(disk, number, last):
        at_once["now"] += 1
        at_once["most"] = max(at_once["most"], at_once["now"])
        await asyncio.sleep(0)
        rows = [run_of(disk, 100 * int(disk[5:]) % 9973 + one, base) for one in range(100, 0, -1)]
        page = [run for run in rows if not last or run_key(run.run) > run_key(last)][:number]
        read_rows[disk] += len(page)
        at_once["now"] -= 1
        return page

    found, _ = await newest_runs(names, 101, "", read)

    assert len(found) == 101
    assert sum(read_rows.values()) < 2 * 2000 + 101 * 8
    assert at_once["most"] == 16
