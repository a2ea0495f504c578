"""Requests and answers as values, their parts checked, and the error envelope: `{"error": {"code", "message", …}}`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from pydantic import BaseModel, ValidationError

from backup_core.api.answers import ErrorAnswer
from backup_core.api.bodies import EARLIEST, LATEST
from backup_core.domain.naming import is_disk_id
from backup_core.operations.refusal import RefusedError
from backup_core.operations.runs import REPEATABILITY, Start

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

BODY_BYTES_MAX = 64 * 1024
BODY_TYPES = frozenset(
    {"", "application/json", "text/json", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded"}
)
"""Content types that clients give a JSON body; the last is curl's default for `-d`."""
TOP_DEFAULT, TOP_MAX = 100, 1000
M = TypeVar("M", bound=BaseModel)


async def cannot_start(name: str, instance: str, _: dict[str, Any]) -> None:
    """Start nothing: the call's function has no durable client."""
    message = f"this call cannot start {name} {instance}: its function has no durable client"
    raise RuntimeError(message)


@dataclass(frozen=True)
class Request:
    """An HTTP request for a handler. `base` is the address of the API, without a trailing slash: never taken from the
    request's own Host header, which anybody may set.
    """

    base: str
    route: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    start: Start = cannot_start
    """Starts an orchestration, where the call's function has the means."""
    roles: frozenset[str] | None = None
    """The caller's roles; None where only keys are asked for, which permit everything."""

    def run_url(self, run: str) -> str:
        """The address of a run."""
        return f"{self.base}/runs/{run}"

    def next_link(self, path: str, after: str | None, *filters: str) -> str | None:
        """The address of the page after the entry `after`, with the `filters` of this one. Nothing else that was sent is in it:
        a key may have been sent. None when `after` is None.
        """
        if after is None:
            return None
        kept = {name: self.query[name] for name in ("top", *filters) if name in self.query}
        return f"{self.base}/{path}?{urlencode({**kept, 'after': after})}"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


class InvalidBodyError(RefusedError):
    """The request's body is refused: `details` name every fault."""

    def __init__(self, details: tuple[ErrorAnswer, ...]) -> None:
        """The message lists them too."""
        super().__init__(400, "InvalidRequest", "; ".join(f"{one.target}: {one.message}" for one in details), "body")
        self.details = details


def answer(status: int, body: BaseModel, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON answer."""
    return Answer(status, body.model_dump_json(by_alias=True) + "\n", headers or {})


def refusal(status: int, error: ErrorAnswer, headers: Mapping[str, str] | None = None) -> Answer:
    """The error envelope, with the code in the header Azure's clients look for."""
    body = json.dumps({"error": error.model_dump(mode="json", by_alias=True)}) + "\n"
    return Answer(status, body, {"x-ms-error-code": error.code, **(headers or {})})


def refused(error: RefusedError, base: str) -> Answer:
    """The error envelope of a refusal; `base` is the API's address."""
    details = list(error.details) if isinstance(error, InvalidBodyError) else []
    said = ErrorAnswer(code=error.code, message=error.message, target=error.target, details=details)
    if not error.follow:
        return refusal(error.status, said, error.headers)
    url = f"{base}/{error.follow}"
    said = said.model_copy(update={"message": f"{error.message}; follow it at {url}", "target": url})
    return refusal(error.status, said, {"Location": url})


def parsed(request: Request, model: type[M]) -> M:
    """The request's body as `model`; an empty body is an empty object. Raises RefusedError that lists every fault."""
    if len(request.body) > BODY_BYTES_MAX:
        message = f"the body has {len(request.body)} bytes; expected at most {BODY_BYTES_MAX}"
        raise RefusedError(413, "BodyTooLarge", message)
    if request.body:
        _check_content_type(request.headers.get("content-type", ""))
    try:
        value = json.loads((request.body or b"{}").decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        message = f"the body is not JSON: {error}"
        raise RefusedError(400, "InvalidJson", message, "body") from error
    if not isinstance(value, dict):
        message = f"the body is a JSON {type(value).__name__}; expected an object"
        raise RefusedError(400, "InvalidRequest", message, "body")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidBodyError(tuple(_detail(one) for one in error.errors(include_input=False, include_url=False))) from error


def _check_content_type(text: str) -> None:
    """Refuse a body whose content type is not JSON in UTF-8."""
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    charsets = [part.partition("=")[2].strip(' "') for part in parameters if part.partition("=")[0].strip() == "charset"]
    if (kind in BODY_TYPES or kind.endswith("+json")) and set(charsets) <= {"utf-8", "utf8", "us-ascii"}:
        return
    message = f"a body of Content-Type {text[:100]!r} is not read; expected application/json, in UTF-8"
    raise RefusedError(415, "UnsupportedMediaType", message, "Content-Type")


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


def top_of(request: Request) -> int:
    """The page size asked for. Raises RefusedError."""
    text = request.query.get("top", str(TOP_DEFAULT))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= TOP_MAX or len(text) > 9:
        message = f"{text[:40]!r} is not a page size; expected 1 to {TOP_MAX}"
        raise RefusedError(400, "InvalidQuery", message, "top")
    return int(text)


def time_of(request: Request, name: str) -> datetime | None:
    """A time in the query; None without one. Raises RefusedError, also for an empty one: an unset variable asks for all."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not EARLIEST <= moment <= LATEST:
        message = f"{text[:40]!r} is not a time; expected ISO 8601 with a zone, such as 2026-11-22T12:00:00Z"
        raise RefusedError(400, "InvalidQuery", message, name)
    return moment


def word_of(request: Request, name: str, words: Collection[str], default: str = "") -> str:
    """A word of a closed list in the query, else the default. Raises RefusedError, also for an empty one."""
    text = request.query.get(name)
    if text is None:
        return default
    if text not in words:
        message = f"{text[:40]!r} is not a {name}; expected one of {', '.join(words)}"
        raise RefusedError(400, "InvalidQuery", message, name)
    return text


def id_of(request: Request, name: str, valid: Callable[[str], object], what: str) -> str:
    """An id in the query, empty when there is none. Raises RefusedError, also for an empty one."""
    text = request.query.get(name)
    if text is None:
        return ""
    if not valid(text):
        message = f"{text[:120]!r} is not a {what}"
        raise RefusedError(400, "InvalidQuery", message, name)
    return text


def repeatability_key(request: Request) -> str:
    """The key under which the request may be repeated, empty without the header. Raises RefusedError, also when the header is
    there and empty: its sender expects a repeatable call.
    """
    text = request.headers.get(REPEATABILITY.lower())
    if text is None:
        return ""
    try:
        return str(UUID(text))
    except ValueError as error:
        message = f"{text[:80]!r} is not a {REPEATABILITY}; expected a UUID that is new for each request"
        raise RefusedError(400, "InvalidHeader", message, REPEATABILITY) from error
