"""Calls about restore points."""

from __future__ import annotations

from typing import get_args

from backup_core.api.answers import PointAnswer, PointsAnswer
from backup_core.api.context import Api
from backup_core.api.http import Answer, Request, answer, disk_of, id_of, time_of, top_of, word_of
from backup_core.domain.naming import is_point_id
from backup_core.domain.records import PointState
from backup_core.operations.refusal import RefusedError
from backup_core.operations.registrations import known_registration

POINT_STATES = (*get_args(PointState), "all")


async def get_points(api: Api, request: Request) -> Answer:
    """List a disk's restore points, newest first, paged by `top` and `after`.

    The points were taken `from` and before `to`. By default those are listed that can be restored, else those in another
    `state`, or `all`.
    """
    disk = disk_of(request)
    await known_registration(api.tools, disk)
    top, after = top_of(request), id_of(request, "after", is_point_id, "restore point id")
    state = word_of(request, "state", POINT_STATES, "available")
    since, until = time_of(request, "from"), time_of(request, "to")
    rows = await api.catalogue.points(disk, top + 1, after, "" if state == "all" else state, since, until)
    page = [PointAnswer.of(row.value) for row in rows[:top]]
    last = page[-1].id if len(rows) > top else None
    link = request.next_link(f"disks/{disk}/restore-points", last, "state", "from", "to")
    return answer(200, PointsAnswer(value=page, next_link=link))


async def get_point(api: Api, request: Request) -> Answer:
    """Show a restore point, whatever its state."""
    disk, name = disk_of(request), request.route.get("point", "")
    if not is_point_id(name):
        message = f"{name[:80]!r} is not a restore point id; expected one from the disk's restore-points"
        raise RefusedError(400, "InvalidRestorePointId", message, "point")
    row = await api.catalogue.point(disk, name)
    if row is None:
        message = f"disk {disk} has no restore point {name}"
        raise RefusedError(404, "RestorePointNotFound", message, "point")
    return answer(200, PointAnswer.of(row.value))
