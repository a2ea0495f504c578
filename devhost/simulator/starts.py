"""What people and timers start: backups, restores, housekeeping."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from backup_core.domain.naming import fleet_instance_id
from backup_core.steps.backup import BackupRequest, FleetRequest
from backup_core.steps.housekeeping import HouseRequest
from backup_core.steps.restore import RestoreRequest
from devhost.simulator.stage import DISK

if TYPE_CHECKING:
    from backup_core.domain.records import Run
    from devhost.simulator.actors import Actors
    from devhost.simulator.engine import Engine
    from devhost.simulator.stage import Stage


class Starts:
    """Starts orchestrations of the app, at most two runs of a kind side by side."""

    def __init__(self, stage: Stage, engine: Engine, actors: Actors) -> None:
        """Start them on `engine`."""
        self.stage, self.engine, self.actors, self.rng = stage, engine, actors, stage.rng
        self._runs = self._houses = 0

    def backup(self) -> None:
        """A window of the schedule; now and then its timer fires twice."""
        self.engine.forget_ended()
        if sum(one.id.startswith((DISK, "fleet")) for one in self.engine.at_work()) >= 2:
            return
        if self._runs and self.rng.random() < 0.15:
            self.stage.count("timer fired twice")
        else:
            self._runs += 1
        run = f"{DISK}.20260101T{self._runs // 60 % 24:02d}{self._runs % 60:02d}00Z.timer"
        window = f"2026-01-01T{self._runs // 60 % 24:02d}:{self._runs % 60:02d}:00+00:00"
        if self.stage.repeats and self._runs % 2:
            self._start_fleet(window)
            return
        full = self.rng.random() < 0.08
        self._start(run, window=window, full=full, skew=timedelta(minutes=self.rng.choice([0, 0, 60, -60])))

    def undisturbed_backup(self, *, full: bool) -> str:
        """A backup after everything; its run."""
        self._runs += 1
        run = f"{DISK}.20260102T0000{self._runs % 60:02d}Z.timer"
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

    def keep_house(self) -> None:
        """A night's housekeeping."""
        self._houses += 1
        self.stage.count("housekeepings")
        self.stage.note("-- housekeeping")
        house = f"house.{self._houses}"
        # Forgetting runs has a meaning only after months.
        asked = HouseRequest(run_days=365).model_dump(mode="json")
        self.engine.start("keep_house", asked, house, timedelta(), f"{self.stage.seed}:{house}")

    def restore(self) -> None:
        """A restore that an operator asks for."""
        if sum(one.id.endswith(".0000abcd") for one in self.engine.at_work()) >= 2:
            return
        row = self.actors.ask_for_restore()
        if row:
            self._start_restore(row)

    def undisturbed_restore(self) -> Run | None:
        """A restore after everything; its row, or None when there is nothing to restore."""
        row = self.actors.ask_for_restore(undisturbed=True)
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
        )
        skew = timedelta(minutes=self.rng.choice([0, 0, 60, -60]))
        self.engine.start("restore_disk", request.model_dump(mode="json"), row.run, skew, f"{self.stage.seed}:{row.run}")
