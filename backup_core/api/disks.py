"""Calls about disks: protect, show, list, stop protecting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.api.answers import DiskAnswer, DisksAnswer
from backup_core.api.bodies import DiskBody
from backup_core.api.http import Answer, Request, answer, disk_of, id_of, parsed, top_of
from backup_core.api.lists import each
from backup_core.domain.errors import MachineRefusedError
from backup_core.domain.naming import is_disk_id, parse_source
from backup_core.domain.records import Retention
from backup_core.domain.redaction import redacted
from backup_core.domain.status import RUNS_LOOKED_AT, status_of
from backup_core.domain.windows import next_window
from backup_core.operations.refusal import RefusedError
from backup_core.operations.registrations import (
    RegistrationWish,
    attempt,
    known_registration,
    register,
    stop_protecting,
)
from backup_core.operations.runs import begin_first_backup
from backup_core.protocol.ownership import run_at_work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.api.context import Api
    from backup_core.domain.naming import Source
    from backup_core.domain.records import Registration, Slot


async def put_disk(api: Api, request: Request) -> Answer:
    """Protect a disk, or change its registration; back it up for the first time if that is requested.

    Without `retention` every restore point is kept. `machine` is the VM that a restore repoints by default. A disk that has
    restore points of another source is refused (409), unless `followsOn` says that the new source takes its place.
    """
    disk = disk_of(request)
    body = parsed(request, DiskBody)
    wish = RegistrationWish(
        source=_source(api, body.source),
        description=body.description,
        verification=body.verification,
        retention=Retention(**body.retention.model_dump()) if body.retention else None,
        machine=_machine(api, body),
        follows_on=body.follows_on,
    )
    done = await register(api.tools, disk, wish)
    first = None
    if body.first_backup:
        missed = f"no first backup was started; POST /api/disks/{disk}/backups"
        first = await attempt(done.warnings, missed, begin_first_backup(api.starter(request), done.registration))
    shown = await _shown(api, request, done.registration, done.warnings)
    headers = {"Operation-Location": request.run_url(first.run)} if first else {}
    shown.running = shown.running or headers.get("Operation-Location")
    return answer(201 if done.created else 200, shown, headers)


def _source(api: Api, name: str) -> Source:
    try:
        return parse_source(name, api.tools.source_accounts, api.tools.disk_groups)
    except ValueError as error:
        message = f"source {redacted(name)[:200]!r} is refused: {error}"
        raise RefusedError(400, "InvalidSource", message, "source") from error


def _machine(api: Api, request: DiskBody) -> Slot | None:
    """The machine that uses the disk, of the allow-list. It is not read before a restore needs it."""
    if request.machine is None:
        return None
    slot = request.machine.slot
    try:
        return api.tools.slot(slot.vm, slot.lun)
    except MachineRefusedError as error:
        raise RefusedError(400, error.code, str(error), "machine.vm") from error


async def get_disk(api: Api, request: Request) -> Answer:
    """Show a disk.

    The answer has its newest restore point and that point's age (`rpoSeconds`), how the last run ended, the next backup,
    whether it is `overdue`, and the run at work.
    """
    return answer(200, await _shown(api, request, (await known_registration(api.tools, disk_of(request))).value))


async def get_disks(api: Api, request: Request) -> Answer:
    """List the protected disks by id, paged by `top` and `after`."""
    top, after = top_of(request), id_of(request, "after", is_disk_id, "disk id")
    later = [disk for disk in await api.catalogue.disks() if disk > after]

    async def shown(disk: str) -> DiskAnswer | None:
        row = await api.catalogue.registration(disk)
        return await _shown(api, request, row.value) if row else None

    found, unreadable = await each(later[:top], shown)
    last = later[top - 1] if len(later) > top else None
    value = [one for one in found if one]
    return answer(200, DisksAnswer(value=value, unreadable=unreadable, next_link=request.next_link("disks", last)))


async def delete_disk(api: Api, request: Request) -> Answer:
    """Stop protecting a disk. Its restore points stay; a run at work ends as it would, and is listed and watched until then."""
    done = await stop_protecting(api.tools, disk_of(request))
    return answer(200, await _shown(api, request, done.registration, done.warnings))


async def _shown(api: Api, request: Request, registration: Registration, warnings: Sequence[str] = ()) -> DiskAnswer:
    row = await api.catalogue.head(registration.disk)
    head = row.value if row else None
    running = await run_at_work(api.tools, head)
    runs = await api.catalogue.runs(registration.disk, RUNS_LOOKED_AT)
    url = request.run_url(running) if running else None
    now = api.now()
    upcoming = next_window(api.schedule, now) if registration.protected else None
    return DiskAnswer.of(registration, head, status_of(registration, head, runs, api.schedule, now), url, upcoming, warnings)
