# Long: every invariant beside the others, by what it is about.
"""The invariants that must be true after every step of a history.

 1. The head stays, and each restore point's backup snapshot with it, equal to the point's source snapshot.
 2. The app never deletes the source snapshot of the common pair.
 3. The head differs from the newest restore point only while its mark says what it is being changed to.
 4. The app never deletes the target of an interrupted run.
 5. No two runs have the same lease id.
 6. The common pair is the newest restore point.
 7. A restore point comes once for each source snapshot, stays as it is, and is removed only when it was marked as deleting.
 8. The metadata of a backup snapshot describes its whole restore point, and a rebuild brings lost rows back exactly.
 9. A run that has ended keeps its state.
10. A restore never touches what was there before it.
11. A restore that succeeded, or that gave a machine its disk, made a complete disk that equals its restore point.
12. A machine never ends without a disk, or with one that is gone.
13. An adopted disk has the content that was restored.
14. Retention deletes no point that the registration's retention keeps, that is in use, or that belongs to the common pair.
15. A run that succeeded has a restore point, and the machine's disk is the one that is backed up.
16. Lost, late and repeated requests fail no run, and neither does an episode that runs twice: in gentle histories.
17. No orchestration waits for ever, and each run ends.
18. What others took of a disk is neither deleted nor taken for a run's own, whatever its metadata say.
19. At the end an undisturbed backup brings a point equal to the disk, and an undisturbed restore does what was requested.
20. The end of each run is reported.
21. After an undisturbed night the disk claims its own source alone, and the copy of its registration is true.
22. Each window for which its timer fired, early, late or twice, has one run, and no other moment has any.
23. What cannot be read of one disk is named, and hinders no other disk.
24. A cleaning that fails fails no run and hinders no other duty; a later night does it.
25. Each run's end is written, and named within bounds, however much the run has done.
26. Nothing is copied that the source does not hold, and no gap in the diff that the head does not hold.
27. The signature of an export is in no history, row, document, event, status or line of a log.
28. An undisturbed run leaves no access to its managed disk's snapshots open, and a night none to any, nor to a disk itself.
29. What a run reads of a managed disk is its snapshot of that disk, taken after the run was requested.
30. Of a managed disk a delivery takes at most one snapshot, never two runs at work have one, and a night leaves three.
31. A managed disk whose upload has ended is never open for writing again.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from backup_core.domain.ending import dead
from backup_core.domain.managed import UPLOAD
from backup_core.domain.managed_snapshots import CLOCK_SKEW
from backup_core.domain.metadata import from_metadata, from_point_metadata, restoring_run, run_of_source_snapshot
from backup_core.domain.naming import fleet_instance_id, run_key, snapshot_time
from backup_core.domain.ranges import PAGE
from tests.simulator.actors import FOOTER
from tests.simulator.stage import DISK, GROUP, SOURCE, ViolationError, as_lost

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backup_core.domain.naming import Source
    from backup_core.domain.records import RestorePoint, Run
    from tests.doubles.instance import Instance
    from tests.simulator.stage import Stage


SNAPSHOTS_MAX = 3
"""The common pair's, an interrupted run's target, and one that a run has just taken: after an undisturbed backup and a night.
Not at each step: what a dead run has left stays until a night that is a day later, and any number may have died by then.
"""


class Invariants:
    """Compares the points, the head, the machine and the runs with what is known to be true."""

    def __init__(self, stage: Stage) -> None:
        """Look at `stage`."""
        self.stage = stage
        self.seen: dict[str, RestorePoint] = {}
        self.leases: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.restored: dict[str, bytes] = {}
        """The content of each restore point, by id: also after it has expired."""
        self.attached: set[str] = set()
        """Disks the machine has had."""
        self.uploaded: dict[Source, datetime] = {}
        """Managed disks whose upload has ended, and when they were made."""
        self._checked_at = -1
        self.early: ViolationError | None = None
        """A violation seen inside an activity, which would take it for a fault of its own."""

    def check(self, *, everything: bool = False) -> None:
        """Raise ViolationError unless all hold. Every effect takes a tick: without one there is nothing new to look at."""
        if self.early:
            raise self.early
        if self.stage.world.ticks == self._checked_at and not everything:
            return
        self._checked_at = self.stage.world.ticks
        self.stage.learn()
        points = self.check_rows(everything=everything)
        if len({point.source_snapshot for point in points.values()}) != len(points):
            self.violated("invariant 7: one source snapshot has two restore points")
        self._check_head(points)
        self._check_runs()
        self._check_strangers()
        self._check_foreign(points)
        self._check_machine()
        self._check_uploads()
        if stray := self.stage.blobs.copied_needlessly:
            self.violated(f"invariant 26: {stray} was copied, which one side does not hold")
        if self.stage.managed:
            self._check_managed()

    def violated(self, what: str) -> NoReturn:
        """Raise the violation."""
        raise ViolationError(what)

    # -- points -----------------------------------------------------------------------------------------------------------

    def check_rows(self, *, everything: bool = False) -> dict[str, RestorePoint]:
        """Points come once, stay as they are, and go only when they may."""
        stage, points = self.stage, self.stage.points()
        for (disk, key), row in stage.catalogue.rows.items():
            if key.startswith("pin!") and disk == DISK and (row.value.point, row.value.run) not in stage.pins:
                stage.pins.append((row.value.point, row.value.run))
        for key, point in points.items():
            known = self.seen.get(key)
            if known is not point and known and known != point:
                if as_lost(known) != point:
                    self.violated(f"invariant 7: restore point {point.point} was changed")
                self._check_expired(point, points)
            self.seen[key] = point
            if point.state == "available" and (not known or everything):
                self.check_point(point)
        for key in set(self.seen) - set(points):
            if self.seen.pop(key).state != "deleting":
                self.violated("invariant 7: a restore point was lost")
            stage.count("points expired")
        return points

    def check_before_deletion(self) -> None:
        """A point is not lost whose deletion was seen and right."""
        try:
            self.check_rows()
        except ViolationError as violation:
            self.early = self.early or violation

    def check_point(self, point: RestorePoint) -> None:
        """The point equals its source snapshot, and its backup snapshot says all of it."""
        stage, content = self.stage, self.stage.content(point)
        if content != stage.truth[point.source_snapshot]:
            self.violated(f"invariant 1: restore point {point.point} ({point.reason}) differs from its source snapshot")
        head = stage.tools.head(point.head)
        carried = stage.blobs.blobs[head].snapshots[point.backup_snapshot].metadata
        if from_point_metadata(carried, stage.tools.site(head), point.backup_snapshot) != point:
            self.violated(f"invariant 8: the metadata of {point.point} does not describe it")
        self.restored[point.point] = content
        origin = point.reason.removeprefix("restored from ")
        if point.kind == "restored" and not stage.same(content, self.restored[origin]):
            self.violated(f"invariant 13: restore point {point.point} does not have the content of {origin}")

    def _check_expired(self, point: RestorePoint, points: dict[str, RestorePoint]) -> None:
        """A point may only go when the disk has a retention and enough newer ones stay, the common pair's among them."""
        stage = self.stage
        newer = [one for one in points.values() if one.source_snapshot > point.source_snapshot and one.state == "available"]
        if stage.retention is None or len(newer) < stage.retention.keep_last:
            self.violated(f"invariant 14: restore point {point.point} expired with {len(newer)} newer ones")
        for pinned, run in stage.pins:
            row = stage.catalogue.rows[DISK, run_key(run)]
            if pinned == point.point and not row.value.ended_for_good and not dead(row, stage.world.now):
                self.violated(f"invariant 14: restore point {point.point} expired while run {run} used it")
        if stage.head and stage.head.pair and stage.head.pair.point == point.point:
            self.violated(f"invariant 14: restore point {point.point} of the common pair expired")

    # -- head and runs -----------------------------------------------------------------------------------------------------

    def _check_head(self, points: dict[str, RestorePoint]) -> None:
        stage, head = self.stage, self.stage.head
        if head is None:
            return
        if head.owner:
            holder = self.leases.setdefault(head.owner.lease, head.owner.run)
            if holder != head.owner.run:
                self.violated("invariant 5: two runs have the same lease id")
        if head.pair is None:
            return
        newest = max(points.values(), key=lambda point: point.source_snapshot)
        if head.pair.point != newest.point:
            self.violated("invariant 6: the common pair is not the newest restore point")
        source = stage.blob(head.source)
        pair_exists = source is not None and head.pair.source_snapshot in source.snapshots
        if not pair_exists and head.pair.source_snapshot not in stage.deleted_by_others:
            self.violated("invariant 2: the source snapshot of the common pair was deleted by the app")
        at = stage.tools.head(head.head)
        blob = stage.blobs.blobs.get(at)
        if blob is None:
            self.violated("invariant 1: the head was deleted")
        mark = from_metadata(blob.metadata, stage.tools.site(at))
        if mark and mark.state != "committed" and mark.source == stage.registration.source:
            gone = source is None or mark.target not in source.snapshots
            if gone and mark.target not in stage.deleted_by_others:
                self.violated("invariant 4: the target of an interrupted run was deleted by the app")
        if stage.altered_by_others:
            return
        clean = blob.holds(stage.snapshot(newest))
        if not clean and (mark is None or mark.target == head.pair.source_snapshot):
            self.violated("invariant 3: the head was changed without a durable intent")

    def _check_runs(self) -> None:
        for _, run in self.stage.runs():
            if self.ended.get(run.run, run.state) != run.state:
                self.violated(f"invariant 9: run {run.run} was {self.ended[run.run]} and is {run.state} now")
            if run.ended_for_good and run.run not in self.ended:
                self.ended[run.run] = run.state
                if run.state == "Succeeded":
                    self._check_success(run)
                elif self.stage.gentle:
                    self._check_reason(run)

    def _check_reason(self, run: Run) -> None:
        """Lost, late and repeated requests fail no run; nor does a service that is busy now and then."""
        code = run.error.code if run.error else ""
        # Two restores of one disk; one that retention was faster than; five bad answers running; and a break that is late.
        reasons = {"", "SourceMoved", "RestorePointUnavailable", "ServiceUnavailable"}
        if self.stage.report.counts["leases broken by the app"]:
            reasons.add("Fenced")
        # Another restore of the disk changed the machine before this one could.
        if any(other.restore and other.restore.repoint and other.run != run.run for _, other in self.stage.runs()):
            reasons.add("SlotTaken")
        if code not in reasons:
            self.violated(
                f"invariant 16: run {run.run} failed without a reason: {code}: {run.error.message if run.error else ''}"
            )

    def _check_success(self, run: Run) -> None:
        wanted = run.restore
        if wanted is None:
            if not run.points:
                self.violated(f"invariant 15: run {run.run} succeeded without a restore point")
            return
        made = wanted.managed_disk or wanted.target
        target = self.stage.blob(made)
        self.stage.count(f"restores succeeded: {'repoint' if wanted.repoint else 'adopt' if wanted.adopt else 'plain'}")
        # A stranger may have copied a snapshot onto the disk since, with its metadata: only a restore's mark says "incomplete".
        if target is None or restoring_run(target.metadata, self.stage.tools.site(self.stage.tools.source(made))):
            self.violated(f"invariant 11: restore {run.run} succeeded without its complete disk")
        if not wanted.adopt and not self.stage.same(target.content(), self.restored[wanted.point]):
            self.violated(f"invariant 11: the disk of restore {run.run} differs from its restore point")
        if wanted.adopt and not run.points:
            self.violated(f"invariant 13: restore {run.run} succeeded without adopting its disk")

    def check_windows(self, begun: Collection[str]) -> None:
        """Compare windows and runs at rest: `begun` are the orchestrations that were started from outside."""
        runs = Counter(run.window for _, run in self.stage.runs() if run.window)
        for window in self.stage.windows:
            if fleet_instance_id(moment_of(window)) not in begun:
                self.violated(f"invariant 22: the timer fired for window {window}, and nothing began")
            if self.stage.gentle and runs[window] != 1:
                self.violated(f"invariant 22: window {window} has {runs[window]} runs")
        if other := [window for window in runs if window not in self.stage.windows]:
            self.violated(f"invariant 22: runs for windows {other}, for which no timer fired")

    def check_ended(self, waiting: Sequence[Instance]) -> None:
        """At rest nothing waits, and where no run may fail each has ended."""
        for one in waiting:
            self.violated(f"invariant 17: {one.id} waits for ever: {[task.name or task.kind for task in one.waiting]}")
        for _, run in self.stage.runs() if self.stage.gentle else ():
            if not run.ended_for_good:
                self.violated(f"invariant 17: run {run.run} is {run.state}, and nobody is at work on it")

    # -- managed disks ----------------------------------------------------------------------------------------------------

    def _check_managed(self) -> None:
        """A run's snapshot is its own, and no signature is anywhere."""
        stage = self.stage
        if misread := stage.blobs.cloud.misread:
            self.violated(f"invariant 29: {misread}")
        if stage.leaked:
            self.violated(f"invariant 27: a signature was found in {stage.leaked}")
        for _, run in stage.runs():
            for taken in run.source_snapshots:
                at, origin = stage.origins.get(taken, (None, None))
                if at and origin and run_of_source_snapshot(origin.metadata, stage.tools.site(at)) != run.run:
                    self.violated(f"invariant 29: run {run.run} continues with snapshot {taken}, which is another's")
                if snapshot_time(taken) < run.created - CLOCK_SKEW:
                    self.violated(f"invariant 29: run {run.run} continues with snapshot {taken}, taken before it was requested")
        at_work = {run.run for _, run in stage.runs() if not run.ended_for_good}
        needed = self._needed()
        if len(takers := {run for name, run in self._own(stage.source) if name not in needed and run in at_work}) > 1:
            self.violated(f"invariant 30: runs {sorted(takers)} have a snapshot of the disk each, and none has ended")

    def _check_uploads(self) -> None:
        """Closed uploads stay closed to writers."""
        for at, disk in self.stage.blobs.disks.items():
            if disk.create_option == UPLOAD and not disk.upload:
                self.uploaded[at] = disk.created
            elif self.uploaded.get(at) == disk.created:
                self.violated(f"invariant 31: {at} is open for writing, and its upload had ended")

    def _own(self, at: Source) -> list[tuple[str, str]]:
        """The app's snapshots of the managed disk as it is, oldest first, and the run that took each."""
        stage, disk = self.stage, self.stage.blobs.blobs[at]
        taken = [(name, one) for name, one in sorted(disk.snapshots.items()) if one.created == disk.created]
        named = [(name, run_of_source_snapshot(one.metadata, stage.tools.site(at))) for name, one in taken]
        return [(name, run) for name, run in named if run and (at, name) not in stage.foreign]

    def _needed(self) -> set[str]:
        """The common pair's source snapshot, and the target of an interrupted run."""
        head = self.stage.head
        if head is None or head.pair is None:
            return set()
        at = self.stage.tools.head(head.head)
        mark = from_metadata(self.stage.blobs.blobs[at].metadata, self.stage.tools.site(at))
        return {head.pair.source_snapshot, *((mark.target,) if mark else ())}

    def check_taken(self, began: datetime) -> None:
        """A delivery that began then may just have taken a snapshot of the managed disk: its run had none when it began."""
        for at in self.stage.blobs.disks:
            own = self._own(at)
            for name, run in own:
                had = [other for other, taker in own if taker == run and snapshot_time(other) < began]
                if had and name not in self.stage.origins:
                    self.early = self.early or ViolationError(f"invariant 30: run {run} had {had[0]}, and took {name}")

    def check_closed(self, after: str, *, of_any_disk: bool = False) -> None:
        """At rest this app has left nothing open.

        A request for access to a former source that comes late is closed by the night, or expires.
        """
        stage = self.stage
        of = set(stage.blobs.disks) if of_any_disk else {stage.source}
        if stage.managed and (left := sorted(at for disk, at in stage.blobs.open if disk in of)):
            self.violated(f"invariant 28: access to {left} is open after {after}")
        # Azure ends no upload that is not a VHD yet: its access expires.
        opened = stage.blobs.open_disks - set(stage.strange_disks) if of_any_disk else set()
        disks = {disk: stage.blobs.disks[disk] for disk in opened}
        if left := [at.id for at, one in disks.items() if one.pages.get(one.size // PAGE - 1, b"").startswith(b"conectix")]:
            self.violated(f"invariant 28: access to {left} themselves is open after {after}")

    def check_logged(self) -> None:
        """At rest no stored or logged text has a signature in it."""
        stage = self.stage
        for said in ([row.value for row in stage.catalogue.rows.values()], stage.documents.texts, stage.journal.events):
            stage.search_for_signatures(said)
        if stage.leaked:
            self.violated(f"invariant 27: a signature was found in {stage.leaked}")

    def check_few(self) -> None:
        """After an undisturbed night."""
        stage, at = self.stage, self.stage.source
        if not stage.managed:
            return
        if len(own := self._own(at)) > SNAPSHOTS_MAX:
            self.violated(f"invariant 30: the app has {len(own)} snapshots of the disk")

    # -- disks and machine ------------------------------------------------------------------------------------------------

    def _check_strangers(self) -> None:
        """A restore never writes onto anything that exists."""
        for address, blob in self.stage.strangers.items():
            present = self.stage.blobs.blobs.get(address)
            if present is not blob or blob.content()[:1] != b"\x55" or blob.lease or blob.snapshots:
                self.violated(f"invariant 10: a restore touched {address}, which was somebody else's")
        for disk in self.stage.strange_disks:
            if disk not in self.stage.blobs.open_disks or set(self.stage.blobs.disks[disk].pages.values()) != {FOOTER}:
                self.violated(f"invariant 10: a restore touched {disk}, which was somebody else's")

    def _check_foreign(self, points: dict[str, RestorePoint]) -> None:
        """Snapshots that others took of a disk are neither deleted nor taken for a run's own, whatever their metadata say."""
        for at, name in self.stage.foreign:
            if name not in self.stage.blobs.blobs[at].snapshots and name not in self.stage.deleted_by_others:
                self.violated(f"invariant 18: the app deleted snapshot {name} of {at}, which somebody else took")
        foreign = {name for _, name in self.stage.foreign}
        if taken := [point.point for point in points.values() if point.source_snapshot in foreign]:
            self.violated(f"invariant 18: restore points {taken} are of snapshots that somebody else took")

    def _check_machine(self) -> None:
        """No end state leaves the machine without a disk, and what is shown as protected is what the machine uses."""
        stage = self.stage
        head, attached = stage.head, stage.machine.at(stage.lun)
        if attached is None and not (head and head.repoint):
            self.violated("invariant 12: the machine has no disk, and nobody is at work on that")
        if attached and attached.source not in self.attached:
            self.attached.add(attached.source)
            self._check_attached(attached.source)

    def _check_attached(self, source: str) -> None:
        """A disk that a machine has just been given is the whole restore point; its guest has written nothing yet."""
        wanted = next(
            (
                run.restore
                for _, run in self.stage.runs()
                if run.restore and source in (run.restore.target, run.restore.managed_disk)
            ),
            None,
        )
        blob = self.stage.blob(source)
        if wanted and (blob is None or not self.stage.same(blob.content(), self.restored[wanted.point])):
            self.violated(f"invariant 11: the machine was given {source}, which is not restore point {wanted.point}")

    def check_at_rest(self) -> None:
        """Check the state at rest: nothing is in progress any more."""
        stage = self.stage
        head, attached = stage.head, stage.machine.at(stage.lun)
        if stage.machine_changed_by_others or (head and head.repoint):
            return
        if attached is None or not attached.source.startswith((SOURCE, GROUP)):
            self.violated("invariant 12: the machine has no disk at rest")
        if not stage.adopted_by_hand and attached.source != stage.registration.source:
            self.violated(f"invariant 15: the machine uses {attached.source}, backed up is {stage.registration.source}")
        blob = stage.blob(attached.source)
        if blob is None:
            self.violated(f"invariant 12: the machine uses {attached.source}, which is gone")


def moment_of(window: str) -> datetime:
    """The moment that names a window of the schedule."""
    return datetime.fromisoformat(window)
