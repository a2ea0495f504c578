# Long: a method for each call of the Catalogue port, over one table.
"""The catalogue in Azure Table Storage: one table, one partition per disk, ETags on every update.

Rows are the records' fields as columns: numbers as Int64 (the SDK's default would be Int32), times and nested values as
text. Row keys: `registration`, `head`, `point!…` and `run!…` newest first, `window!…`, `pin!…`, `request!…`. A partition
`!sources` claims each source blob for one disk and so lists the disks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.data.tables import UpdateMode

from backup_core.adapters.answers import code_of, fault_of, no_answer
from backup_core.adapters.rows import to_entity, version_of, versioned
from backup_core.domain.digests import digest_of
from backup_core.domain.errors import RowChangedError, RowExistsError, UnexpectedAnswerError
from backup_core.domain.fleet import Turns
from backup_core.domain.naming import point_key, point_key_bounds, run_key, run_key_bounds
from backup_core.domain.records import Head, Pin, Registration, RequestKey, RestorePoint, Run, Versioned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure.data.tables.aio import TableClient

    from backup_core.domain.records import PointState


T = TypeVar("T")
SOURCES = "!sources"
CLAIM_ATTEMPTS = 5
PINS_MAX = 100_000
"""Pins of one disk that are read at most: each is a restore in progress."""


_ROW_GONE = frozenset({"ResourceNotFound", "EntityNotFound"})


def _pin_key(pin: Pin) -> str:
    return f"pin!{pin.point}!{pin.run}"


def _request_key(key: str) -> str:
    return f"request!{digest_of(key)}"


def _update(entity: dict[str, Any], etag: str) -> tuple[Any, ...]:
    return ("update", entity, {"mode": UpdateMode.REPLACE, "etag": etag, "match_condition": MatchConditions.IfNotModified})


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except HttpResponseError as error:
        # A failed transaction answers 202 outside: the code inside decides.
        code = code_of(error)
        # 404: a row that is read may be missing, which is no error; this one was to be changed, and was deleted meanwhile.
        gone = error.status_code == 404 and code in _ROW_GONE
        if code == "UpdateConditionNotSatisfied" or error.status_code == 412 or gone:
            change = "deleted" if gone else "changed"
            message = f"{what}: the row was {change} by somebody else in between; nothing was written"
            raise RowChangedError(message) from None
        if code == "EntityAlreadyExists":
            message = f"{what}: the row exists already; nothing was written"
            raise RowExistsError(message) from None
        raise fault_of(error.status_code or 0, code, error.reason or "", what) from None
    except (ServiceRequestError, ServiceResponseError) as error:
        raise no_answer(error, what) from None


@contextmanager
def _missing_row() -> Iterator[None]:
    """Ignore that a row does not exist; a missing table stays an error."""
    try:
        yield
    except ResourceNotFoundError as error:
        if code_of(error) == "TableNotFound":
            raise


class TableCatalogue:
    """The Catalogue port on Azure Table Storage."""

    def __init__(self, table: TableClient) -> None:
        """Keep the rows in `table`."""
        self._table = table

    # -- generic rows ---------------------------------------------------------------------------------------------

    async def _get(self, kind: type[T], disk: str, row_key: str) -> Versioned[T] | None:
        with _translated(f"read {row_key} of disk {disk}"), _missing_row():
            return versioned(kind, await self._table.get_entity(disk, row_key))
        return None

    async def _put(self, row: Any, row_key: str, etag: str | None) -> str:  # noqa: ANN401  any record
        entity = to_entity(row, row_key)
        with _translated(f"write {row_key} of disk {row.disk}"):
            if etag is None:
                answer = await self._table.create_entity(entity)
            else:
                answer = await self._table.update_entity(
                    entity, mode=UpdateMode.REPLACE, etag=etag, match_condition=MatchConditions.IfNotModified
                )
        return str(answer["etag"])

    async def _transact(self, what: str, operations: list[tuple[Any, ...]]) -> list[Mapping[str, Any]]:
        with _translated(what):
            return await self._table.submit_transaction(operations)

    # -- disks ----------------------------------------------------------------------------------------------------

    async def claim_source(self, source: str, disk: str) -> str:
        """Insert the claim unless there is one, or write the disk's own once more."""
        claim = {"PartitionKey": SOURCES, "RowKey": digest_of(source), "disk": disk, "source": source}
        for _ in range(CLAIM_ATTEMPTS):
            with _translated(f"claim source {source}"), suppress(ResourceModifiedError), _missing_row():
                try:
                    await self._table.create_entity(claim)
                except ResourceExistsError as error:
                    if code_of(error) != "EntityAlreadyExists":
                        raise
                    claimed = await self._table.get_entity(SOURCES, claim["RowKey"])
                    if claimed["disk"] != disk:
                        return str(claimed["disk"])
                    await self._table.update_entity(
                        claim,
                        mode=UpdateMode.REPLACE,
                        etag=claimed.metadata["etag"],
                        match_condition=MatchConditions.IfNotModified,
                    )
                return disk
            # Released or renewed in between, perhaps by this very request, whose answer was lost: read it again.
        message = f"claim source {source}: its claim changed {CLAIM_ATTEMPTS} times in between; nothing was written"
        raise RowChangedError(message)

    async def claims(self, disk: str) -> list[Versioned[str]]:
        """Claims that name the disk."""
        found = []
        with _translated(f"list the claims of disk {disk}"):
            text, parameters = "PartitionKey eq @sources and disk eq @disk", {"sources": SOURCES, "disk": disk}
            async for entity in self._table.query_entities(text, parameters=parameters):
                etag, changed = version_of(entity)
                found.append(Versioned(str(entity["source"]), etag, changed))
        return found

    async def source_holder(self, source: str) -> str | None:
        """The disk in the claim's row."""
        with _translated(f"look who claims source {source}"), _missing_row():
            return str((await self._table.get_entity(SOURCES, digest_of(source)))["disk"])
        return None

    async def release_source(self, source: str, disk: str, etag: str | None = None) -> None:
        """Delete the claim the disk holds."""
        key = digest_of(source)
        with _translated(f"release source {source}"), _missing_row():
            claimed = await self._table.get_entity(SOURCES, key)
            if claimed["disk"] == disk and etag in (None, claimed.metadata["etag"]):
                await self._table.delete_entity(
                    SOURCES, key, etag=claimed.metadata["etag"], match_condition=MatchConditions.IfNotModified
                )

    async def disks(self) -> list[str]:
        """Disks that hold a claim."""
        found: set[str] = set()
        with _translated("list the disks"):
            query = self._table.query_entities("PartitionKey eq @sources", parameters={"sources": SOURCES}, select=["disk"])
            async for entity in query:
                found.add(entity["disk"])
        return sorted(found)

    async def registration(self, disk: str) -> Versioned[Registration] | None:
        """The registration row."""
        return await self._get(Registration, disk, "registration")

    async def put_registration(self, registration: Registration, etag: str | None) -> str:
        """Write the registration row."""
        return await self._put(registration, "registration", etag)

    async def head(self, disk: str) -> Versioned[Head] | None:
        """The head row."""
        return await self._get(Head, disk, "head")

    async def put_head(self, head: Head, etag: str | None) -> str:
        """Write the head row."""
        # G11: under the version that the write was decided on.
        return await self._put(head, "head", etag)

    async def turns(self) -> Versioned[Turns] | None:
        """The one row of turns."""
        return await self._get(Turns, Turns.disk, "turns")

    async def put_turns(self, turns: Turns, etag: str | None) -> str:
        """Write it."""
        return await self._put(turns, "turns", etag)

    # -- runs -----------------------------------------------------------------------------------------------------

    async def run(self, disk: str, run: str) -> Versioned[Run] | None:
        """A run's row."""
        return await self._get(Run, disk, run_key(run))

    async def put_run(self, run: Run, etag: str | None) -> str:
        """Write a run's row."""
        return await self._put(run, run_key(run.run), etag)

    async def begin_window(self, run: Run) -> None:
        """Insert the run and the window together."""
        window = {"PartitionKey": run.disk, "RowKey": f"window!{run.window}", "run": run.run}
        operations = [("create", to_entity(run, run_key(run.run))), ("create", window)]
        await self._transact(f"begin window {run.window} of disk {run.disk}", operations)

    async def request(self, disk: str, key: str) -> RequestKey | None:
        """The request's row."""
        row = await self._get(RequestKey, disk, _request_key(key))
        return row.value if row else None

    async def begin_request(self, run: Run, request: RequestKey) -> None:
        """Insert run and request together."""
        operations = [
            ("create", to_entity(run, run_key(run.run))),
            ("create", to_entity(request, _request_key(request.key))),
        ]
        await self._transact(f"begin request {request.key} of disk {run.disk}", operations)

    # -- restore points -------------------------------------------------------------------------------------------

    async def commit(
        self,
        points: Sequence[RestorePoint],
        head: Head,
        head_etag: str | None,
        changed: Sequence[Versioned[RestorePoint]] = (),
        registration: Versioned[Registration] | None = None,
    ) -> str:
        """One entity group transaction; the head row comes last."""
        operations: list[tuple[Any, ...]] = [("create", to_entity(point, point_key(point.point))) for point in points]
        operations += [_update(to_entity(row.value, point_key(row.value.point)), row.etag) for row in changed]
        operations += [_update(to_entity(registration.value, "registration"), registration.etag)] if registration else []
        entity = to_entity(head, "head")
        # G27: the head row's version guards the transaction; a point is created, never replaced.
        operations.append(("create", entity) if head_etag is None else _update(entity, head_etag))
        names = ", ".join([point.point for point in points][:3])
        answers = await self._transact(f"commit restore point {names} of disk {head.disk}", operations)
        return str(answers[-1]["etag"])

    async def point(self, disk: str, point: str) -> Versioned[RestorePoint] | None:
        """One restore point."""
        return await self._get(RestorePoint, disk, point_key(point))

    async def points(
        self,
        disk: str,
        limit: int,
        after: str = "",
        state: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Versioned[RestorePoint]]:
        """Restore points, newest first: the row keys are made to sort that way."""
        first, last = point_key_bounds(since, until)
        first = max(first, point_key(after) + "!") if after else first
        return await self._rows(RestorePoint, disk, first, last, limit, state=state)

    async def mark_deleting(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Update the state."""
        return await self._mark(row, "deleting")

    async def mark_lost(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Update the state."""
        return await self._mark(row, "lost")

    async def _mark(self, row: Versioned[RestorePoint], state: PointState) -> Versioned[RestorePoint]:
        marked = replace(row.value, state=state)
        etag = await self._put(marked, point_key(marked.point), row.etag)
        return replace(row, value=marked, etag=etag)

    async def delete_point(self, row: Versioned[RestorePoint]) -> None:
        """Delete under the version."""
        with _translated(f"delete restore point {row.value.point} of disk {row.value.disk}"):
            await self._table.delete_entity(
                row.value.disk, point_key(row.value.point), etag=row.etag, match_condition=MatchConditions.IfNotModified
            )

    async def pin(self, pin: Pin, row: Versioned[RestorePoint]) -> None:
        """Insert pin and replace the point's row by itself."""
        touched = _update(to_entity(row.value, point_key(row.value.point)), row.etag)
        operations = [("create", to_entity(pin, _pin_key(pin))), touched]
        with suppress(RowExistsError):
            await self._transact(f"pin restore point {pin.point} of disk {pin.disk}", operations)

    async def unpin(self, pin: Pin) -> None:
        """Delete whatever the version."""
        with _translated(f"unpin restore point {pin.point} of disk {pin.disk}"):
            await self._table.delete_entity(pin.disk, _pin_key(pin))

    async def pins(self, disk: str) -> list[Pin]:
        """Rows of pins."""
        return [row.value for row in await self._rows(Pin, disk, "pin!", "pin!~", PINS_MAX)]

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
        first, last = run_key_bounds(since, until)
        first = max(first, run_key(after) + "!") if after else first
        rows = await self._rows(Run, disk, first, last, limit, state=state, operation=operation, unreported=unreported)
        return [row.value for row in rows]

    async def _rows(
        self, kind: type[T], disk: str, first: str, last: str, limit: int, **columns: str | bool
    ) -> list[Versioned[T]]:
        """At most `limit` rows of the disk with keys in [first, last), and these values of `columns`; an empty one is any."""
        wanted = {name: value for name, value in columns.items() if value}
        text = "PartitionKey eq @disk and RowKey ge @first and RowKey lt @last"
        text += "".join(f" and {name} eq @{name}" for name in wanted)
        parameters = {"disk": disk, "first": first, "last": last} | wanted
        found: list[Versioned[T]] = []
        with _translated(f"list rows of disk {disk}"):
            async for entity in self._table.query_entities(text, parameters=parameters, results_per_page=min(limit, 1000)):
                found.append(versioned(kind, entity))
                if len(found) == limit:
                    break
        return found

    async def forget_runs(self, disk: str, before: datetime, limit: int) -> int:
        """Runs older than that by their keys, requests by their timestamps."""
        first, last = run_key_bounds(None, before)
        newest = await self._rows(Run, disk, "run!", last, 1)
        gone = 0
        for row in await self._rows(Run, disk, first, last, limit):
            if row.value.ended_for_good and row.value != newest[0].value:
                await self._forget(row)
                gone += 1
        text, parameters = "PartitionKey eq @disk and RowKey ge 'request!' and RowKey lt 'request!~'", {"disk": disk}
        with _translated(f"forget old requests of disk {disk}"):
            async for entity in self._table.query_entities(
                f"{text} and Timestamp lt @before", parameters={**parameters, "before": before}, select=["RowKey"]
            ):
                if gone >= limit:
                    break
                await self._table.delete_entity(disk, entity["RowKey"])
                gone += 1
        return gone

    async def _forget(self, row: Versioned[Run]) -> None:
        run = row.value
        with _translated(f"forget run {run.run}"):
            # The window's row first: without its run nothing would ever delete it.
            if run.window:
                await self._table.delete_entity(run.disk, f"window!{run.window}")
            await self._table.delete_entity(
                run.disk, run_key(run.run), etag=row.etag, match_condition=MatchConditions.IfNotModified
            )

    async def now(self) -> datetime:
        """The Date of an answer to reading a row that need not exist."""
        dates: list[str] = []

        def look(response: Any) -> None:  # noqa: ANN401  the SDK's PipelineResponse
            dates.append(response.http_response.headers.get("Date", ""))

        with _translated("ask the catalogue for its time"), _missing_row():
            await self._table.get_entity("!clock", "!clock", raw_response_hook=look)
        if not dates or not dates[-1]:
            message = "the table service's answer carries no Date"
            raise UnexpectedAnswerError(message)
        return parsedate_to_datetime(dates[-1])
