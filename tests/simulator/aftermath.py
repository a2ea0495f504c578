# Long: one check after another, of one end.
"""The acts that must succeed after every disturbance: an undisturbed backup, restore, report, housekeeping and rebuild."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from backup_core.api import disks, runs
from backup_core.api.context import Api, respond
from backup_core.api.http import Request
from backup_core.domain.errors import BackupError
from backup_core.domain.events import DiskSeen, FleetSeen, RunEnded, RunWarned
from backup_core.domain.metadata import from_metadata, from_point_metadata, run_of_source_snapshot, source_snapshot_metadata
from backup_core.domain.naming import plan_name, registration_name, run_key
from backup_core.domain.records import Run
from backup_core.domain.status import RUNS_LOOKED_AT
from backup_core.operations.watch import watch
from backup_core.protocol import survey
from tests.simulator.actors import REFUSALS, UNREADABLE_DOCUMENT
from tests.simulator.stage import BACKUP, BYSTANDER, DISK

if TYPE_CHECKING:
    from tests.simulator.actors import Actors
    from tests.simulator.invariants import Invariants
    from tests.simulator.stage import Stage
    from tests.simulator.starts import Starts

NIGHTS_MAX = 12


class Aftermath:
    """Everything comes to rest; then what is undisturbed must succeed."""

    def __init__(
        self,
        stage: Stage,
        starts: Starts,
        invariants: Invariants,
        actors: Actors,
        come_to_rest: Callable[[], Awaitable[None]],
    ) -> None:
        """`come_to_rest` returns once everything in progress has ended."""
        self.actors = actors
        self.stage, self.starts, self.invariants, self._come_to_rest = stage, starts, invariants, come_to_rest
        self.rng, self.world = stage.rng, stage.world

    async def check(self) -> None:
        """Raise ViolationError unless all of it goes right."""
        await self._come_to_rest()
        if self.stage.timed:
            self.invariants.check_windows(self.starts.begun)
        if self.stage.failing:
            self.stage.blobs.undeletable |= dict.fromkeys((self.stage.account, BACKUP), self.rng.choice(REFUSALS))
        await self._must_back_up()
        if self.stage.pile and not self.stage.failing:
            self._must_have_ended_long_lists()
        self.invariants.check_at_rest()
        if self.stage.restores:
            await self._must_restore()
        if self.stage.unreadable:
            self.actors.blind_bystander()
            await self._must_back_up_beside_the_unreadable()
        await self._must_report_ends()
        if self.stage.failing:
            await self._must_do_all_other_duties()
        await self._must_clean_up()
        if self.stage.failing:
            await self._must_forget_nothing()
        self.invariants.check_few()
        await self._must_rebuild()

    async def _must_back_up(self) -> None:
        """After every disturbance an undisturbed run brings a point that equals the disk.

        It may fail only for a reason: a head that a stranger altered is found once, and a third automatic full waits.
        """
        full, blobs = False, self.stage.blobs
        for _ in range(4):
            refused = blobs.refused_deletions
            self.world.pass_time(timedelta(minutes=35))
            run = self.starts.undisturbed_backup(full=full)
            await self._come_to_rest()
            points = sorted(self.invariants.seen.values(), key=lambda point: point.source_snapshot)
            row = self.stage.run(run)
            if points and points[-1].run == run and self.stage.is_live(points[-1]):
                self.invariants.check_closed(f"run {run}")
                if row.state != "Succeeded":
                    self.invariants.violated(f"invariant 24: run {run} has its point and is {row.state}: {row.error}")
                warned = any(isinstance(one, RunWarned) and one.run == run for one in self.stage.journal.events)
                if blobs.refused_deletions > refused and not (row.warnings and warned):
                    self.invariants.violated(f"invariant 24: a cleaning of run {run} failed, and it says nothing")
                return
            code = row.error.code if row.error else row.state
            full = code == "TooManyAutomaticFulls"
            if not full and not (code == "VerificationMismatch" and self.stage.altered_by_others):
                self.invariants.violated(
                    f"invariant 19: an undisturbed run brought no point equal to the disk: {code} {row.error}"
                )
        self.invariants.violated("invariant 19: undisturbed runs go on failing")

    async def _must_restore(self) -> None:
        """After every disturbance an undisturbed restore does what was requested, and the next backup is of its disk."""
        row = self.starts.undisturbed_restore()
        if row is None:
            return
        await self._come_to_rest()
        ended = self.stage.run(row.run)
        if ended.state != "Succeeded":
            self.invariants.violated(f"invariant 19: an undisturbed restore {ended.state}: {ended.error}")
        self.stage.adopted_by_hand = self.stage.adopted_by_hand or not (row.restore and row.restore.repoint)
        self.invariants.check_at_rest()
        await self._must_back_up()

    async def _must_report_ends(self) -> None:
        """After every disturbance the end of each run is reported: by its writer, a repeat of its last step, or the watch."""
        stage = self.stage
        self.world.pass_time(timedelta(hours=2))  # orchestrators' clocks are wrong by an hour at most
        runs = [run for run in await stage.catalogue.runs(DISK, RUNS_LOOKED_AT) if run.ended_for_good]
        stage.count("ends reported by the watch", sum(run.unreported for run in runs))
        await watch(stage.tools, "0 0 */12 * * *")
        if stage.unreadable:
            await self._must_show_all_others()
        reported = Counter(one.run for one in stage.journal.events if isinstance(one, RunEnded))
        for run in runs:
            if not reported[run.run]:
                self.invariants.violated(f"invariant 20: run {run.run} ended as {run.state}, and the end was not reported")
        stage.count("ends reported again", sum(times - 1 for times in reported.values()))

    async def _must_clean_up(self) -> None:
        """An undisturbed night leaves the disk the claim of its source alone, after every disturbance.

        It also leaves a true copy of the disk's registration beside the backups.
        """
        stage = self.stage
        self.world.pass_time(timedelta(days=2))
        self.starts.clean_up_disks()
        await self._come_to_rest()
        claims = [claim.value for claim in await stage.catalogue.claims(DISK)]
        if set(claims) - {stage.registration.source}:
            self.invariants.violated(
                f"invariant 21: the disk has the claims of {claims}, its source is {stage.registration.source}"
            )
        self.invariants.check_closed("the night", of_any_disk=True)
        self.invariants.check_logged()
        if stage.policy_copy() != stage.registration:
            self.invariants.violated(f"invariant 21: the copy of the registration is behind: {stage.policy_copy()}")

    async def _must_rebuild(self) -> None:
        """Rows that are lost come back exactly; what else is found is a verified image that was never committed."""
        catalogue = self.stage.catalogue
        rows = {
            key: row.value for key, row in catalogue.rows.items() if key[0] == DISK and key[1].startswith(("point!", "head"))
        }
        # A row on its way out is not brought back.
        before = {key: row for key, row in rows.items() if key[1] == "head" or row.state == "available"}
        for key in before:
            if self.rng.random() < 0.6:
                del catalogue.rows[key]
        if self.stage.unreadable and self.stage.unreadable_of_bystander == "document":
            del catalogue.rows[BYSTANDER, "registration"]
            self.stage.documents.texts[registration_name(BYSTANDER)] = UNREADABLE_DOCUMENT
        unreadable = await self._rebuild()
        if self.stage.unreadable:
            self._must_name_the_unreadable(unreadable)
        self.stage.count("rebuilds")
        after = {key: catalogue.rows[key].value for key in before if key in catalogue.rows}
        extra = {
            key: row.value
            for key, row in catalogue.rows.items()
            if key[1].startswith("point!") and key[0] == DISK and key not in rows
        }
        for point in extra.values():
            self.invariants.check_point(point)
        if after != before:
            lost = [key for key in before if after.get(key) != before[key]]
            self.invariants.violated(f"invariant 8: rows did not come back as they were: {lost[:3]}")

    # -- what cannot be read of another disk ----------------------------------------------------------------------------------

    async def _must_back_up_beside_the_unreadable(self) -> None:
        """The window of all disks: this one has its point, whatever cannot be read of the other."""
        self.world.pass_time(timedelta(minutes=35))
        run = self.starts.undisturbed_fleet()
        await self._come_to_rest()
        if not any(one.run == run for one in self.invariants.seen.values()):
            self.invariants.violated(f"invariant 23: window of {run}: no restore point beside a disk that cannot be read")

    async def _must_show_all_others(self) -> None:
        """The watch reports this disk, and names the other with its row; so do the lists."""
        what, events = self.stage.unreadable_of_bystander, self.stage.journal.events
        seen = next(one for one in reversed(events) if isinstance(one, FleetSeen))
        if not any(isinstance(one, DiskSeen) and one.disk == DISK for one in events):
            self.invariants.violated("invariant 23: the watch did not report the disk that can be read")
        if what == "document":
            return
        if seen.unseen != 1 or not self._is_named(seen.why):
            self.invariants.violated(f"invariant 23: the watch does not name {what} of disk {BYSTANDER}: {seen.why}")
        for call in (disks.get_disks, runs.get_runs):
            shown = await self._called(call)
            if DISK not in {one.get("disk", one["id"]) for one in shown["value"]}:
                self.invariants.violated(f"invariant 23: {call.__name__} does not show disk {DISK}")
            errors = [one for one in shown["unreadable"] if self._is_named(f"{one['target']}: {one['code']}: {one['message']}")]
            if not errors and (call is disks.get_disks or what.startswith("run!")):
                self.invariants.violated(f"invariant 23: {call.__name__} does not name {what} of disk {BYSTANDER}")

    def _is_named(self, text: str) -> bool:
        return text.startswith(f"{BYSTANDER}: RecordUnreadable") and f"'{self.stage.unreadable_of_bystander}'" in text

    async def _called(self, handler: Any) -> dict[str, Any]:  # noqa: ANN401  a handler
        api = Api(self.stage.tools, "0 0 */12 * * *", 4, now=lambda: self.world.now)
        reply = await respond(api, handler, Request("https://app.test/api", {}, {}, b"", {}))
        answer: dict[str, Any] = json.loads(reply.body)
        if reply.status != 200:
            self.invariants.violated(f"invariant 23: {handler.__name__}: {reply.status} {answer}")
        return answer

    async def _rebuild(self) -> dict[str, str]:
        """Bring the rows of every disk back, part by part; why a disk could not be, by its id."""
        unreadable: dict[str, str] = {}
        for disk in await survey.disks_to_survey(self.stage.tools, ""):
            below = ""
            while True:
                try:
                    found = await survey.survey(self.stage.tools, disk, below)
                except BackupError as error:
                    self.invariants.violated(f"invariant 23: disk {disk} stops the rebuild of all: {error}")
                if found.unreadable:
                    unreadable[disk] = found.unreadable
                    break
                await survey.carry_out(self.stage.tools, found)
                below = found.floor
                if not below:
                    break
        return unreadable

    def _must_name_the_unreadable(self, unreadable: dict[str, str]) -> None:
        """The rebuild of all disks brings this one's rows back, and says of the other what cannot be read."""
        what = self.stage.unreadable_of_bystander
        named = registration_name(BYSTANDER) if what == "document" else what
        if not what.startswith("run!") and named not in unreadable.get(BYSTANDER, ""):
            self.invariants.violated(f"invariant 23: the rebuild does not name {named}: {unreadable}")

    # -- cleanings that fail --------------------------------------------------------------------------------------------------

    async def _must_do_all_other_duties(self) -> None:
        """A night in which nothing can be deleted in the accounts does every duty that can be done."""
        stage = self.stage
        run = f"{DISK}.20251230T000000Z.0000abcd"
        at = stage.source
        stage.blobs.freeze(stage.blobs.blobs[at], source_snapshot_metadata(stage.tools.site(at), DISK, run))
        taken = max(stage.blobs.blobs[at].snapshots)
        stage.store(
            Run(
                DISK, run, "Failed", "http", full=False, created=self.world.now, ended=self.world.now, source_snapshots=(taken,)
            ),
            run_key(run),
        )
        plan = plan_name(DISK, run, taken, "")
        stage.documents._store(plan, "{}")  # noqa: SLF001  past every gate
        self.world.pass_time(timedelta(days=2))
        self.starts.clean_up_disks()
        await self._come_to_rest()
        if plan in stage.documents.texts:
            self.invariants.violated("invariant 24: a duty that failed kept the night from the next ones")

    async def _must_forget_nothing(self) -> None:
        """Once it can be deleted, a later night removes what earlier cleanings left."""
        self.stage.blobs.undeletable.clear()
        for _ in range(NIGHTS_MAX):
            self.world.pass_time(timedelta(days=1))
            self.starts.clean_up_disks()
            await self._come_to_rest()
            left = self._left()
            if not left:
                return
        self.invariants.violated(f"invariant 24: what a cleaning could not remove stays: {left[:3]}")

    def _left(self) -> list[str]:
        """Source snapshots that no run needs, restore points on their way out, and backup snapshots whose point is gone."""
        stage, points = self.stage, self.stage.points()
        left = [f"{point.point} is {point.state}" for point in points.values() if point.state == "deleting"]
        rows = {point.point for point in points.values()}
        for at, blob in stage.blobs.blobs.items():
            for name, snapshot in blob.snapshots.items():
                point = from_point_metadata(snapshot.metadata, stage.tools.site(at), name) if at.account == BACKUP else None
                if point and point.point in self.invariants.restored and point.point not in rows:
                    left.append(f"backup snapshot {name} of {point.point}, which has expired")
        return left + [f"source snapshot {name}" for name in self._unneeded()]

    def _unneeded(self) -> list[str]:
        stage, head, at = self.stage, self.stage.head, self.stage.source
        if head is None or head.pair is None or head.source != stage.registration.source:
            return []
        blob = stage.blobs.blobs.get(stage.tools.head(head.head))
        mark = from_metadata(blob.metadata, stage.tools.site(stage.tools.head(head.head))) if blob else None
        if mark is None:
            return []
        needed = {head.pair.source_snapshot, mark.target, mark.base}
        rows = {run.run: run for _, run in stage.runs()}
        found = []
        present = stage.blobs.blobs[at]
        for name, snapshot in present.snapshots.items():
            if stage.managed and snapshot.created != present.created:
                continue  # of a former disk of its name: docs/backup.md
            run = run_of_source_snapshot(snapshot.metadata, stage.tools.site(at))
            if run in rows and name in rows[run].source_snapshots and name not in needed:
                found.append(name)
        return found

    # -- long lists ------------------------------------------------------------------------------------------------------------

    def _must_have_ended_long_lists(self) -> None:
        """All expired points are gone, however many they were, but those in use, and the newest of each source."""
        stage = self.stage
        assert stage.retention
        newest = sorted((one for one in stage.points().values() if one.state == "available"), key=lambda one: one.point)
        kept = {point for point, _ in stage.pins}
        for source in {one.source for one in newest}:
            kept |= set([one.point for one in newest if one.source == source][-stage.retention.keep_last :])
        if left := [one.point for one in stage.points().values() if one.point in stage.pile - kept]:
            self.invariants.violated(f"invariant 25: {len(left)} of {len(stage.pile)} expired restore points are still there")
