"""The table of disks, restore points and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from backup_core.domain.fleet import Turns
    from backup_core.domain.records import Head, Pin, Registration, RequestKey, RestorePoint, Run, Versioned


ROWS_PER_COMMIT = 99
"""A transaction of the table service takes 100 rows; one of them is the head row."""


class Catalogue(Protocol):
    """The table of disks, restore points and runs. Every update names the version it was decided on.

    Reading raises RecordUnreadableError for a row that holds what this version cannot read; it names disk and row.
    """

    async def claim_source(self, source: str, disk: str) -> str:
        """Claim the source blob for the disk unless another has claimed it; returns the disk that holds it. A claim the disk
        holds already is renewed. Raises RowChangedError.
        """

    async def claims(self, disk: str) -> list[Versioned[str]]:
        """The sources that the disk has claimed: one, or more where a run died while the registration moved."""

    async def source_holder(self, source: str) -> str | None:
        """The disk that has claimed the source blob, if any."""

    async def release_source(self, source: str, disk: str, etag: str | None = None) -> None:
        """Release the claim if it is the disk's, and with an `etag` only at that version; otherwise nothing. An empty `etag`
        is no claim's version.
        """

    async def disks(self) -> list[str]:
        """Ids of all registered disks, ascending."""

    async def turns(self) -> Versioned[Turns] | None:
        """The turns of the newest window that has more disks than lanes."""

    async def put_turns(self, turns: Turns, etag: str | None) -> str:
        """Insert (no etag) or update that. Raises RowExistsError, RowChangedError."""

    async def request(self, disk: str, key: str) -> RequestKey | None:
        """The request under the key."""

    async def begin_request(self, run: Run, request: RequestKey) -> None:
        """Insert the run's row and its request's row together. Raises RowExistsError and inserts neither."""

    async def registration(self, disk: str) -> Versioned[Registration] | None:
        """The disk's registration."""

    async def put_registration(self, registration: Registration, etag: str | None) -> str:
        """Insert (no etag) or update the registration. Raises RowExistsError, RowChangedError."""

    async def head(self, disk: str) -> Versioned[Head] | None:
        """The disk's head row."""

    async def put_head(self, head: Head, etag: str | None) -> str:
        """Insert (no etag) or update the head row; returns its ETag. Raises RowExistsError, RowChangedError."""

    async def run(self, disk: str, run: str) -> Versioned[Run] | None:
        """The run's row; `changed` is its heartbeat, by the service's clock."""

    async def put_run(self, run: Run, etag: str | None) -> str:
        """Insert (no etag) or update a run's row. Raises RowExistsError, RowChangedError."""

    async def begin_window(self, run: Run) -> None:
        """Insert the run's row and its window's row together. Raises RowExistsError and inserts neither."""

    async def commit(
        self,
        points: Sequence[RestorePoint],
        head: Head,
        head_etag: str | None,
        changed: Sequence[Versioned[RestorePoint]] = (),
        registration: Versioned[Registration] | None = None,
    ) -> str:
        """Insert the points and write the head row, in one transaction; returns the head row's ETag. The same transaction
        replaces the `changed` points and the `registration`: values with the versions they were decided on. It has at most
        ROWS_PER_COMMIT rows besides the head row, which is inserted or updated. Raises RowExistsError, RowChangedError.
        """

    async def point(self, disk: str, point: str) -> Versioned[RestorePoint] | None:
        """One restore point."""

    async def points(
        self,
        disk: str,
        limit: int,
        after: str = "",
        state: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Versioned[RestorePoint]]:
        """Restore points newest first, at most `limit`, older than the point `after`, in `state` when given, taken in
        [since, until).
        """

    async def mark_deleting(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Set the point's state to `deleting` under the version it was read at. Raises RowChangedError."""

    async def mark_lost(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Set the point's state to `lost` under the version it was read at. Raises RowChangedError."""

    async def delete_point(self, row: Versioned[RestorePoint]) -> None:
        """Delete the point's row; one that is gone is success. Raises RowChangedError."""

    async def pin(self, pin: Pin, row: Versioned[RestorePoint]) -> None:
        """Insert the pin and touch the point's row under the version it was read at, in one transaction; the same pin twice is
        success. Raises RowChangedError.
        """

    async def unpin(self, pin: Pin) -> None:
        """Delete the pin; none is success."""

    async def pins(self, disk: str) -> list[Pin]:
        """All pins of the disk's points."""

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
        """Runs newest first, at most `limit`, in `state` and of `operation` when given; with `unreported` only those whose end
        was not emitted yet. They come after the run `after` (of any disk) in the order of all runs, and were requested in
        [since, until) to the second.
        """

    async def forget_runs(self, disk: str, before: datetime, limit: int) -> int:
        """Delete rows of runs that have ended and were requested before that moment; returns how many rows. It also deletes the
        rows of their windows, and requests last changed before then. At most `limit` rows in all. The disk's newest run is
        kept.
        """

    async def now(self) -> datetime:
        """The present time by the clock that dates `changed`, to the second."""
