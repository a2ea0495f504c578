"""Requests and answers as values, and the error envelope: `{"error": {"code", "message", "target", "details"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from backup_core.api.models import ErrorAnswer
from backup_core.domain.naming import is_disk_id
from backup_core.domain.redaction import redacted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

BODY_BYTES_MAX = 64 * 1024
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Request:
    """What a handler sees of an HTTP request. `base` is the address of the API, without a trailing slash."""

    base: str
    route: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """The request is refused; nothing was changed."""

    def __init__(
        self, status: int, code: str, message: str, target: str | None = None, details: tuple[ErrorAnswer, ...] = ()
    ) -> None:
        """`code` is part of the contract; `target` names the part of the request at fault."""
        super().__init__(message)
        self.status = status
        self.error = ErrorAnswer(code=code, message=redacted(message), target=target, details=list(details))


def answer(status: int, body: BaseModel, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON answer."""
    return Answer(status, body.model_dump_json(by_alias=True), headers or {})


def refusal(status: int, error: ErrorAnswer, headers: Mapping[str, str] | None = None) -> Answer:
    """The error envelope, with the code in the header Azure's clients look for."""
    body = json.dumps({"error": error.model_dump(mode="json", by_alias=True)})
    return Answer(status, body, {"x-ms-error-code": error.code, **(headers or {})})


def parsed(request: Request, model: type[M]) -> M:
    """The request's body as `model`; an empty body is an empty object. Raises RefusedError that lists every fault."""
    if len(request.body) > BODY_BYTES_MAX:
        message = f"the body has {len(request.body)} bytes; expected at most {BODY_BYTES_MAX}"
        raise RefusedError(413, "BodyTooLarge", message)
    try:
        value = json.loads(request.body or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        message = f"the body is not JSON: {error}"
        raise RefusedError(400, "InvalidJson", message, "body") from error
    if not isinstance(value, dict):
        message = f"the body is a JSON {type(value).__name__}; expected an object"
        raise RefusedError(400, "InvalidRequest", message, "body")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = tuple(_detail(one) for one in error.errors(include_input=False, include_url=False))
        message = "; ".join(f"{one.target}: {one.message}" for one in details)
        raise RefusedError(400, "InvalidRequest", message, "body", details) from error


def _no_constant(name: str) -> None:
    message = f"{name} is not a JSON value"
    raise ValueError(message)


def _detail(one: ErrorDetails) -> ErrorAnswer:
    return ErrorAnswer(code="InvalidValue", message=one["msg"], target=".".join(map(str, one["loc"])) or "body")


def disk_of(request: Request) -> str:
    """The disk id in the route. Raises RefusedError."""
    disk = request.route.get("disk", "")
    if not is_disk_id(disk):
        message = (
            f"{disk[:80]!r} is not a disk id; expected 1 to 63 lower-case letters, digits and hyphens, a letter or digit first"
        )
        raise RefusedError(400, "InvalidDiskId", message, "disk")
    return disk
