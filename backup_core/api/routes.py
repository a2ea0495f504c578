"""The table of HTTP calls: function_app.py registers them, openapi.py describes them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backup_core.api import catalogue, disks, openapi, points, restores, runs
from backup_core.api.access import BACKUP, OPERATORS, READER, RESTORE, Role
from backup_core.api.answers import DiskAnswer, DisksAnswer, HealthAnswer, PointAnswer, PointsAnswer, RunAnswer, RunsAnswer
from backup_core.api.bodies import BackupBody, DiskBody, RebuildBody, RestoreBody
from backup_core.api.http import TOP_DEFAULT, TOP_MAX, Answer, Request
from backup_core.api.plan_answers import RebuildAnswer, RestorePlanAnswer
from backup_core.domain.naming import DISK_ID, POINT_ID, REBUILD_ID, RUN_ID
from backup_core.operations.runs import REPEATABILITY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from backup_core.api.context import Api, Handler


@dataclass(frozen=True)
class Parameter:
    """A part of the path, the query or the headers."""

    name: str
    place: str
    schema: Mapping[str, object]
    says: str = ""


@dataclass(frozen=True)
class Route:
    """One call."""

    name: str
    """The function's name in the portal."""
    method: str
    path: str
    handler: Handler
    answers: Mapping[int, type[BaseModel] | None]
    """Successes by status; None is a JSON object without a model."""
    takes: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = field(default=())
    starts: bool = False
    """Whether it may start an orchestration."""
    roles: tuple[Role, ...] = READER
    """The roles that may make the call where sign-in is by Entra ID; none: anybody, without a key too."""

    @property
    def anonymous(self) -> bool:
        """Whether anybody may make it."""
        return not self.roles

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return inspect.cleandoc(self.handler.__doc__ or "").partition("\n")[0]

    @property
    def description(self) -> str:
        """The rest of the handler's docstring, in one line; empty when there is none."""
        return " ".join(inspect.cleandoc(self.handler.__doc__ or "").partition("\n")[2].split())


_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}
DISK = Parameter("disk", "path", _TEXT | {"pattern": f"^{DISK_ID.pattern}$"}, "the disk's id")
RUN = Parameter("run", "path", _TEXT | {"pattern": f"^{RUN_ID.pattern.replace('?P<', '?<')}$"}, "the run's id")
REBUILD = Parameter("rebuild", "path", _TEXT | {"pattern": f"^{REBUILD_ID.pattern.replace('?P<', '?<')}$"}, "the rebuild's id")
POINT = Parameter("point", "path", _TEXT | {"pattern": f"^{POINT_ID.pattern}$"}, "the restore point's id")
TOP = Parameter("top", "query", {"type": "integer", "minimum": 1, "maximum": TOP_MAX, "default": TOP_DEFAULT}, "page size")
AFTER = Parameter("after", "query", _TEXT, "the last id of the page before")
TIMES = (Parameter("from", "query", _TIME, "not before"), Parameter("to", "query", _TIME, "before"))
KEY = Parameter(REPEATABILITY, "header", _TEXT | {"format": "uuid"}, "the same key is the same request")


def _state(words: tuple[str, ...]) -> Parameter:
    return Parameter("state", "query", _TEXT | {"enum": list(words)}, "only those in this state")


async def get_openapi(_: Api, request: Request) -> Answer:
    """Describe all calls."""
    return openapi.described(ROUTES, request.base)


ROUTES = (
    Route("get_disks", "GET", "disks", disks.get_disks, {200: DisksAnswer}, parameters=(TOP, AFTER)),
    Route("get_disk", "GET", "disks/{disk}", disks.get_disk, {200: DiskAnswer}, parameters=(DISK,)),
    Route(
        "put_disk",
        "PUT",
        "disks/{disk}",
        disks.put_disk,
        {200: DiskAnswer, 201: DiskAnswer},
        DiskBody,
        (DISK,),
        starts=True,
        roles=BACKUP,
    ),
    Route("delete_disk", "DELETE", "disks/{disk}", disks.delete_disk, {200: DiskAnswer}, parameters=(DISK,), roles=BACKUP),
    Route(
        "post_backup",
        "POST",
        "disks/{disk}/backups",
        runs.post_backup,
        {202: RunAnswer},
        BackupBody,
        (DISK, KEY),
        starts=True,
        roles=BACKUP,
    ),
    Route(
        "post_restore",
        "POST",
        "disks/{disk}/restores",
        restores.post_restore,
        {200: RestorePlanAnswer, 202: RunAnswer},
        RestoreBody,
        (DISK, KEY),
        starts=True,
        roles=RESTORE,
    ),
    Route(
        "get_restore_points",
        "GET",
        "disks/{disk}/restore-points",
        points.get_points,
        {200: PointsAnswer},
        parameters=(DISK, *TIMES, _state(points.POINT_STATES), TOP, AFTER),
    ),
    Route(
        "get_restore_point",
        "GET",
        "disks/{disk}/restore-points/{point}",
        points.get_point,
        {200: PointAnswer},
        parameters=(DISK, POINT),
    ),
    Route(
        "get_runs",
        "GET",
        "runs",
        runs.get_runs,
        {200: RunsAnswer},
        parameters=(
            Parameter("disk", "query", DISK.schema, "only runs of this disk"),
            _state(runs.RUN_STATES),
            *TIMES,
            TOP,
            AFTER,
        ),
    ),
    Route("get_run", "GET", "runs/{run}", runs.get_run, {200: RunAnswer}, parameters=(RUN,)),
    Route(
        "post_cancel",
        "POST",
        "runs/{run}/cancel",
        runs.post_cancel,
        {200: RunAnswer, 202: RunAnswer},
        parameters=(RUN,),
        roles=OPERATORS,
    ),
    Route(
        "post_rebuild",
        "POST",
        "catalogue/rebuild",
        catalogue.post_rebuild,
        {202: RebuildAnswer},
        RebuildBody,
        starts=True,
        roles=RESTORE,
    ),
    Route(
        "get_rebuild",
        "GET",
        "catalogue/rebuilds/{rebuild}",
        catalogue.get_rebuild,
        {200: RebuildAnswer},
        parameters=(REBUILD, TOP, AFTER),
    ),
    Route(
        "post_rebuild_cancel",
        "POST",
        "catalogue/rebuilds/{rebuild}/cancel",
        catalogue.post_rebuild_cancel,
        {200: RebuildAnswer, 202: RebuildAnswer},
        parameters=(REBUILD,),
        roles=RESTORE,
    ),
    Route("get_openapi", "GET", "openapi.json", get_openapi, {200: None}),
    Route("health", "GET", "health", catalogue.get_health, {200: HealthAnswer, 503: HealthAnswer}, roles=()),
)
