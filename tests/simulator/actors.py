# Long: every disturbance by somebody else, in one place.
"""Everybody but the app: the guest that writes, operators who pin, cancel and restore, and strangers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from azure.core.exceptions import HttpResponseError

from backup_core.domain.ending import cancellation
from backup_core.domain.errors import AccessDeniedError, UnexpectedAnswerError
from backup_core.domain.identity import Deployment
from backup_core.domain.managed import UPLOAD, ManagedDisk
from backup_core.domain.managed_snapshots import snapshot_name as disk_snapshot_name
from backup_core.domain.metadata import Site, described, run_of_source_snapshot, source_snapshot_metadata, to_point_metadata
from backup_core.domain.naming import (
    BlobAddress,
    DiskAddress,
    http_run_id,
    managed_disk_id,
    point_id,
    point_key,
    registration_name,
    restored_blob_name,
    run_key,
)
from backup_core.domain.ranges import PAGE
from backup_core.domain.records import Pin, Restoring, Run, Slot
from backup_core.domain.repoint import MachineDisk
from tests.simulator.stage import BACKUP, BYSTANDER, DISK, PILE, SOURCE, VM

if TYPE_CHECKING:
    from tests.doubles.page_blobs import Blob
    from tests.simulator.stage import Stage


REFUSALS = (UnexpectedAnswerError, AccessDeniedError)
"""What 409 BlobImmutableDueToPolicy or ScopeLocked, and 403 AuthorizationPermissionMismatch come to."""
ACTS_ON_MANAGED = (
    "break lease",
    "delete S",
    "overwrite",
    "grow",
    "alter head",
    "change machine",
    "end access",
    "reach limit",
    "fail filling",
    "slow creation",
)
"""What they do where the disk is a managed one."""
ACTS = ("break lease", "delete S", "overwrite", "grow", "shrink", "alter head", "change machine")
"""What strangers do."""
FOOTER = b"conectix".ljust(PAGE, b"\x55")
"""A third party's unfinished upload: Azure would end it."""
UNREADABLE_DOCUMENT = f'{{"disk": "{BYSTANDER}", "verification": "by newer means"}}'


def snapshot_name(moment: datetime) -> str:
    """The name of a snapshot that is taken then."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}0Z"


class Actors:
    """The acts of everybody but the app on a stage, each act by itself."""

    def __init__(self, stage: Stage) -> None:
        """Act on `stage`."""
        self.stage, self.rng = stage, stage.rng
        self._restores = 0

    # -- the guest and its operator -------------------------------------------------------------------------------------

    def guest(self) -> None:
        """The virtual machine writes or trims; now and then explicit zeros. What is not attached is written by hand."""
        stage = self.stage
        attached = stage.machine.at(stage.lun)
        known = attached and attached.managed == stage.managed
        url = attached.source if attached and known and self.rng.random() < 0.8 else stage.registration.source
        blob, address = stage.blob(url), stage.address(url)
        if blob is None or (blob.lease and not blob.lease.startswith(VM)):
            return  # a restore is still making it
        size = blob.size // PAGE - stage.managed  # a footer follows what the guest can write
        first = self.rng.randrange(size)
        count = min(self.rng.randrange(1, 6), size - first)
        values = [None if self.rng.random() < 0.3 else bytes([self.rng.randrange(4)]) * PAGE for _ in range(count)]
        stage.blobs.poke(address, first, values)

    def pin(self) -> None:
        """A restore begins to use a point; it gives no further sign of life."""
        stage = self.stage
        available = [(key, point) for key, point in stage.points().items() if point.state == "available"]
        if available:
            key, point = self.rng.choice(available)
            number = len(stage.pins)
            run = f"{DISK}.20260103T{number // 60:02d}{number % 60:02d}00Z.timer"
            stage.count("points pinned")
            stage.note(f"!! {run} pins {point.point}")
            row = Run(DISK, run, "Running", "http", full=False, created=stage.world.now)
            # One transaction: the row of the run, the pin, and a new version of the point.
            for value, at in ((row, run_key(run)), (Pin(DISK, point.point, run), f"pin!{point.point}!{run}"), (point, key)):
                stage.store(value, at)
            stage.pins.append((point.point, run))

    def unpin(self) -> None:
        """A restore ends; its pin is left behind."""
        stage = self.stage
        silent = [run for _, run in stage.pins if stage.run(run).restore is None and not stage.run(run).ended_for_good]
        if silent:
            run = self.rng.choice(silent)
            stage.store(replace(stage.run(run), state="Canceled", ended=stage.world.now, unreported=True), run_key(run))

    def cancel(self) -> None:
        """An operator cancels a run."""
        stage = self.stage
        open_ = [(key, run) for key, run in stage.runs() if not run.ended_for_good]
        if open_:
            key, run = self.rng.choice(open_)
            stage.count("run canceled")
            stage.note(f"!! {run.run} canceled")
            canceled = cancellation(stage.catalogue.rows[DISK, key], stage.world.now)
            # As if the call had died before it answered.
            stage.store(replace(canceled, unreported=canceled.ended_for_good), key)

    def request_restore(self, *, undisturbed: bool = False) -> Run | None:
        """An operator requests a restore; its row, or None when there is nothing to restore. An `undisturbed` one goes where
        nothing is, and into the machine only while that uses the disk that is backed up.
        """
        stage = self.stage
        available = [point for point in stage.points().values() if point.state == "available"]
        if not available:
            return None
        self._restores += 1
        run = f"{DISK}.20260104T{self._restores // 60:02d}{self._restores % 60:02d}00Z.0000abcd"
        if stage.managed:
            # No snapshot of a managed disk is older than its run's name.
            stage.world.pass_time(timedelta(seconds=1))
            run = http_run_id(DISK, stage.world.now, "0000abcd")
        how = self.rng.choice(["repoint", "repoint", "adopt", "plain"])
        attached = stage.machine.at(stage.lun)
        if undisturbed and how == "repoint" and (attached is None or attached.source != stage.registration.source):
            how = "adopt"
        managed = managed_disk_id(VM, f"vm-restored-{self._restores}") if stage.managed else ""
        if stage.managed and self.rng.random() < 0.5:
            target = managed if undisturbed else self._upload_target(managed)
        else:
            blob = BlobAddress(SOURCE, "vhds", restored_blob_name("vm.vhd", run)) if undisturbed else self._target(run)
            target = blob.url
        wanted = Restoring(
            point=self.rng.choice(available).point,
            target=target,
            managed_disk=managed,
            slot=Slot(VM, stage.lun),
            repoint=how == "repoint",
            stop_vm=self.rng.random() < 0.2,
            adopt=how != "plain",
            old_disk=attached.source if attached else "",
        )
        if how == "adopt":
            stage.adopted_by_hand = True
        stage.count(f"restores: {how}")
        stage.note(f"-- {run} restores {wanted.point} ({how}) to {wanted.target}")
        row = Run(DISK, run, "NotStarted", "http", full=False, created=stage.world.now, operation="restore", restore=wanted)
        stage.store(row, run_key(run))
        return row

    def _target(self, run: str) -> BlobAddress:
        """A new name; now and then one that somebody else takes first, or the live disk itself."""
        stage, chance = self.stage, self.rng.random()
        target = BlobAddress(SOURCE, "vhds", restored_blob_name("vm.vhd", run))
        if stage.gentle:
            return target
        if chance < 0.05 and not stage.managed:
            stage.count("restores onto the live disk")
            return stage.tools.disk_blob(stage.registration.source)
        if chance < 0.12:
            stage.count("restores onto a stranger's blob")
            stranger = stage.blobs.put(target, stage.pages * PAGE)
            stranger.pages = {0: b"\x55" * PAGE}
            stage.strangers[target] = stranger
        return target

    def _upload_target(self, managed: str) -> str:
        """The new managed disk; now and then one that somebody else makes first, and uploads to."""
        stage = self.stage
        stage.count("uploads")
        if not stage.gentle and self.rng.random() < 0.1:
            stage.count("uploads to a stranger's disk")
            address, uploads = stage.tools.upload(managed, ""), stage.blobs.cloud.uploads
            stage.machines.disks[managed] = ManagedDisk(managed, "Succeeded", "", stage.pages * PAGE, create_option=UPLOAD)
            uploads.make(address, stage.pages * PAGE, {})
            stage.blobs.disks[address].pages = {stage.pages: FOOTER}
            uploads.grant(address, write=True, seconds=10**9)
            stage.strange_disks.append(address)
        return managed

    # -- strangers ------------------------------------------------------------------------------------------------------

    def third_party(self) -> None:
        """Somebody else: breaks a lease, deletes a source snapshot, overwrites, resizes, touches head or machine."""
        stage = self.stage
        name = stage.head.head if stage.head else ""
        head = stage.blobs.blobs.get(stage.tools.head(name)) if name else None
        source = stage.blobs.blobs[stage.source]
        act = self.rng.choice(ACTS_ON_MANAGED if stage.managed else ACTS)
        stage.count(f"third party: {act}")
        stage.note(f"!! third party: {act}")
        stage.world.tick()
        if act == "break lease" and head:
            head.lease = ""
        elif act == "delete S" and source.snapshots:
            victim = self.rng.choice(sorted(source.snapshots))
            stage.deleted_by_others.add(victim)
            del source.snapshots[victim]
        elif act == "overwrite":
            self._overwrite(source)
        elif act in ("grow", "shrink"):
            self._resize(source, 4 if act == "grow" else -2)
        elif act == "alter head" and head and not head.lease:
            # Only an unleased head can be written by a stranger; what it then holds must never become a point.
            stage.altered_by_others = True
            stage.blobs.poke(stage.tools.head(name), 1, [b"\xee" * PAGE])
        elif act == "change machine":
            self._change_machine()
        elif act == "end access":
            for one in stage.blobs.cloud.all():
                stage.blobs.cloud.revoke(one)
        elif act == "reach limit":
            stage.blobs.cloud.limit_reached = 1
        elif act == "slow creation":
            stage.blobs.cloud.lasting = 1
        elif act == "fail filling":
            stage.blobs.fill_failure = "" if stage.blobs.fill_failure else "the source disk was resized"

    def foreign_snapshot(self) -> None:
        """Somebody else takes a snapshot that names a run of ours.

        It is of a disk onto which a snapshot of ours was copied back, so that it inherits the metadata. Or it is of another
        deployment, whose runs have the same names.
        """
        stage, at = self.stage, self.stage.source
        source = stage.blobs.blobs[at]
        own = [name for name in sorted(source.snapshots) if (at, name) not in stage.foreign]
        if (
            not own
            or stage.blobs.cloud.limit_reached
            or stage.blobs.cloud.lasting
            or SOURCE in stage.blobs.gone
            or (source.lease and not source.lease.startswith(VM))
        ):
            return
        copied = self.rng.choice(own)
        metadata: dict[str, str] = {}
        if isinstance(at, BlobAddress) and self.rng.random() < 0.5:
            stage.count("third party: copy S onto its disk")
            # The machine is stopped and its lease broken for that; started again, it takes the disk as before.
            lease, source.lease = source.lease, ""
            stage.blobs.copy_over(at, copied, at)
            source.lease = lease
        else:
            stage.count("third party: another deployment's snapshot")
            # The window's run there is just about as far as here: each must look for its own snapshot only.
            owner = stage.head.owner if stage.head else None
            run = owner.run if owner else run_of_source_snapshot(source.snapshots[copied].metadata, stage.tools.site(at))
            metadata = source_snapshot_metadata(Site(Deployment("backup/other"), at), DISK, run)
        if isinstance(at, DiskAddress):
            try:
                name = stage.blobs.cloud.take(at.group, disk_snapshot_name(at, metadata, 0), at, metadata).at
            except HttpResponseError:
                return  # too many of the disk are being filled
        else:
            name = stage.blobs.freeze(source, metadata)
        stage.note(f"!! a foreign snapshot {name} after {copied}")
        stage.foreign.add((at, name))

    # -- what cannot be read, removed or named ------------------------------------------------------------------------------

    def damage(self) -> None:
        """A row or document cannot be read: it is damaged, or a newer version wrote it. Of this disk it is read again later."""
        stage, rows = self.stage, self.stage.catalogue.rows
        if stage.gentle or self.rng.random() < 0.5:
            self.blind_bystander()
            return
        readable = ("registration", "head", "run!", "point!", "pin!")
        key = self.rng.choice(sorted(key for disk, key in rows if disk == DISK and key.startswith(readable)))
        stage.count("rows unreadable for a while")
        stage.note(f"!! row {key} cannot be read")
        stage.catalogue.damaged.add((DISK, key))

    def blind_bystander(self) -> None:
        """Something of the other disk cannot be read any more."""
        stage = self.stage
        if stage.unreadable_of_bystander:
            return
        run = next(key for disk, key in stage.catalogue.rows if disk == BYSTANDER and key.startswith("run!"))
        what = stage.unreadable_of_bystander = self.rng.choice(["registration", "head", run, "document"])
        stage.count("rows and documents unreadable for good")
        stage.note(f"!! {what} of disk {BYSTANDER} cannot be read")
        if what == "document":
            stage.documents.texts[registration_name(BYSTANDER)] = UNREADABLE_DOCUMENT
        else:
            stage.catalogue.damaged.add((BYSTANDER, what))

    def mend(self) -> None:
        """Unreadable rows and documents of this disk can be read again: the newer version is back."""
        damaged = self.stage.catalogue.damaged
        damaged -= {row for row in damaged if row[0] == DISK}

    def refuse_cleaning(self) -> None:
        """Nothing can be deleted in an account, by an immutability policy or for want of a right, or the account is gone;
        or that is over.
        """
        blobs, stage = self.stage.blobs, self.stage
        if blobs.undeletable or blobs.gone:
            blobs.undeletable.clear()
            blobs.gone.clear()
            return
        account = self.rng.choice([stage.account, BACKUP])
        if not stage.gentle and self.rng.random() < 0.2 and account in (SOURCE, BACKUP):
            stage.count("accounts gone")
            blobs.gone.add(account)
        else:
            stage.count("deletions refused for a while")
            blobs.undeletable[account] = self.rng.choice(REFUSALS)
        stage.note(f"!! {account} is {'gone' if blobs.gone else 'closed to deletions'}")

    def pile_up(self) -> None:
        """The disk has more restore points than it keeps: somebody has shortened its retention after years."""
        stage = self.stage
        head = stage.head
        newest = next((one for one in stage.points().values() if head and head.pair and one.point == head.pair.point), None)
        if newest is None:
            return
        stage.count("long lists")
        blob, at = stage.blobs.blobs[stage.tools.head(newest.head)], stage.tools.head(newest.head)
        copied = stage.snapshot(newest)
        content, began = copied.content(), datetime(2020, 1, 1, tzinfo=UTC)
        for number in range(PILE):
            stage.world.tick()
            taken, name = snapshot_name(began + timedelta(hours=number)), snapshot_name(stage.world.now)
            old = replace(newest, point=point_id(taken), source_snapshot=taken, backup_snapshot=name, committed=stage.world.now)
            old = described(old)
            blob.snapshots[name] = replace(copied, metadata=to_point_metadata(old, stage.tools.site(at)))
            stage.truth[taken] = content
            stage.store(old, point_key(old.point))
            stage.pile.add(old.point)

    def _overwrite(self, source: Blob) -> None:
        stage = self.stage
        if isinstance(stage.source, DiskAddress):
            stage.blobs.put_disk(stage.source, source.size - PAGE)
            return
        lease = source.lease
        fresh = stage.blobs.put(stage.source, source.size)
        fresh.snapshots, fresh.lease = source.snapshots, lease
        fresh.created = stage.world.now + timedelta(microseconds=1)
        stage.world.tick()

    def _change_machine(self) -> None:
        """Another version of the machine; rarely another disk where the restored one was to go."""
        stage = self.stage
        if VM in stage.machines.changing:
            return
        if stage.managed or self.rng.random() < 0.8:
            stage.machines.change(VM, *stage.machine.disks)
            return
        other = MachineDisk("other", f"{SOURCE}/vhds/other.vhd", managed=False, lun=stage.lun)
        stage.machine_changed_by_others = True
        stage.machines.change(VM, *(disk for disk in stage.machine.disks if disk.lun != stage.lun), other)

    def listing_lies(self) -> None:
        """Once, the service leaves a newly allocated range out of a diff: what no protocol can prevent must be verified."""
        # Under a content diff the maps of head and source may differ harmlessly, and only samples could tell.
        if self.stage.blobs.lies == 0 and self.stage.blobs.diff_kind == "writes":
            self.stage.count("a diff hides an allocation")
            self.stage.blobs.lies = 1

    def _resize(self, source: Blob, pages: int) -> None:
        size = source.size + pages * PAGE
        if isinstance(self.stage.source, DiskAddress):
            if size <= 80 * PAGE:
                self.stage.blobs.grow_disk(self.stage.source, size)
        elif 8 * PAGE <= size <= 80 * PAGE:
            for page in [page for page in source.pages if page * PAGE >= size]:
                self.stage.blobs.poke(self.stage.source, page, [None])
            source.size = size

    # -- the services -----------------------------------------------------------------------------------------------------

    def copies_arrive(self, *, well: bool) -> None:
        """The service ends a pending copy, nearly always well."""
        stage = self.stage
        pending = [address for address, blob in stage.blobs.blobs.items() if blob.arriving]
        if pending:
            success, at = well or self.rng.random() < 0.9, self.rng.choice(pending)
            # What is copied of an export whose access was ended fails.
            success = success and stage.blobs.can_arrive(at)
            stage.count(f"copy ends: {'success' if success else 'failed'}")
            stage.blobs.end_copy(at, "success" if success else "failed")

    def finish_slow_snapshots(self) -> None:
        """Complete the snapshots whose creation takes long."""
        self.stage.blobs.cloud.make_the_rest()
        self.stage.learn()

    def complete_snapshots(self) -> None:
        """Azure takes snapshots again, and fills those that it has not given up."""
        self.stage.blobs.cloud.limit_reached, self.stage.blobs.fill_failure = 0, ""
        self.stage.blobs.cloud.lasting = 0
        self.finish_slow_snapshots()
        self.stage.blobs.cloud.fill(100)

    def complete_machine_changes(self) -> None:
        """Complete the machine's change in progress."""
        for vm in self.stage.machines.changing:
            self.stage.machines.finish(vm)

    def pass_time(self) -> None:
        """Nothing happens for a while."""
        self.stage.world.pass_time(timedelta(minutes=self.rng.choice([1, 5, 31, 60])))
