"""Calls about the app itself: its health, and the rebuild of its catalogue."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from backup_core import __version__
from backup_core.api.answers import HealthAnswer
from backup_core.api.bodies import RebuildBody
from backup_core.api.context import RETRY_AFTER_SECONDS, Api, log
from backup_core.api.http import Answer, Request, answer, id_of, parsed, top_of
from backup_core.api.plan_answers import QuarantinedAnswer, RebuildAnswer, RebuiltDisk
from backup_core.domain.errors import BlobMissingError, ContainerMissingError
from backup_core.domain.naming import DISK_ID, BlobAddress
from backup_core.domain.redaction import redacted
from backup_core.operations.rebuild import begin_rebuild, cancel_rebuild, check_rebuild, found_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.rebuild import Found, Rebuild

REBUILT_PART = re.compile(DISK_ID.pattern + r"\.[0-9]{6}")

HEALTH_PROBE = "pagekeeper-health-probe"


async def post_rebuild(api: Api, request: Request) -> Answer:
    """Compare the catalogue with the blobs, and bring it back where it differs: first as a dry run, then with its hash.

    409 while a rebuild is at work.
    """
    body = parsed(request, RebuildBody)
    rebuild = await begin_rebuild(api.tools, request.start, body.plan_hash, dry_run=body.dry_run)
    headers = {"Operation-Location": _url(request, rebuild.rebuild), "Retry-After": RETRY_AFTER_SECONDS}
    return answer(202, _rebuild_shown(rebuild), headers)


async def get_rebuild(api: Api, request: Request) -> Answer:
    """Show a rebuild's progress and its findings: disks that differ, are busy, or cannot be read."""
    known, top = await check_rebuild(api.tools, request.route.get("rebuild", "")), top_of(request)
    after = id_of(request, "after", REBUILT_PART.fullmatch, "part of a disk that a rebuild found")
    found, last = await found_of(api.tools, known.rebuild, after, top)
    link = request.next_link(f"catalogue/rebuilds/{known.rebuild}", last)
    return answer(200, _rebuild_shown(known, [_found_shown(one) for one in found], link))


async def post_rebuild_cancel(api: Api, request: Request) -> Answer:
    """Request a rebuild to end. What it has brought back stays.

    409 when it has ended otherwise.
    """
    known = await check_rebuild(api.tools, request.route.get("rebuild", ""))
    await cancel_rebuild(api.tools, known)
    if known.state == "Canceled":
        return answer(200, _rebuild_shown(known))
    return answer(202, _rebuild_shown(known), {"Operation-Location": _url(request, known.rebuild)})


def _url(request: Request, rebuild: str) -> str:
    return f"{request.base}/catalogue/rebuilds/{rebuild}"


def _rebuild_shown(known: Rebuild, parts: Sequence[RebuiltDisk] = (), next_link: str | None = None) -> RebuildAnswer:
    tally = known.tally
    return RebuildAnswer(
        id=known.rebuild,
        state=known.state,
        dry_run=not known.plan,
        created=known.created,
        ended=known.ended,
        examined=tally.examined,
        different=tally.different,
        busy=tally.busy,
        unreadable=tally.unreadable,
        changed=tally.changed,
        failed=tally.failed,
        failures=list(tally.names),
        plan_hash=known.plan_hash or None,
        value=list(parts),
        next_link=next_link,
    )


def _found_shown(found: Found) -> RebuiltDisk:
    return RebuiltDisk(
        disk=found.disk,
        state=found.state,
        running=found.running or None,
        why=found.why or None,
        adopted=list(found.adopted),
        corrected=list(found.corrected),
        lost=list(found.lost),
        quarantined=[QuarantinedAnswer(blob=head, snapshot=snapshot, why=why) for head, snapshot, why in found.quarantined],
        head_row="rebuilt" if found.head_row else "right",
        registration="rebuilt" if found.registration else "right",
    )


async def get_health(api: Api, _: Request) -> Answer:
    """Whether the catalogue and the backup account answer, as found out in the last five seconds; no details for strangers."""
    found = await api.health.get(api.tools.monotonic, lambda: _look(api))
    return answer(200 if found.status == "ok" else 503, found)


async def _look(api: Api) -> HealthAnswer:
    checks = {"catalogue": _reach_catalogue(api), "backupAccount": _reach_backups(api)}
    # One after the other: the first prepares the stores for the second.
    results = [(await asyncio.gather(check, return_exceptions=True))[0] for check in checks.values()]
    shown = {
        name: "failed" if isinstance(result, BaseException) else "ok" for name, result in zip(checks, results, strict=True)
    }
    for name, result in zip(checks, results, strict=True):
        if isinstance(result, BaseException):
            log.error("health check %s failed: %s", name, redacted(str(result)))
    well = all(value == "ok" for value in shown.values())
    return HealthAnswer(version=__version__, status="ok" if well else "unhealthy", checks=shown)


async def _reach_catalogue(api: Api) -> None:
    await api.prepare()
    await api.catalogue.now()


async def _reach_backups(api: Api) -> None:
    """Request a blob that does not exist, so that no blob is listed. The expected answer is that it is missing."""
    try:
        await api.tools.blobs.properties(BlobAddress(api.tools.backup_account, api.tools.heads_container, HEALTH_PROBE))
    except ContainerMissingError:
        raise
    except BlobMissingError:
        return
