"""Backups through the real function_app.py under the host, against the emulator, compared byte for byte."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
import requests

from devhost.functions.timers import EARLY
from devhost.platform import Platform, awaited
from tests.disk import PAGE, Disk, dump

MIB = 1024 * 1024


@pytest.mark.parametrize("kind", ["writes", "content"])
@pytest.mark.parametrize("any_disk", ["server", "stream", "two_workers"], indirect=True)
def test_seeded_rounds_of_random_changes(any_disk, calm, rng, kind):
    """After rounds of random writes and clears every kept snapshot equals the disk at its moment.

    Both kinds of diff and both ways to copy are used, with each step in either of two processes.
    """
    disk = any_disk
    calm.switch(diff=kind)
    disk.disturb(rng, 20)
    for round_ in range(6):
        run = disk.back_up(full=round_ == 4)
        assert run["kind"] == ("full" if round_ in (0, 4) else "incremental")
        disk.disturb(rng, rng.randrange(1, 12))

    disk.check_every_point()
    assert len(disk.source_snapshots()) == 1, "only the newest source snapshot is kept"


def test_an_empty_diff_commits_a_point_and_transfers_nothing(disk, calm):
    disk.write(0, b"\1" * PAGE)
    disk.back_up()
    calm.reset()
    run = disk.back_up()

    counts = calm.counts()
    assert (run["bytesTotal"], run["requestsTotal"]) == (0, 0)
    assert not {"PUT page", "PUT page-from-url", "PUT clear"} & set(counts)
    disk.check_every_point()


def test_more_than_ten_thousand_ranges(platform, calm, name):
    """The diff continues past the service's limit for one answer."""
    disk = Disk(platform, name, 24 * MIB).protect()
    disk.write(0, b"\5" * disk.size)
    disk.back_up()
    session = requests.Session()
    from tests.emulator.conftest import Container  # noqa: PLC0415

    raw = Container.__new__(Container)
    raw.account, raw.name, raw.session = calm.source, "vhds", session
    raw.sas = _container_sas(calm.source)
    ranges = 10_500
    for number in range(ranges):
        offset = number * 4 * PAGE
        header = {"x-ms-page-write": "clear", "x-ms-range": f"bytes={offset}-{offset + PAGE - 1}"}
        assert raw.send("PUT", disk.blob.blob_name, header, comp="page")[0] == 201
        disk.content[offset : offset + PAGE] = bytes(PAGE)
    run = disk.back_up(timeout_seconds=240)

    assert run["rangesTotal"] == ranges
    disk.check_every_point()
    disk.service.close()


def _container_sas(account):
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas  # noqa: PLC0415

    expiry = datetime.now(UTC) + timedelta(hours=1)
    permission = ContainerSasPermissions(read=True, write=True)
    return generate_container_sas(account.name, "vhds", account_key=account.key, permission=permission, expiry=expiry)


def test_bytes_travel_once_and_nothing_is_listed_per_chunk(any_disk, calm):
    """An increment sends one put per chunk (and one read when streaming) and one clear per cleared range. Listings go by the
    window only.
    """
    disk = any_disk
    disk.write(0, b"\1" * 9 * MIB)
    disk.write(12 * MIB, b"\2" * MIB)
    disk.back_up()
    disk.write(0, b"\3" * 9 * MIB)
    disk.clear(12 * MIB, MIB)
    calm.reset()
    run = disk.back_up()

    counts = calm.counts()
    compared = int(disk.points()[0]["verified"].split()[3])
    through_worker = 9 * MIB if disk.copy_verb == "PUT page" else 0
    assert run["bytesStreamed"] == through_worker
    assert counts[disk.copy_verb]["requests"] == 3
    assert counts[disk.copy_verb]["bytesIn"] == through_worker
    assert len({"PUT page", "PUT page-from-url"} & set(counts)) == 1
    assert counts["PUT clear"]["requests"] == 1
    # What is streamed is read once; what verification compares is read once from each side; the plan adds a little.
    assert 0 < counts["GET blob"]["bytesOut"] - through_worker - 2 * compared < 10_000
    # The diff: to plan, to copy, twice to tell changed blocks from others, and beside what the backup blob itself shows as
    # written. Both page maps: to compare, and to draw samples from.
    assert counts["GET pagelist"]["requests"] == 10


@pytest.mark.parametrize("kind", ["writes", "content"])
def test_small_gaps_are_copied_along(any_disk, calm, kind):
    """A hundred changes with gaps of twice their size are one put; the diff is reported without gaps, and nothing more is
    allocated.
    """
    disk = any_disk
    calm.switch(diff=kind)
    disk.write(0, b"\1" * 2 * MIB)
    disk.back_up()
    for number in range(100):
        disk.write(number * 24 * PAGE, b"\2" * 8 * PAGE)
    calm.reset()
    run = disk.back_up()

    assert (run["rangesTotal"], run["bytesTotal"], run["requestsTotal"]) == (100, 800 * PAGE, 1)
    assert calm.counts()[disk.copy_verb]["requests"] == 1
    assert disk.points()[0]["changedBytes"] == 800 * PAGE
    disk.check_every_point()


@pytest.mark.parametrize("ends", [False, True])
def test_growth_end_to_end(disk, calm, ends):
    """Also where a diff ends at the size that the older snapshot had."""
    calm.switch(diffEnds=ends)
    disk.write(0, b"\1" * PAGE)
    disk.back_up()
    disk.blob.resize_blob(20 * MIB)
    disk.size = 20 * MIB
    disk.content.extend(bytes(4 * MIB))
    disk.write(18 * MIB, b"\7" * MIB)
    run = disk.back_up()

    assert run["kind"] == "incremental"
    disk.check_every_point()


def test_a_busy_service_costs_retries_not_bytes(any_disk, calm, rng):
    """The run succeeds despite 503, resets, lost replies and truncated bodies on the data path, and the point is right."""
    disk = any_disk
    disk.disturb(rng, 10)
    disk.back_up()
    disk.write(0, rng.randbytes(10 * MIB))
    calm.faults(
        {"verb": disk.copy_verb, "status": 503, "retryAfter": "0", "times": 2},
        {"verb": "GET blob", "url": disk.name, "truncateBytes": 1000, "times": 1},
        {"verb": "GET blob", "url": disk.name, "reset": True, "skip": 1, "times": 1},
        {"verb": disk.copy_verb, "loseReply": True, "skip": 1, "times": 2},
    )
    run = disk.back_up()

    met = [one for one in calm.control("GET")["faults"] if one["verb"] == disk.copy_verb]
    assert len(met) == 2
    assert all(one["times"] == 0 for one in met), met
    assert run["bytesTotal"] == run["bytesDone"] == 10 * MIB
    disk.check_every_point()


def test_an_unreadable_source_is_streamed_and_remembered(calm, tmp_path, name):
    """The backup account may not fetch from the source account: every byte passes the worker, and the point is right."""
    from devhost.platform import Platform  # noqa: PLC0415

    with Platform(tmp_path, storage=calm, settings={"CATALOGUE_TABLE": "refused"}) as platform:
        disk = Disk(platform, name, 16 * MIB).protect()
        _refused_and_streamed(disk, calm)
        disk.service.close()


def _refused_and_streamed(disk, calm):
    disk.write(0, b"\1" * 9 * MIB)
    calm.faults({"verb": "PUT page-from-url", "status": 403, "code": "CannotVerifyCopySource", "times": 1000})
    run = disk.back_up()

    assert run["bytesStreamed"] == 9 * MIB
    assert calm.counts()["PUT page-from-url"]["requests"] <= 16
    disk.check_every_point()


def test_a_diff_that_times_out_is_halved(platform, calm, name):
    """A window too fragmented for the service's time limit is requested in halves; ranges across a cut are joined again."""
    disk = Disk(platform, name, 512 * MIB)
    disk.content = None  # too large to keep: the ranges are compared
    disk.protect()
    for start in (0, 127 * MIB, 128 * MIB, 255 * MIB, 256 * MIB, 511 * MIB):
        disk.blob.upload_page(b"\7" * MIB, start, MIB)
    calm.faults({"verb": "GET pagelist", "status": 500, "code": "OperationTimedOut", "times": 3})
    run = platform.back_up(name)

    assert run["rangesTotal"] == 4
    assert run["bytesTotal"] == 6 * MIB
    (point,) = platform.points(name)
    with platform.blobs(calm.backup) as client:
        copied = client.get_blob_client(platform.settings["HEADS_CONTAINER"], point["blob"], snapshot=point["snapshot"])
        assert [(one.start, one.end) for one in copied.list_page_ranges()] == [
            (one.start, one.end) for one in disk.blob.list_page_ranges()
        ]
    disk.service.close()


def test_a_retention_prunes_at_the_end_of_each_backup(disk, platform, rng):
    """Two are kept, byte for byte; the others are gone from the list and from the account; increments go on."""
    request = {"source": platform.disk_url(f"{disk.name}.vhd"), "retention": {"keepLast": 2}}
    assert platform.api("PUT", f"/disks/{disk.name}", request).json()["retention"] == {"keepLast": 2, "minAgeDays": 0}
    runs = []
    for _ in range(4):
        disk.disturb(rng, 4)
        runs.append(disk.back_up())
    kept = disk.points()

    assert [run["kind"] for run in runs] == ["full"] + ["incremental"] * 3
    assert [len(run["expired"]) for run in runs] == [0, 0, 1, 1]
    assert len(kept) == 2
    disk.moments = {point["id"]: disk.moments[point["id"]] for point in kept}
    disk.check_every_point()
    with platform.blobs(platform.storage.backup) as client:
        listed = client.get_container_client(platform.settings["HEADS_CONTAINER"]).list_blobs(
            name_starts_with=disk.name, include=["snapshots"]
        )
        assert {one.snapshot for one in listed if one.snapshot} == {point["snapshot"] for point in kept}


def test_a_full_backup_by_copy_blob(calm, tmp_path, name, rng):
    """The service copies for a while by itself; the result is checked, taken over, and increments follow."""
    from devhost.platform import Platform  # noqa: PLC0415

    settings = {"FULL_COPY": "blob", "CATALOGUE_TABLE": "byblob"}
    with Platform(tmp_path, storage=calm, settings=settings) as platform:
        disk = Disk(platform, name, 16 * MIB).protect()
        disk.disturb(rng, 10)
        calm.reset()
        first = disk.back_up()
        counts = calm.counts()
        disk.disturb(rng, 5)
        second = disk.back_up()

        assert (first["kind"], second["kind"]) == ("full", "incremental")
        assert counts["PUT copy"]["requests"] == 1
        assert not {"PUT page", "PUT page-from-url"} & set(counts)
        disk.check_every_point()
        # It waits in an orchestration of its own.
        (waits,) = [one for one in platform.host.family(first["id"]) if one["name"] == "copy_blob"]
        path = f"/runtime/webhooks/durabletask/instances/{waits['instanceId']}?showHistory=true&showHistoryOutput=true"
        seen = platform.host.call("GET", path).text + platform.host.log.read_text()
        assert "check_copy" in seen
        assert "sig=" not in seen, "the signature it copies with is made inside the activity and appears nowhere else"
        disk.service.close()


def test_a_service_at_its_limits_slows_a_backup_and_fails_none(any_disk, calm, rng):
    """With a page blob's limits in small, most requests are refused at first. All succeed at last, and the point is right."""
    disk = any_disk
    disk.write(0, rng.randbytes(6 * MIB))
    for number in range(60):
        disk.write(8 * MIB + number * 64 * 1024, rng.randbytes(PAGE))
    calm.switch(limits={"requestsPerSecond": 40, "bytesPerSecond": 4 * MIB})
    disk.back_up(timeout_seconds=200)

    assert sum(count["refused"] for count in calm.counts().values()) > 20
    disk.check_every_point()


def test_a_vhd_with_an_infinite_lease_is_backed_up(disk):
    """An attached disk is leased by its VM: snapshots and reads need no lease."""
    lease = disk.blob.acquire_lease()
    disk.back_up()

    disk.check_every_point()
    assert disk.blob.get_blob_properties().lease.state == "leased"
    lease.release()


# -- timer --------------------------------------------------------------------------------------------------------


@pytest.fixture
def daily(calm, tmp_path):
    """A platform of its own whose windows are long: two firings belong to one window."""
    with Platform(tmp_path, storage=calm, settings={"CATALOGUE_TABLE": "daily", "BACKUP_SCHEDULE": "0 0 0 1 1 *"}) as running:
        yield running


def test_a_timer_fired_twice_has_one_effect(daily, name):
    disk = Disk(daily, name, MIB).protect()
    disk.write(0, b"\1" * PAGE)
    daily.host.fire("scheduled_backup")
    (window,) = daily.host.settled("fleet.")
    first = disk.points()
    daily.host.fire("scheduled_backup")
    daily.host.fire("scheduled_backup")
    time.sleep(1.0)  # nothing is expected to happen: there is no condition to await

    (again,) = daily.host.settled("fleet.")
    assert again["createdTime"] == window["createdTime"], "an orchestration that has ended is not replaced by another"
    assert disk.points() == first
    assert len(first) == 1
    assert len(daily.host.instances(f"{disk.name}.")) == 1
    disk.service.close()


def test_a_timer_that_fires_early_loses_no_window(calm, tmp_path, name):
    """The timer fires half a second early and on time in turn: each window has one fleet and one run."""
    every = timedelta(seconds=5)
    settings = {"CATALOGUE_TABLE": "early", "BACKUP_SCHEDULE": "*/5 * * * * *", EARLY: "0,0.5"}
    with Platform(tmp_path, storage=calm, settings=settings, timers="schedule") as platform:
        disk = Disk(platform, name, MIB).protect()
        disk.write(0, b"\1" * PAGE)
        fleets = awaited(
            lambda: len(found := platform.host.instances("fleet.")) >= 4 and found, "four windows", timeout_seconds=90
        )
        awaited(disk.points, "a restore point")
        disk.service.close()

    began = {datetime.fromisoformat(one["instanceId"].removeprefix("fleet.")): one["createdTime"] for one in fleets}
    assert [later - earlier for earlier, later in pairwise(sorted(began))] == [every] * (len(began) - 1)
    assert any(datetime.fromisoformat(created[:19] + "Z") < window for window, created in began.items())


def test_one_broken_disk_stops_no_other(daily, name):
    """A disk whose source is gone fails visibly, with a message; its neighbour has its point; the window shows red."""
    good, bad = Disk(daily, name, MIB).protect(), Disk(daily, f"{name}x", MIB).protect()
    good.write(0, b"\1" * PAGE)
    bad.blob.delete_blob()
    daily.host.fire("scheduled_backup")
    (fleet,) = daily.host.settled("fleet.")

    assert len(good.points()) == 1
    assert bad.points() == []
    assert fleet["runtimeStatus"] == "Failed"
    assert bad.name in fleet["output"]
    (failed,) = daily.host.instances(f"{bad.name}.")
    shown = daily.api("GET", f"/runs/{failed['instanceId']}").json()
    assert (shown["state"], shown["error"]["code"]) == ("Failed", "BlobMissing")
    assert failed["runtimeStatus"] == "Failed"
    good.service.close()
    bad.service.close()


def test_instance_ids_and_custom_status_can_be_read(disk, platform):
    disk.write(0, b"\1" * PAGE)
    run = disk.back_up()

    (instance,) = platform.host.settled(f"{disk.name}.")
    assert instance["instanceId"] == run["id"]
    assert instance["customStatus"]["disk"] == disk.name
    assert instance["customStatus"]["percent"] == 100


# -- delivered late, on the real adapters -------------------------------------------------------------------------------


def test_activities_delivered_late_change_nothing(disk, platform, calm, rng):
    """Each recorded call of an ended run is delivered again after the next run has ended: it is refused, and nothing changes."""
    import asyncio  # noqa: PLC0415

    from backup_core import bootstrap  # noqa: PLC0415
    from backup_core.activities.runner import run_step  # noqa: PLC0415
    from backup_core.steps.backup import (  # noqa: PLC0415
        COMMIT_POINT,
        DROP_PREVIOUS_SNAPSHOT,
        OPEN_HEAD,
        PRUNE_POINTS,
        TAKE_BACKUP_SNAPSHOT,
        TAKE_SOURCE_SNAPSHOT,
        VERIFY_HEAD,
        CommitPoint,
        DropPreviousSnapshot,
        PrunePoints,
        TakeBackupSnapshot,
        TakeSourceSnapshot,
        Transfer,
        VerifyHead,
    )
    from backup_core.steps.copying import (  # noqa: PLC0415
        ABORT_COPY,
        APPLY_SHARD,
        CHECK_COPY,
        START_COPY,
        TAKE_OVER_COPY,
        ApplyShard,
        CopyRef,
        TransferCounts,
    )
    from backup_core.steps.messages import Actor  # noqa: PLC0415
    from bench.services import settings_for  # noqa: PLC0415

    disk.disturb(rng, 5)
    disk.back_up()
    disk.disturb(rng, 5)
    old = disk.back_up()
    point = disk.points()[0]
    disk.disturb(rng, 5)
    disk.back_up()
    actor = Actor(
        disk=disk.name,
        run=old["id"],
        lease="00000000-0000-0000-0000-000000000001",
        epoch=2,
        source=platform.disk_url(f"{disk.name}.vhd"),
    )
    transfer = Transfer(
        actor=actor, kind="incremental", reason="late", automatic=False, generation=point["generation"], source=actor.source, destination=point["blob"], head_etag="x",
        base=point["taken"], target=point["taken"], size=disk.size, plan="gone",
    )  # fmt: skip
    copy = CopyRef(image=transfer.image, copy_id="x")
    late = [
        (TAKE_SOURCE_SNAPSHOT, TakeSourceSnapshot(actor=actor)), (OPEN_HEAD, transfer), (APPLY_SHARD, ApplyShard(image=transfer.image, shard=0)),
        (VERIFY_HEAD, VerifyHead(transfer=transfer)), (TAKE_BACKUP_SNAPSHOT, TakeBackupSnapshot(transfer=transfer, etag="x", applied=TransferCounts(), compared=0)),
        (COMMIT_POINT, CommitPoint(transfer=transfer, etag="x", backup_snapshot=point["snapshot"])),
        (DROP_PREVIOUS_SNAPSHOT, DropPreviousSnapshot(transfer=transfer)), (PRUNE_POINTS, PrunePoints(actor=actor)), (START_COPY, transfer.image),
        (CHECK_COPY, copy), (ABORT_COPY, copy), (TAKE_OVER_COPY, copy),
    ]  # fmt: skip
    before = dump(calm, platform)

    async def deliver():
        services = bootstrap.build(settings_for(calm))
        try:
            return [await run_step(step, services.tools_for, request.model_dump(mode="json")) for step, request in late]
        finally:
            await services.close()

    answers = asyncio.run(deliver())

    assert [answer["fault"]["code"] for answer in answers] == ["NotOwner"] * len(late)
    assert dump(calm, platform) == before
    disk.check_every_point()
