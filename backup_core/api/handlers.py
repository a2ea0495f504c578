"""What each HTTP call does. Validation comes first: a refused request has changed nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlencode

from backup_core.api.http import Answer, RefusedError, Request, answer, disk_of, parsed, refusal
from backup_core.api.models import (
    BackupAsked,
    DiskAnswer,
    DiskAsked,
    DisksAnswer,
    ErrorAnswer,
    HealthAnswer,
    PointAnswer,
    PointsAnswer,
    RunAnswer,
    RunsAnswer,
)
from backup_core.domain.ending import cancellation, dead
from backup_core.domain.errors import (
    BackupError,
    BlobMissingError,
    RowChangedError,
    RowExistsError,
    ServiceUnavailableError,
)
from backup_core.domain.naming import BlobAddress, disk_of_run, http_run_id, is_disk_id, is_point_id, parse_blob_url, run_key
from backup_core.domain.ranges import DISK_BYTES_MAX, PAGE
from backup_core.domain.records import Head, PointState, Policy, Run, RunError, RunState
from backup_core.domain.redaction import redacted
from backup_core.steps import BackupRequest

if TYPE_CHECKING:
    from backup_core.domain.records import Versioned
    from backup_core.ports import Catalogue, PageBlobs

log = logging.getLogger("pagekeeper")

OLDEST_CREATION = datetime(2016, 1, 1, tzinfo=UTC)
"""Page-range diffs exist for blobs created since (Get Page Ranges)."""
LATEST_TIME = datetime(2200, 1, 1, tzinfo=UTC)
RUN_STATES, POINT_STATES = get_args(RunState), get_args(PointState)
TOP_DEFAULT, TOP_MAX = 100, 1000
RETRY_AFTER_SECONDS = "5"
START_BACKUP = "backup_disk"

Start = Callable[[str, str, dict[str, Any]], Awaitable[None]]
"""Starts an orchestration: (name, instance id, input)."""


@dataclass(frozen=True)
class Api:
    """The ports and settings the handlers need."""

    blobs: PageBlobs
    catalogue: Catalogue
    source_accounts: tuple[str, ...]
    backup_probe: BlobAddress
    """Any blob address in the backup account, for the health check."""
    wave_shards: int
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    # -- disks ------------------------------------------------------------------------------------------------

    async def put_disk(self, request: Request) -> Answer:
        """Protect a disk, or change its policy."""
        disk = disk_of(request)
        asked = parsed(request, DiskAsked)
        address = self._source(asked.source)
        await self._check_source(address)
        existing = await self.catalogue.policy(disk)
        holder = await self.catalogue.claim_source(address.url, disk)
        if holder != disk:
            message = f"source {address} is already protected as disk {holder}; use that id, or another source"
            raise RefusedError(409, "SourceAlreadyProtected", message, "source")
        now = self.now()
        created = existing.value.created if existing else now
        policy = Policy(disk, address.url, asked.description, created, now, asked.verification)
        await self.catalogue.put_policy(policy, existing.etag if existing else None)
        if existing and existing.value.source != address.url:
            await self.catalogue.release_source(existing.value.source, disk)
        return answer(200 if existing else 201, await self._disk(request, policy))

    async def get_disk(self, request: Request) -> Answer:
        """Show a disk."""
        return answer(200, await self._disk(request, (await self._policy(disk_of(request))).value))

    async def get_disks(self, request: Request) -> Answer:
        """List the protected disks by id, paged by `top` and `after`."""
        top, after = _top(request), request.query.get("after", "")
        if after and not is_disk_id(after):
            message = f"{after[:80]!r} is not a disk id"
            raise RefusedError(400, "InvalidQuery", message, "after")
        later = [disk for disk in await self.catalogue.disks() if disk > after]
        rows = [await self.catalogue.policy(disk) for disk in later[:top]]
        shown = [await self._disk(request, row.value) for row in rows if row]
        more = {"top": str(top), "after": later[top - 1]} if len(later) > top else None
        return answer(200, DisksAnswer(value=shown, next_link=_next(request, "disks", more)))

    async def delete_disk(self, request: Request) -> Answer:
        """Stop protecting a disk. Its restore points stay; a run at work ends as it would."""
        disk = disk_of(request)
        row = await self._policy(disk)
        stopped = replace(row.value, protected=False, updated=self.now())
        if row.value.protected:
            await self.catalogue.put_policy(stopped, row.etag)
        await self.catalogue.release_source(row.value.source, disk)
        return answer(200, await self._disk(request, stopped))

    async def _disk(self, request: Request, policy: Policy) -> DiskAnswer:
        row = await self.catalogue.head(policy.disk)
        running = await self._running(row.value if row else None)
        return DiskAnswer.of(policy, row.value if row else None, _run_url(request, running) if running else None)

    async def _policy(self, disk: str) -> Versioned[Policy]:
        row = await self.catalogue.policy(disk)
        if row is None:
            message = f"no disk {disk} is registered; PUT /api/disks/{disk} protects one"
            raise RefusedError(404, "DiskNotFound", message, "disk")
        return row

    async def _running(self, head: Head | None) -> str | None:
        """The run at work on the disk, if it has neither ended nor died."""
        if head is None or head.owner is None:
            return None
        row = await self.catalogue.run(head.disk, head.owner.run)
        if row is None or row.value.ended_for_good or dead(row, await self.catalogue.now()):
            return None
        return head.owner.run

    def _source(self, url: str) -> BlobAddress:
        try:
            return parse_blob_url(url, self.source_accounts)
        except ValueError as error:
            message = f"source {redacted(url)[:200]!r} is refused: {error}"
            raise RefusedError(400, "InvalidSource", message, "source") from error

    async def _check_source(self, address: BlobAddress) -> None:
        try:
            found = await self.blobs.properties(address)
        except BlobMissingError as error:
            message = f"source {address} does not exist; expected a page blob"
            raise RefusedError(400, "SourceNotFound", message, "source") from error
        faults = []
        if not found.page_blob:
            faults.append("it is not a page blob")
        elif not 0 < found.size <= DISK_BYTES_MAX or found.size % PAGE:
            faults.append(f"it has {found.size} bytes, not whole pages of {PAGE} up to {DISK_BYTES_MAX}")
        if found.created < OLDEST_CREATION:
            faults.append(
                f"it was created {found.created:%Y-%m-%d}: page-range diffs need a blob created since 2016-01-01; copy it to "
                "a new blob"
            )
        if faults:
            message = f"source {address} cannot be protected: {'; '.join(faults)}"
            raise RefusedError(400, "SourceUnfit", message, "source")

    # -- backups ----------------------------------------------------------------------------------------------

    async def post_backup(self, request: Request, start: Start) -> Answer:
        """Back a disk up now."""
        disk = disk_of(request)
        asked = parsed(request, BackupAsked)
        if not (await self._policy(disk)).value.protected:
            message = f"protection of disk {disk} was stopped; PUT /api/disks/{disk} takes it up again"
            raise RefusedError(409, "NotProtected", message, "disk")
        row = await self.catalogue.head(disk)
        running = await self._running(row.value if row else None)
        if running:
            url = _run_url(request, running)
            message = f"run {running} is at work on disk {disk}; follow it at {url}"
            error = ErrorAnswer(code="BackupRunning", message=message, target=url)
            return refusal(409, error, {"Location": url})
        now = self.now()
        run = Run(
            disk=disk,
            run=http_run_id(disk, now, secrets.token_hex(4)),
            state="NotStarted",
            trigger="http",
            full=asked.kind == "full",
            created=now,
        )
        etag = await self.catalogue.put_run(run, None)
        wanted = BackupRequest(disk=disk, run=run.run, trigger="http", full=run.full, wave=self.wave_shards)
        try:
            await start(START_BACKUP, run.run, wanted.model_dump(mode="json"))
        except Exception as error:
            reason = RunError("StartFailed", redacted(f"the orchestration could not be started: {error}"))
            await self.catalogue.put_run(replace(run, state="Failed", ended=self.now(), error=reason), etag)
            raise
        headers = {"Operation-Location": _run_url(request, run.run), "Retry-After": RETRY_AFTER_SECONDS}
        return answer(202, RunAnswer.of(run), headers)

    async def get_run(self, request: Request) -> Answer:
        """Show a run."""
        row = await self._run(request)
        headers = {} if row.value.ended_for_good else {"Retry-After": RETRY_AFTER_SECONDS}
        return answer(200, RunAnswer.of(row.value), headers)

    async def _run(self, request: Request) -> Versioned[Run]:
        name = request.route.get("run", "")
        disk = disk_of_run(name)
        if disk is None:
            message = f"{name[:120]!r} is not a run id; expected the id a backup's answer gave"
            raise RefusedError(400, "InvalidRunId", message, "run")
        row = await self.catalogue.run(disk, name)
        if row is None:
            message = f"no run {name} is known"
            raise RefusedError(404, "RunNotFound", message, "run")
        return row

    async def post_cancel(self, request: Request) -> Answer:
        """Ask a run to end. One that nobody is at work on ends at once."""
        row = await self._run(request)
        if row.value.state == "Canceled":
            return answer(200, RunAnswer.of(row.value))
        if row.value.ended_for_good:
            message = f"run {row.value.run} has ended: {row.value.state}; nothing was changed"
            raise RefusedError(409, "RunEnded", message, "run")
        canceled = cancellation(row, await self.catalogue.now(), self.now())
        if canceled != row.value:
            try:
                await self.catalogue.put_run(canceled, row.etag)
            except RowChangedError:
                return await self.post_cancel(request)  # it has come further in between, so this ends
        headers = {"Operation-Location": _run_url(request, canceled.run), "Retry-After": RETRY_AFTER_SECONDS}
        return answer(202, RunAnswer.of(canceled), headers)

    async def get_runs(self, request: Request) -> Answer:
        """List runs, newest first, of one `disk` or all, in one `state` or all, asked for `from` and before `to`."""
        top, after, state = _top(request), request.query.get("after", ""), request.query.get("state", "")
        disk = request.query.get("disk", "")
        if after and disk_of_run(after) is None:
            message = f"{after[:120]!r} is not a run id"
            raise RefusedError(400, "InvalidQuery", message, "after")
        if state and state not in RUN_STATES:
            message = f"{state[:40]!r} is not a state; expected one of {', '.join(RUN_STATES)}"
            raise RefusedError(400, "InvalidQuery", message, "state")
        if disk and not is_disk_id(disk):
            message = f"{disk[:80]!r} is not a disk id"
            raise RefusedError(400, "InvalidQuery", message, "disk")
        since, until = _time(request, "from"), _time(request, "to")
        found: list[Run] = []
        for one in [disk] if disk else await self.catalogue.disks():
            found += await self.catalogue.runs(one, top + 1, after, state, since, until)
        found.sort(key=lambda run: run_key(run.run))
        more = {**request.query, "top": str(top), "after": found[top - 1].run} if len(found) > top else None
        return answer(200, RunsAnswer(value=[RunAnswer.of(run) for run in found[:top]], next_link=_next(request, "runs", more)))

    # -- restore points ---------------------------------------------------------------------------------------

    async def get_points(self, request: Request) -> Answer:
        """List a disk's restore points, newest first, paged by `top` and `after`, taken `from` and before `to`."""
        disk = disk_of(request)
        await self._policy(disk)
        top, after = _top(request), request.query.get("after", "")
        if after and not is_point_id(after):
            message = f"{after[:80]!r} is not a restore point id"
            raise RefusedError(400, "InvalidQuery", message, "after")
        state = request.query.get("state", "available")
        if state not in (*POINT_STATES, "all"):
            message = f"{state[:40]!r} is not a state; expected one of {', '.join(POINT_STATES)}, all"
            raise RefusedError(400, "InvalidQuery", message, "state")
        state = "" if state == "all" else state
        since, until = _time(request, "from"), _time(request, "to")
        points = [row.value for row in await self.catalogue.points(disk, top + 1, after, state, since, until)]
        page = points[:top]
        more = {**request.query, "top": str(top), "after": page[-1].point} if len(points) > top else None
        link = _next(request, f"disks/{disk}/restore-points", more)
        return answer(200, PointsAnswer(value=[PointAnswer.of(point) for point in page], next_link=link))

    async def get_point(self, request: Request) -> Answer:
        """Show a restore point."""
        disk, name = disk_of(request), request.route.get("point", "")
        if not is_point_id(name):
            message = f"{name[:80]!r} is not a restore point id; expected one from the disk's restore-points"
            raise RefusedError(400, "InvalidRestorePointId", message, "point")
        point = await self.catalogue.point(disk, name)
        if point is None:
            message = f"disk {disk} has no restore point {name}"
            raise RefusedError(404, "RestorePointNotFound", message, "point")
        return answer(200, PointAnswer.of(point.value))

    # -- health -----------------------------------------------------------------------------------------------

    async def get_health(self, _: Request) -> Answer:
        """Whether the catalogue and the backup account answer; says so for each, without details a stranger could use."""
        checks = {"catalogue": self.catalogue.now(), "backupAccount": self._reach_backups()}
        results = await asyncio.gather(*checks.values(), return_exceptions=True)
        shown = {
            name: "failed" if isinstance(result, BaseException) else "ok" for name, result in zip(checks, results, strict=True)
        }
        for name, result in zip(checks, results, strict=True):
            if isinstance(result, BaseException):
                log.error("health check %s failed: %s", name, redacted(str(result)))
        well = all(value == "ok" for value in shown.values())
        return answer(200 if well else 503, HealthAnswer(status="ok" if well else "unhealthy", checks=shown))

    async def _reach_backups(self) -> None:
        await self.blobs.snapshots(self.backup_probe)


Handler = Callable[[Request], Awaitable[Answer]]


async def respond(handler: Handler, request: Request) -> Answer:
    """The handler's answer; every failure becomes the error envelope, and no secret or stack leaves the app."""
    try:
        return await handler(request)
    except RefusedError as refused:
        return refusal(refused.status, refused.error)
    except (RowChangedError, RowExistsError) as error:
        message = f"{error}; read it again and repeat the request"
        return refusal(409, ErrorAnswer(code="Conflict", message=redacted(message)))
    except ServiceUnavailableError as error:
        said = ErrorAnswer(code=error.code, message=redacted(str(error)))
        return refusal(503, said, {"Retry-After": RETRY_AFTER_SECONDS})
    except BackupError as error:
        log.error("request failed: %s: %s", error.code, redacted(str(error)))  # noqa: TRY400  the error says it all
        return refusal(502, ErrorAnswer(code=error.code, message=redacted(str(error))))
    except Exception as error:  # noqa: BLE001  the last line of defence
        log.error("request failed unexpectedly: %s: %s", type(error).__name__, redacted(str(error)))  # noqa: TRY400  a trace could hold a secret
        message = "the app failed; its log at this time has the details"
        return refusal(500, ErrorAnswer(code="InternalError", message=message))


def _run_url(request: Request, run: str) -> str:
    return f"{request.base}/runs/{run}"


def _next(request: Request, path: str, query: Mapping[str, str] | None) -> str | None:
    return f"{request.base}/{path}?{urlencode(query)}" if query else None


def _time(request: Request, name: str) -> datetime | None:
    text = request.query.get(name, "")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not OLDEST_CREATION <= moment <= LATEST_TIME:
        message = f"{text[:40]!r} is not a time; expected ISO 8601 with a zone, such as 2026-11-22T12:00:00Z"
        raise RefusedError(400, "InvalidQuery", message, name)
    return moment


def _top(request: Request) -> int:
    text = request.query.get("top", str(TOP_DEFAULT))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= TOP_MAX or len(text) > 9:
        message = f"{text[:40]!r} is not a page size; expected 1 to {TOP_MAX}"
        raise RefusedError(400, "InvalidQuery", message, "top")
    return int(text)
