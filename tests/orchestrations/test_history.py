"""An orchestration's history stays small whatever the disk's size: 8 TiB, replayed by the SDK over stubbed activities."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from backup_core.domain.ranges import DISK_BYTES_MAX, GIB
from backup_core.orchestrations.backup_disk import backup_disk
from backup_core.orchestrations.copy_image import copy_image
from backup_core.orchestrations.repoint_machine import repoint_machine
from backup_core.orchestrations.wait_for_disk import wait_for_disk
from backup_core.steps.backup import BackupRequest
from backup_core.steps.copying import ImageCopy
from backup_core.steps.messages import Actor
from backup_core.steps.restore import CopyImageRequest, RepointRequest, WaitRequest
from tests.doubles.replayed import ReplayedInstance

pytestmark = pytest.mark.slow

HISTORY_BYTES_MAX = 64 * 1024
SHARDS = DISK_BYTES_MAX // GIB
SNAPSHOT = "2026-01-01T00:00:00.0000000Z"
NAME = "a-disk-with-a-name-as-long-as-names-may-be-" + "x" * 20


def stub(name, request):
    """The answer of each activity for a full copy of a disk in shards of 1 GiB."""
    answers = {
        "begin_backup": {"state": "go", "epoch": 7, "source": f"https://account.blob.core.windows.net/vhds/{NAME}.vhd", "kind": "full",
                  "reason": "first backup", "generation": 7, "head": f"{NAME}/000007-{NAME}.20260101T000000Z.timer/disk.vhd"},
        "take_source_snapshot": {"snapshot": SNAPSHOT, "size": DISK_BYTES_MAX},
        "plan_transfer": {"plan": f"{NAME}/plan.json", "shards": SHARDS, "write_bytes": DISK_BYTES_MAX, "ranges": 10**6, "requests": SHARDS * 256},
        "open_head": {"etag": '"0x8DEADBEEFCAFE00"'},
        "apply_shard": {"applied": {"write_bytes": GIB, "puts": 256, "streamed_bytes": GIB}, "at": GIB, "done": True},
        "take_backup_snapshot": {"snapshot": SNAPSHOT},
        "commit_point": {"point": "20260101T0000000000000Z"},
        "report_progress": {"percent": 50, "cancel": False},
    }  # fmt: skip
    if name == "verify_head":
        offset = min(request["offset"] + 512 * GIB, DISK_BYTES_MAX)
        turn = offset == DISK_BYTES_MAX
        value = {"content": request["content"] or turn, "offset": 0 if turn and not request["content"] else offset, "chain": "a" * 64,
                 "etag": '"0x8DEADBEEFCAFE00"', "compared": 1, "done": request["content"] and turn}  # fmt: skip
        return {"value": value, "fault": None}
    return {"value": answers.get(name, {}), "fault": None}


def slow(name, request, calls):
    """A throttled service: each shard is called ten times before it is done."""
    if name != "apply_shard":
        return stub(name, request)
    calls[request["shard"]] += 1
    value = {
        "applied": {"write_bytes": GIB // 10 * calls[request["shard"]], "puts": 25},
        "at": 1,
        "done": calls[request["shard"]] >= 10,
    }
    return {"value": value, "fault": None}


def test_a_slow_service_keeps_the_history_small():
    """Repeated calls of a shard count as calls: the history stays as small."""
    request = BackupRequest(disk=NAME, run=f"{NAME}.20260101T000000Z.timer", trigger="timer", wave=16)
    instance = ReplayedInstance(
        backup_disk, request.model_dump(mode="json"), request.run, lambda: datetime(2026, 1, 1, tzinfo=UTC), "slow"
    )
    instance.begin()
    calls, largest = Counter(), 0
    while not instance.ended and len(calls) < 200:
        instance.settle_all([(task, slow(task.name, task.input, calls)) for task in instance.waiting])
        largest = max(largest, instance.history_bytes)

    print(f"{instance.executions} executions, largest history {largest:,} bytes")
    assert instance.executions > 30
    assert largest < HISTORY_BYTES_MAX
    assert set(calls) == set(range(len(calls))), "no shard is left out"
    assert sum(calls.values()) < 11 * len(calls) + 50 * instance.executions


def test_the_history_of_an_eight_tebibyte_disk_stays_small():
    """Every execution's history is below 64 KiB, and every shard is applied exactly once."""
    request = BackupRequest(disk=NAME, run=f"{NAME}.20260101T000000Z.timer", trigger="timer", wave=16)
    instance = ReplayedInstance(
        backup_disk, request.model_dump(mode="json"), request.run, lambda: datetime(2026, 1, 1, tzinfo=UTC), "history"
    )
    instance.begin()
    applied, largest = [], 0
    while not instance.ended:
        applied += [task.input["shard"] for task in instance.waiting if task.name == "apply_shard"]
        instance.settle_all([(task, stub(task.name, task.input)) for task in instance.waiting])
        largest = max(largest, instance.history_bytes)

    print(f"{instance.executions} executions, largest history {largest:,} bytes")
    assert applied == list(range(SHARDS))
    assert largest < HISTORY_BYTES_MAX


# -- restores -------------------------------------------------------------------------------------------------------

RUN = f"{NAME}.20260101T000000Z.0123abcd"
BY = Actor(
    disk=NAME, run=RUN, lease="1" * 36, epoch=0, source=f"https://account.blob.core.windows.net/vhds/{NAME}.vhd", pin="p" * 22
)


LOOKS = 300
AS_IN_BACKUPS = {"compare_image": "verify_head", "open_image": "open_head"}


def replayed(orchestrate, request, name):
    clock = itertools.count()
    instance = ReplayedInstance(
        orchestrate,
        request.model_dump(mode="json"),
        name,
        lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=next(clock)),
        "x",
    )
    instance.begin()
    return instance


def test_the_history_of_a_restored_image_of_eight_tebibytes_stays_small():
    image = ImageCopy(
        actor=BY, source=f"{NAME}/000007-{RUN}/disk.vhd", target=SNAPSHOT, destination=BY.source.replace(".vhd", "-restored.vhd"),
        becomes="disk", kind="restored", generation=0, size=DISK_BYTES_MAX,
    )  # fmt: skip
    request = CopyImageRequest(image=image, wave=16, full_copy="pages", verification="full")
    instance, applied, largest = replayed(copy_image, request, f"{RUN}~d1~i1"), [], 0
    while not instance.ended:
        applied += [task.input["shard"] for task in instance.waiting if task.name == "apply_shard"]
        instance.settle_all([(task, stub(AS_IN_BACKUPS.get(task.name, task.name), task.input)) for task in instance.waiting])
        largest = max(largest, instance.history_bytes)

    print(f"{instance.executions} executions, largest history {largest:,} bytes")
    assert applied == list(range(SHARDS))
    assert largest < HISTORY_BYTES_MAX


@pytest.mark.parametrize("what", ["repoint", "wait"])
def test_the_history_of_a_restore_that_waits_for_days_stays_small(what):
    """An outage of Resource Manager, or a backup of a huge disk, means hundreds of reads and a small history at any time."""
    looks, largest = 0, 0
    if what == "repoint":
        instance = replayed(
            repoint_machine, RepointRequest(actor=BY, change=f"{NAME}/{RUN}/machine.json", goal="new"), f"{RUN}~d1~m1"
        )
    else:
        instance = replayed(wait_for_disk, WaitRequest(actor=BY), f"{RUN}~d1~q1")

    def answer(task):
        nonlocal looks
        if task.kind == "timer":
            return None
        if task.name == "report_progress":
            return {"value": {"percent": 97, "cancel": False}, "fault": None}
        looks += 1
        if looks < LOOKS:
            if task.name == "own_disk":
                return {"value": {"state": "waiting", "busy": RUN}, "fault": None}
            return {"value": {"done": False, "move": "wait", "holds": "nothing", "power": "running"}, "fault": None}
        if task.name == "own_disk":
            return {"value": {"state": "owned", "epoch": 9}, "fault": None}
        return {"value": {"done": True, "move": "none", "holds": "new", "power": "running"}, "fault": None}

    while not instance.ended:
        instance.settle_all([(task, answer(task)) for task in list(instance.waiting)])
        largest = max(largest, instance.history_bytes)

    print(f"{looks} looks, {instance.executions} executions, largest history {largest:,} bytes")
    assert looks == LOOKS
    assert largest < HISTORY_BYTES_MAX
