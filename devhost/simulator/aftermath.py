"""What must go right after every disturbance: an undisturbed backup, restore, telling, housekeeping and rebuild."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from backup_core.activities.rebuild import carry_out, survey
from backup_core.activities.watch import watch
from backup_core.domain.events import RunEnded
from backup_core.domain.status import RUNS_LOOKED_AT
from devhost.simulator.stage import DISK

if TYPE_CHECKING:
    from devhost.simulator.invariants import Invariants
    from devhost.simulator.stage import Stage
    from devhost.simulator.starts import Starts


class Aftermath:
    """Everything comes to rest; then what is undisturbed must succeed."""

    def __init__(
        self, stage: Stage, starts: Starts, invariants: Invariants, come_to_rest: Callable[[], Awaitable[None]]
    ) -> None:
        """`come_to_rest` returns once everything under way has ended."""
        self.stage, self.starts, self.invariants, self._come_to_rest = stage, starts, invariants, come_to_rest
        self.rng, self.world = stage.rng, stage.world

    async def check(self) -> None:
        """Raise ViolationError unless all of it goes right."""
        await self._come_to_rest()
        await self._must_back_up()
        self.invariants.check_rest()
        if self.stage.restores:
            await self._must_restore()
        await self._must_tell()
        await self._must_tidy()
        await self._must_rebuild()

    async def _must_back_up(self) -> None:
        """After every disturbance an undisturbed run brings a point that equals the disk.

        It may fail only for a reason: a head that a stranger altered is found once, and a third automatic full waits.
        """
        full = False
        for _ in range(4):
            self.world.pass_time(timedelta(minutes=35))
            run = self.starts.undisturbed_backup(full=full)
            await self._come_to_rest()
            points = sorted(self.invariants.seen.values(), key=lambda point: point.source_snapshot)
            content = self.stage.blobs.blobs[self.stage.source].content()
            if points and points[-1].run == run and self.stage.content(points[-1]) == content:
                return
            row = self.stage.run(run)
            code = row.error.code if row.error else row.state
            full = code == "TooManyAutomaticFulls"
            if not full and not (code == "VerificationMismatch" and self.stage.altered_by_others):
                self.invariants.violated(
                    f"invariant 19: an undisturbed run brought no point equal to the disk: {code} {row.error}"
                )
        self.invariants.violated("invariant 19: undisturbed runs go on failing")

    async def _must_restore(self) -> None:
        """After every disturbance an undisturbed restore does what it was asked for, and the next backup is of its disk."""
        row = self.starts.undisturbed_restore()
        if row is None:
            return
        await self._come_to_rest()
        ended = self.stage.run(row.run)
        if ended.state != "Succeeded":
            self.invariants.violated(f"invariant 19: an undisturbed restore {ended.state}: {ended.error}")
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
                self.invariants.violated(f"invariant 20: run {run.run} ended as {run.state}, and nobody was told")
        stage.count("ends told again", sum(times - 1 for times in told.values()))

    async def _must_tidy(self) -> None:
        """After every disturbance an undisturbed night leaves the disk the claim of its source alone, and a true copy of its
        registration beside the backups.
        """
        stage = self.stage
        self.world.pass_time(timedelta(days=2))
        self.starts.keep_house()
        await self._come_to_rest()
        claims = [claim.value for claim in await stage.catalogue.claims(DISK)]
        if set(claims) - {stage.policy.source}:
            self.invariants.violated(
                f"invariant 21: the disk holds the claims of {claims}, its source is {stage.policy.source}"
            )
        if stage.told_policy() != stage.policy:
            self.invariants.violated(f"invariant 21: the copy of the registration is behind: {stage.told_policy()}")

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
            self.invariants.violated(f"invariant 8: rows did not come back as they were: {lost[:3]}")
