"""The watch: the status of each disk by the catalogue, emitted regularly, so that silence and lateness are seen too."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import BackupError, DiskUnknownError, UnexpectedError
from backup_core.domain.events import DiskSeen, FleetSeen, attention_of
from backup_core.domain.naming import registration_name, window_id
from backup_core.domain.status import RUNS_LOOKED_AT, status_of
from backup_core.domain.windows import BEGIN_MAX, window_begun_by
from backup_core.protocol.ownership import RUN_MAX, has_older, older_at_work
from backup_core.protocol.run_rows import emit_run_end
from backup_core.protocol.survey import disks_to_survey
from backup_core.protocol.turns import order_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from backup_core.domain.records import Run
    from backup_core.protocol.tools import Tools

SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class Look:
    """The status of a disk, and the heartbeat of its run."""

    seen: DiskSeen
    sign: datetime | None
    """Last sign of life of its run in the present window; None when there is no such run."""


async def watch(tools: Tools, schedule: str) -> FleetSeen:
    """Emit the status of each registered disk, then the event of a complete watch. A disk that cannot be read, or whose
    registration is lost, counts as unseen; the event names the first such one with its reason. A disk that waits for its turn
    in the window has no missing run.

    Raises ServiceUnavailableError, AccessDeniedError when the disks cannot be listed: then nothing is emitted, which is an
    alert.
    """
    turns, unseen = asyncio.Semaphore(SIDE_BY_SIDE), dict[str, BackupError]()

    async def look(disk: str) -> Look | None:
        async with turns:
            try:
                return await _check(tools, disk, schedule, now)
            # G53: one unreadable disk hides no other.
            except BackupError as error:
                unseen[disk] = error
            except Exception as error:  # noqa: BLE001  a fault of this program must not hide the other disks
                unseen[disk] = UnexpectedError(f"{type(error).__name__}: {error}")
            return None

    # The table service's time: a worker with a wrong clock would find disks overdue, or hide those that are.
    now, disks = await tools.catalogue.now(), await tools.catalogue.disks()
    looks = [one for one in await asyncio.gather(*(look(disk) for disk in disks)) if one]
    try:
        waiting = await _waiting(tools, looks, schedule, now)
    except BackupError as error:
        waiting, unseen["turns of the window"] = set(), error
    seen = [replace(one.seen, window_without_run="") if one.seen.disk in waiting else one.seen for one in looks]
    for one in seen:
        tools.journal.write(one)
    try:
        unseen |= await _lost(tools, {one.disk for one in seen} | set(unseen))
    except BackupError as error:
        unseen["registrations beside the backups"] = error
    fleet = FleetSeen(
        disks=len(disks),
        protected=sum(one.protection == "protected" for one in seen),
        overdue=sum(one.overdue for one in seen),
        unseen=len(unseen),
        why=next((f"{disk}: {error.code}: {error}" for disk, error in sorted(unseen.items())), ""),
    )
    tools.journal.write(fleet)
    return fleet


async def _waiting(tools: Tools, looks: Sequence[Look], schedule: str, now: datetime) -> set[str]:
    """The disks whose turn in the present window is still to come, while any run of the window shows that it continues."""
    row = await tools.catalogue.turns()
    if row is None or row.value.window < window_id(window_begun_by(schedule, now)):
        return set()
    if not any(one.sign and now - one.sign <= BEGIN_MAX for one in looks):
        return set()
    return row.value.waiting(await order_of(tools, row.value), now, BEGIN_MAX)


async def _emit_late(tools: Tools, runs: Sequence[Run], now: datetime) -> None:
    """Emit the ends of runs that ended a while ago and whose writer died, or lost the reply, before it emitted.

    These are `runs`, the disk's newest ones, and the runs of the week before those, as many at a time.
    """
    late = [run for run in runs if run.unreported]
    if has_older(runs, now):
        oldest, since = runs[-1], runs[-1].created - RUN_MAX
        # G48: a restore may take longer than that many windows.
        late += await tools.catalogue.runs(oldest.disk, RUNS_LOOKED_AT, after=oldest.run, since=since, unreported=True)
    for run in late:
        if run.ended and now - run.ended > HEARTBEAT_MAX:
            row = await tools.catalogue.run(run.disk, run.run)
            if row:
                # G48: the writer died before it emitted.
                await emit_run_end(tools, row.value, row.etag)


async def _release_claims(tools: Tools, disk: str) -> None:
    """Release the claims of a disk whose protection was stopped while a run was at work: it is not listed any more. A young
    claim stays: a call may be about to protect the disk again, and claims its source first.
    """
    for claim in await tools.catalogue.claims(disk):
        row = await tools.catalogue.registration(disk)
        if row and not row.value.protected and await tools.catalogue.now() - claim.changed > HEARTBEAT_MAX:
            await tools.catalogue.release_source(claim.value, disk, claim.etag)


async def _lost(tools: Tools, known: set[str]) -> dict[str, BackupError]:
    """The disks whose rows are lost, while their registrations lie beside their backups, or whose claims are: no window finds
    these. A table that was deleted is created again empty, and would look like a fleet without disks.
    """
    lost: dict[str, BackupError] = {}
    for disk in await disks_to_survey(tools, ""):
        if disk in known:
            continue
        if row := await tools.catalogue.registration(disk):
            # A disk that was registered since the list was made has its claim: it comes before the registration.
            if not row.value.protected or await tools.catalogue.source_holder(row.value.source) == disk:
                continue
            message = f"disk {disk} is registered without a claim of its source, and in no list; it is not backed up until"
        elif await tools.documents.get(registration_name(disk)) is None:
            continue
        else:
            message = f"disk {disk} is registered beside its backups and not in the catalogue; it is not backed up until"
        lost[disk] = DiskUnknownError(f"{message} POST /api/catalogue/rebuild restores its rows")
    return lost


async def _check(tools: Tools, disk: str, schedule: str, now: datetime) -> Look | None:
    """The status of the disk; None when its registration was deleted. Unreported ends of its runs are emitted first."""
    registration, head = await tools.catalogue.registration(disk), await tools.catalogue.head(disk)
    if registration is None:
        return None
    runs = await tools.catalogue.runs(disk, RUNS_LOOKED_AT)
    await _emit_late(tools, runs, now)
    status = status_of(registration.value, head.value if head else None, runs, schedule, now)
    open_ = next((run for run in runs if not run.ended_for_good), None) or await older_at_work(tools, head, runs, now)
    silent = None
    if open_ and (row := await tools.catalogue.run(disk, open_.run)) and not row.value.ended_for_good:
        silence = await tools.catalogue.now() - row.changed
        silent = int(silence.total_seconds()) if silence > HEARTBEAT_MAX else 0
    if not registration.value.protected and open_ is None:
        await _release_claims(tools, disk)
    doubtful = bool(head and head.value.doubt) or bool(await tools.catalogue.points(disk, 1, state="quarantined"))
    last, of_window = status.last, status.window_run
    sign = None if of_window is None else of_window.ended or (None if silent else now)
    seen = DiskSeen(
        disk=disk,
        protection=status.protection,
        newest_point=status.newest_point,
        last_success=status.last_success.isoformat() if status.last_success else "",
        rpo_seconds=status.rpo_seconds if status.protection != "stopped" else None,
        overdue=status.overdue,
        window_without_run=status.window_without_run.isoformat() if status.window_without_run else "",
        last_status=last.state if last else "",
        last_code=last.error.code if last and last.error else "",
        quarantined=doubtful,
        at_work=open_.run if open_ else "",
        silent_seconds=silent,
        attention=attention_of(open_) if open_ else "",
    )
    return Look(seen, sign)
