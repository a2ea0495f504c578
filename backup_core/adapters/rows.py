"""Records as entities of the table, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from azure.data.tables import EdmType, EntityProperty
from pydantic import TypeAdapter, ValidationError

from backup_core.domain.errors import RecordUnreadableError
from backup_core.domain.fleet import Turns
from backup_core.domain.naming import point_key, run_key
from backup_core.domain.records import Head, Pin, Registration, RequestKey, RestorePoint, Run, Versioned

if TYPE_CHECKING:
    from azure.data.tables import TableEntity


T = TypeVar("T")
_NESTED = frozenset(
    {"owner", "pair", "error", "points", "expired", "source_snapshots", "warnings", "retention", "machine", "restore", "lanes"}
)
"""Columns that hold JSON."""
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (Registration, Head, RestorePoint, Run, Pin, RequestKey, Turns)
}


def to_entity(row: Any, row_key: str) -> dict[str, Any]:  # noqa: ANN401  any record
    """The record as a table entity."""
    columns: dict[str, Any] = {"PartitionKey": row.disk, "RowKey": row_key}
    for name, value in _ADAPTERS[type(row)].dump_python(row, mode="json").items():
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            columns[name] = EntityProperty(value, EdmType.INT64)
        elif isinstance(value, (dict, list)):
            columns[name] = json.dumps(value)
        else:
            columns[name] = value
    return columns


def from_entity(kind: type[T], entity: Mapping[str, Any]) -> T:
    """The record in a table entity."""
    fields: dict[str, Any] = {}
    for name, value in entity.items():
        if name in ("PartitionKey", "RowKey"):
            continue
        plain = value.value if isinstance(value, EntityProperty) else value
        nested = isinstance(plain, str) and name in _NESTED
        fields[name] = json.loads(plain) if nested else plain
    row: T = _ADAPTERS[kind].validate_python(fields)
    return row


def versioned(kind: type[T], entity: TableEntity) -> Versioned[T]:
    """The record in a table entity, with its version. Raises RecordUnreadableError, which names disk and row."""
    disk, row_key = str(entity["PartitionKey"]), str(entity["RowKey"])
    try:
        row = from_entity(kind, entity)
        misplaced = getattr(row, "disk", disk) != disk or _key_of(row, row_key) != row_key
    except (ValueError, TypeError) as error:
        raise _unreadable(disk, row_key, _faults(error)) from None
    if misplaced:
        raise _unreadable(disk, row_key, "it describes another row")
    return Versioned(row, *version_of(entity))


def _key_of(row: object, row_key: str) -> str:
    """The row key that the row's own values give, where they do."""
    match row:
        case Run():
            return run_key(row.run)
        case RestorePoint():
            return point_key(row.point)
    return row_key


def _faults(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{one['loc'][0] if one['loc'] else 'row'}: {one['msg']}" for one in error.errors(include_url=False)[:5])


def _unreadable(disk: str, row_key: str, why: str) -> RecordUnreadableError:
    message = (
        f"disk {disk}: row {row_key!r} of the catalogue cannot be read: {why}; it is damaged, or a newer version of this app "
        "wrote it; use that version, or delete the row and POST /api/catalogue/rebuild"
    )
    return RecordUnreadableError(message)


def version_of(entity: TableEntity) -> tuple[str, datetime]:
    """The ETag of an entity, and when it last changed."""
    changed, etag = entity.metadata["timestamp"], entity.metadata["etag"]
    assert changed is not None
    assert etag is not None
    return etag, changed.astimezone(UTC)
