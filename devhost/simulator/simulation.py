"""One seeded history: a disk, its guest, backup runs, and everything that can disturb them; invariants after every step.

The scheduler decides at each port call of each activity whether it happens, fails, loses its reply, or outlives its worker.
All randomness comes from the seed, so a history is repeated by its number.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from backup_core.activities.copying import Copying
from backup_core.activities.rebuild import carry_out, survey
from backup_core.activities.runner import run_step
from backup_core.activities.tools import Limits, Tools
from backup_core.domain.ending import cancellation, dead
from backup_core.domain.errors import BlobChangedError, FencedError, ServiceUnavailableError, UnexpectedAnswerError
from backup_core.domain.metadata import from_metadata, from_point_metadata
from backup_core.domain.naming import BlobAddress, run_key
from backup_core.domain.ranges import PAGE
from backup_core.domain.records import Pin, Policy, RestorePoint, Retention, Run
from backup_core.orchestrations.backup_disk import backup_disk
from backup_core.orchestrations.copy_blob import copy_blob
from backup_core.steps import STEPS, BackupRequest
from devhost.memory.catalogue import MemoryCatalogue, MemoryDocuments
from devhost.memory.page_blobs import MemoryPageBlobs
from devhost.memory.world import World
from devhost.simulator.instance import DirectInstance, ReplayedInstance

if TYPE_CHECKING:
    from backup_core.steps import FullCopy
    from devhost.memory.driver import Task
    from devhost.simulator.instance import Instance

SOURCE, BACKUP, DISK = "https://source.test", "https://backup.test", "vm"
STEPS_PER_HISTORY = 300
REPLAYED_EVERY = 100
"""One history in so many is run through the Durable SDK's replay."""
BY_NAME = {step.name: step for step in STEPS}

_caller: contextvars.ContextVar[Call] = contextvars.ContextVar("caller")


class ViolationError(Exception):
    """An invariant does not hold."""


class WorkerCrashError(BaseException):
    """The process that ran an activity is gone; not an Exception, so that no code of the product can catch it."""


@dataclass(eq=False)
class Call:
    """One delivery of an activity. A zombie's result is wanted by nobody, but it still runs."""

    instance: Instance
    task: Task
    work: asyncio.Task[Any] | None = None
    zombie: bool = False
    held_until: int = 0
    """Step before which nothing it sent arrives: a request may be under way for a long time."""


@dataclass(eq=False)
class Gate:
    """A port call of an activity that waits for the scheduler."""

    call: Call
    name: str
    stage: str
    opened: asyncio.Future[None]


@dataclass
class Report:
    """What a history came to."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    violation: str = ""
    trace: list[str] = field(default_factory=list)


class Simulation:
    """A history being made."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        """`seed` decides everything."""
        self.seed, self.rng = seed, random.Random(seed)  # noqa: S311  replayable choices
        self.report, self._keep_trace = Report(seed), keep_trace
        self.world = World(self._before, self._after)
        self.pages = self.rng.randrange(12, 65)
        self.blobs = MemoryPageBlobs(self.world, diff="writes" if seed % 2 else "content")
        self.catalogue = MemoryCatalogue(self.world)
        limits = Limits(
            shard_bytes_max=self.rng.choice([2, 4, 1000]) * PAGE,
            shard_requests_max=self.rng.choice([2, 1000]),
            in_flight=self.rng.choice([1, 2, 4]),
            # On these tiny disks 300 samples would read everything, and so hide what the protocol itself must prevent.
            samples_min=1,
            window_bytes=self.rng.choice([5, 16, 1000]) * PAGE,
            windows_ahead=self.rng.choice([1, 3]),
            wave_requests=self.rng.choice([1, 2, 5]),
            shard_seconds=self.rng.choice([1, 100]),
        )
        documents = MemoryDocuments(self.world)
        replayed = seed % REPLAYED_EVERY == 0
        self.full_copy: FullCopy = "blob" if not replayed and self.rng.random() < 0.3 else "pages"
        self.blobs.copies_held = True
        if self.full_copy == "pages" and self.rng.random() < 0.3:
            self.blobs.unreachable.add(SOURCE)
        copying = Copying(self.blobs, self.rng.choice(["auto", "stream"]), lambda: 0.0)
        clock = itertools.count().__next__
        self.tools = Tools(self.blobs, self.catalogue, documents, (SOURCE,), BACKUP, "heads", clock, copying, limits)
        self.source = BlobAddress(SOURCE, "vhds", "vm.vhd")
        self.blobs.put(self.source, self.pages * PAGE)
        self.retention = Retention(self.rng.choice([1, 2, 4])) if self.rng.random() < 0.6 else None
        policy = Policy(DISK, self.source.url, "", self.world.now, self.world.now, retention=self.retention)
        self.catalogue.rows[DISK, "policy"] = self.catalogue.rows.get((DISK, "policy")) or _versioned(policy, self.world)
        self.instances: list[Instance] = []
        self.children: dict[DirectInstance, tuple[Instance, Task]] = {}
        """Sub-orchestrations, and the task of another that waits for each."""
        self.calls: list[Call] = []
        self.gates: list[Gate] = []
        self.quiet = False
        self._runs = 0
        self._now = 0
        # What is known to be true.
        self.truth: dict[str, bytes] = {}
        self.seen: dict[str, RestorePoint] = {}
        self.pins: list[tuple[str, str]] = []
        """(point, run) of every pin ever set."""
        self.leases: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.deleted_by_others: set[str] = set()
        self.altered_by_others = False
        self.early: ViolationError | None = None
        """A violation seen inside an activity, which would take it for a fault of its own."""

    # -- gates ----------------------------------------------------------------------------------------------------

    async def _before(self, name: str) -> None:
        if name == "delete_point":
            # A point is not lost whose deletion was seen and right.
            try:
                self._check_rows()
            except ViolationError as violation:
                self.early = self.early or violation
        await self._gate(name, "before")

    async def _after(self, name: str) -> None:
        if name == "snapshot":
            self._learn()
        await self._gate(name, "after")

    async def _gate(self, name: str, stage: str) -> None:
        call = _caller.get(None)
        if call is None:
            return  # the simulation itself asks
        if self.rng.random() > _worth(call.task.name, name, stage):
            return
        gate = Gate(call, name, stage, asyncio.get_running_loop().create_future())
        self.gates.append(gate)
        await gate.opened

    async def _settled(self) -> None:
        # Everything released has come to its next gate when the loop has nothing left to run.
        loop: Any = asyncio.get_running_loop()
        await asyncio.sleep(0)
        while loop._ready:  # noqa: SLF001, ASYNC110  the loop has no public word for being idle
            await asyncio.sleep(0)
        self.gates = [gate for gate in self.gates if not gate.opened.done()]
        for call in [call for call in self.calls if call.work and call.work.done()]:
            self.calls.remove(call)
            self._finished(call)
        for child, (parent, task) in list(self.children.items()):
            if child.ended:
                del self.children[child]
                parent.settle(task, child.output, child.error)
        for instance in self.instances:  # grows while sub-orchestrations begin
            self._deliver(instance)

    def _finished(self, call: Call) -> None:
        assert call.work is not None
        if call.zombie or call.work.cancelled():
            return
        error = call.work.exception()
        if isinstance(error, WorkerCrashError):
            return  # the call was delivered again when the worker crashed
        if not self.quiet and self.rng.random() < 0.02:
            self._count("crash before checkpoint")
            self._start_call(call.instance, call.task)
            return
        self._note(f"{call.task.name} -> {error or _short(call.work.result())}")
        call.instance.settle(call.task, None if error else call.work.result(), error if isinstance(error, Exception) else None)

    def _deliver(self, instance: Instance) -> None:
        under_way = {id(call.task) for call in self.calls if not call.zombie}
        for task in list(instance.waiting):
            if task.kind == "activity" and id(task) not in under_way:
                self._start_call(instance, task)
            if task.kind == "sub" and all(known is not task for _, known in self.children.values()):
                self._count("sub-orchestrations")
                child = DirectInstance(copy_blob, task.input, task.instance, lambda: self.world.now, task.instance)
                self.children[child] = (instance, task)
                self.instances.append(child)

    def _start_call(self, instance: Instance, task: Task, *, zombie: bool = False) -> None:
        call = Call(instance, task, zombie=zombie)
        context = contextvars.copy_context()
        context.run(_caller.set, call)
        work = run_step(BY_NAME[task.name], self.tools, task.input)
        call.work = asyncio.get_running_loop().create_task(work, context=context)
        self.calls.append(call)

    # -- the history ------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Make the history; the report carries the first violation."""
        try:
            for self._now in range(STEPS_PER_HISTORY):
                self._step()
                await self._settled()
                self._check()
            await self._come_to_rest()
            await self._must_back_up()
            await self._must_rebuild()
        except ViolationError as violation:
            self.report.violation = str(violation)
        finally:
            for call in self.calls:
                if call.work:
                    call.work.cancel()
            await asyncio.sleep(0)
            await asyncio.gather(*(call.work for call in self.calls if call.work), return_exceptions=True)
        self.report.counts["points"] = len(self.seen)
        return self.report

    def _step(self) -> None:
        ready = [gate for gate in self.gates if gate.call.held_until <= self._now]
        actions: list[tuple[float, Callable[[], None]]] = [
            (6, self._guest),
            (1.6, self._begin_run),
            (0.5, self._pass_time),
            (0.25, self._third_party),
            (0.25, self._terminate),
            (0.15, self._listing_lies),
            (0.1, self._cancel),
            (0.2, self._pin),
            (0.1, self._unpin),
            (0.5, self._copies_arrive),
            (0.6, self._duplicate),
            (50 if ready else 0, lambda: self._open_gate(ready)),
            (3 if ready else 0, lambda: self._disturb_gate(ready)),
            (3, self._fire_timer),
        ]
        weights = [weight for weight, _ in actions]
        self.rng.choices([action for _, action in actions], weights)[0]()

    def _open_gate(self, ready: list[Gate]) -> None:
        gate = self.rng.choice(ready)
        gate.opened.set_result(None)

    def _disturb_gate(self, ready: list[Gate]) -> None:
        kind = self.rng.choices(["unavailable", "worker crash", "zombie", "refused", "unknown 409"], (5, 5, 5, 1, 1))[0]
        # A put that outlives its run is what fences are for: requests under way are lost there first.
        puts = [gate for gate in ready if gate.stage == "before" and gate.name in ("write", "copy_from_url", "clear")]
        gate = self.rng.choice(puts if kind == "zombie" and puts else ready)
        self._count(f"{kind} {gate.stage} effect")
        self._note(f"!! {kind} {gate.stage} {gate.name} of {gate.call.task.name}")
        message = f"injected {gate.stage} {gate.name}"
        if kind == "unavailable":
            gate.opened.set_exception(ServiceUnavailableError(message))
        elif kind == "unknown 409":
            gate.opened.set_exception(UnexpectedAnswerError(message))
        elif kind == "refused":
            gate.opened.set_exception(self.rng.choice([FencedError, BlobChangedError])(message))
        elif kind == "worker crash":
            self._crash(gate.call)
        else:
            # The worker is gone for the extension, which delivers again; what it had sent may still arrive, and more.
            self._abandon(gate.call)

    def _crash(self, call: Call) -> None:
        assert call.work is not None
        zombie, call.zombie = call.zombie, True
        call.work.cancel()
        if not zombie:
            self._start_call(call.instance, call.task)

    def _abandon(self, call: Call) -> None:
        call.held_until = self._now + self.rng.randrange(200)
        if not call.zombie:
            call.zombie = True
            self._start_call(call.instance, call.task)

    def _duplicate(self) -> None:
        """An activity is delivered a second time while it runs."""
        live = [call for call in self.calls if not call.zombie]
        if live:
            call = self.rng.choice(live)
            self._count("duplicate delivery")
            self._start_call(call.instance, call.task, zombie=True)

    def _terminate(self) -> None:
        """Somebody terminates an orchestration in the portal; its activities run on."""
        if self.instances:
            instance = self.instances.pop(self.rng.randrange(len(self.instances)))
            self._count("orchestration terminated")
            self._note(f"!! {instance.id} terminated")
            for call in self.calls:
                if call.instance is instance:
                    call.zombie = True
                    call.held_until = self._now + self.rng.randrange(200)

    def _copies_arrive(self) -> None:
        """The service ends a pending copy, nearly always well."""
        pending = [address for address, blob in self.blobs.blobs.items() if blob.arriving]
        if pending:
            status: Literal["success", "failed"] = "success" if self.quiet or self.rng.random() < 0.9 else "failed"
            self._count(f"copy ends: {status}")
            self.blobs.end_copy(self.rng.choice(pending), status)

    def _pin(self) -> None:
        """A restore begins to use a point; it gives no further sign of life."""
        points = [(key, row.value) for (_, key), row in self.catalogue.rows.items() if key.startswith("point!")]
        available = [(key, point) for key, point in points if point.state == "available"]
        if available:
            key, point = self.rng.choice(available)
            number = len(self.pins)
            run = f"{DISK}.20260103T{number // 60:02d}{number % 60:02d}00Z.timer"
            self._count("points pinned")
            self._note(f"!! {run} pins {point.point}")
            row = Run(DISK, run, "Running", "http", full=False, created=self.world.now)
            # One transaction: the row of the run, the pin, and a new version of the point.
            for value, at in ((row, run_key(run)), (Pin(DISK, point.point, run), f"pin!{point.point}!{run}"), (point, key)):
                self.catalogue._store(value, at)  # noqa: SLF001  as a restore does
            self.pins.append((point.point, run))

    def _unpin(self) -> None:
        """A restore ends; its pin is left behind."""
        if self.pins:
            _, run = self.rng.choice(self.pins)
            row = self.catalogue.rows[DISK, run_key(run)].value
            if not row.ended_for_good:
                self.catalogue._store(replace(row, state="Canceled"), run_key(run))  # noqa: SLF001  as a restore does

    def _cancel(self) -> None:
        """An operator cancels a run."""
        rows = [(key, row) for (_, key), row in self.catalogue.rows.items() if key.startswith("run!")]
        open_ = [(key, row) for key, row in rows if not row.value.ended_for_good]
        if open_:
            key, row = self.rng.choice(open_)
            self._count("run canceled")
            self._note(f"!! {row.value.run} canceled")
            self.catalogue._store(cancellation(row, self.world.now, self.world.now), key)  # noqa: SLF001  as the API does

    def _fire_timer(self) -> None:
        timers = [(instance, task) for instance in self.instances for task in instance.waiting if task.kind == "timer"]
        if timers:
            instance, task = self.rng.choice(timers)
            self.world.pass_time(timedelta(seconds=5))
            instance.settle(task)

    def _guest(self) -> None:
        """The virtual machine writes or trims; now and then explicit zeros."""
        blob = self.blobs.blobs[self.source]
        size = blob.size // PAGE
        first = self.rng.randrange(size)
        count = min(self.rng.randrange(1, 6), size - first)
        values = [None if self.rng.random() < 0.3 else bytes([self.rng.randrange(4)]) * PAGE for _ in range(count)]
        self.blobs.poke(self.source, first, values)

    def _begin_run(self) -> None:
        self.instances = [instance for instance in self.instances if not instance.ended]
        if len(self.instances) >= 2:
            return
        if self._runs and self.rng.random() < 0.15:
            self._count("timer fired twice")
        else:
            self._runs += 1
        run = f"{DISK}.20260101T{self._runs // 60 % 24:02d}{self._runs % 60:02d}00Z.timer"
        window = f"2026-01-01T{self._runs // 60 % 24:02d}:{self._runs % 60:02d}:00+00:00"
        full = self.rng.random() < 0.08
        self._start_run(run, window=window, full=full, skew=timedelta(minutes=self.rng.choice([0, 0, 60, -60])))

    def _start_run(self, run: str, *, window: str, full: bool, skew: timedelta = timedelta()) -> None:
        request = BackupRequest(
            disk=DISK,
            run=run,
            trigger="timer",
            full=full,
            window=window,
            wave=self.rng.choice([1, 2, 4]),
            full_copy=self.full_copy,
        )
        kind = ReplayedInstance if self.seed % REPLAYED_EVERY == 0 else DirectInstance

        def clock() -> datetime:
            return self.world.now + skew

        self._count("runs")
        self._note(f"-- {run}{' full' if full else ''}")
        number = self.report.counts["runs"]
        self.instances.append(kind(backup_disk, request.model_dump(mode="json"), run, clock, f"{self.seed}:{number}"))

    def _pass_time(self) -> None:
        self.world.pass_time(timedelta(minutes=self.rng.choice([1, 5, 16, 60])))

    def _third_party(self) -> None:
        """Somebody else: breaks a lease, deletes a source snapshot, overwrites, resizes, touches the head."""
        head_row = self.catalogue.rows.get((DISK, "head"))
        name = head_row.value.head if head_row else ""
        head = self.blobs.blobs.get(self.tools.head(name)) if name else None
        source = self.blobs.blobs[self.source]
        act = self.rng.choice(["break lease", "delete S", "overwrite", "grow", "shrink", "alter head"])
        self._count(f"third party: {act}")
        self._note(f"!! third party: {act}")
        if act == "break lease" and head:
            head.lease = ""
        elif act == "delete S" and source.snapshots:
            victim = self.rng.choice(sorted(source.snapshots))
            self.deleted_by_others.add(victim)
            del source.snapshots[victim]
        elif act == "overwrite":
            fresh = self.blobs.put(self.source, source.size)
            fresh.snapshots = source.snapshots
            fresh.created = self.world.now + timedelta(microseconds=1)
            self.world.tick()
        elif act in ("grow", "shrink"):
            self._resize(source, 4 if act == "grow" else -2)
        elif act == "alter head" and head and not head.lease:
            # Only an unleased head can be written by a stranger; what it then holds must never become a point.
            self.altered_by_others = True
            self.blobs.poke(self.tools.head(name), 1, [b"\xee" * PAGE])

    def _listing_lies(self) -> None:
        """Once, the service leaves a newly allocated range out of a diff: what no protocol can prevent must be verified."""
        # Under a content diff the maps of head and source may differ harmlessly, and only samples could tell.
        if self.blobs.lies == 0 and self.blobs.diff_kind == "writes":
            self._count("a diff hides an allocation")
            self.blobs.lies = 1

    def _resize(self, source: Any, pages: int) -> None:  # noqa: ANN401  a Blob
        size = source.size + pages * PAGE
        if 8 * PAGE <= size <= 80 * PAGE:
            for page in [page for page in source.pages if page * PAGE >= size]:
                self.blobs.poke(self.source, page, [None])
            source.size = size

    # -- coming to rest -----------------------------------------------------------------------------------------------

    async def _come_to_rest(self) -> None:
        """No more disturbance: everything under way ends."""
        self.quiet = True
        self.blobs.lies = 0
        for _ in range(20_000):
            await self._settled()
            self.instances = [instance for instance in self.instances if not instance.ended]
            if self.gates:
                self._open_gate(self.gates)
            elif any(blob.arriving for blob in self.blobs.blobs.values()):
                self._copies_arrive()
            elif any(task.kind == "timer" for instance in self.instances for task in instance.waiting):
                self._fire_timer()
            elif not self.calls:
                break
        else:
            message = "the runs under way never end"
            raise ViolationError(message)
        self._check(everything=True)

    async def _must_back_up(self) -> None:
        """After every disturbance an undisturbed run brings a point that equals the disk.

        It may fail only for a reason: a head that a stranger altered is found once, and a third automatic full waits.
        """
        full = False
        for _ in range(4):
            self.world.pass_time(timedelta(minutes=20))
            self._runs += 1
            content = self.blobs.blobs[self.source].content()
            run = f"{DISK}.20260102T0000{self._runs % 60:02d}Z.timer"
            self._start_run(run, window="", full=full)
            await self._come_to_rest()
            points = sorted(self.seen.values(), key=lambda point: point.source_snapshot)
            if points and points[-1].run == run and self._bytes(points[-1]) == content:
                return
            row = next(row.value for (_, key), row in self.catalogue.rows.items() if key.endswith(run))
            code = row.error.code if row.error else row.state
            full = code == "TooManyAutomaticFulls"
            if not full and not (code == "VerificationMismatch" and self.altered_by_others):
                self._violated(f"an undisturbed run brought no point equal to the disk: {code} {row.error}")
        self._violated("undisturbed runs go on failing")

    async def _must_rebuild(self) -> None:
        """Rows that are lost come back exactly; what else is found is a verified image that was never committed."""
        rows = {key: row.value for key, row in self.catalogue.rows.items() if key[1].startswith(("point!", "head"))}
        # A row on its way out is not brought back.
        before = {key: row for key, row in rows.items() if key[1] == "head" or row.state == "available"}
        for key in before:
            if self.rng.random() < 0.6:
                del self.catalogue.rows[key]
        await carry_out(self.tools, await survey(self.tools, DISK))
        self._count("rebuilds")
        after = {key: self.catalogue.rows[key].value for key in before if key in self.catalogue.rows}
        extra = {key: row.value for key, row in self.catalogue.rows.items() if key[1].startswith("point!") and key not in rows}
        for point in extra.values():
            self._check_point(point)
        if after != before:
            lost = [key for key in before if after.get(key) != before[key]]
            self._violated(f"invariant 12: rows did not come back as they were: {lost[:3]}")

    # -- invariants -----------------------------------------------------------------------------------------------------

    def _check(self, *, everything: bool = False) -> None:
        if self.early:
            raise self.early
        self._learn()
        points = self._check_rows(everything=everything)
        if len({point.source_snapshot for point in points.values()}) != len(points):
            self._violated("invariant 11: one source snapshot has two restore points")
        self._check_head(points)
        self._check_runs()

    def _check_rows(self, *, everything: bool = False) -> dict[str, RestorePoint]:
        """Points come once, stay as they are, and go only when they may."""
        points = {key: row.value for (_, key), row in self.catalogue.rows.items() if key.startswith("point!")}
        for key, point in points.items():
            known = self.seen.get(key)
            if known and known != point:
                if replace(known, state="deleting") != point:
                    self._violated(f"invariant 11: restore point {point.point} was changed")
                self._check_expired(point, points)
            self.seen[key] = point
            if point.state == "available" and (not known or everything):
                self._check_point(point)
        for key in set(self.seen) - set(points):
            if self.seen.pop(key).state != "deleting":
                self._violated("invariant 11: a restore point was lost")
            self._count("points expired")
        return points

    def _learn(self) -> None:
        """What each source snapshot holds, as soon as it exists."""
        for name, snapshot in self.blobs.blobs[self.source].snapshots.items():
            if name not in self.truth:
                self.truth[name] = snapshot.content()

    def _bytes(self, point: RestorePoint) -> bytes:
        blob = self.blobs.blobs.get(self.tools.head(point.head))
        if blob is None or point.backup_snapshot not in blob.snapshots:
            self._violated(f"invariant 1: the backup snapshot of {point.point} is gone")
            raise AssertionError
        return blob.snapshots[point.backup_snapshot].content()

    def _check_point(self, point: RestorePoint) -> None:
        if self._bytes(point) != self.truth[point.source_snapshot]:
            self._violated(f"invariant 1: restore point {point.point} ({point.reason}) differs from its source snapshot")
        carried = self.blobs.blobs[self.tools.head(point.head)].snapshots[point.backup_snapshot].metadata
        if from_point_metadata(carried, point.head, point.backup_snapshot) != point:
            self._violated(f"invariant 12: the metadata of {point.point} does not describe it")

    def _check_expired(self, point: RestorePoint, points: dict[str, RestorePoint]) -> None:
        """A point may only go when the disk has a retention and enough newer ones stay, the common pair's among them."""
        newer = [one for one in points.values() if one.source_snapshot > point.source_snapshot and one.state == "available"]
        if self.retention is None or len(newer) < self.retention.keep_last:
            self._violated(f"invariant 19: restore point {point.point} expired with {len(newer)} newer ones")
        for pinned, run in self.pins:
            row = self.catalogue.rows[DISK, run_key(run)]
            if pinned == point.point and not row.value.ended_for_good and not dead(row, self.world.now):
                self._violated(f"invariant 19: restore point {point.point} expired while run {run} used it")
        pair = self.catalogue.rows[DISK, "head"].value.pair
        if pair and pair.point == point.point:
            self._violated(f"invariant 19: restore point {point.point} of the common pair expired")

    def _check_head(self, points: dict[str, RestorePoint]) -> None:
        row = self.catalogue.rows.get((DISK, "head"))
        if row is None:
            return
        head = row.value
        if head.owner:
            holder = self.leases.setdefault(head.owner.lease, head.owner.run)
            if holder != head.owner.run:
                self._violated("invariant 7: two runs have the same lease id")
        if head.pair is None:
            return
        newest = max(points.values(), key=lambda point: point.source_snapshot)
        if head.pair.point != newest.point:
            self._violated("invariant 10: the common pair is not the newest restore point")
        pair_exists = head.pair.source_snapshot in self.blobs.blobs[self.source].snapshots
        if not pair_exists and head.pair.source_snapshot not in self.deleted_by_others:
            self._violated("invariant 2: the source snapshot of the common pair was deleted by the app")
        blob = self.blobs.blobs.get(self.tools.head(head.head))
        if blob is None or self.altered_by_others:
            return
        mark = from_metadata(blob.metadata)
        clean = blob.content() == self._bytes(newest)
        if not clean and (mark is None or mark.target == head.pair.source_snapshot):
            self._violated("invariant 3: the head was changed without a durable intent")

    def _check_runs(self) -> None:
        for (_, key), row in self.catalogue.rows.items():
            if not key.startswith("run!"):
                continue
            run = row.value
            if self.ended.get(run.run, run.state) != run.state:
                self._violated(f"invariant 14: run {run.run} was {self.ended[run.run]} and is {run.state} now")
            if run.ended_for_good:
                self.ended[run.run] = run.state
                if run.state == "Succeeded" and not run.points:
                    self._violated(f"invariant 21: run {run.run} succeeded without a restore point")

    # -- words ----------------------------------------------------------------------------------------------------------

    def _violated(self, what: str) -> None:
        raise ViolationError(what)

    def _count(self, what: str) -> None:
        self.report.counts[what] += 1

    def _note(self, line: str) -> None:
        if self._keep_trace:
            self.report.trace.append(f"{self.world.ticks:>12}  {line}")


_READS = frozenset({"pins"}) | frozenset(
    {"now", "properties", "snapshots", "allocated", "diff", "read", "get_row", "points", "get_document", "disks"}
)


def _worth(step: str, name: str, stage: str) -> float:
    """How often a port call waits for the scheduler: effects always, their replies often, reads and progress seldom."""
    if step == "report_progress":
        return 0.05
    if name in _READS:
        return 0.1
    return 1.0 if stage == "before" else 0.5


def _versioned(row: Any, world: World) -> Any:  # noqa: ANN401  any record
    from backup_core.domain.records import Versioned  # noqa: PLC0415

    return Versioned(row, "W/0", world.now)


def _short(answer: dict[str, Any]) -> str:
    if answer.get("fault"):
        return f"{answer['fault']['code']}: {answer['fault']['message'][:100]}"
    return ", ".join(
        f"{key}={value}" for key, value in (answer["value"] or {}).items() if isinstance(value, (int, str)) and value
    )[:140]


def simulate(seed: int, *, keep_trace: bool = False) -> Report:
    """Make the history of `seed`."""
    return asyncio.run(Simulation(seed, keep_trace=keep_trace).run())
