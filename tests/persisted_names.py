"""Every name that is stored, or that others rely on, as today's code has it. `python -m tests.persisted_names` prints the list.

Stored are: names of steps and orchestrations with their messages (histories), columns and row keys, documents, metadata on blobs,
ids. Others rely on: lines of the log, settings, the API, error codes. Examples stand for forms: an id or key of another form changes
them.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from azure.data.tables import EntityProperty
from pydantic import BaseModel

from backup_core.activities.shards import Cursor
from backup_core.adapters.catalogue import TableCatalogue
from backup_core.adapters.machine_models import RUN_TAG
from backup_core.api.openapi import document
from backup_core.api.routes import ROUTES
from backup_core.bootstrap import CUSTODY_CONTAINER
from backup_core.domain import errors, naming
from backup_core.domain.custody import CustodyRecord
from backup_core.domain.events import EVENTS, PREFIX
from backup_core.domain.fleet import Turns
from backup_core.domain.identity import ChildPurpose, Deployment, LeasePurpose, child_id, lease_id
from backup_core.domain.managed_snapshots import snapshot_name
from backup_core.domain.metadata import (
    HeadMark,
    PageMapDigest,
    Site,
    described,
    restoring_metadata,
    source_snapshot_metadata,
    to_metadata,
    to_point_metadata,
)
from backup_core.domain.naming import BlobAddress, DiskAddress
from backup_core.domain.plan import Plan
from backup_core.domain.rebuild import Found, Rebuild
from backup_core.domain.records import Head, Pin, Registration, RequestKey, RestorePoint, Run, Versioned
from backup_core.domain.repoint import Change
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.protocol.claims import CLAIM
from backup_core.protocol.copied import CompleteCopy
from backup_core.protocol.proofs import ImageEnd
from backup_core.settings import Settings
from backup_core.steps import BY_NAME
from backup_core.steps.backup import (
    BackupRequest,
    FleetRequest,
    LaneRequest,
    LaneResult,
    SnapshotWaitRequest,
    SnapshotWaitResult,
)
from backup_core.steps.copying import CopyBlobRequest, CopyBlobResult
from backup_core.steps.housekeeping import CleanupRequest
from backup_core.steps.messages import StepOutcome
from backup_core.steps.rebuild import RebuildRequest
from backup_core.steps.restore import (
    CopyImageRequest,
    CopyImageResult,
    DeliverRequest,
    DeliverResult,
    RepointRequest,
    RepointResult,
    RestoreRequest,
    SnapshotDiskRequest,
    SnapshotDiskResult,
    WaitRequest,
    WaitResult,
)
from devhost.platform import REPOSITORY

ORCHESTRATIONS = {
    "backup_disk": (BackupRequest, None),
    "backup_fleet": (FleetRequest, None),
    "backup_lane": (LaneRequest, LaneResult),
    "copy_blob": (CopyBlobRequest, CopyBlobResult),
    "copy_image": (CopyImageRequest, CopyImageResult),
    "deliver_disk": (DeliverRequest, DeliverResult),
    "clean_up_disks": (CleanupRequest, None),
    "rebuild_catalogue": (RebuildRequest, None),
    "repoint_machine": (RepointRequest, RepointResult),
    "restore_disk": (RestoreRequest, None),
    "snapshot_disk": (SnapshotDiskRequest, SnapshotDiskResult),
    "wait_for_disk": (WaitRequest, WaitResult),
    "wait_for_snapshot": (SnapshotWaitRequest, SnapshotWaitResult),
}
"""Input of each, and the output that another orchestration reads; None where nobody does."""

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DISK, TAKEN, BASE = "vm", "2026-01-02T03:04:05.1234567Z", "2026-01-01T03:04:05.7654321Z"
MANAGED = DiskAddress("00000000-0000-0000-0000-000000000000", "group", "disk")
REBUILD = naming.rebuild_id(MOMENT, "0123abcd")
RUN, POINT = naming.timer_run_id(DISK, MOMENT), naming.point_id(TAKEN)
GIVEN = {"disk": DISK, "run": RUN, "point": POINT, "source_snapshot": TAKEN, "window": naming.window_id(MOMENT)}
"""Values that examples need to be what they are."""


def names() -> dict[str, Any]:
    """The whole list, by what stores the names."""
    return {
        "steps": {name: {"takes": shape(step.takes), "answers": shape(step.answers)} for name, step in BY_NAME.items()},
        "step outcome": shape(StepOutcome),
        "orchestrations": {name: _orchestration(name) for name in ORCHESTRATORS},
        "rows": asyncio.run(_rows()),
        "documents": _documents(),
        "metadata": _metadata(),
        "ids": _ids(),
        "timers": _timers(),
        "events": {PREFIX + one.event: shape(one) for one in EVENTS},
        "settings": {name.upper(): kind for name, kind in shape(Settings).items()},
        "api": _api(),
        "error codes": sorted(
            {one.code for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.BackupError)}
        ),
    }


# -- types ------------------------------------------------------------------------------------------------------------


def shape(kind: type[Any], prefix: str = "", seen: set[type[Any]] | None = None) -> dict[str, str]:
    """The fields of a message or record with their types, those of nested ones by their path; `?` may be left out. Classes that
    it comes to are added to `seen`: their own names are not stored.
    """
    if seen is not None:
        seen.add(kind)
    hints, found = get_type_hints(kind), {}
    for name, optional in _declared(kind):
        found[f"{prefix}{name}{'?' if optional else ''}"] = said(hints[name])
        for inner in nested(hints[name]):
            found |= shape(inner, f"{prefix}{name}.", seen)
    return found


def _declared(kind: type[Any]) -> list[tuple[str, bool]]:
    if is_dataclass(kind):
        return [(one.name, not (one.default is MISSING and one.default_factory is MISSING)) for one in fields(kind)]
    return [(name, not field.is_required()) for name, field in kind.model_fields.items()]


def _structured(kind: Any) -> bool:
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel))


def nested(kind: Any) -> list[type[Any]]:
    """The messages or records inside a type."""
    return [kind] if _structured(kind) else [inner for one in get_args(kind) if one is not kind for inner in nested(one)]


def said(kind: Any) -> str:
    """A type in words that do not depend on a class's name."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(sorted(repr(one) for one in arguments))
    if origin in (Union, UnionType):
        return " | ".join(sorted(said(one) for one in arguments))
    if origin in (list, tuple):
        return f"[{said(arguments[0])}]"
    if origin is dict:
        return f"{{{said(arguments[0])}: {said(arguments[1])}}}"
    if kind is type(None):
        return "null"
    return "object" if _structured(kind) else getattr(kind, "__name__", str(kind))


def example(kind: Any, name: str = "") -> Any:
    """A value with nothing left out, the same each time."""
    if name in GIVEN:
        return GIVEN[name]
    origin, arguments = get_origin(kind), get_args(kind)
    if _structured(kind):
        hints = get_type_hints(kind)
        return kind(**{one: example(hints[one], one) for one, _ in _declared(kind)})
    if origin is Literal:
        return arguments[0]
    if origin in (Union, UnionType):
        return example(next(one for one in arguments if one is not type(None)), name)
    if origin is tuple:
        return (example(arguments[0], name),)
    if origin is dict:
        return {}
    return {str: f"a {name}", int: 1, bool: True, datetime: MOMENT}[kind]


# -- what is stored ---------------------------------------------------------------------------------------------------


def _timers() -> list[str]:
    """The functions of timers: the platform keeps each one's last firing, and settings switch each off, by its name."""
    levels = json.loads((REPOSITORY / "host.json").read_text())["logging"]["logLevel"]
    functions = {name.split(".")[1] for name in levels if name.startswith("Function.")}
    return sorted(functions - set(BY_NAME) - {route.name for route in ROUTES})


def _orchestration(name: str) -> dict[str, Any]:
    request, answers = ORCHESTRATIONS[name]
    return {"input": shape(request)} | ({"output": shape(answers)} if answers else {})


class _Table:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    async def create_entity(self, entity: dict[str, Any]) -> dict[str, str]:
        self.written.append(entity)
        return {"etag": "1"}

    async def submit_transaction(self, operations: list[tuple[Any, ...]]) -> list[dict[str, str]]:
        self.written += [one[1] for one in operations]
        return [{"etag": "1"} for _ in operations]


async def _rows() -> dict[str, Any]:
    """Each kind of row, as the catalogue writes it: keys, and columns with their types."""
    table = _Table()
    catalogue = TableCatalogue(table)  # type: ignore[arg-type]
    point, run = example(RestorePoint), example(Run)
    await catalogue.put_registration(example(Registration), None)
    await catalogue.begin_window(run)
    await catalogue.begin_request(run, example(RequestKey))
    await catalogue.commit([point], example(Head), None)
    await catalogue.pin(example(Pin), Versioned(point, "1", MOMENT))
    await catalogue.claim_source("https://account.blob.core.windows.net/vhds/vm.vhd", DISK)
    await catalogue.put_turns(example(Turns), None)
    kinds = {
        "registration": Registration, "head": Head, "run": Run, "point": RestorePoint, "pin": Pin, "request": RequestKey,
        Turns.disk: Turns,
    }  # fmt: skip
    rows: dict[str, Any] = {}
    for entity in table.written:
        keys = {name: entity[name] for name in ("PartitionKey", "RowKey")}
        what = keys["RowKey"].split("!")[0] if keys["PartitionKey"] == DISK else keys["PartitionKey"]
        stored = {name: _column(value) for name, value in entity.items() if name not in keys}
        inner = shape(kinds[what]) if what in kinds else {}
        rows[what] = keys | {"columns": stored} | {"nested": {path: kind for path, kind in inner.items() if "." in path}}
    return rows


def _column(value: Any) -> str:
    if isinstance(value, EntityProperty):
        return str(value.edm_type.value)
    return "JSON" if isinstance(value, str) and value[:1] in ("{", "[") else type(value).__name__


def _documents() -> dict[str, Any]:
    """Each kind of document: its path, and its fields."""
    plan, change = naming.plan_name(DISK, RUN, TAKEN, BASE), naming.repoint_name(DISK, RUN)
    return {
        CLAIM: {"catalogue": "str"},
        naming.registration_name(DISK): shape(Registration),
        naming.custody_name(DISK): shape(CustodyRecord),
        naming.custody_night_name(DISK, naming.cleanup_instance_id(MOMENT)): {"[]": "str"},
        plan: shape(Plan),
        naming.plan_name(DISK, RUN, TAKEN, "", "disk"): shape(Plan),
        naming.cursor_name(plan, 7): shape(Cursor),
        naming.shard_end_name(plan, 7): shape(Cursor),
        naming.image_end_name(DISK, RUN, "disk"): shape(ImageEnd),
        naming.image_copy_name(DISK, RUN, "disk"): shape(CompleteCopy),
        naming.taking_name(DISK, RUN, TAKEN): {},
        naming.taking_again_name(DISK, RUN, TAKEN): {},
        change: shape(Change),
        naming.noted_name(change): {},
        naming.turned_name(change, 7): {},
        naming.REBUILD_AT_WORK: "str",
        naming.rebuild_name(REBUILD): shape(Rebuild),
        naming.rebuild_cancel_name(REBUILD): {},
        naming.rebuilt_name(REBUILD, DISK, 1): shape(Found),
        naming.fleet_order_name(naming.window_id(MOMENT)): {"[]": "str"},
    }


def _metadata() -> dict[str, Any]:
    """The metadata of each kind of blob or snapshot, with examples of the values, and the digests in them."""
    site = Site(Deployment("account/table"), BlobAddress("https://account.blob.core.windows.net", "heads", "vm/disk.vhd"))
    point, window = example(RestorePoint), PageMapDigest(PageMapDigest.START)
    window.add(0, 512)
    return {
        "head": to_metadata(example(HeadMark), site),
        "backup snapshot": to_point_metadata(point, site),
        "source snapshot": source_snapshot_metadata(site, DISK, RUN),
        "source snapshot of a managed disk": source_snapshot_metadata(Site(site.deployment, MANAGED), DISK, RUN),
        "tag of a managed disk that a restore made": RUN_TAG,
        "unfinished restored disk": restoring_metadata(site, DISK, RUN),
        "digest of a description": described(point).digest,
        "digest of a page map": window.finish(),
        "states of a head": said(get_type_hints(HeadMark)["state"]),
    }


def _ids() -> dict[str, Any]:
    """Ids and the names of blobs that are made from them."""
    request = naming.http_run_id(DISK, MOMENT + timedelta(seconds=1), "0123abcd")
    return {
        "run of a window": RUN,
        "run of a call": request,
        "window": naming.window_id(MOMENT),
        "restore point": POINT,
        "fleet": naming.fleet_instance_id(MOMENT),
        "housekeeping": naming.cleanup_instance_id(MOMENT),
        "rebuild": REBUILD,
        "children": {one: child_id(RUN, one) for one in get_args(ChildPurpose)},
        "leases": {one: lease_id(RUN, one, RUN) for one in get_args(LeasePurpose)},
        "head": naming.head_blob_name(DISK, 7, RUN),
        "promoted head": naming.restored_head_name(DISK, request),
        "restored disk": naming.restored_blob_name("folder/vm.vhd", request),
        "managed disk": naming.restored_disk_name(DISK, request),
        "snapshot of a managed disk": snapshot_name(MANAGED, {"pagekeeper_disk": DISK, "pagekeeper_run": RUN}, 0),
        "container of an app with custody": CUSTODY_CONTAINER,
    }


# -- what others rely on ----------------------------------------------------------------------------------------------


def _api() -> dict[str, Any]:
    described_ = document(ROUTES, "https://app/api")
    calls = {
        f"{method.upper()} {path}": _call(operation)
        for path, methods in described_["paths"].items()
        for method, operation in methods.items()
    }
    return {"calls": calls, "fields": {name: _properties(one) for name, one in described_["components"]["schemas"].items()}}


def _call(operation: dict[str, Any]) -> dict[str, Any]:
    answers = {status: _body(one) for status, one in operation["responses"].items()}
    return {
        "function": operation["operationId"],
        "parameters": {f"{one['name']} in {one['in']}": _json_type(one["schema"]) for one in operation["parameters"]},
        "takes": _body(operation.get("requestBody", {})),
        "answers": answers,
        "roles": " | ".join(operation.get("x-app-roles", [])),
    }


def _body(one: dict[str, Any]) -> str:
    return next((_json_type(content["schema"]) for content in one.get("content", {}).values()), "")


def _properties(schema: dict[str, Any]) -> dict[str, str]:
    required = schema.get("required", [])
    return {f"{name}{'' if name in required else '?'}": _json_type(one) for name, one in schema.get("properties", {}).items()}


def _json_type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " | ".join(sorted(_json_type(one) for one in schema["anyOf"]))
    if words := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " | ".join(sorted(map(repr, words)))
    if schema.get("type") == "array":
        return f"[{_json_type(schema['items'])}]"
    if isinstance(more := schema.get("additionalProperties"), dict):
        return f"{{string: {_json_type(more)}}}"
    return str(schema.get("type", "any")) + (f" ({schema['format']})" if "format" in schema else "")


if __name__ == "__main__":
    print(json.dumps(names(), indent=1, ensure_ascii=False))
