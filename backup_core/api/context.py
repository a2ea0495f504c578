"""The shared parts of all handlers: the app as they see it, and the answer to each failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from backup_core.api.access import Access
from backup_core.api.answers import ErrorAnswer, HealthAnswer
from backup_core.api.http import Answer, Request, refusal, refused
from backup_core.domain.errors import (
    STORES_MISSING,
    BackupError,
    HostUnknownError,
    RowChangedError,
    RowExistsError,
    ServiceUnavailableError,
)
from backup_core.domain.redaction import redacted
from backup_core.operations.refusal import RefusedError
from backup_core.operations.runs import RunStarter

if TYPE_CHECKING:
    from backup_core.ports import Catalogue
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import FullCopy, Verification

log = logging.getLogger("pagekeeper")
RETRY_AFTER_SECONDS = "5"


HEALTH_SECONDS = 5.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
T = TypeVar("T")


async def _nothing_to_repair() -> bool:
    return False


async def nothing() -> None:
    """Stores that need no preparation."""


@dataclass
class Cached(Generic[T]):
    """A value that is computed at most once in `seconds`, for all callers together."""

    seconds: float
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _known: tuple[float, T] | None = None
    """The time until which it is fresh, and the value."""

    async def get(self, now: Callable[[], float], find: Callable[[], Awaitable[T]]) -> T:
        """The remembered value while it is fresh by the monotonic clock `now`, else what `find` finds."""
        async with self._lock:
            if self._known is None or now() >= self._known[0]:
                found = await find()
                self._known = (now() + self.seconds, found)
            return self._known[1]


@dataclass(frozen=True)
class Api:
    """The app, as its HTTP calls see it."""

    tools: Tools
    schedule: str
    wave_shards: int
    full_copy: FullCopy = "pages"
    restore_verification: Verification = "full"
    prune_after_backup: bool = True
    access: Access = field(default_factory=Access)
    restoring: Tools | None = None
    """The tools of restores, where those have identities of their own."""
    address: str = ""
    """The API's public address, without a trailing slash; empty when only the request's own URL has it."""
    prepare: Callable[[], Awaitable[None]] = nothing
    """Prepares the stores; the second call costs nothing."""
    health: Cached[HealthAnswer] = field(default_factory=lambda: Cached(HEALTH_SECONDS))
    """The last health: strangers, who need no key for that call, must not cause work."""
    repair: Callable[[], Awaitable[bool]] = _nothing_to_repair
    """Creates missing tables or containers of this app again; whether any was missing."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    """The worker's time, for what answers show. What is stored carries the table service's."""

    @property
    def restore_tools(self) -> Tools:
        """The tools of restores, whose permissions a plan shows."""
        return self.restoring or self.tools

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue."""
        return self.tools.catalogue

    def base(self, url: str) -> str:
        """The address that answers are to name. The request's own URL, made of a header that anybody may set, counts only where
        it is a loopback address; else the answers' addresses begin at the host's root.
        """
        parts = urlsplit(url)
        return self.address or (f"{parts.scheme}://{parts.netloc}/api" if parts.hostname in LOOPBACK else "/api")

    def starter(self, request: Request) -> RunStarter:
        """Starts runs by the request's durable client, as the settings say."""
        return RunStarter(
            self.tools,
            request.start,
            self.wave_shards,
            self.full_copy,
            self.restore_verification,
            self.prune_after_backup,
        )


Handler = Callable[[Api, Request], Awaitable[Answer]]


async def respond(api: Api, handler: Handler, request: Request) -> Answer:
    """The handler's answer; every failure becomes the error envelope, and no secret or stack leaves the app."""
    try:
        return await handler(api, request)
    except RefusedError as error:
        return refused(error, request.base)
    except (RowChangedError, RowExistsError) as error:
        message = f"{error}; read it again and repeat the request"
        return refusal(409, ErrorAnswer(code="Conflict", message=redacted(message)))
    except HostUnknownError as error:
        return refusal(502, ErrorAnswer(code=error.code, message=redacted(str(error))))
    except ServiceUnavailableError as error:
        said = ErrorAnswer(code=error.code, message=redacted(f"{error}; repeat the request"))
        return refusal(503, said, {"Retry-After": RETRY_AFTER_SECONDS})
    except BackupError as error:
        if isinstance(error, STORES_MISSING) and await api.repair():
            said = ErrorAnswer(code=error.code, message=redacted(f"{error}; it was made again, empty; then repeat the request"))
            return refusal(503, said, {"Retry-After": RETRY_AFTER_SECONDS})
        log.error("request failed: %s: %s", error.code, redacted(str(error)))  # noqa: TRY400  the error says it all
        return refusal(502, ErrorAnswer(code=error.code, message=redacted(str(error))))
    except Exception as error:  # noqa: BLE001  the last line of defence
        log.error("request failed unexpectedly: %s: %s", type(error).__name__, redacted(str(error)))  # noqa: TRY400  a trace could hold a secret
        message = "the app failed; its log at this time has the details"
        return refusal(500, ErrorAnswer(code="InternalError", message=message))
