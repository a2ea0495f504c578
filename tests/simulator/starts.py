"""The orchestrations that people and timers start: backups, restores, housekeeping."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backup_core.domain.digests import digest_of_request
from backup_core.domain.naming import cleanup_instance_id, fleet_instance_id, timer_run_id, window_id
from backup_core.domain.windows import next_window, window_fired
from backup_core.steps.backup import BackupRequest, FleetRequest
from backup_core.steps.housekeeping import CleanupRequest
from backup_core.steps.restore import RestoreRequest
from tests.simulator.stage import DISK, ViolationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backup_core.domain.records import Run
    from tests.simulator.actors import Actors
    from tests.simulator.engine import Engine
    from tests.simulator.stage import Stage


EVERY_QUARTER, EVERY_HOUR = "0 */15 * * * *", "0 30 * * * *"
EARLY = tuple(-timedelta(milliseconds=one) for one in (1, 4, 40, 1300))
"""How early timers have fired."""


class Starts:
    """Starts orchestrations of the app, at most two runs of a kind side by side."""

    def __init__(self, stage: Stage, engine: Engine, actors: Actors) -> None:
        """Start them on `engine`."""
        self.stage, self.engine, self.actors, self.rng = stage, engine, actors, stage.rng
        self.world = stage.world
        self._runs = self._houses = 0
        self.begun: set[str] = set()
        """Instances that timers have started: there is one for each time a timer is due."""
        self._due: dict[str, datetime] = {}
        self._moment_of: dict[int, datetime] = {}

    def backup(self) -> None:
        """A window of the schedule; now and then its timer fires twice."""
        self.engine.forget_ended()
        at_work = sum(one.id.startswith((DISK, "fleet")) for one in self.engine.at_work())
        # Where no run may fail, none may be silent while the time of a window is awaited.
        if at_work >= (1 if self.stage.timed and self.stage.gentle else 2):
            return
        if self.stage.timed:
            self._backup_timer()
            return
        if self._runs and self.rng.random() < 0.15:
            self.stage.count("timer fired twice")
        else:
            self._runs += 1
        moment = self._moment(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=self._runs % 1440))
        run, window = timer_run_id(DISK, moment), moment.isoformat()
        if (self.stage.repeats or self.stage.unreadable) and self._runs % 2:
            self._start_fleet(window)
            return
        full = self.rng.random() < 0.08
        self._start(run, window=window, full=full, skew=timedelta(minutes=self.rng.choice([0, 0, 60, -60])))

    def _moment(self, otherwise: datetime) -> datetime:
        """The moment that names the next run. A managed disk's has come: no snapshot is older than its run."""
        if not self.stage.managed:
            return otherwise
        if self._moment_of.get(self._runs) is None:
            self.world.pass_time(timedelta(seconds=1))
            self._moment_of[self._runs] = self.world.now.replace(microsecond=0)
        return self._moment_of[self._runs]

    # -- timers as they are ---------------------------------------------------------------------------------------------------

    def _backup_timer(self) -> None:
        for window, due in self._fired(EVERY_QUARTER):
            self.stage.windows[window_id(due)] += 1
            if fleet_instance_id(window) in self.begun:
                self.stage.count("starts refused")
                continue
            self.begun.add(fleet_instance_id(window))
            self._start_fleet(window.isoformat())

    def _fired(self, schedule: str) -> Iterator[tuple[datetime, datetime]]:
        """The timer's next due time comes: for each time it fires, the moment that the app takes it for, and the due time.
        It fires early, in time or late, now and then once more; it reports when it was due, when it is due next, or nothing.
        """
        world = self.world
        due = next_window(schedule, max(world.now, self._due.get(schedule, world.now)))
        self._due[schedule] = due
        off = self.rng.choice([*EARLY, timedelta(), timedelta(milliseconds=20), timedelta(minutes=4)])
        reported = self.rng.choice([due.isoformat(), next_window(schedule, due).isoformat(), ""])
        self.stage.count("timers fired early" if off < timedelta() else "timers fired")
        world.pass_time(max(timedelta(), due + off - world.now))
        self.stage.note(f"-- the timer that was due at {due} fires")
        yield window_fired(schedule, reported, world.now), due
        if self.rng.random() < 0.3:
            self.stage.count("timer fired twice")
            world.pass_time(max(timedelta(), due - world.now))
            yield window_fired(schedule, reported, world.now), due

    def undisturbed_backup(self, *, full: bool) -> str:
        """A backup after everything; its run."""
        self._runs += 1
        run = timer_run_id(DISK, self._moment(datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=self._runs % 60)))
        self._start(run, window="", full=full)
        return run

    def _start(self, run: str, *, window: str, full: bool, skew: timedelta = timedelta()) -> None:
        request = BackupRequest(
            disk=DISK,
            run=run,
            trigger="timer",
            full=full,
            window=window,
            wave=self.rng.choice([1, 2, 4]),
            full_copy=self.stage.full_copy,
        )
        self.stage.count("runs")
        self.stage.note(f"-- {run}{' full' if full else ''}")
        number = self.stage.report.counts["runs"]
        self.engine.start("backup_disk", request.model_dump(mode="json"), run, skew, f"{self.stage.seed}:{number}")

    def _start_fleet(self, window: str) -> None:
        """A window's orchestration, which begins the disk's run as its child: it can be begun twice."""
        fleet = fleet_instance_id(datetime.fromisoformat(window))
        request = FleetRequest(window=window, wave=self.rng.choice([1, 2, 4]), full_copy=self.stage.full_copy)
        self.stage.count("runs")
        self.stage.count("fleets")
        self.stage.note(f"-- {fleet}")
        number = self.stage.report.counts["runs"]
        self.engine.start("backup_fleet", request.model_dump(mode="json"), fleet, timedelta(), f"{self.stage.seed}:{number}")

    def undisturbed_fleet(self) -> str:
        """A window of all disks after everything; the run of this one."""
        self._runs += 1
        window = self._moment(datetime(2026, 1, 5, tzinfo=UTC) + timedelta(minutes=self._runs))
        self.stage.windows[window_id(window)] += 1
        self.begun.add(fleet_instance_id(window))
        self._start_fleet(window.isoformat())
        return timer_run_id(DISK, window)

    def clean_up_disks(self) -> None:
        """A night's housekeeping."""
        self._houses += 1
        self.stage.count("housekeepings")
        self.stage.note("-- housekeeping")
        house = f"house.{self._houses}"
        if self.stage.timed and not self.stage.gentle:
            for due, meant in self._fired(EVERY_HOUR):
                house = cleanup_instance_id(due)
                if due != meant:
                    message = f"invariant 22: the night of {meant} was taken for that of {due}"
                    raise ViolationError(message)
        # Forgetting runs has a meaning only after months.
        request = CleanupRequest(run_days=365).model_dump(mode="json")
        self.engine.start("clean_up_disks", request, house, timedelta(), f"{self.stage.seed}:{house}")

    def restore(self) -> None:
        """A restore that an operator requests."""
        if sum(one.id.endswith(".0000abcd") for one in self.engine.at_work()) >= 2:
            return
        row = self.actors.request_restore()
        if row:
            self._start_restore(row)

    def undisturbed_restore(self) -> Run | None:
        """A restore after everything; its row, or None when there is nothing to restore."""
        row = self.actors.request_restore(undisturbed=True)
        if row:
            self._start_restore(row)
        return row

    def _start_restore(self, row: Run) -> None:
        request = RestoreRequest(
            disk=DISK,
            run=row.run,
            wave=self.rng.choice([1, 2, 4]),
            full_copy=self.stage.full_copy,
            verification=self.rng.choice(["full", "full", "sampled"]),
            wanted=digest_of_request(row.restore) if row.restore else "",
        )
        skew = timedelta(minutes=self.rng.choice([0, 0, 60, -60]))
        self.engine.start("restore_disk", request.model_dump(mode="json"), row.run, skew, f"{self.stage.seed}:{row.run}")
