# Long: a method for each call of the Catalogue port, over one dictionary.
"""The catalogue in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from backup_core.domain.errors import RecordUnreadableError, RowChangedError, RowExistsError, UnexpectedAnswerError
from backup_core.domain.fleet import Turns
from backup_core.domain.naming import point_key, point_key_bounds, run_key, run_key_bounds
from backup_core.domain.records import Head, Pin, Registration, RequestKey, RestorePoint, Run, Versioned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from backup_core.domain.records import PointState
    from tests.doubles.world import InMemoryServices


T = TypeVar("T")


class MemoryCatalogue:
    """The Catalogue port: rows by (disk, row key), each with a version."""

    def __init__(self, world: InMemoryServices) -> None:
        """An empty table in `world`."""
        self._world = world
        self.rows: dict[tuple[str, str], Versioned[Any]] = {}
        self.claimed: dict[str, Versioned[str]] = {}
        """Source to the disk that has claimed it."""
        self.damaged: set[tuple[str, str]] = set()
        """Rows that cannot be read, by disk and row key."""

    async def _get(self, disk: str, key: str) -> Versioned[Any] | None:
        await self._world.before("get_row")
        row = self._read(disk, key) if (disk, key) in self.rows else None
        await self._world.after("get_row")
        return row

    def _read(self, disk: str, key: str) -> Versioned[Any]:
        if (disk, key) in self.damaged:
            message = f"disk {disk}: row {key!r} of the catalogue cannot be read: it is damaged"
            raise RecordUnreadableError(message)
        return self.rows[disk, key]

    def _check(self, disk: str, key: str, etag: str | None) -> None:
        existing = self.rows.get((disk, key))
        if etag is None and existing is not None:
            message = f"{key} of disk {disk}: the row exists already"
            raise RowExistsError(message)
        if etag is not None and (existing is None or existing.etag != etag):
            message = f"{key} of disk {disk}: the row was changed by somebody else in between"
            raise RowChangedError(message)

    def _store(self, row: Any, key: str) -> str:  # noqa: ANN401  any record
        if isinstance(row, Run):
            _refuse_what_is_too_long(row)
        etag = f"W/{self._world.tick()}"
        self.rows[row.disk, key] = Versioned(row, etag, self._world.now)
        return etag

    async def _put(self, row: Any, key: str, etag: str | None) -> str:  # noqa: ANN401  any record
        await self._world.before("put_row")
        self._check(row.disk, key, etag)
        fresh = self._store(row, key)
        await self._world.after("put_row")
        return fresh

    async def claim_source(self, source: str, disk: str) -> str:
        """Claim the source."""
        await self._world.before("claim_source")
        if source not in self.claimed or self.claimed[source].value == disk:
            self.claim(source, disk)
        holder = self.claimed[source].value
        await self._world.after("claim_source")
        return holder

    def claim(self, source: str, disk: str) -> None:
        """Give the disk the claim, past every gate."""
        self.claimed[source] = Versioned(disk, f"W/{self._world.tick()}", self._world.now)

    async def claims(self, disk: str) -> list[Versioned[str]]:
        """Sources of the disk."""
        await self._world.before("claims")
        return [replace(row, value=source) for source, row in self.claimed.items() if row.value == disk]

    async def source_holder(self, source: str) -> str | None:
        """The claim's holder."""
        await self._world.before("source_holder")
        return self.claimed[source].value if source in self.claimed else None

    async def release_source(self, source: str, disk: str, etag: str | None = None) -> None:
        """Give the claim up."""
        await self._world.before("release_source")
        held = self.claimed.get(source)
        if held and held.value == disk and etag in (None, held.etag):
            del self.claimed[source]
            self._world.tick()
        await self._world.after("release_source")

    async def disks(self) -> list[str]:
        """All claimed disks."""
        await self._world.before("disks")
        return sorted({row.value for row in self.claimed.values()})

    async def registration(self, disk: str) -> Versioned[Registration] | None:
        """The registration row."""
        return await self._get(disk, "registration")

    async def put_registration(self, registration: Registration, etag: str | None) -> str:
        """Write the registration row."""
        return await self._put(registration, "registration", etag)

    async def head(self, disk: str) -> Versioned[Head] | None:
        """The head row."""
        return await self._get(disk, "head")

    async def put_head(self, head: Head, etag: str | None) -> str:
        """Write the head row."""
        return await self._put(head, "head", etag)

    async def turns(self) -> Versioned[Turns] | None:
        """The one row of turns."""
        return await self._get(Turns.disk, "turns")

    async def put_turns(self, turns: Turns, etag: str | None) -> str:
        """Write it."""
        return await self._put(turns, "turns", etag)

    async def run(self, disk: str, run: str) -> Versioned[Run] | None:
        """A run's row."""
        return await self._get(disk, run_key(run))

    async def put_run(self, run: Run, etag: str | None) -> str:
        """Write a run's row."""
        return await self._put(run, run_key(run.run), etag)

    async def begin_window(self, run: Run) -> None:
        """Insert run and window together."""
        await self._world.before("begin_window")
        self._check(run.disk, f"window!{run.window}", None)
        self._check(run.disk, run_key(run.run), None)
        self._store(run, run_key(run.run))
        self.rows[run.disk, f"window!{run.window}"] = Versioned(run.run, f"W/{self._world.tick()}", self._world.now)
        await self._world.after("begin_window")

    async def request(self, disk: str, key: str) -> RequestKey | None:
        """The request's row."""
        row = await self._get(disk, f"request!{key}")
        return row.value if row else None

    async def begin_request(self, run: Run, request: RequestKey) -> None:
        """Insert run and request together."""
        await self._world.before("begin_request")
        self._check(run.disk, f"request!{request.key}", None)
        self._check(run.disk, run_key(run.run), None)
        self._store(run, run_key(run.run))
        self._store(request, f"request!{request.key}")
        await self._world.after("begin_request")

    async def commit(
        self,
        points: Sequence[RestorePoint],
        head: Head,
        head_etag: str | None,
        changed: Sequence[Versioned[RestorePoint]] = (),
        registration: Versioned[Registration] | None = None,
    ) -> str:
        """Everything together, or nothing."""
        await self._world.before("commit")
        for point in points:
            self._check(point.disk, point_key(point.point), None)
        for row in changed:
            self._check(row.value.disk, point_key(row.value.point), row.etag)
        if registration:
            self._check(head.disk, "registration", registration.etag)
        self._check(head.disk, "head", head_etag)
        if registration:
            self._store(registration.value, "registration")
        for point in [*points, *(row.value for row in changed)]:
            self._store(point, point_key(point.point))
        etag = self._store(head, "head")
        await self._world.after("commit")
        return etag

    async def point(self, disk: str, point: str) -> Versioned[RestorePoint] | None:
        """One restore point."""
        return await self._get(disk, point_key(point))

    async def points(
        self,
        disk: str,
        limit: int,
        after: str = "",
        state: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Versioned[RestorePoint]]:
        """Restore points, newest first."""
        await self._world.before("points")
        first, last = point_key_bounds(since, until)
        first = max(first, point_key(after) + "!") if after else first
        keys = sorted(key for owner, key in self.rows if owner == disk and first <= key < last)
        return [row for row in (self._read(disk, key) for key in keys) if not state or row.value.state == state][:limit]

    async def mark_deleting(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Update the state."""
        return await self._mark(row, "deleting")

    async def mark_lost(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Update the state."""
        return await self._mark(row, "lost")

    async def _mark(self, row: Versioned[RestorePoint], state: PointState) -> Versioned[RestorePoint]:
        marked = replace(row.value, state=state)
        return replace(row, value=marked, etag=await self._put(marked, point_key(marked.point), row.etag))

    async def delete_point(self, row: Versioned[RestorePoint]) -> None:
        """Delete under the version."""
        await self._world.before("delete_point")
        key = point_key(row.value.point)
        if (row.value.disk, key) in self.rows:
            self._check(row.value.disk, key, row.etag)
            del self.rows[row.value.disk, key]
            self._world.tick()
        await self._world.after("delete_point")

    async def pin(self, pin: Pin, row: Versioned[RestorePoint]) -> None:
        """Insert the pin, touch the point."""
        await self._world.before("pin")
        key = f"pin!{pin.point}!{pin.run}"
        if (pin.disk, key) not in self.rows:
            self._check(pin.disk, point_key(pin.point), row.etag)
            self._store(row.value, point_key(pin.point))
            self._store(pin, key)
        await self._world.after("pin")

    async def unpin(self, pin: Pin) -> None:
        """Delete the pin."""
        await self._world.before("unpin")
        self.rows.pop((pin.disk, f"pin!{pin.point}!{pin.run}"), None)
        self._world.tick()
        await self._world.after("unpin")

    async def pins(self, disk: str) -> list[Pin]:
        """All pins."""
        await self._world.before("pins")
        return [self._read(disk, key).value for owner, key in self.rows if owner == disk and key.startswith("pin!")]

    async def runs(
        self,
        disk: str,
        limit: int,
        after: str = "",
        state: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        operation: str = "",
        *,
        unreported: bool = False,
    ) -> list[Run]:
        """Runs, newest first."""
        await self._world.before("runs")
        first, last = run_key_bounds(since, until)
        first = max(first, run_key(after) + "!") if after else first
        keys = sorted(key for owner, key in self.rows if owner == disk and first <= key < last)
        runs = [self._read(disk, key).value for key in keys]
        runs = [run for run in runs if run.unreported or not unreported]
        return [run for run in runs if state in ("", run.state) and operation in ("", run.operation)][:limit]

    async def forget_runs(self, disk: str, before: datetime, limit: int) -> int:
        """Delete old rows."""
        await self._world.before("forget_runs")
        runs = sorted(key for owner, key in self.rows if owner == disk and key.startswith("run!"))
        read = {key: self._read(disk, key).value for key in runs}
        old = [key for key in runs[1:] if key >= run_key_bounds(None, before)[0] and read[key].ended_for_good]
        requests = [key for owner, key in self.rows if owner == disk and key.startswith("request!")]
        old += [key for key in requests if self.rows[disk, key].changed < before]
        for key in old[:limit]:
            row = self.rows.pop((disk, key)).value
            self._world.tick()
            if key.startswith("run!") and row.window:
                self.rows.pop((disk, f"window!{row.window}"), None)
        await self._world.after("forget_runs")
        return len(old[:limit])

    async def now(self) -> datetime:
        """The world's time."""
        await self._world.before("now")
        return self._world.now


TEXT_CHARS_MAX = 32 * 1024
"""Of a table's text column: 64 KiB in UTF-16."""


def _refuse_what_is_too_long(run: Run) -> None:
    """A run's lists are the only columns that grow; each is stored as one text."""
    for name in ("points", "expired", "warnings", "source_snapshots"):
        if len(listed := getattr(run, name)) and len(json.dumps(listed)) > TEXT_CHARS_MAX:
            message = f"{run.run}: PropertyValueTooLarge: {name} has more than {TEXT_CHARS_MAX} characters"
            raise UnexpectedAnswerError(message)
