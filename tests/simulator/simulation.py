# Long: what happens to one disk in its history, and what may disturb it, act by act.
"""One seeded history: a disk, its guest and its machine, backups and restores, and everything that can disturb them.

The scheduler decides at each port call of each activity whether it happens, fails, loses its reply, or outlives its worker.
Invariants are checked after every step. All randomness comes from the seed, so a history is repeated by its number.
"""

from __future__ import annotations

import asyncio
import selectors
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from backup_core.domain import managed_snapshots
from backup_core.domain.errors import (
    BackupError,
    BlobChangedError,
    FencedError,
    MachineBusyError,
    MachineChangedError,
    MachineRefusedError,
    ManagedDiskRefusedError,
    ServiceUnavailableError,
    UnexpectedAnswerError,
)
from backup_core.domain.events import DiskCleaned
from backup_core.steps.backup import PRUNE_POINTS
from backup_core.steps.housekeeping import CLEAN_UP_DISK
from tests.simulator.actors import Actors
from tests.simulator.aftermath import Aftermath
from tests.simulator.engine import Engine, caller
from tests.simulator.invariants import Invariants
from tests.simulator.stage import Report, Stage, ViolationError
from tests.simulator.starts import Starts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulator.engine import Call


STEPS_PER_HISTORY = 300
PAGE_WRITES = frozenset({"write", "copy_from_url", "clear"})
LATE_CALLS = PAGE_WRITES | {"put_disk"}
"""Requests that may arrive long after whoever sent them is dead."""
NEVER = 10**9
"""A step that no history has."""
HURRY = 0.02
"""How much less a port call waits for the scheduler in the steps that remove a thousand restore points."""
LATE_MANAGED = frozenset({"snapshot", "grant"})
"""The same of managed disks: a snapshot that is taken after everything, access that nobody requested any more."""
MACHINE_CALLS = frozenset({"put_disk", "deallocate", "start"})


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
        self.engine = Engine(self.stage)
        self.starts = Starts(self.stage, self.engine, self.actors)
        self.gates: list[Gate] = []
        self.stage.blobs.process = lambda: one.process if (one := caller.get(None)) else ""
        self.late_calls = LATE_CALLS | (LATE_MANAGED if self.stage.managed else frozenset())
        self.hurried = {PRUNE_POINTS.name, CLEAN_UP_DISK.name} if self.stage.long else set[str]()

    # -- gates ----------------------------------------------------------------------------------------------------

    async def _before(self, name: str) -> None:
        if name == "delete_point":
            self.invariants.check_before_deletion()
        if name == "break_lease":
            self.stage.count("leases broken by the app")
        if opened := self._gate(name, "before"):
            await opened

    async def _after(self, name: str) -> None:
        if name == "snapshot":
            if call := caller.get(None):
                self.invariants.check_taken(call.began)
            self.stage.learn()
        if opened := self._gate(name, "after"):
            await opened

    def _gate(self, name: str, stage: str) -> asyncio.Future[None] | None:
        """The gate at which the port call waits, if it waits for the scheduler."""
        call = caller.get(None)
        if call is None:
            return None  # the simulation itself calls
        if self.rng.random() > _worth(call.task.name, name, stage) * (HURRY if call.task.name in self.hurried else 1):
            return None
        gate = Gate(call, name, stage, asyncio.get_running_loop().create_future())
        self.gates.append(gate)
        return gate.opened

    async def _settled(self) -> None:
        # Everything released has come to its next gate when the loop has nothing left to run.
        loop: Any = asyncio.get_running_loop()
        await asyncio.sleep(0)
        while loop._ready:  # noqa: SLF001, ASYNC110  the loop has no public word for being idle
            await asyncio.sleep(0)
        self.gates = [gate for gate in self.gates if not gate.opened.done()]
        self.engine.turn()
        if self.stage.late:
            self._time_late_writes()

    def _time_late_writes(self) -> None:
        """Keep the page writes of dead workers in flight until another run writes pages."""
        writes = [gate for gate in self.gates if gate.stage == "before" and gate.name in PAGE_WRITES]
        living = {gate.call.instance for gate in writes if not gate.call.zombie}
        for gate in writes:
            if gate.call.zombie:
                gate.call.held_until = 0 if living - {gate.call.instance} else NEVER

    # -- the history ------------------------------------------------------------------------------------------------

    async def run(self) -> Report:
        """Make the history; the report carries the first violation."""
        try:
            with (
                self.stage.searching_the_log(),
                patch.object(managed_snapshots, "DIFF_BOUNDARY", self.stage.blobs.cloud.boundary),
            ):
                await self._history()
        except ViolationError as violation:
            self.stage.report.violation = str(violation)
        finally:
            await self.engine.close()
        self.stage.report.counts["points"] = len(self.invariants.seen)
        self.stage.report.counts["unchanged pages copied along"] = self.stage.blobs.gaps
        self.stage.report.counts.update(self.stage.blobs.cloud.counts)
        for one in self.stage.journal.events:
            if isinstance(one, DiskCleaned):
                for what in ("snapshots", "blobs", "documents", "pins", "registrations"):
                    self.stage.report.counts[f"swept: {what}"] += getattr(one, what)
        return self.stage.report

    async def _history(self) -> None:
        for self.engine.step in range(STEPS_PER_HISTORY):
            self._step()
            await self._settled()
            self.invariants.check()
        await Aftermath(self.stage, self.starts, self.invariants, self.actors, self.come_to_rest).check()

    def _step(self) -> None:
        ready = [gate for gate in self.gates if gate.call.held_until <= self.engine.step]
        # Changes of the machine are few, and each is worth a disturbance.
        disturb = 15 if any(gate.name in MACHINE_CALLS for gate in ready) else 3
        actors, engine, harsh = self.actors, self.engine, not self.stage.gentle
        actions: list[tuple[float, Callable[[], None]]] = [
            (6, actors.guest),
            (1.6, self.starts.backup),
            (1.2 if self.stage.restores else 0, self.starts.restore),
            (0.5 * harsh, actors.pass_time),
            (0.25 * harsh, actors.third_party),
            (0.25 * harsh, self._terminate),
            (0.3, self.starts.clean_up_disks),
            (0.15 * harsh, actors.listing_lies),
            (0.1 * harsh, actors.cancel),
            (0.2 * harsh, actors.pin),
            (0.1 * harsh, actors.unpin),
            (0.5, lambda: actors.copies_arrive(well=not harsh)),
            (0.8, actors.complete_machine_changes),
            (0.6, engine.duplicate),
            (50 if ready else 0, lambda: self._open_gate(ready)),
            (disturb if ready else 0, lambda: self._disturb_gate(ready)),
            (3, self._fire_timer),
            (4 if engine.messages else 0, engine.wait_for_visibility),
            (0.5 * harsh * self.stage.inherits, actors.foreign_snapshot),
            (0.6 * self.stage.unreadable, actors.damage),
            (0.6 * self.stage.unreadable, actors.mend),
            (0.5 * self.stage.managed, actors.finish_slow_snapshots),
            (1.5 * self.stage.failing, actors.refuse_cleaning),
            (20 * self.stage.pile_is_due, actors.pile_up),
        ]
        weights = [weight for weight, _ in actions]
        self.rng.choices([action for _, action in actions], weights)[0]()

    def _open_gate(self, ready: list[Gate]) -> None:
        gate = self.rng.choice(ready)
        gate.opened.set_result(None)

    def _disturb_gate(self, ready: list[Gate]) -> None:
        changes = [gate for gate in ready if gate.name in MACHINE_CALLS]
        pool = changes if changes and self.rng.random() < 0.5 else ready
        kinds = ["unavailable", "worker crash", "zombie", "refused", "unknown 409"]
        refused, unknown = (0, 0) if self.stage.gentle else (5 if pool is changes else 1, 1)
        kind = self.rng.choices(kinds, (5, 5, 5, refused, unknown))[0]
        # A put that outlives its run is what fences are for: requests in flight are lost there first.
        puts = [gate for gate in pool if gate.stage == "before" and gate.name in self.late_calls]
        gate = self.rng.choice(puts if kind == "zombie" and puts else pool)
        self.stage.count(f"{kind} {gate.stage} effect")
        self.stage.note(f"!! {kind} {gate.stage} {gate.name} of {gate.call.task.name}")
        message = f"injected {gate.stage} {gate.name}"
        if kind == "unavailable":
            gate.opened.set_exception(ServiceUnavailableError(message))
        elif kind == "unknown 409":
            gate.opened.set_exception(UnexpectedAnswerError(message))
        elif kind == "refused":
            errors: tuple[type[BackupError], ...] = (FencedError, BlobChangedError)
            if gate.name in MACHINE_CALLS:
                errors = (MachineRefusedError, MachineChangedError, MachineBusyError)
            elif gate.name in ("grant", "revoke"):
                errors = (ManagedDiskRefusedError,)
            gate.opened.set_exception(self.rng.choice(errors)(message))
        elif kind == "worker crash":
            self.engine.crash(gate.call)
        else:
            self.engine.abandon(gate.call)

    def _terminate(self) -> None:
        if self.engine.instances:
            instance = self.rng.choice(self.engine.instances)
            self.stage.count("orchestration terminated")
            self.stage.note(f"!! {instance.id} terminated")
            self.engine.terminate(instance)

    def _fire_timer(self) -> None:
        if timers := self.engine.timers():
            self.engine.fire(*self.rng.choice(timers))

    async def come_to_rest(self) -> None:
        """Stop the disturbances, and let everything in progress end."""
        engine, stage = self.engine, self.stage
        engine.quiet = True
        stage.blobs.lies = 0
        stage.blobs.gone.clear()
        self.actors.mend()
        self.actors.complete_snapshots()
        for _ in range(20_000):
            engine.step += 1
            await self._settled()
            engine.forget_ended()
            if self.gates:
                self._open_gate(self.gates)
            elif any(blob.arriving for blob in stage.blobs.blobs.values()):
                self.actors.copies_arrive(well=True)
            elif stage.machines.changing:
                self.actors.complete_machine_changes()
            elif timers := engine.timers():
                engine.fire(*self.rng.choice(timers))
            elif not engine.calls and not engine.deliver_last():
                break
        else:
            message = "invariant 17: the runs in progress never end"
            raise ViolationError(message)
        self.invariants.check(everything=True)
        self.invariants.check_ended(engine.instances)


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
        "arm_disk",
        "arm_snapshots",
        "arm_snapshot",
    }
)


@cache
def _worth(step: str, name: str, stage: str) -> float:
    """The chance that a port call waits for the scheduler: effects always, their replies often, reads and progress seldom."""
    if step == "report_progress":
        return 0.05
    if name in _READS:
        return 0.1
    return 1.0 if stage == "before" else 0.5


def simulate(seed: int, *, keep_trace: bool = False) -> Report:
    """Make the history of `seed`."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_NoFiles())) as runner:
        return runner.run(Simulation(seed, keep_trace=keep_trace).run())


class _NoFiles(selectors.SelectSelector):
    """Nothing is ever read or written, so the loop need not ask the system before each turn whether anything can be."""

    def select(self, timeout: float | None = None) -> list[Any]:  # noqa: ARG002  nobody waits
        """Nothing, at once."""
        return []
