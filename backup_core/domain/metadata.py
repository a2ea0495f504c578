"""Metadata of blobs: each head and backup snapshot carries enough to rebuild the catalogue from the blobs alone.

Metadata do not prove who wrote them: a snapshot inherits those of its blob, a copy those of its source. So each mark names the
very blob it was written on, and the deployment that wrote it; read from anywhere else it is none. A mark that was inherited on
the same blob cannot be told from an original: whatever is deleted must be recorded elsewhere besides.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal, cast, get_args

from backup_core.domain.digests import digest_of
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.naming import is_disk_id, point_id, snapshot_time
from backup_core.domain.records import Kind, RestorePoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backup_core.domain.identity import Deployment
    from backup_core.domain.naming import Source

SCHEMA = "1"
_PREFIX = "pagekeeper_"
TAGS_MAX = 50
"""Of a resource in Azure."""
_NOT_INHERITED = ("pagekeeper", "microsoft", "azure", "windows")
"""Beginnings of the names of tags that are the app's own, or that Azure reserves: it refuses a request with them."""

IntentState = Literal["applying", "verified", "committed"]
KINDS: frozenset[str] = frozenset(get_args(Kind))
_STATES: frozenset[str] = frozenset({"applying", "verified", "committed"})


@dataclass(frozen=True)
class Site:
    """A blob or managed disk, and the deployment that writes or reads a mark on it."""

    deployment: Deployment
    blob: Source


@dataclass(frozen=True)
class HeadMark:
    """The mark on a head: the source snapshot that it equals, or is brought to. It is the run's durable intent.

    A head that is not `committed` is dirty: never a base, never a point.
    """

    disk: str
    generation: int
    epoch: int
    run: str
    state: IntentState
    source: str
    target: str
    """Source snapshot the head is brought to."""
    base: str
    """Source snapshot it starts from; empty for a full copy."""
    size: int
    kind: str
    page_map: str = ""
    """Digest of the head's page map, once verified."""

    def verified(self, page_map: str) -> HeadMark:
        """The mark after verification."""
        return replace(self, state="verified", page_map=page_map)


def to_metadata(mark: HeadMark, site: Site) -> dict[str, str]:
    """The mark as metadata of that blob: names a C# identifier could have, ASCII values (Set Blob Metadata)."""
    return _written("head", site, asdict(mark))


def from_metadata(metadata: Mapping[str, str], site: Site) -> HeadMark | None:
    """The mark in that blob's metadata; None when there is none that was written on it, or not one this version wrote whole."""
    # G17: a mark counts on the blob that it was written on.
    fields = _read("head", metadata, site)
    if fields.get("state") not in _STATES:
        return None
    try:
        return HeadMark(
            disk=fields["disk"],
            generation=int(fields["generation"]),
            epoch=int(fields["epoch"]),
            run=fields["run"],
            state=cast("IntentState", fields["state"]),
            source=fields["source"],
            target=fields["target"],
            base=fields.get("base", ""),
            size=int(fields["size"]),
            kind=fields["kind"],
            page_map=fields.get("page_map", ""),
        )
    except (KeyError, ValueError):
        return None


# -- restore points -------------------------------------------------------------------------------------------------

_PLACE = ("state", "head", "backup_snapshot", "digest")
"""Fields of a restore point that its backup snapshot does not carry as they are: where it lies, what became of it later."""


def described(point: RestorePoint) -> RestorePoint:
    """The point with the digest of what its backup snapshot will say of it."""
    fields = {name: str(value) for name, value in vars(point).items() if name not in _PLACE}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return replace(point, digest=digest_of(text))


def to_point_metadata(point: RestorePoint, site: Site) -> dict[str, str]:
    """Metadata for a snapshot of that blob: the whole restore point, so that the catalogue is a function of the blobs."""
    # G30: the whole point, so that a lost row can be restored.
    fields = {name: value for name, value in vars(point).items() if name not in _PLACE}
    fields["committed"] = point.committed.isoformat()
    return _written("point", site, fields | {"digest": point.digest})


def from_point_metadata(metadata: Mapping[str, str], site: Site, backup_snapshot: str) -> RestorePoint | None:
    """The restore point of the snapshot of that blob that carries `metadata`; None unless it is whole, its digest fits, and it
    was written for this very snapshot.
    """
    # Of whichever deployment: these lie in a container that belongs to one catalogue, and a lost one has left them behind.
    fields = _read("point", metadata, site, of_any=True)
    try:
        point = RestorePoint(
            disk=fields["disk"],
            point=fields["point"],
            kind=cast("Kind", fields["kind"]),
            reason=fields["reason"],
            automatic_fulls=int(fields["automatic_fulls"]),
            generation=int(fields["generation"]),
            head=site.blob.name,
            source=fields["source"],
            source_snapshot=fields["source_snapshot"],
            previous_source_snapshot=fields.get("previous_source_snapshot", ""),
            backup_snapshot=backup_snapshot,
            size=int(fields["size"]),
            write_bytes=int(fields["write_bytes"]),
            clear_bytes=int(fields["clear_bytes"]),
            requests=int(fields["requests"]),
            epoch=int(fields["epoch"]),
            run=fields["run"],
            digest=fields["digest"],
            page_map=fields["page_map"],
            verified=fields["verified"],
            committed=datetime.fromisoformat(fields["committed"]),
        )
        # A description is made just before its snapshot is taken, by a run that is alive. One much older or newer was inherited
        # by a snapshot whose content it does not describe.
        # G17: a description counts on a snapshot of its time.
        written_for_it = abs(snapshot_time(backup_snapshot) - point.committed) <= HEARTBEAT_MAX
        known = point.kind in KINDS and is_disk_id(point.disk) and point.point == point_id(point.source_snapshot)
        sound = known and written_for_it
    except (KeyError, ValueError, TypeError):
        return None
    return point if sound and described(point).digest == point.digest else None


def _written(what: str, site: Site, fields: Mapping[str, object]) -> dict[str, str]:
    by = {"deployment": site.deployment.catalogue, "blob": site.blob.place}
    marked = {"schema": SCHEMA, "what": what, **by, **fields}
    return {_PREFIX + name: str(value) for name, value in marked.items() if value != ""}


def _read(what: str, metadata: Mapping[str, str], site: Site, *, of_any: bool = False) -> dict[str, str]:
    fields = {name.removeprefix(_PREFIX): value for name, value in metadata.items() if name.startswith(_PREFIX)}
    here = (fields.get("schema"), fields.get("what"), fields.get("blob")) == (SCHEMA, what, site.blob.place)
    return fields if here and (of_any or site.deployment.wrote(fields.get("deployment", ""))) else {}


def source_snapshot_metadata(site: Site, disk: str, run: str) -> dict[str, str]:
    """Metadata of a source snapshot: a repeated request finds it by them, and a sweep finds its run."""
    return _written("source", site, {"disk": disk, "run": run})


def restoring_metadata(site: Site, disk: str, run: str) -> dict[str, str]:
    """Metadata of a restored disk until it is complete; then they are removed."""
    return _written("restoring", site, {"disk": disk, "run": run})


def restoring_run(metadata: Mapping[str, str], site: Site) -> str:
    """The restore that is making the disk; empty for every other blob."""
    return _read("restoring", metadata, site).get("run", "")


def run_of_source_snapshot(metadata: Mapping[str, str], site: Site) -> str:
    """The run that a snapshot of the source names as the one that took it; empty for a snapshot that is not ours. It may have
    been inherited, when somebody copied a snapshot of ours onto its blob.
    """
    return _read("source", metadata, site).get("run", "")


def own(metadata: Mapping[str, str]) -> dict[str, str]:
    """The app's own part of the metadata or tags: others may add to them, as an Azure policy does to each resource's."""
    return {name: value for name, value in metadata.items() if name.startswith(_PREFIX)}


def inherited_tags(tags: Mapping[str, str], own_tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a resource that is made of a disk with `tags`: these, beside the app's own. An Azure policy may refuse what
    lacks a tag, such as a cost centre; the disk has passed it.

    Left out are the app's names on the disk, names that Azure reserves, and the last ones by name where they are too many.
    """
    # Another run's mark would make the resource that run's.
    names = sorted(name for name in tags if not name.lower().startswith(_NOT_INHERITED))
    return {name: tags[name] for name in names[: TAGS_MAX - len(own_tags)]} | dict(own_tags)


def is_marked(metadata: Mapping[str, str]) -> bool:
    """Whether anything of this app is in the metadata, wherever it was written."""
    return any(name.lower().startswith(_PREFIX) for name in metadata)


class PageMapDigest:
    """Digest of a page map, window by window: the state is 64 hexadecimal digits, so that a later activity can continue.

    Each window's allocated ranges, merged and cut at the window, are hashed; the windows' digests are chained. The
    windows' size is part of the stored format.
    """

    START = "0" * 64

    def __init__(self, chain: str) -> None:
        """Begin one window after the windows in `chain`."""
        self._chain = chain
        self._window = hashlib.sha256()
        self._open: tuple[int, int] | None = None

    def add(self, start: int, end: int) -> None:
        """Add the next allocated range; touching ranges count as one."""
        if self._open and self._open[1] == start:
            self._open = (self._open[0], end)
            return
        self._flush()
        self._open = (start, end)

    def _flush(self) -> None:
        if self._open:
            self._window.update(b"%d-%d\n" % self._open)

    def finish(self) -> str:
        """The chain with this window in it."""
        self._flush()
        self._open = None
        return hashlib.sha256(bytes.fromhex(self._chain) + self._window.digest()).hexdigest()
