# Long: every name is made here, so that no two can be the same.
"""Names: every id, blob name and row key is derived from its inputs, and no user text enters one unchecked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

_UNFIT = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff\ufffe\uffff]")
"""Characters that no page-blob disk's name has: controls, a backslash, and those that the XML of a listing cannot hold."""
DISK_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
RUN_ID = re.compile(r"(?P<disk>[a-z0-9][a-z0-9-]{0,62})\.(?P<time>[0-9]{8}T[0-9]{6}Z)\.(?P<tail>timer|[0-9a-f]{8})")
REBUILD_STEM = "catalogue.rebuild."
REBUILD_ID = re.compile(r"catalogue\.rebuild\.(?P<time>[0-9]{8}T[0-9]{6}Z)\.[0-9a-f]{8}")
POINT_ID = re.compile(r"[0-9]{8}T[0-9]{13}Z")
_SNAPSHOT_ID = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{7}Z")
_RESTORED = re.compile(r"(?<=.)(-restored-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8})+\Z", re.ASCII | re.DOTALL)
"""The part of a disk's name that restores have added."""
URL_SAFE = "/~"
"""Characters that are not encoded in the URL of a blob."""
URL_LENGTH_MAX = 1536
"""Of a blob's URL as it is sent. As the source of a copy the service takes 2 KiB (Put Page From URL, Copy Blob), of which a
snapshot and a signature by a user delegation key take up to 512; as metadata, 8 KiB for all of it.
"""
NAME_LENGTH_MAX, SEGMENTS_MAX = 1024, 254
STEM_LENGTH_MAX = 900
_TICKS_MAX = 10**19
_SECONDS_MAX = 10**11
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_disk_id(text: str) -> bool:
    """Whether `text` may be a disk's id."""
    return DISK_ID.fullmatch(text) is not None


def timer_run_id(disk: str, window: datetime) -> str:
    """The id of the disk's run for a window of the schedule: the same window always gives the same run."""
    return f"{disk}.{_compact(window)}.timer"


def http_run_id(disk: str, requested_at: datetime, token: str) -> str:
    """The id of a run that a call started; `token` is eight hexadecimal digits."""
    return f"{disk}.{_compact(requested_at)}.{token}"


def window_id(window: datetime) -> str:
    """The name of a window of the schedule, to the second, UTC."""
    return _compact(window)


def fleet_instance_id(window: datetime) -> str:
    """The orchestration instance that fans a window out."""
    return f"fleet.{_compact(window)}"


def cleanup_instance_id(due: datetime) -> str:
    """The orchestration instance of the housekeeping that was due then."""
    return f"house.{_compact(due)}"


def rebuild_id(requested_at: datetime, token: str) -> str:
    """The id of a rebuild: four parts, where a run has three; `token` is eight hexadecimal digits."""
    return f"{REBUILD_STEM}{_compact(requested_at)}.{token}"


def is_rebuild_id(text: str) -> bool:
    """Whether `text` may be a rebuild's id."""
    match = REBUILD_ID.fullmatch(text)
    return match is not None and _moment(match["time"][:-1]) is not None


def stamp_of_rebuild(rebuild: str) -> str:
    """The digits of a rebuild's id, without its stem."""
    return "".join(re.findall(r"[0-9a-f]+", rebuild.removeprefix(REBUILD_STEM)))


def rebuild_of_stamp(stamp: str) -> str | None:
    """The rebuild with that stamp; None when it is none."""
    match = re.fullmatch(r"([0-9]{8})([0-9]{6})([0-9a-f]{8})", stamp, re.ASCII)
    rebuild = f"{REBUILD_STEM}{match[1]}T{match[2]}Z.{match[3]}" if match else ""
    return rebuild if is_rebuild_id(rebuild) else None


def disk_of_run(run: str) -> str | None:
    """The disk a run belongs to; None when `run` is not a run id."""
    match = RUN_ID.fullmatch(run)
    return match["disk"] if match and _moment(match["time"][:-1]) else None


def _moment(text: str) -> datetime | None:
    """The time in an id; None for digits that are no time."""
    try:
        # Several times as fast as strptime; each key of a run and of a restore point is made by it.
        year, month, day, hour, minute, second = map(
            int, (text[:4], text[4:6], text[6:8], text[9:11], text[11:13], text[13:15])
        )
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None


def run_moment(run: str) -> datetime | None:
    """When the run was requested, or due; None when `run` is not a run id."""
    match = RUN_ID.fullmatch(run)
    return _moment(match["time"][:-1]) if match else None


def _compact(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def stamp_of(run: str) -> str:
    """The digits of a run's id, without its disk, from which the id can be made again. Empty for no run."""
    return "".join(re.findall(r"[0-9a-f]+", run.partition(".")[2]))


def run_of_stamp(disk: str, stamp: str) -> str | None:
    """The run of the disk with that stamp; None when it is none."""
    match = re.fullmatch(r"([0-9]{8})([0-9]{6})([0-9a-f]{8})", stamp, re.ASCII)
    run = f"{disk}.{match[1]}T{match[2]}Z.{match[3]}" if match else ""
    return run if run and disk_of_run(run) else None


def run_key(run: str) -> str:
    """The row key of a run: newest first within the disk."""
    match = RUN_ID.fullmatch(run)
    moment = _moment(match["time"][:-1]) if match else None
    if moment is None:
        message = f"{run!r} is not a run id"
        raise ValueError(message)
    return f"run!{_SECONDS_MAX - _seconds(moment):011d}!{run}"


def run_key_bounds(since: datetime | None, until: datetime | None) -> tuple[str, str]:
    """[first, last) row keys of runs requested from `since` on and before `until`."""
    first = f"run!{_SECONDS_MAX - _seconds(until) + 1:011d}" if until else "run!"
    last = f"run!{_SECONDS_MAX - _seconds(since) + 1:011d}" if since else "run!~"
    return first, last


def point_key_bounds(since: datetime | None, until: datetime | None) -> tuple[str, str]:
    """[first, last) row keys of restore points taken from `since` on and before `until`."""
    first = f"point!{_TICKS_MAX - _ticks(until) + 1:020d}" if until else "point!"
    last = f"point!{_TICKS_MAX - _ticks(since) + 1:020d}" if since else "point!~"
    return first, last


def _seconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=1)


def _ticks(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 10


def is_snapshot_id(text: str) -> bool:
    """Whether `text` has the form of a snapshot's timestamp: seven decimals, UTC."""
    return _SNAPSHOT_ID.fullmatch(text) is not None


def snapshot_time(snapshot: str) -> datetime:
    """The moment of a snapshot, to the microsecond. ValueError for what is no snapshot's timestamp."""
    if not is_snapshot_id(snapshot):
        message = f"{snapshot[:80]!r} is not a snapshot id"
        raise ValueError(message)
    year, month, day, hour, minute, second, micro = map(int, re.split("[^0-9]", snapshot[:26]))
    return datetime(year, month, day, hour, minute, second, micro, tzinfo=UTC)


def is_point_id(text: str) -> bool:
    """Whether `text` may be a restore point's id."""
    return POINT_ID.fullmatch(text) is not None and _moment(text[:15]) is not None


def point_id(source_snapshot: str) -> str:
    """The restore point's id: the time of its source snapshot, to 100 ns, without punctuation."""
    if not is_snapshot_id(source_snapshot):
        message = f"{source_snapshot!r} is not a snapshot id"
        raise ValueError(message)
    return source_snapshot.replace("-", "").replace(":", "").replace(".", "")


def point_key(point: str) -> str:
    """The row key of a restore point: newest first within the disk."""
    moment = _moment(point[:15]) if POINT_ID.fullmatch(point) else None
    if moment is None:
        message = f"{point!r} is not a restore point id"
        raise ValueError(message)
    ticks = _ticks(moment) + int(point[15:-1])
    return f"point!{_TICKS_MAX - ticks:020d}!{point}"


def head_blob_name(disk: str, generation: int, run: str) -> str:
    """The blob of a new generation: unique to the run that makes it, so that nothing that exists is ever taken over."""
    return f"{disk}/{generation:06d}-{run}/disk.vhd"


def restored_head_name(disk: str, run: str) -> str:
    """The blob that a restore promotes a restore point to: unique to the run."""
    return f"{disk}/restore-{run}/disk.vhd"


def restored_blob_name(source_name: str, run: str) -> str:
    """The default name of a restored disk: beside the one it was taken from, unique to the run. A disk that was restored before
    gives the name it had at first: names do not grow from restore to restore.
    """
    stem, dot, ending = source_name.rpartition(".")
    stem, ending = (stem, dot + ending) if stem and "/" not in ending else (source_name, "")
    _, time, tail = run.split(".")
    return f"{_fitting(_RESTORED.sub('', stem))}-restored-{time}-{tail}{_fitting(ending, 50)}"


def _fitting(text: str, length: int = STEM_LENGTH_MAX) -> str:
    """The beginning of the text that, encoded for a URL, is at most so long."""
    while len(sent := quote(text, safe=URL_SAFE)) > length:
        text = text[: len(text) - max(1, (len(sent) - length) // 12)]
    return text


def restored_disk_name(disk: str, run: str) -> str:
    """The default name of a managed disk: at most 80 letters, digits, hyphens (Microsoft.Compute/disks)."""
    _, time, tail = run.split(".")
    return f"{disk[:40]}-restored-{time}-{tail}"


def taking_name(disk: str, run: str, target: str) -> str:
    """Name of the document that says: a delivery of the run is about to take the backup snapshot of the target."""
    return f"{disk}/{run}/{point_id(target)}-taking.json"


def taking_again_name(disk: str, run: str, target: str) -> str:
    """Name of the document that says: another delivery is about to take it as well."""
    return f"{disk}/{run}/{point_id(target)}-taking-again.json"


def repoint_name(disk: str, run: str) -> str:
    """Name of the document with the change of a machine, stored before it is begun."""
    return f"{disk}/{run}/machine.json"


def noted_name(change: str) -> str:
    """Name of the document that says: the head row has named the stored change."""
    return f"{change.removesuffix('.json')}-noted.json"


def turned_name(change: str, epoch: int) -> str:
    """Name of the document that says: the owner with that epoch undoes the stored change."""
    return f"{change.removesuffix('.json')}-turned-{epoch}.json"


def plan_name(disk: str, run: str, target: str, base: str, becomes: str = "head") -> str:
    """Name of the document with the plan of a copy of one snapshot; `base` is empty for a full copy. What the copy `becomes` is
    part of the name: a restore makes two of one snapshot, and each has its own cursors.
    """
    what = "" if becomes == "head" else f"-{becomes}"
    return f"{disk}/{run}/{point_id(target)}-from-{point_id(base) if base else 'nothing'}{what}.json"


REBUILDS = "_rebuilds/"
"""The folder of rebuilds. No disk's id begins so."""
REBUILD_AT_WORK = f"{REBUILDS}at-work.json"
"""Name of the document that says which rebuild may act."""


def rebuild_name(rebuild: str) -> str:
    """Name of the document with a rebuild's progress."""
    return f"{REBUILDS}{rebuild}.json"


def rebuild_cancel_name(rebuild: str) -> str:
    """Name of the document that requests the rebuild's cancel."""
    return f"{REBUILDS}{rebuild}-cancel.json"


def rebuilt_folder(rebuild: str) -> str:
    """The folder of everything that a rebuild found."""
    return f"{REBUILDS}{rebuild}/"


def rebuilt_name(rebuild: str, disk: str, part: int) -> str:
    """Name of the document with what a rebuild found for a part of a disk."""
    return f"{rebuilt_folder(rebuild)}{disk}.{part:06d}.json"


FLEETS = "_fleets/"
"""Where windows keep the order of their disks: no disk's id begins so."""


def fleet_order_name(window: str) -> str:
    """Name of the document with the order of a window's disks. `window` is the window's id."""
    return f"{FLEETS}{window}.json"


def registration_name(disk: str) -> str:
    """Name of the copy of a disk's registration beside its backups, from which a lost row is restored."""
    return f"{disk}/registration.json"


def custody_name(disk: str) -> str:
    """Name of the record of the disk that an app with custody of the backups keeps, in a container of its own."""
    return f"{disk}/retention.json"


def custody_night_name(disk: str, night: str) -> str:
    """Name of that app's list of the restore points of the disk that the clean-up `night` may delete."""
    return f"{disk}/{night}.json"


def cursor_name(plan: str, shard: int) -> str:
    """Name of the document with a shard's cursor."""
    return f"{plan.removesuffix('.json')}/{shard:06d}.json"


def shard_end_name(plan: str, shard: int) -> str:
    """Name of the document that says: the shard of the plan is done."""
    return f"{plan.removesuffix('.json')}/{shard:06d}-end.json"


def image_end_name(disk: str, run: str, becomes: str) -> str:
    """Name of the document that says: a restore has proved the image, or has abandoned it."""
    return f"{disk}/{run}/{becomes}-image.json"


def image_copy_name(disk: str, run: str, becomes: str) -> str:
    """Name of the document that says which Copy Blob the run has seen complete on the image's blob."""
    return f"{disk}/{run}/{becomes}-copy.json"


_GROUP = (
    r"/subscriptions/[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}/resourceGroups/[A-Za-z0-9_()-][A-Za-z0-9_().-]{0,88}"
)
GROUP_ID = re.compile(_GROUP, re.IGNORECASE)
MACHINE_ID = re.compile(
    _GROUP + r"/providers/Microsoft\.Compute/virtualMachines/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.IGNORECASE
)
ACCOUNT_ID = re.compile(_GROUP + r"/providers/Microsoft\.Storage/storageAccounts/[a-z0-9]{3,24}", re.IGNORECASE)
_DISK_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?"
DISK_NAME = re.compile(_DISK_NAME)
MANAGED_DISK_ID = re.compile(_GROUP + rf"/providers/Microsoft\.Compute/disks/{_DISK_NAME}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ResourceId:
    """A resource of Azure Resource Manager."""

    subscription: str
    group: str
    name: str

    @property
    def group_id(self) -> str:
        """The id of its resource group, lower case: ids compare without regard to case."""
        return f"/subscriptions/{self.subscription}/resourcegroups/{self.group}".lower()


def parse_resource_id(text: str) -> ResourceId:
    """The parts of a resource id: /subscriptions/…/resourceGroups/…/providers/…/…/name. ValueError for anything else."""
    parts = text.split("/")
    if len(parts) != 9 or not GROUP_ID.fullmatch("/".join(parts[:5])):
        message = f"{text[:200]!r} is not a resource id"
        raise ValueError(message)
    return ResourceId(parts[2], parts[4], parts[8])


def managed_disk_id(machine: str, name: str) -> str:
    """The id of a managed disk in the machine's resource group."""
    at = parse_resource_id(machine)
    return f"/subscriptions/{at.subscription}/resourceGroups/{at.group}/providers/Microsoft.Compute/disks/{name}"


def account_name(endpoint: str) -> str:
    """The name of the storage account of an endpoint: the path of a local one, else the first label of the host."""
    parts = urlsplit(endpoint)
    return parts.path.strip("/") or (parts.hostname or "").split(".")[0]


@dataclass(frozen=True, slots=True)
class BlobAddress:
    """A blob: the account's blob endpoint without a trailing slash, the container, the name (decoded)."""

    account: str
    container: str
    name: str

    @property
    def url(self) -> str:
        """The address as a URL, without query."""
        return f"{self.account}/{self.container}/{quote(self.name, safe=URL_SAFE)}"

    @property
    def place(self) -> str:
        """The blob as a mark on it names it: `account/container/name`, however the account's endpoint is spelt."""
        return f"{account_name(self.account)}/{self.container}/{quote(self.name, safe=URL_SAFE)}"

    def __str__(self) -> str:
        """The URL, for messages."""
        return self.url


@dataclass(frozen=True, slots=True)
class DiskAddress:
    """A managed disk. Resource ids compare without regard to case: subscription, group and name are lower case here."""

    subscription: str
    group: str
    name: str
    run: str = field(default="", compare=False)
    """The run that uploads it: a disk of the name that another made is not the one. Empty for a source."""

    @property
    def id(self) -> str:
        """The resource id, in the one form that all its spellings share."""
        return f"{self.group_id}/providers/Microsoft.Compute/disks/{self.name}"

    @property
    def group_id(self) -> str:
        """The id of its resource group."""
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"

    @property
    def account(self) -> str:
        """The key under which a refusal to read it is remembered: each disk is exported from an account of Azure's own."""
        return self.id

    @property
    def place(self) -> str:
        """The disk as a mark on a snapshot of it names it: at most 256 characters, as a tag takes."""
        return f"managed/{self.subscription}/{self.group}/{self.name}"

    def __str__(self) -> str:
        """The resource id."""
        return self.id


Source = BlobAddress | DiskAddress
"""An object that can be protected."""


SourceKind = Literal["pageBlob", "managedDisk"]


def source_kind(source: str) -> SourceKind:
    """The kind of a source, by its URL or resource id."""
    return "managedDisk" if is_resource_id(source) else "pageBlob"


def is_resource_id(text: str) -> bool:
    """Whether `text` is meant as a resource id, and not as a URL or a blob's name."""
    return text.startswith("/")


def parse_source(text: str, accounts: tuple[str, ...], groups: tuple[str, ...]) -> Source:
    """The page blob inside one of `accounts`, or the managed disk inside one of `groups` (ids, lower case), that `text` names.
    ValueError, in words, for anything else.
    """
    if not is_resource_id(text):
        return parse_blob_url(text, accounts)
    if not MANAGED_DISK_ID.fullmatch(text):
        message = "expected /subscriptions/…/resourceGroups/…/providers/Microsoft.Compute/disks/…, or the URL of a page blob"
        raise ValueError(message)
    try:
        return parse_disk(text, groups)
    except ValueError as error:
        message = "its resource group is not one whose managed disks this app may protect (setting DISK_GROUPS)"
        raise ValueError(message) from error


def parse_disk(text: str, groups: tuple[str, ...]) -> DiskAddress:
    """The managed disk inside one of `groups` (ids, lower case) that `text` names. ValueError, in words, for anything else."""
    if not MANAGED_DISK_ID.fullmatch(text):
        message = "expected /subscriptions/…/resourceGroups/…/providers/Microsoft.Compute/disks/…"
        raise ValueError(message)
    at = parse_resource_id(text.lower())
    if at.group_id not in groups:
        message = "its resource group is not one of those that are allowed"
        raise ValueError(message)
    return DiskAddress(at.subscription, at.group, at.name)


def parse_blob_url(text: str, accounts: tuple[str, ...]) -> BlobAddress:
    """The blob `text` names inside one of `accounts` (blob endpoints). ValueError, in words, for anything else."""
    try:
        parts = urlsplit(text)
    except ValueError:
        message = "it is no URL: a host in brackets is not closed, or is no address"
        raise ValueError(message) from None
    if parts.query or parts.fragment:
        message = "it must name the blob alone: no SAS, no snapshot, no other query or fragment"
        raise ValueError(message)
    if parts.username or parts.password:
        message = "it must not carry a user or password"
        raise ValueError(message)
    account = next((one for one in accounts if text.startswith(one + "/")), None)
    if account is None:
        message = "its account is not one this app may read (setting SOURCE_ACCOUNTS)"
        raise ValueError(message)
    try:
        container, _, name = unquote(text[len(account) + 1 :], errors="strict").partition("/")
    except UnicodeDecodeError:
        message = "what it encodes by percent signs is not UTF-8"
        raise ValueError(message) from None
    if not re.fullmatch(r"[a-z0-9$](?:[a-z0-9-]{1,61})[a-z0-9]", container) or not 0 < len(name) <= NAME_LENGTH_MAX:
        message = "after the account it must have a container and a blob name"
        raise ValueError(message)
    segments = name.split("/")
    # Clients and the service leave out empty segments, "." and dots at the end: such a name would be an alias of another blob.
    if _UNFIT.search(name) or any(not segment or segment.endswith(".") for segment in segments):
        message = "its blob name has a control character or backslash, or a path segment that is empty or ends in a dot"
        raise ValueError(message)
    blob = BlobAddress(account, container, name)
    if len(blob.url) > URL_LENGTH_MAX or len(segments) > SEGMENTS_MAX:
        message = (
            f"its URL has {len(blob.url)} characters as it is sent, and {len(segments)} path segments; expected at most "
            f"{URL_LENGTH_MAX} and {SEGMENTS_MAX}, so that it can be the source of a copy: copy the disk to a shorter name"
        )
        raise ValueError(message)
    return blob
