"""An account fails over to its secondary region, whose parts are behind by different times: no restore point has a wrong byte, none
that is offered after a night is missing, and backups continue.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.api import disks
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import AccessDeniedError, CleanupError
from backup_core.domain.events import RunWarned
from backup_core.domain.naming import repoint_name
from backup_core.domain.sampling import Samples
from backup_core.operations.watch import watch
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.restore_disk import RestoreFailedError
from backup_core.steps.housekeeping import CleanUpDisk
from tests.activities.acts import attached_disk, call, into, keep, rebuild
from tests.activities.replicas import PARTS, Replicas
from tests.scene import OTHER, PAGE, Scene

CLEANUP = CleanUpDisk(disk="vm", actor="house.20260105", lease="00000000-0000-0000-0000-00000000000a", run_days=180)
BACKUP_ACCOUNT = ("heads", "documents", "rows", "claims")
ACCOUNTS = {
    "backup blobs alone": ("heads",),
    "the table alone": ("rows", "claims"),
    "documents alone": ("documents",),
    "the backup account": BACKUP_ACCOUNT,
    "the source account": ("source",),
    "both accounts": PARTS,
}
NO_SAMPLES = Samples(least=0, most=0, elsewhere=0)
"""What a verification may leave to luck is left out: of a large disk it reads so little that this is what counts."""


class Failover(Scene):
    """A protected disk, whose accounts fail over after the call of that number, if there is one."""

    def __init__(self, seed, diff, parts):
        self.random, self.parts = random.Random(seed), parts
        self.leases, self.replicas = self.random.random() < 0.5, None
        self.calls, self.fails_over_at = 0, 0

        async def after(name):
            if self.replicas is not None:
                self.replicas.follow()
                self.calls += 1
                if self.calls == self.fails_over_at:
                    self.fail_over()

        super().__init__(diff=diff, after=after)
        self.with_limits(in_flight=2, wave_requests=4, shard_bytes_max=4 * PAGE, gaps_min=0, samples=NO_SAMPLES)
        self.protect()
        self.write(0, *range(1, 30))
        self.replicas = Replicas(self)

    def fail_over(self):
        """Each part is behind by some changes, seldom by many."""
        self.fails_over_at = -1
        self.replicas.fail_over(self._recent, self.parts, leases=self.leases)

    def _recent(self, copies):
        return copies[max(0, len(copies) - 1 - int(self.random.expovariate(1 / 12)))]

    async def try_backup(self):
        """Something is written and, after the longest silence, a backup made; why it failed, or empty."""
        pages = [self.random.choice([None, *range(1, 250)]) for _ in range(self.random.randrange(1, 13))]
        self.write(self.random.randrange(20), *pages)
        self.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
        try:
            await self.back_up()
        except BackupFailedError as error:
            return str(error)
        return ""

    async def night(self):
        self.world.pass_time(timedelta(hours=25))
        with suppress(CleanupError):
            await clean_up_disk(self.tools, CLEANUP)

    def offered(self):
        return [point for point in self.points() if point.state == "available"]

    def is_there(self, point):
        blob = self.blobs.blobs.get(self.tools.head(point.head))
        return blob is not None and point.backup_snapshot in blob.snapshots

    def no_wrong_byte(self):
        for point in self.offered():
            if self.is_there(point):
                assert self.content(point) == self.replicas.truth[point.source_snapshot], point

    async def restores(self, point, number):
        """A restore beside the disk ends; whether it succeeded, and then with the bytes that the disk had."""
        target, run = f"{OTHER}/vhds/{number}.vhd", f"vm.20260102T03{number:04d}Z.0000abcd"
        with suppress(RestoreFailedError):
            await self.restore(point, run=run, target=target)
            assert self.blob(target).content() == self.replicas.truth[point.source_snapshot]
        assert self.run_row(run).ended_for_good
        return self.run_row(run).state == "Succeeded"


async def failed_over(seed, diff, parts):
    """A disk with some backups, whose accounts fail over while the last one is made, or just after it."""
    stage = Failover(seed, diff, parts)
    keep(stage, stage.random.randrange(2, 5))
    if stage.random.random() < 0.3:
        # Former source snapshots stay: an increment from one of them is possible.
        stage.blobs.undeletable[stage.source().account] = AccessDeniedError
    for _ in range(stage.random.randrange(1, 5)):
        await stage.try_backup()
    stage.fails_over_at = stage.calls + stage.random.randrange(1, 160)
    await stage.try_backup()
    if stage.fails_over_at > stage.calls:
        stage.fail_over()
    stage.blobs.undeletable.clear()
    return stage


@pytest.mark.parametrize("diff", ["writes", "content"])
@pytest.mark.parametrize("what", ACCOUNTS)
@pytest.mark.parametrize("seed", range(6))
async def test_after_a_failover(seed, what, diff):
    """Whatever is done first; at last a rebuild and a night, as the runbook says, and all that is offered restores exactly."""
    stage = await failed_over(f"{seed} {what} {diff}", diff, ACCOUNTS[what])
    stage.no_wrong_byte()
    steps = ["backup", "night", "rebuild", "restore", "backup"]
    stage.random.shuffle(steps)
    for number, step in enumerate(steps):
        match step:
            case "backup":
                await stage.try_backup()
            case "night":
                await stage.night()
            case "rebuild":
                await rebuild(stage)
            case _ if stage.offered():
                point = stage.random.choice(stage.offered())
                assert await stage.restores(point, number) == stage.is_there(point)
        stage.no_wrong_byte()

    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await rebuild(stage)
    await stage.night()
    assert all(stage.is_there(point) for point in stage.offered())
    row = stage.catalogue.rows["vm", "registration"]
    stage.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, retention=None))
    kept = {point.point for point in stage.offered()}
    for _ in range(3):
        why = await stage.try_backup()
        if "TooManyAutomaticFulls" in why:
            await stage.back_up(full=True)
        else:
            assert why == ""
    assert stage.points()[-1].kind == "incremental"
    assert kept < {point.point for point in stage.offered()}
    await stage.night()
    for number, point in enumerate(stage.offered()):
        assert await stage.restores(point, 100 + number)


@pytest.mark.parametrize("diff", ["writes", "content"])
async def test_a_backup_notices_writes_that_its_account_has_lost(diff):
    """The backup blob comes back as it was some writes before, under the same lease and number, and the run that has their answers
    continues: wherever that happens, it makes no restore point of the blob, or a right one.
    """
    outcomes = set()
    for number in range(1, 200):
        for behind in (1, 4):
            stage = Failover(0, diff, ("heads",))
            stage.leases = True
            stage._recent = lambda copies, behind=behind: copies[max(0, len(copies) - 1 - behind)]
            await stage.try_backup()
            stage.fails_over_at = stage.calls + number
            outcomes.add(await stage.try_backup() == "")
            stage.no_wrong_byte()
        if stage.fails_over_at > 0:
            break
    assert outcomes == {True, False}


# -- what a night, the watch and a rebuild say of a catalogue that came back from an earlier moment ---------------------------------


@pytest.fixture
async def restored():
    """A disk that a restore has adopted, and what the catalogue had before it."""
    stage = Scene()
    stage.protect()
    stage.write(0, *range(1, 30))
    stage.machine()
    await stage.back_up()
    stage.former = stage.catalogue.rows.copy(), stage.catalogue.claimed.copy()
    await stage.restore(stage.points()[0], **into())
    return stage


def lose_the_adoption(stage):
    stage.catalogue.rows, stage.catalogue.claimed = stage.former


async def test_a_lost_adoption_is_not_backed_up_as_the_former_disk(restored):
    """The catalogue says that the disk is still the one which no machine uses any more. A rebuild finds the point of the restore,
    and backups fail until a person has said which disk it is.
    """
    adopted = attached_disk(restored)
    lose_the_adoption(restored)
    await rebuild(restored)

    registration = restored.catalogue.rows["vm", "registration"].value
    assert registration.source != adopted
    assert adopted in registration.unprotected
    with pytest.raises(BackupFailedError, match="NotProtected"):
        await restored.back_up()
    status, _ = await call(restored, disks.put_disk, {"source": adopted, "followsOn": True}, disk="vm")
    assert status == 200
    await restored.back_up()
    assert restored.points()[-1].kind == "incremental"
    assert restored.content(restored.points()[-1]) == restored.bytes_of(adopted)


async def test_who_has_said_since_which_disk_it_is_is_not_asked_again(restored):
    lose_the_adoption(restored)
    restored.world.pass_time(timedelta(minutes=1))
    await call(restored, disks.put_disk, {"source": str(restored.source())}, disk="vm")
    await rebuild(restored)

    assert restored.catalogue.rows["vm", "registration"].value.unprotected == ""


async def test_a_night_reports_restore_points_that_the_catalogue_has_lost(restored):
    lose_the_adoption(restored)
    for _ in range(2):
        restored.world.pass_time(timedelta(hours=25))
        await clean_up_disk(restored.tools, CLEANUP)
    found = [
        one.message for one in restored.journal.events if isinstance(one, RunWarned) and "not in the catalogue" in one.message
    ]

    assert len(found) == 2
    await rebuild(restored)
    restored.journal.events.clear()
    restored.world.pass_time(timedelta(hours=25))
    await clean_up_disk(restored.tools, CLEANUP)
    assert not [one for one in restored.journal.events if isinstance(one, RunWarned)]


async def test_a_change_of_a_machine_that_is_not_stored_any_more_is_forgotten_by_a_rebuild(restored):
    """Each backup had failed for it, with no way out."""
    row = restored.catalogue.rows["vm", "head"]
    gone = replace(row.value, repoint=repoint_name("vm", "vm.20260102T030405Z.0000abcd"), repoint_digest="0" * 64)
    restored.catalogue.rows["vm", "head"] = replace(row, value=gone)
    for name in [name for name in restored.documents.texts if "machine.json" in name]:
        del restored.documents.texts[name]
    with pytest.raises(BackupFailedError, match="POST /api/catalogue/rebuild"):
        await restored.back_up()
    await rebuild(restored)
    await restored.back_up()

    assert restored.points()[-1].kind == "incremental"


@pytest.mark.parametrize("holder", [None, "other"])
async def test_the_watch_names_a_disk_whose_claim_is_lost(restored, holder):
    """No window finds it, and nothing else says so."""
    restored.catalogue.claimed.clear()
    if holder:
        restored.catalogue.claim(attached_disk(restored), holder)
    fleet = await watch(restored.tools, "0 0 */12 * * *")
    assert fleet.unseen == 1
    assert "without a claim" in fleet.why

    restored.catalogue.claimed.clear()
    await rebuild(restored)
    assert (await watch(restored.tools, "0 0 */12 * * *")).unseen == 0
