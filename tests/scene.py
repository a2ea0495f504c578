"""A disk, its activities and its orchestrations over in-memory ports: the stage for tests of the protocol."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

from backup_core.activities.runner import run_step
from backup_core.api.context import Api
from backup_core.domain.digests import digest_of_request
from backup_core.domain.identity import Deployment
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.metadata import from_metadata
from backup_core.domain.naming import BlobAddress, parse_source, registration_name, run_key, run_moment
from backup_core.domain.records import Registration, Restoring, Run
from backup_core.domain.repoint import MachineDisk
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.protocol.copy_route import Copying
from backup_core.protocol.registrations import REGISTRATION
from backup_core.protocol.tools import Limits, Tools
from backup_core.steps import STEPS
from backup_core.steps.backup import BackupRequest
from backup_core.steps.restore import RestoreRequest
from tests.doubles.catalogue import MemoryCatalogue
from tests.doubles.documents import MemoryDocuments
from tests.doubles.driver import Driver
from tests.doubles.journal import MemoryJournal
from tests.doubles.machines import MemoryMachines
from tests.doubles.page_blobs import MemoryPageBlobs
from tests.doubles.world import InMemoryServices

PAGE = 512
SOURCE, BACKUP, OTHER = "https://source.test", "https://backup.test", "https://other.test"
BY_NAME = {step.name: step for step in STEPS}
GROUP = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web"
VM = f"{GROUP}/providers/Microsoft.Compute/virtualMachines/web-1"


class Scene:
    """One world with disks in it. `port_calls` counts the port calls by name."""

    def __init__(self, *, diff="writes", copy_mode="auto", limits=None, before=None, after=None, managed=False):
        """With `managed`, the disks are managed disks."""
        self.port_calls = Counter()

        async def counted(name):
            self.port_calls[name] += 1
            if before:
                await before(name)

        gates = {key: gate for key, gate in (("before", counted), ("after", after)) if gate}
        self.world = InMemoryServices(**gates)
        self.blobs = MemoryPageBlobs(self.world, diff=diff)
        self.catalogue = MemoryCatalogue(self.world)
        self.documents = MemoryDocuments(self.world)
        self.machines = MemoryMachines(self.world, self.blobs)
        self.journal = MemoryJournal()
        copying = Copying(self.blobs, copy_mode, lambda: 0.0)
        self.tools = Tools(
            self.blobs, self.catalogue, self.documents, (SOURCE, OTHER), BACKUP, "heads", lambda: 0.0, copying, self.machines,
            self.journal, Deployment("backup/pagekeeper"), limits or Limits(), (GROUP.lower(),),
            {one: f"{GROUP}/providers/Microsoft.Storage/storageAccounts/{one[8:-5]}" for one in (SOURCE, OTHER)},
        )  # fmt: skip
        self.tools = replace(self.tools, disk_groups=(GROUP.lower(),))
        self.runs, self.managed = 0, managed

    def source(self, disk="vm"):
        return self.disk(disk) if self.managed else BlobAddress(SOURCE, "vhds", f"{disk}.vhd")

    @property
    def footer_bytes(self):
        """Bytes that a backup copies besides those that the guest writes: the footer of a managed disk."""
        return PAGE if self.managed else 0

    def lose_source(self, disk="vm"):
        """Somebody deletes the disk."""
        kept = self.blobs.disks if self.managed else self.blobs.blobs
        del kept[self.source(disk)]

    def disk(self, name="vm"):
        """A managed disk in the group of the machines."""
        return parse_source(f"{GROUP}/providers/Microsoft.Compute/disks/{name}", (), (GROUP.lower(),))

    def protect(self, disk="vm", pages=32):
        """Make the source blob and register it. Returns the blob, for the test to write on."""
        blob = self.blobs.put(self.source(disk), pages * PAGE)
        if self.managed:
            made = ManagedDisk(str(self.source(disk)), "Succeeded", "", pages * PAGE, network_access="AllowAll")
            self.machines.disks[made.disk] = made
        now = self.world.now
        registration = Registration(disk, str(self.source(disk)), "", now, now)
        self.catalogue.claim(registration.source, disk)
        self.catalogue._store(registration, "registration")
        self.documents._store(registration_name(disk), REGISTRATION.dump_json(registration).decode())
        return blob

    def write(self, first, *pages, disk="vm"):
        """Write pages given as a byte value, or None to clear."""
        self.blobs.poke(self.source(disk), first, [None if page is None else bytes([page]) * PAGE for page in pages])

    async def perform(self, name, request):
        return await run_step(BY_NAME[name], lambda _: self.tools, request)

    def driver(self):
        return Driver(ORCHESTRATORS, self.perform, lambda: self.world.now)

    def request(self, disk="vm", *, full=False, run=None, **fields):
        self.runs += 1
        run = run or f"{disk}.20260101T{self.runs // 3600 % 24:02d}{self.runs // 60 % 60:02d}{self.runs % 60:02d}Z.timer"
        return BackupRequest(disk=disk, run=run, trigger="http", full=full, **fields)

    async def back_up(self, disk="vm", **fields):
        """Run a backup to its end. Returns the driver, with the calls that it made."""
        request, driver = self.request(disk, **fields), self.driver()
        driver.output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
        return driver

    # -- restores -------------------------------------------------------------------------------------------------

    def machine(self, disk="vm", lun=0, power="running"):
        """A machine that uses the disk, besides an OS disk of its own (or as its OS disk, for lun None)."""
        used = MachineDisk(f"{disk}-disk", self.source(disk).url, managed=False, lun=lun, caching="ReadOnly", size_gb=None)
        os = self.blobs.put(self.source("os"), 8 * PAGE) if lun is not None else None
        disks = [MachineDisk("os", self.source("os").url, managed=False, os_type="Linux")] if os else []
        return self.machines.add(VM, *disks, used, power=power)

    def restore_request(self, point, run="vm.20260102T030405Z.0000abcd", disk="vm", **fields):
        """Store the run row of a restore that was requested by HTTP. Returns the input of its orchestration."""
        target = fields.pop("target", f"{SOURCE}/vhds/restored.vhd")
        wanted = Restoring(point.point, target, **fields)
        # No snapshot of a managed disk is older than the run it is taken for.
        requested = run_moment(run) if wanted.managed_disk else None
        self.world.pass_time(max(timedelta(), (requested or self.world.now) - self.world.now))
        row = Run(disk, run, "NotStarted", "http", full=False, created=self.world.now, operation="restore", restore=wanted)
        self.catalogue._store(row, run_key(run))
        return RestoreRequest(disk=disk, run=run, wanted=digest_of_request(wanted))

    async def restore(self, point, driver=None, **fields):
        """Run a restore to its end. Returns the driver, with the calls that it made."""
        request, driver = self.restore_request(point, **fields), driver or self.driver()
        driver.output = await driver.run("restore_disk", request.model_dump(mode="json"), request.run)
        return driver

    def blob(self, url):
        return next((blob for address, blob in self.blobs.blobs.items() if address.url == url), None)

    def api(self):
        """The HTTP calls, over this world."""
        return Api(self.tools, "0 0 */12 * * *", 4, now=lambda: self.world.now)

    def bytes_of(self, source):
        """The content of the disk with that URL or resource id; a managed disk's as it is exported."""
        return self.blobs.disks[self.tools.source(source)].content() if source.startswith("/") else self.blob(source).content()

    # -- looking ------------------------------------------------------------------------------------------------

    def rows(self, prefix, disk="vm"):
        return [
            row.value for (owner, key), row in sorted(self.catalogue.rows.items()) if owner == disk and key.startswith(prefix)
        ]

    def claims(self):
        """Sources, and the disks that have claimed them."""
        return {source: row.value for source, row in self.catalogue.claimed.items()}

    def points(self, disk="vm"):
        """Restore points, oldest first."""
        return list(reversed(self.rows("point!", disk)))

    def head_row(self, disk="vm"):
        return self.catalogue.rows[disk, "head"].value

    def run_row(self, run):
        return next(row for row in self.rows("run!", run.split(".")[0]) if row.run == run)

    def head_blob(self, disk="vm"):
        return self.blobs.blobs[self.tools.head(self.head_row(disk).head)]

    def mark(self, disk="vm"):
        """The mark on the disk's head."""
        return from_metadata(self.head_blob(disk).metadata, self.tools.site(self.tools.head(self.head_row(disk).head)))

    def content(self, point):
        """The bytes of a restore point's backup snapshot."""
        return self.blobs.blobs[self.tools.head(point.head)].snapshots[point.backup_snapshot].content()

    def dump(self, *, with_runs=False):
        """Everything there is, for "nothing changed": blobs, snapshots, ETags, rows except those of runs."""
        blobs = {
            str(address): (
                blob.etag,
                blob.lease,
                blob.sequence_number,
                dict(blob.metadata),
                blob.content(),
                sorted(blob.snapshots),
            )
            for address, blob in self.blobs.blobs.items()
        }
        rows = {
            key: (row.value, row.etag) for key, row in self.catalogue.rows.items() if with_runs or not key[1].startswith("run!")
        }
        return blobs, rows, dict(self.documents.texts), self.claims()

    def with_limits(self, **limits):
        self.tools = replace(self.tools, limits=replace(self.tools.limits, **limits))
        return self
