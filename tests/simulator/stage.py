# Long: the whole world of a history, and what is known to be true of it.
"""The world of one history: a disk with its machine, the app over in-memory ports, and what is known to be true of them."""

from __future__ import annotations

import copy
import itertools
import logging
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from backup_core.domain.identity import Deployment
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.metadata import Site, from_metadata
from backup_core.domain.naming import BlobAddress, DiskAddress, Source, parse_source, registration_name, run_key
from backup_core.domain.ranges import PAGE
from backup_core.domain.records import Head, Registration, Retention, Run, Versioned
from backup_core.domain.repoint import Machine, MachineDisk
from backup_core.domain.sampling import Samples
from backup_core.protocol.copy_route import Copying
from backup_core.protocol.registrations import REGISTRATION
from backup_core.protocol.tools import Limits, Tools
from tests.doubles.catalogue import MemoryCatalogue
from tests.doubles.documents import MemoryDocuments
from tests.doubles.journal import MemoryJournal
from tests.doubles.machines import MemoryMachines
from tests.doubles.page_blobs import MemoryPageBlobs
from tests.doubles.refusals import SIGNATURE
from tests.doubles.world import InMemoryServices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backup_core.domain.ranges import ByteRange
    from backup_core.domain.records import RestorePoint
    from backup_core.ports.blobs import Fence
    from backup_core.steps.copying import FullCopy
    from tests.doubles.page_blobs import Blob
    from tests.doubles.world import Gate

SOURCE, BACKUP, DISK = "https://source.test", "https://backup.test", "vm"
BYSTANDER = "bad"
DEPLOYMENT = Deployment("backup/pagekeeper")
"""Another disk, where histories have one."""
GROUP = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web"
VM = f"{GROUP}/providers/Microsoft.Compute/virtualMachines/web-1"
REPLAYED_EVERY = 100
"""One history in so many is run through the Durable SDK's replay."""
BACKUPS_ONLY_EVERY = 3
"""One history in so many has no restores: what is rare in backups would drown otherwise."""
REPEATS_EVERY, REPEATS = 7, 3
"""Three histories in seven have repeated episodes."""
GENTLE_EVERY, GENTLE = 10, 7
"""One history in so many has no strangers, no operators and no refusals, only what networks and workers do: requests that are
lost, late, repeated or busy. In it no run may fail without a reason.
"""


INHERITED_EVERY, INHERITED = 5, 2
"""One history in so many has snapshots of others that carry our metadata."""
TIMED_EVERY, TIMED = 11, 4
"""One history in so many has timers that fire early, late or twice; the schedule says which window each is meant for."""
UNREADABLE_EVERY, UNREADABLE = 13, 5
"""One history in so many has rows and documents that cannot be read: for good of another disk, for a while of this one."""
FAILING_EVERY, FAILING = 9, 4
"""One history in so many has cleanings that fail: nothing can be deleted in an account for a while, or the account is gone."""
LONG_EVERY, LONG = 500, 67
"""One history in so many has more expired restore points than a row or a message can name. All of them are gentle: a run that
cannot end is taken for dead elsewhere, and ended by the next.
"""
MANAGED_EVERY, MANAGED = 17, (1, 2)
"""Two histories in so many are of a managed disk, whose snapshots and exports are played below the real adapter."""
BOUNDARY = 40 * PAGE
"""What stands for 4 TiB there: no diff reaches across."""
LATE_EVERY, LATE = 8, 6
"""One history in so many keeps the page writes of dead workers in flight until another run writes pages: the worst moment."""
PILE = 1250
"""So many ids are longer than a column of the table."""


class ViolationError(Exception):
    """An invariant does not hold."""


@dataclass
class Report:
    """The report of a history: its counts, trace and first violation."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    violation: str = ""
    trace: list[str] = field(default_factory=list)


class WatchedPageBlobs(MemoryPageBlobs):
    """Page blobs that look at what is copied to them page by page."""

    copied_needlessly = ""
    """The first put of a page that the source does not hold, or that the diff leaves alone and the destination has not."""
    gaps = 0
    """Unchanged pages that were copied along."""

    async def copy_streamed(
        self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence, *, keep_zeros: bool = False
    ) -> None:
        """Read, then put."""
        self._look(source, snapshot, part, head)
        await super().copy_streamed(source, snapshot, part, head, fence, keep_zeros=keep_zeros)

    async def copy_from_url(self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence) -> None:
        """Put what the service reads itself."""
        self._look(source, snapshot, part, head)
        await super().copy_from_url(source, snapshot, part, head, fence)

    def _look(self, source: Source, snapshot: str, part: ByteRange, head: Source) -> None:
        if isinstance(head, DiskAddress):
            return  # an upload copies whatever the restore point has
        blob, destination = (
            self.disks.get(source) if isinstance(source, DiskAddress) else self.blobs.get(source),
            self.blobs.get(head),
        )
        mark = from_metadata(destination.metadata, Site(DEPLOYMENT, head)) if destination else None
        if blob is None or destination is None or snapshot not in blob.snapshots:
            return  # refused below
        now, base = blob.snapshots[snapshot], blob.snapshots.get(mark.base) if mark and mark.target == snapshot else None
        changed = self._changes(base, now) if base else {}
        # The footer is always copied where it differs, and what is where it was.
        ends = {one.size // PAGE - 1 for one in (now, base) if one} if isinstance(source, DiskAddress) else set()
        for page in range(part.start // PAGE, part.end // PAGE):
            # What the disk has grown by is copied as it is allocated, whatever the diff says.
            unchanged = base is not None and page * PAGE < base.size and page not in changed
            self.gaps += unchanged
            if page not in ends and (page not in now.pages or (unchanged and page not in destination.pages)):
                self.copied_needlessly = self.copied_needlessly or f"page {page} of {head}"


class _LogHandler(logging.Handler):
    """Passes each line of the log to `read`."""

    def __init__(self, read: Callable[[object], None]) -> None:
        super().__init__()
        self._read = read

    def emit(self, record: logging.LogRecord) -> None:
        self._read(self.format(record))


class Known:
    """The truth about a history, whatever the app believes."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.truth: dict[str, bytes] = {}
        """The content of each source snapshot."""
        self.origins: dict[str, tuple[DiskAddress, Blob]] = {}
        """Each snapshot of a managed disk as it was taken."""
        self.leaked = ""
        """The texts that contained the signature of an export."""
        self.pins: list[tuple[str, str]] = []
        """(point, run) of every pin ever set."""
        self.deleted_by_others: set[str] = set()
        self.altered_by_others = False
        self.machine_changed_by_others = False
        self.unreadable_of_bystander = ""
        """The row of the other disk that cannot be read, or `document`."""
        self.pile: set[str] = set()
        """Restore points of long ago, all expired."""
        self.windows: Counter[str] = Counter()
        """How often a timer fired for each window."""
        self.foreign: set[tuple[Source, str]] = set()
        """Snapshots that others took of a disk, though they name a run of ours: inherited, or another deployment's."""
        self.strangers: dict[BlobAddress, Blob] = {}
        self.strange_disks: list[DiskAddress] = []
        """Blobs of other people where restores want to go."""
        self.adopted_by_hand = False
        """A restore was adopted without its machine being given the disk: the operator does that."""


class Stage(Known):
    """Everything a history happens to. All choices come from its seed."""

    def __init__(self, seed: int, before: Gate, after: Gate, *, keep_trace: bool) -> None:
        """`before` and `after` are called around each effect of a port call."""
        super().__init__()
        self.seed, self.rng = seed, random.Random(seed)  # noqa: S311  replayable choices
        self.report, self._keep_trace = Report(seed), keep_trace
        self.world = InMemoryServices(before, after)
        self._addresses: dict[str, Source] = {}
        self.replayed = seed % REPLAYED_EVERY == 0
        self.managed = seed % MANAGED_EVERY in MANAGED
        self.restores = seed % BACKUPS_ONLY_EVERY != 0
        self.gentle = seed % GENTLE_EVERY == GENTLE
        self.inherits = seed % INHERITED_EVERY == INHERITED
        self.repeats = seed % REPEATS_EVERY < REPEATS
        self.timed = seed % TIMED_EVERY == TIMED
        self.unreadable = seed % UNREADABLE_EVERY == UNREADABLE
        self.failing = seed % FAILING_EVERY == FAILING
        self.long = seed % LONG_EVERY == LONG
        self.late = seed % LATE_EVERY == LATE
        self.coalesces = seed // 2 % 2 == 1
        self.pages = self.rng.randrange(12, 65)
        self.blobs = WatchedPageBlobs(self.world, diff="writes" if seed % 2 else "content")
        self.blobs.copies_delayed = True
        self.catalogue = MemoryCatalogue(self.world)
        self.documents = MemoryDocuments(self.world)
        self.machines = MemoryMachines(self.world, self.blobs)
        self.full_copy: FullCopy = "blob" if self.rng.random() < 0.3 else "pages"
        first: Source = BlobAddress(SOURCE, "vhds", "vm.vhd")
        if self.managed:
            first = parse_source(f"{GROUP}/providers/Microsoft.Compute/disks/vm-disk", (), (GROUP.lower(),))
        self.account = first.account
        """The source's."""
        if self.full_copy == "pages" and self.rng.random() < 0.3:
            self.blobs.unreachable.add(self.account)
        self.tools = self._tools()
        self.retention = Retention(self.rng.choice([1, 2, 4])) if self.rng.random() < 0.6 or self.long else None
        self.blobs.put(first, self.pages * PAGE)
        registration = Registration(DISK, str(first), "", self.world.now, self.world.now, retention=self.retention)
        self.catalogue.rows[DISK, "registration"] = Versioned(registration, "W/0", self.world.now)
        self.catalogue.claim(str(first), DISK)
        self.documents._store(registration_name(DISK), REGISTRATION.dump_json(registration).decode())  # noqa: SLF001  past every gate
        if self.unreadable:
            self._register_bystander()
        self.lun = self.rng.choice([0, 0, None])
        self.blobs.put(BlobAddress(SOURCE, "vhds", "other.vhd"), 8 * PAGE)
        if self.managed:
            self.machines.disks[str(first)] = ManagedDisk(str(first), "Succeeded", "", self.pages * PAGE)
        self.machines.add(VM, MachineDisk("vm-disk", str(first), managed=self.managed, lun=self.lun))
        self.machines.slow = self.rng.random() < 0.5
        if self.managed:
            self._choose_services()

    def _choose_services(self) -> None:
        """Choose how Azure treats managed disks, where it may do either."""
        cloud, rng = self.blobs.cloud, self.rng
        cloud.boundary = BOUNDARY
        cloud.private = self.full_copy == "pages" and rng.random() < 0.3
        cloud.grant_extends, cloud.siblings_denied = rng.random() < 0.5, rng.random() < 0.5
        cloud.footer_in_diff, cloud.footers_differ = rng.random() < 0.5, rng.random() < 0.5
        self.blobs.fill_percent = rng.choice([100, 100, 45])
        cloud.lasting = rng.choice([0, 0, 1])
        self.machines.signs = cloud.uploads.signs = rng.random() < 0.5
        cloud.uploads.ready_when_expired = rng.random() < 0.5
        self.blobs.exporting = replace(self.blobs.exporting, seconds=rng.choice([20, 300, 7200]))

    def _tools(self) -> Tools:
        limits = Limits(
            shard_bytes_max=self.rng.choice([2, 4, 1000]) * PAGE,
            shard_requests_max=self.rng.choice([2, 1000]),
            in_flight=self.rng.choice([1, 2, 4]),
            gap_ratio=100.0 if self.coalesces else 0.0,
            gaps_min=1,
            # On these tiny disks 300 samples would read everything, and so hide what the protocol itself must prevent.
            samples=Samples(least=1, most=1, elsewhere=1, block_bytes=PAGE),
            window_bytes=self.rng.choice([5, 16, 1000]) * PAGE,
            windows_ahead=self.rng.choice([1, 3]),
            wave_requests=self.rng.choice([1, 2, 5]),
            shard_seconds=self.rng.choice([1, 100]),
            # Longer than a dead run's silence, short enough to come true often.
            sweep_age_seconds=self.rng.choice([1000, 4000]),
            # Where something cannot be removed, one call must be able to do the rest.
            sweeps_max=self.rng.choice([1, 3, 200]) if not self.failing else 200,
        )
        copying = Copying(self.blobs, self.rng.choice(["auto", "stream"]), lambda: 0.0)
        self.journal = MemoryJournal()
        return Tools(
            self.blobs, self.catalogue, self.documents, (SOURCE,), BACKUP, "heads", itertools.count().__next__,
            copying, self.machines, self.journal, DEPLOYMENT, limits, (GROUP.lower(),), disk_groups=(GROUP.lower(),),
            account_ids={SOURCE: f"{GROUP}/providers/Microsoft.Storage/storageAccounts/source"},
        )  # fmt: skip

    def _register_bystander(self) -> None:
        at, now = BlobAddress(SOURCE, "vhds", f"{BYSTANDER}.vhd"), self.world.now
        self.blobs.put(at, 8 * PAGE)
        registration = Registration(BYSTANDER, at.url, "", now, now)
        run = f"{BYSTANDER}.20251231T000000Z.timer"
        self.store(registration, "registration")
        self.store(Head(BYSTANDER), "head")
        self.store(Run(BYSTANDER, run, "Succeeded", "timer", full=False, created=now, ended=now), run_key(run))
        self.catalogue.claim(at.url, BYSTANDER)
        self.documents._store(registration_name(BYSTANDER), REGISTRATION.dump_json(registration).decode())  # noqa: SLF001  past every gate

    # -- looking ----------------------------------------------------------------------------------------------------

    @property
    def registration(self) -> Registration:
        """The disk's registration."""
        registration: Registration = self.catalogue.rows[DISK, "registration"].value
        return registration

    @property
    def source(self) -> Source:
        """The source of the backups."""
        return self.address(self.registration.source)

    @property
    def head(self) -> Head | None:
        """The head row."""
        row = self.catalogue.rows.get((DISK, "head"))
        return row.value if row else None

    @property
    def machine(self) -> Machine:
        """The machine."""
        return self.machines.machines[VM]

    @property
    def pile_is_due(self) -> bool:
        """Whether the disk is to have many points, and has the first."""
        return self.long and not self.pile and self.head is not None and self.head.pair is not None

    def policy_copy(self) -> Registration | None:
        """The copy of the registration beside the backups."""
        stored = self.documents.texts.get(registration_name(DISK))
        return REGISTRATION.validate_json(stored) if stored else None

    def run(self, run: str) -> Run:
        """A run's row."""
        found: Run = self.catalogue.rows[DISK, run_key(run)].value
        return found

    def runs(self) -> list[tuple[str, Run]]:
        """All rows of runs, with their keys."""
        rows = self.catalogue.rows.items()
        return [(key, row.value) for (disk, key), row in rows if key.startswith("run!") and disk == DISK]

    def points(self) -> dict[str, RestorePoint]:
        """All rows of restore points, by key."""
        rows = self.catalogue.rows.items()
        return {key: row.value for (disk, key), row in rows if key.startswith("point!") and disk == DISK}

    def blob(self, url: str) -> Blob | None:
        """A blob by its URL, or a managed disk by its id."""
        address = self.address(url)
        return self.blobs.disks.get(address) if isinstance(address, DiskAddress) else self.blobs.blobs.get(address)

    def address(self, url: str) -> Source:
        """The address that a URL or id names: there are few, and each step looks for them."""
        if url not in self._addresses:
            self._addresses[url] = self.tools.source(url)
        return self._addresses[url]

    def store(self, row: Any, key: str) -> None:  # noqa: ANN401  any record
        """Write a row past every gate, as the API does."""
        self.catalogue._store(row, key)  # noqa: SLF001  see above

    def snapshot(self, point: RestorePoint) -> Blob:
        """A restore point's backup snapshot. Raises ViolationError when it is gone."""
        blob = self.blobs.blobs.get(self.tools.head(point.head))
        if blob is None or point.backup_snapshot not in blob.snapshots:
            message = f"invariant 1: the backup snapshot of {point.point} is gone"
            raise ViolationError(message)
        return blob.snapshots[point.backup_snapshot]

    def content(self, point: RestorePoint) -> bytes:
        """The bytes of a restore point's backup snapshot. Raises ViolationError when it is gone."""
        return self.snapshot(point).content()

    def is_live(self, point: RestorePoint) -> bool:
        """Whether the point equals the disk as it is."""
        return self.same(self.content(point), self.blobs.blobs[self.source].content())

    def same(self, one: bytes, other: bytes) -> bool:
        """Whether both have the same content: a managed disk's footer is ignored, since it may differ in each snapshot."""
        end = len(one) - PAGE * self.managed
        return len(one) == len(other) and one[:end] == other[:end]

    def learn(self) -> None:
        """Record the content of each source snapshot, as soon as it exists."""
        blobs = [blob for address, blob in self.blobs.blobs.items() if address.account == SOURCE]
        for blob in [*blobs, *self.blobs.disks.values()]:
            for name, snapshot in blob.snapshots.items():
                if name not in self.truth:
                    self.truth[name] = snapshot.content()
        for at, disk in self.blobs.disks.items():
            for name in disk.snapshots.keys() - self.origins.keys():
                self.origins[name] = at, copy.copy(disk.snapshots[name])

    def search_for_signatures(self, said: object) -> None:
        """Search a text that was stored, shown or logged for signatures of managed disks. Records the first."""
        if self.managed and not self.leaked and SIGNATURE in (text := str(said)):
            self.leaked = text[max(0, text.index(SIGNATURE) - 80) :][:100]

    @contextmanager
    def searching_the_log(self) -> Iterator[None]:
        """Search each logged line for signatures while the block runs, if the disks are managed."""
        if not self.managed:
            yield
            return
        log, disabled = logging.getLogger("pagekeeper"), logging.root.manager.disable
        handler, log.propagate = _LogHandler(self.search_for_signatures), False
        logging.disable(logging.NOTSET)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.propagate = True
            logging.disable(disabled)

    # -- words --------------------------------------------------------------------------------------------------------

    def count(self, what: str, times: int = 1) -> None:
        """Count something that happened."""
        self.report.counts[what] += times

    def note(self, line: str) -> None:
        """Write a line of the trace."""
        if self._keep_trace:
            self.report.trace.append(f"{self.world.ticks:>12}  {line}")


def as_lost(point: RestorePoint) -> RestorePoint:
    """The point on its way out."""
    return replace(point, state="deleting")
