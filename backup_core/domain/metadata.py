"""What is written on blobs: enough on each head and backup snapshot to rebuild the catalogue from the blobs alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = "1"
_PREFIX = "pagekeeper_"

IntentState = Literal["applying", "verified", "committed"]
_STATES: frozenset[str] = frozenset({"applying", "verified", "committed"})


@dataclass(frozen=True)
class HeadMark:
    """The mark on a head and on every backup snapshot: which source snapshot it is, or is becoming, equal to.

    On a head it is the run's durable intent. A head that is not `committed` is dirty: never a base, never a point.
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
    digest: str = ""
    """Digest of all other fields, once verified."""

    def verified(self, page_map: str) -> HeadMark:
        """The mark after verification, with its digests; what a backup snapshot carries."""
        marked = replace(self, state="verified", page_map=page_map, digest="")
        return replace(marked, digest=marked.canonical_digest())

    def canonical_digest(self) -> str:
        """SHA-256 over the fields that describe the point; the state is left out, since it goes on changing on the head."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("state", "digest")}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def to_metadata(mark: HeadMark) -> dict[str, str]:
    """The mark as blob metadata: names a C# identifier could have, ASCII values (Set Blob Metadata)."""
    return {f"{_PREFIX}schema": SCHEMA} | {_PREFIX + name: str(value) for name, value in asdict(mark).items() if value != ""}


def from_metadata(metadata: Mapping[str, str]) -> HeadMark | None:
    """The mark in a blob's metadata; None when there is none, or not one this version wrote whole."""
    fields = {name.removeprefix(_PREFIX): value for name, value in metadata.items() if name.startswith(_PREFIX)}
    if fields.pop("schema", None) != SCHEMA or fields.get("state") not in _STATES:
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
            digest=fields.get("digest", ""),
        )
    except (KeyError, ValueError):
        return None


def source_snapshot_metadata(disk: str, run: str) -> dict[str, str]:
    """What a source snapshot carries, so that a repeated request finds it and a sweep knows whose it was."""
    return {f"{_PREFIX}disk": disk, f"{_PREFIX}run": run}


def run_of_source_snapshot(metadata: Mapping[str, str]) -> str:
    """The run that took a source snapshot; empty for a snapshot that is not ours."""
    return metadata.get(f"{_PREFIX}run", "")


class PageMapDigest:
    """Digest of a page map, window by window: the state is 64 hexadecimal digits, so that a later activity can go on.

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
