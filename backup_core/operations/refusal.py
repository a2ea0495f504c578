"""Refusals of requests, before anything was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping


class RefusedError(Exception):
    """The request is refused; nothing was changed."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        target: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        follow: str = "",
    ) -> None:
        """`status` is HTTP's, and with `code` part of the contract; `target` names the part of the request at fault. `follow`
        is the path, below the API's address, of the run or rebuild in progress that the request has to wait for.
        """
        super().__init__(message)
        self.status, self.code, self.message = status, code, redacted(message)
        self.target, self.headers, self.follow = target, headers or {}, follow
