"""TroubleBug bugs of timers, of what cannot be read, of cleanings that fail and of long lists. Each must be caught.

Each comes with the histories that have such trouble: in others there is nothing to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from backup_core.activities import fleet, housekeeping
from backup_core.domain import windows
from backup_core.domain.errors import BackupError
from backup_core.orchestrations import backup_disk
from backup_core.protocol import pruning, run_rows, survey
from tests.doubles.page_blobs import MemoryPageBlobs
from tests.simulator.stage import FAILING, FAILING_EVERY, LONG, LONG_EVERY, TIMED, TIMED_EVERY, UNREADABLE, UNREADABLE_EVERY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from backup_core.domain.naming import BlobAddress
    from backup_core.protocol.tools import Tools


# -- timers ---------------------------------------------------------------------------------------------------------------


def windows_by_the_clock() -> AbstractContextManager[object]:
    """A timer counts for the window that has begun: one that fires early finds the former window, whose work is done."""
    return patch.object(windows, "FIRING_ERROR_MAX", timedelta())


def windows_by_the_second() -> AbstractContextManager[object]:
    """A timer counts for the second in which it fires: an early one, and the one in time after it, are two windows."""

    def fired(_: str, __: str, moment: datetime) -> datetime:
        return moment.replace(microsecond=0)

    return patch("tests.simulator.starts.window_fired", fired)


# -- what cannot be read ----------------------------------------------------------------------------------------------------


def unreadable_disk_stops_the_window() -> AbstractContextManager[object]:
    """The list of a window's disks reads each registration, and ends at the first that cannot be read."""

    async def is_stopped(tools: Tools, disk: str) -> bool:
        row = await tools.catalogue.registration(disk)
        return row is not None and not row.value.protected

    return patch.object(fleet, "_is_stopped", is_stopped)


def unreadable_disk_hides_the_list() -> AbstractContextManager[object]:
    """A list of disks is refused when one of them cannot be read."""

    async def each(disks: Sequence[str], look: Callable[[str], Awaitable[Any]]) -> tuple[list[Any], list[Any]]:
        return [await look(disk) for disk in disks], []

    return patch("backup_core.api.disks.each", each)


def unreadable_disk_stops_the_rebuild() -> AbstractContextManager[object]:
    """A rebuild of all disks is refused when one of them cannot be read."""

    async def unguarded(tools: Tools, disk: str, below: str = "", down_to: str = "") -> survey.Survey:
        return await survey._survey(tools, disk, below, down_to)  # noqa: SLF001  the guard to be removed

    return patch.object(survey, "survey", unguarded)


# -- cleanings that fail ------------------------------------------------------------------------------------------------------


def cleaning_fails_the_run() -> AbstractContextManager[object]:
    """A failure after the commit fails the run like any other."""

    def strict(_: Any, __: str, duty: Any) -> Any:  # noqa: ANN401  as the method it replaces
        yield from duty

    return patch.object(backup_disk._Backup, "_after_commit", strict)  # noqa: SLF001  the guard to be removed


def failed_duty_ends_the_night() -> AbstractContextManager[object]:
    """The duties of a disk's night are done one after the other, up to the first that fails."""

    async def strict(duty: Callable[[], Awaitable[None]]) -> str:
        await duty()
        return ""

    return patch.object(housekeeping, "_try", strict)


@contextmanager
def failed_deletion_is_forgotten() -> Iterator[None]:
    """The row of an expired point is deleted although its backup snapshot could not be deleted."""
    delete = MemoryPageBlobs.delete_snapshot

    async def silent(self: MemoryPageBlobs, blob: BlobAddress, snapshot: str) -> None:
        with suppress(BackupError):
            await delete(self, blob, snapshot)

    async def forgetful(tools: Tools, row: Any, *rest: Any) -> bool:  # noqa: ANN401  as the function it replaces
        with patch.object(MemoryPageBlobs, "delete_snapshot", silent):
            return await original(tools, row, *rest)

    original = pruning._delete  # noqa: SLF001  the guard to be removed
    with patch.object(pruning, "_delete", forgetful):
        yield


# -- long lists ---------------------------------------------------------------------------------------------------------------


@contextmanager
def all_that_expired_is_named() -> Iterator[None]:
    """The end of a run names every restore point that the run deleted."""
    with ExitStack() as patches:
        for module in (backup_disk, run_rows):
            patches.enter_context(patch.object(module, "EXPIRED_NAMED_MAX", 10_000))
        yield


@dataclass(frozen=True)
class TroubleBug:
    """A planted bug, and the histories with the trouble that shows it: those whose seed leaves `at` when divided by `every`."""

    bug: Callable[[], AbstractContextManager[object]]
    every: int
    at: int


TROUBLE_BUGS = {
    "windows by the clock": TroubleBug(windows_by_the_clock, TIMED_EVERY, TIMED),
    "windows by the second": TroubleBug(windows_by_the_second, TIMED_EVERY, TIMED),
    "unreadable disk stops the window": TroubleBug(unreadable_disk_stops_the_window, UNREADABLE_EVERY, UNREADABLE),
    "unreadable disk hides the list": TroubleBug(unreadable_disk_hides_the_list, UNREADABLE_EVERY, UNREADABLE),
    "unreadable disk stops the rebuild": TroubleBug(unreadable_disk_stops_the_rebuild, UNREADABLE_EVERY, UNREADABLE),
    "cleaning fails the run": TroubleBug(cleaning_fails_the_run, FAILING_EVERY, FAILING),
    "failed duty ends the night": TroubleBug(failed_duty_ends_the_night, FAILING_EVERY, FAILING),
    "failed deletion is forgotten": TroubleBug(failed_deletion_is_forgotten, FAILING_EVERY, FAILING),
    "all that expired is named": TroubleBug(all_that_expired_is_named, LONG_EVERY, LONG),
}
"""Faults that show where something is early, unreadable, undeletable or too much."""
