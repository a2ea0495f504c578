"""One seeded history: a disk, its guest and its machine, backups and restores, and everything that can disturb them.

The scheduler decides at each port call of each activity whether it happens, fails, loses its reply, or outlives its worker.
Invariants are checked after every step. All randomness comes from the seed, so a history is repeated by its number.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from backup_core.activities.rebuild import carry_out, survey
from backup_core.activities.runner import run_step
from backup_core.activities.watch import watch
from backup_core.domain.errors import (
    BlobChangedError,
    FencedError,
    MachineBusyError,
    MachineChangedError,
    MachineRefusedError,
    ServiceUnavailableError,
    UnexpectedAnswerError,
)
from backup_core.domain.events import DiskTidied, RunEnded
from backup_core.domain.status import RUNS_LOOKED_AT
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.steps import STEPS
from backup_core.steps.backup import BackupRequest
from backup_core.steps.housekeeping import HouseRequest
from backup_core.steps.restore import RestoreRequest
from devhost.memory.instance import DirectInstance, ReplayedInstance
from devhost.simulator.actors import Actors
from devhost.simulator.invariants import Invariants
from devhost.simulator.stage import DISK, Report, Stage, ViolationError

if TYPE_CHECKING:
    from backup_core.domain.records import Run
    from devhost.memory.instance import Instance, Task


STEPS_PER_HISTORY = 300
BY_NAME = {step.name: step for step in STEPS}
LATE_CALLS = frozenset({"write", "copy_from_url", "clear", "put_disk"})
"""Requests that may arrive long after whoever sent them is dead."""
MACHINE_CALLS = frozenset({"put_disk", "deallocate", "start"})

_caller: contextvars.ContextVar[Call] = contextvars.ContextVar("caller")


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


class Simulation:
    """A history being made."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        """`seed` decides everything."""
        self.stage = Stage(seed, self._before, self._after, keep_trace=keep_trace)
        self.rng, self.world = self.stage.rng, self.stage.world
        self.actors, self.invariants = Actors(self.stage), Invariants(self.stage)
        self.instances: list[Instance] = []
        self.children: dict[Instance, tuple[Instance, Task]] = {}
        """Sub-orchestrations, and the task of another that waits for each."""
        self.calls: list[Call] = []
        self.gates: list[Gate] = []
        self.quiet = False
        self._runs = self._houses = 0
        self._now = 0

    # -- gates ----------------------------------------------------------------------------------------------------

    async def _before(self, name: str) -> None:
        if name == "delete_point":
            self.invariants.check_before_deletion()
        if name == "break_lease":
            self.stage.count("leases broken by the app")
        await self._gate(name, "before")

    async def _after(self, name: str) -> None:
        if name == "snapshot":
            self.stage.learn()
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
        # An end may end the one that waited for it, too.
        while ended := [child for child in self.children if child.ended]:
            for child in ended:
                parent, task = self.children.pop(child)
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
            self.stage.count("crash before checkpoint")
            self._start_call(call.instance, call.task)
            return
        self.stage.note(f"{call.task.name} -> {error or _short(call.work.result())}")
        call.instance.settle(call.task, None if error else call.work.result(), error if isinstance(error, Exception) else None)

    def _deliver(self, instance: Instance) -> None:
        under_way = {id(call.task) for call in self.calls if not call.zombie}
        for task in list(instance.waiting):
            if task.kind == "activity" and id(task) not in under_way:
                self._start_call(instance, task)
            if task.kind == "sub" and all(known is not task for _, known in self.children.values()):
                self.stage.count("sub-orchestrations")
                name = f"{self.stage.seed}:{task.instance}:{self.stage.report.counts['sub-orchestrations']}"
                child = self._begin(task.name, task.input, task.instance, lambda: self.world.now, name)
                self.children[child] = (instance, task)

    def _start_call(self, instance: Instance, task: Task, *, zombie: bool = False) -> None:
        call = Call(instance, task, zombie=zombie)
        context = contextvars.copy_context()
        context.run(_caller.set, call)
        work = run_step(BY_NAME[task.name], lambda _: self.stage.tools, task.input)
        call.work = asyncio.get_running_loop().create_task(work, context=context)
        self.calls.append(call)

    # -- the history ------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Make the history; the report carries the first violation."""
        try:
            for self._now in range(STEPS_PER_HISTORY):
                self._step()
                await self._settled()
                self.invariants.check()
            await self._come_to_rest()
            await self._must_back_up()
            self.invariants.check_rest()
            if self.stage.restores:
                await self._must_restore()
            await self._must_tell()
            await self._must_tidy()
            await self._must_rebuild()
        except ViolationError as violation:
            self.stage.report.violation = str(violation)
        finally:
            for call in self.calls:
                if call.work:
                    call.work.cancel()
            await asyncio.sleep(0)
            await asyncio.gather(*(call.work for call in self.calls if call.work), return_exceptions=True)
        self.stage.report.counts["points"] = len(self.invariants.seen)
        for one in self.stage.journal.events:
            if isinstance(one, DiskTidied):
                for what in ("snapshots", "blobs", "documents", "pins", "registrations"):
                    self.stage.report.counts[f"swept: {what}"] += getattr(one, what)
        return self.stage.report

    def _step(self) -> None:
        ready = [gate for gate in self.gates if gate.call.held_until <= self._now]
        actors, harsh = self.actors, not self.stage.gentle
        actions: list[tuple[float, Callable[[], None]]] = [
            (6, actors.guest),
            (1.6, self._begin_run),
            (1.2 if self.stage.restores else 0, self._begin_restore),
            (0.5 * harsh, actors.pass_time),
            (0.25 * harsh, actors.third_party),
            (0.25 * harsh, self._terminate),
            (0.3, self._keep_house),
            (0.15 * harsh, actors.listing_lies),
            (0.1 * harsh, actors.cancel),
            (0.2 * harsh, actors.pin),
            (0.1 * harsh, actors.unpin),
            (0.5, lambda: actors.copies_arrive(well=not harsh)),
            (0.8, actors.machine_settles),
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
        # Changes of the machine are few, and each is worth a disturbance.
        changes = [gate for gate in ready if gate.name in MACHINE_CALLS]
        pool = changes if changes and self.rng.random() < 0.5 else ready
        kinds = ["unavailable", "worker crash", "zombie", "refused", "unknown 409"]
        refused, unknown = (0, 0) if self.stage.gentle else (5 if pool is changes else 1, 1)
        kind = self.rng.choices(kinds, (5, 5, 5, refused, unknown))[0]
        # A put that outlives its run is what fences are for: requests under way are lost there first.
        puts = [gate for gate in pool if gate.stage == "before" and gate.name in LATE_CALLS]
        gate = self.rng.choice(puts if kind == "zombie" and puts else pool)
        self.stage.count(f"{kind} {gate.stage} effect")
        self.stage.note(f"!! {kind} {gate.stage} {gate.name} of {gate.call.task.name}")
        message = f"injected {gate.stage} {gate.name}"
        if kind == "unavailable":
            gate.opened.set_exception(ServiceUnavailableError(message))
        elif kind == "unknown 409":
            gate.opened.set_exception(UnexpectedAnswerError(message))
        elif kind == "refused":
            machine = (MachineRefusedError, MachineChangedError, MachineBusyError)
            errors = machine if gate.name in MACHINE_CALLS else (FencedError, BlobChangedError)
            gate.opened.set_exception(self.rng.choice(errors)(message))
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
            self.stage.count("duplicate delivery")
            self._start_call(call.instance, call.task, zombie=True)

    def _terminate(self) -> None:
        """Somebody terminates an orchestration in the portal; its activities run on."""
        if self.instances:
            instance = self.instances.pop(self.rng.randrange(len(self.instances)))
            self.stage.count("orchestration terminated")
            self.stage.note(f"!! {instance.id} terminated")
            waiting = self.children.pop(instance, None)
            for call in self.calls:
                if call.instance is instance:
                    call.zombie = True
                    call.held_until = self._now + self.rng.randrange(200)
            if waiting:
                # Its own children and activities run on; whoever waited for it is told.
                waiting[0].settle(waiting[1], None, Exception("terminated in the portal"))

    def _fire_timer(self) -> None:
        timers = [(instance, task) for instance in self.instances for task in instance.waiting if task.kind == "timer"]
        if timers:
            instance, task = self.rng.choice(timers)
            self.world.pass_time(timedelta(seconds=5))
            instance.settle(task)

    def _begin_run(self) -> None:
        self.instances = [instance for instance in self.instances if not instance.ended]
        if sum(one.id.startswith(DISK) for one in self._runs_at_work()) >= 2:
            return
        if self._runs and self.rng.random() < 0.15:
            self.stage.count("timer fired twice")
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
            full_copy=self.stage.full_copy,
        )

        def clock() -> datetime:
            return self.world.now + skew

        self.stage.count("runs")
        self.stage.note(f"-- {run}{' full' if full else ''}")
        number = self.stage.report.counts["runs"]
        self._begin("backup_disk", request.model_dump(mode="json"), run, clock, f"{self.stage.seed}:{number}")

    def _begin(self, name: str, asked: Any, instance: str, clock: Callable[[], datetime], seed: str) -> Instance:  # noqa: ANN401  any JSON
        kind = ReplayedInstance if self.stage.replayed else DirectInstance
        begun: Instance = kind(ORCHESTRATORS[name], asked, instance, clock, seed)
        self.instances.append(begun)
        return begun

    def _runs_at_work(self) -> list[Instance]:
        """Instances that nobody waits for."""
        return [one for one in self.instances if one not in self.children]

    def _keep_house(self) -> None:
        self._houses += 1
        self.stage.count("housekeepings")
        self.stage.note("-- housekeeping")
        house = f"house.{self._houses}"
        # Forgetting runs has a meaning only after months.
        asked = HouseRequest(run_days=365).model_dump(mode="json")
        self._begin("keep_house", asked, house, lambda: self.world.now, f"{self.stage.seed}:{house}")

    def _begin_restore(self) -> None:
        if sum(one.id.endswith(".0000abcd") for one in self._runs_at_work()) >= 2:
            return
        row = self.actors.ask_for_restore()
        if row:
            self._start_restore(row)

    def _start_restore(self, row: Run) -> None:
        request = RestoreRequest(
            disk=DISK,
            run=row.run,
            wave=self.rng.choice([1, 2, 4]),
            full_copy=self.stage.full_copy,
            verification=self.rng.choice(["full", "full", "sampled"]),
        )
        skew = timedelta(minutes=self.rng.choice([0, 0, 60, -60]))
        name = f"{self.stage.seed}:{row.run}"
        self._begin("restore_disk", request.model_dump(mode="json"), row.run, lambda: self.world.now + skew, name)

    # -- coming to rest -----------------------------------------------------------------------------------------------

    async def _come_to_rest(self) -> None:
        """No more disturbance: everything under way ends."""
        self.quiet = True
        stage = self.stage
        stage.blobs.lies = 0
        for _ in range(20_000):
            await self._settled()
            self.instances = [instance for instance in self.instances if not instance.ended]
            if self.gates:
                self._open_gate(self.gates)
            elif any(blob.arriving for blob in stage.blobs.blobs.values()):
                self.actors.copies_arrive(well=True)
            elif stage.machines.going:
                self.actors.machine_settles()
            elif any(task.kind == "timer" for instance in self.instances for task in instance.waiting):
                self._fire_timer()
            elif not self.calls:
                break
        else:
            message = "the runs under way never end"
            raise ViolationError(message)
        self.invariants.check(everything=True)

    async def _must_back_up(self) -> None:
        """After every disturbance an undisturbed run brings a point that equals the disk.

        It may fail only for a reason: a head that a stranger altered is found once, and a third automatic full waits.
        """
        full = False
        for _ in range(4):
            self.world.pass_time(timedelta(minutes=20))
            self._runs += 1
            run = f"{DISK}.20260102T0000{self._runs % 60:02d}Z.timer"
            self._start_run(run, window="", full=full)
            await self._come_to_rest()
            points = sorted(self.invariants.seen.values(), key=lambda point: point.source_snapshot)
            content = self.stage.blobs.blobs[self.stage.source].content()
            if points and points[-1].run == run and self.stage.content(points[-1]) == content:
                return
            row = self.stage.run(run)
            code = row.error.code if row.error else row.state
            full = code == "TooManyAutomaticFulls"
            if not full and not (code == "VerificationMismatch" and self.stage.altered_by_others):
                self.invariants.violated(f"an undisturbed run brought no point equal to the disk: {code} {row.error}")
        self.invariants.violated("undisturbed runs go on failing")

    async def _must_restore(self) -> None:
        """After every disturbance an undisturbed restore does what it was asked for, and the next backup is of its disk."""
        row = self.actors.ask_for_restore(undisturbed=True)
        if row is None:
            return
        self._start_restore(row)
        await self._come_to_rest()
        ended = self.stage.run(row.run)
        if ended.state != "Succeeded":
            self.invariants.violated(f"an undisturbed restore {ended.state}: {ended.error}")
        self.stage.adopted_by_hand = self.stage.adopted_by_hand or not (row.restore and row.restore.repoint)
        self.invariants.check_rest()
        await self._must_back_up()

    async def _must_tell(self) -> None:
        """After every disturbance the end of each run is told: by its writer, a repeat of its last step, or the watch."""
        stage = self.stage
        self.world.pass_time(timedelta(hours=2))  # orchestrators' clocks are wrong by an hour at most
        runs = [run for run in await stage.catalogue.runs(DISK, RUNS_LOOKED_AT) if run.ended_for_good]
        stage.count("ends told by the watch", sum(run.untold for run in runs))
        await watch(stage.tools, "0 0 */12 * * *", self.world.now)
        told = Counter(one.run for one in stage.journal.events if isinstance(one, RunEnded))
        for run in runs:
            if not told[run.run]:
                self.invariants.violated(f"run {run.run} ended as {run.state}, and nobody was told")
        stage.count("ends told again", sum(times - 1 for times in told.values()))

    async def _must_tidy(self) -> None:
        """After every disturbance an undisturbed night leaves the disk the claim of its source alone, and a true copy of its
        registration beside the backups.
        """
        stage = self.stage
        self.world.pass_time(timedelta(days=2))
        self._keep_house()
        await self._come_to_rest()
        claims = [claim.value for claim in await stage.catalogue.claims(DISK)]
        if set(claims) - {stage.policy.source}:
            self.invariants.violated(f"the disk holds the claims of {claims}, its source is {stage.policy.source}")
        if stage.told_policy() != stage.policy:
            self.invariants.violated(f"the copy of the registration is behind: {stage.told_policy()}")

    async def _must_rebuild(self) -> None:
        """Rows that are lost come back exactly; what else is found is a verified image that was never committed."""
        catalogue = self.stage.catalogue
        rows = {key: row.value for key, row in catalogue.rows.items() if key[1].startswith(("point!", "head"))}
        # A row on its way out is not brought back.
        before = {key: row for key, row in rows.items() if key[1] == "head" or row.state == "available"}
        for key in before:
            if self.rng.random() < 0.6:
                del catalogue.rows[key]
        await carry_out(self.stage.tools, await survey(self.stage.tools, DISK))
        self.stage.count("rebuilds")
        after = {key: catalogue.rows[key].value for key in before if key in catalogue.rows}
        extra = {key: row.value for key, row in catalogue.rows.items() if key[1].startswith("point!") and key not in rows}
        for point in extra.values():
            self.invariants.check_point(point)
        if after != before:
            lost = [key for key in before if after.get(key) != before[key]]
            self.invariants.violated(f"invariant 12: rows did not come back as they were: {lost[:3]}")


_READS = frozenset({"pins"}) | frozenset(
    {
        "now",
        "properties",
        "snapshots",
        "allocated",
        "diff",
        "read",
        "get_row",
        "points",
        "get_document",
        "list_documents",
        "list_folders",
        "listed",
        "disks",
        "machine",
        "managed_disk",
        "may_write",
    }
)


def _worth(step: str, name: str, stage: str) -> float:
    """How often a port call waits for the scheduler: effects always, their replies often, reads and progress seldom."""
    if step == "report_progress":
        return 0.05
    if name in _READS:
        return 0.1
    return 1.0 if stage == "before" else 0.5


def _short(answer: dict[str, Any]) -> str:
    if answer.get("fault"):
        return f"{answer['fault']['code']}: {answer['fault']['message'][:100]}"
    return ", ".join(
        f"{key}={value}" for key, value in (answer["value"] or {}).items() if isinstance(value, (int, str)) and value
    )[:140]


def simulate(seed: int, *, keep_trace: bool = False) -> Report:
    """Make the history of `seed`."""
    return asyncio.run(Simulation(seed, keep_trace=keep_trace).run())
