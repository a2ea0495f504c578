"""An orchestration's history stays small whatever the disk's size: 8 TiB, replayed by the SDK over stubbed activities."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from backup_core.domain.ranges import DISK_BYTES_MAX, GIB
from backup_core.orchestrations.backup_disk import backup_disk
from backup_core.steps.backup import BackupRequest
from devhost.simulator.instance import ReplayedInstance

HISTORY_BYTES_MAX = 64 * 1024
SHARDS = DISK_BYTES_MAX // GIB
SNAPSHOT = "2026-01-01T00:00:00.0000000Z"
NAME = "a-disk-with-a-name-as-long-as-names-may-be-" + "x" * 20


def stub(name, asked):
    """What each activity would answer for a full copy of a disk in shards of 1 GiB."""
    answers = {
        "begin": {"state": "go", "epoch": 7, "source": f"https://account.blob.core.windows.net/vhds/{NAME}.vhd", "kind": "full",
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
        offset = min(asked["offset"] + 512 * GIB, DISK_BYTES_MAX)
        turn = offset == DISK_BYTES_MAX
        value = {"content": asked["content"] or turn, "offset": 0 if turn and not asked["content"] else offset, "chain": "a" * 64,
                 "etag": '"0x8DEADBEEFCAFE00"', "compared": 1, "done": asked["content"] and turn}  # fmt: skip
        return {"value": value, "fault": None}
    return {"value": answers.get(name, {}), "fault": None}


def slow(name, asked, calls):
    """A throttled service: each shard is called ten times before it is done."""
    if name != "apply_shard":
        return stub(name, asked)
    calls[asked["shard"]] += 1
    value = {
        "applied": {"write_bytes": GIB // 10 * calls[asked["shard"]], "puts": 25},
        "at": 1,
        "done": calls[asked["shard"]] >= 10,
    }
    return {"value": value, "fault": None}


def test_a_slow_service():
    """Shards that have to be called again and again count as calls: the history stays as small."""
    request = BackupRequest(disk=NAME, run=f"{NAME}.20260101T000000Z.timer", trigger="timer", wave=16)
    instance = ReplayedInstance(
        backup_disk, request.model_dump(mode="json"), request.run, lambda: datetime(2026, 1, 1, tzinfo=UTC), "slow"
    )
    calls, largest = Counter(), 0
    while not instance.ended and len(calls) < 200:
        instance.settle_all([(task, slow(task.name, task.input, calls)) for task in instance.waiting])
        largest = max(largest, instance.history_bytes)

    print(f"{instance.executions} executions, largest history {largest:,} bytes")
    assert instance.executions > 30
    assert largest < HISTORY_BYTES_MAX
    assert set(calls) == set(range(len(calls))), "no shard is left out"
    assert sum(calls.values()) < 11 * len(calls) + 50 * instance.executions


def test_an_eight_tebibyte_disk():
    """Every execution's history is below 64 KiB, and every shard is applied exactly once."""
    request = BackupRequest(disk=NAME, run=f"{NAME}.20260101T000000Z.timer", trigger="timer", wave=16)
    instance = ReplayedInstance(
        backup_disk, request.model_dump(mode="json"), request.run, lambda: datetime(2026, 1, 1, tzinfo=UTC), "history"
    )
    applied, largest = [], 0
    while not instance.ended:
        applied += [task.input["shard"] for task in instance.waiting if task.name == "apply_shard"]
        instance.settle_all([(task, stub(task.name, task.input)) for task in instance.waiting])
        largest = max(largest, instance.history_bytes)

    print(f"{instance.executions} executions, largest history {largest:,} bytes")
    assert applied == list(range(SHARDS))
    assert largest < HISTORY_BYTES_MAX
