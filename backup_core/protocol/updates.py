"""Optimistic updates: a row is read, decided on, and written under the version it was read at, until no other writer was
faster.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from backup_core.domain.errors import RowChangedError, RowExistsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Result = TypeVar("Result")

ATTEMPTS_MAX = 5
"""Retries after a lost race for a row, before the failure is left to the orchestrator's retry."""


async def update_row(attempt: Callable[[], Awaitable[Result | None]], row: str, meanwhile: str) -> Result:
    """The answer of `attempt`, which reads the row, decides and writes. It is called again while another writer was faster, or
    while it answers None, which requests another read of the row.

    Raises RowChangedError after ATTEMPTS_MAX lost races, naming the `row` and what was done `meanwhile`.
    """
    for _ in range(ATTEMPTS_MAX):
        with suppress(RowChangedError, RowExistsError):
            if (answer := await attempt()) is not None:
                return answer
    message = f"{row} changed {ATTEMPTS_MAX} times while {meanwhile}; temporary failure"
    raise RowChangedError(message)
