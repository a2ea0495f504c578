"""Runs a step: parses its input, calls the activity, and turns expected failures into values free of secrets."""

from __future__ import annotations

import asyncio
import logging
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from backup_core.activities import (
    backup_run,
    copies,
    fleet,
    housekeeping,
    images,
    machines,
    points,
    progress,
    rebuild,
    restore_run,
    retention,
    shards,
    snapshots,
    transfer,
    verification,
)
from backup_core.domain.ending import SIGN_AFTER_SECONDS, SIGN_SECONDS_MAX, STEP_SECONDS_MAX
from backup_core.domain.errors import STORES_MISSING, BackupError, ServiceTimedOutError, UnexpectedError
from backup_core.domain.redaction import redacted
from backup_core.protocol.rebuilds import give_rebuild_sign_of_life
from backup_core.protocol.run_rows import give_sign_of_life
from backup_core.steps.backup import (
    BEGIN_BACKUP,
    BEGIN_NEW_GENERATION,
    COMMIT_POINT,
    DROP_PREVIOUS_SNAPSHOT,
    FINISH_RUN,
    LIST_DISKS,
    OPEN_HEAD,
    PRUNE_POINTS,
    RAISE_EPOCH,
    TAKE_BACKUP_SNAPSHOT,
    TAKE_SOURCE_SNAPSHOT,
    TAKE_TURN,
    VERIFY_HEAD,
)
from backup_core.steps.copying import (
    ABORT_COPY,
    APPLY_SHARD,
    CHECK_COPY,
    PLAN_TRANSFER,
    REPORT_PROGRESS,
    START_COPY,
    TAKE_OVER_COPY,
)
from backup_core.steps.housekeeping import CLEAN_UP_DISK, CLEAN_UP_REBUILDS, LIST_BACKED_UP_DISKS
from backup_core.steps.messages import Duty, Fault, Message, Step, StepOutcome, run_of
from backup_core.steps.rebuild import FINISH_REBUILD, LIST_REBUILD_DISKS, REBUILD_DISK, REPORT_REBUILD
from backup_core.steps.restore import (
    ADOPT_HEAD,
    BEGIN_RESTORE,
    CLOSE_CHANGE,
    COMPARE_IMAGE,
    COMPARE_SNAPSHOT,
    DISCARD_IMAGE,
    DISCARD_SNAPSHOT,
    FENCE_MACHINE,
    FINISH_RESTORE,
    IMPORT_DISK,
    INSPECT_MACHINE,
    MOVE_MACHINE,
    OPEN_IMAGE,
    OWN_DISK,
    RECORD_FAILURE,
    SEAL_IMAGE,
    STORE_CHANGE,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backup_core.protocol.tools import Tools

log = logging.getLogger("pagekeeper")

ACTIVITIES: dict[str, Callable[[Tools, Any], Awaitable[Message]]] = {
    LIST_DISKS.name: fleet.list_disks,
    TAKE_TURN.name: fleet.take_turn,
    BEGIN_BACKUP.name: backup_run.begin_backup,
    TAKE_SOURCE_SNAPSHOT.name: snapshots.take_source_snapshot,
    PLAN_TRANSFER.name: transfer.plan_transfer,
    BEGIN_NEW_GENERATION.name: backup_run.begin_new_generation,
    RAISE_EPOCH.name: backup_run.raise_epoch,
    OPEN_HEAD.name: transfer.open_head,
    START_COPY.name: copies.start_copy,
    CHECK_COPY.name: copies.check_copy,
    ABORT_COPY.name: copies.abort_copy,
    TAKE_OVER_COPY.name: copies.take_over_copy,
    APPLY_SHARD.name: shards.apply_shard,
    VERIFY_HEAD.name: verification.verify_head,
    TAKE_BACKUP_SNAPSHOT.name: snapshots.take_backup_snapshot,
    COMMIT_POINT.name: points.commit_point,
    DROP_PREVIOUS_SNAPSHOT.name: snapshots.drop_previous_snapshot,
    PRUNE_POINTS.name: retention.prune_points,
    REPORT_PROGRESS.name: progress.report_progress,
    FINISH_RUN.name: backup_run.finish_run,
    BEGIN_RESTORE.name: restore_run.begin_restore,
    OPEN_IMAGE.name: images.open_image,
    COMPARE_IMAGE.name: verification.compare_image,
    COMPARE_SNAPSHOT.name: verification.compare_snapshot,
    SEAL_IMAGE.name: images.seal_image,
    DISCARD_IMAGE.name: images.discard_image,
    DISCARD_SNAPSHOT.name: images.discard_snapshot,
    OWN_DISK.name: restore_run.own_disk,
    IMPORT_DISK.name: machines.import_disk,
    STORE_CHANGE.name: machines.store_change,
    MOVE_MACHINE.name: machines.move_machine,
    INSPECT_MACHINE.name: machines.inspect_machine,
    FENCE_MACHINE.name: machines.fence_machine,
    CLOSE_CHANGE.name: machines.close_change,
    RECORD_FAILURE.name: restore_run.record_failure,
    ADOPT_HEAD.name: restore_run.adopt_head,
    FINISH_RESTORE.name: restore_run.finish_restore,
    LIST_BACKED_UP_DISKS.name: housekeeping.list_backed_up_disks,
    CLEAN_UP_DISK.name: housekeeping.clean_up_disk,
    CLEAN_UP_REBUILDS.name: rebuild.clean_up_rebuilds,
    LIST_REBUILD_DISKS.name: rebuild.list_rebuild_disks,
    REBUILD_DISK.name: rebuild.rebuild_disk,
    REPORT_REBUILD.name: rebuild.report_rebuild,
    FINISH_REBUILD.name: rebuild.finish_rebuild,
}


class Stores(Protocol):
    """The app's own stores."""

    async def ready(self) -> None:
        """Create table and containers where they are missing, once."""

    async def repair(self) -> bool:
        """Create missing stores again; whether any was missing."""


class _AlwaysThere:
    async def ready(self) -> None:
        return

    async def repair(self) -> bool:
        return False


ALWAYS_THERE: Stores = _AlwaysThere()
"""The stores of tests, which need no preparation."""


async def _in_time(name: str, work: Awaitable[Message]) -> Message:
    """The step's answer. Raises ServiceTimedOutError at the deadline, by the monotonic clock, however the time was spent."""
    try:
        async with asyncio.timeout(STEP_SECONDS_MAX) as deadline:
            return await work
    except TimeoutError as error:
        if not deadline.expired():
            raise
        message = f"{name}: not done within {STEP_SECONDS_MAX:g} s; the service answers too slowly; what is left is retried"
        raise ServiceTimedOutError(message) from error


async def _end_silence(tools: Tools, request: Message, began: float) -> int:
    """Give the run or rebuild of a step a sign of life; the seconds since the step began when that fails, else 0."""
    run, rebuild_ = run_of(request), getattr(request, "rebuild", "")
    try:
        async with asyncio.timeout(SIGN_SECONDS_MAX):
            # G4: it would be silent for as long as all attempts take.
            if run:
                await give_sign_of_life(tools, *run)
            elif rebuild_:
                await give_rebuild_sign_of_life(tools, rebuild_)
    except (BackupError, TimeoutError):
        return ceil(monotonic() - began)
    return 0


async def run_step(
    step: Step[Any, Any],
    tools: Callable[[Duty], Tools],
    raw: dict[str, Any],
    stores: Stores = ALWAYS_THERE,
) -> dict[str, Any]:
    """The step's Outcome as JSON, with the tools of its duty, once the stores are ready. A store that was removed meanwhile is
    made again, and the fault may be retried.

    A step that took long, or is to be retried, gives its run a sign of life at its end. It gives none before: a step whose
    worker dies each time must not keep its run alive.

    An unexpected exception is raised again with its text redacted: a fault of this program must show as a failed activity,
    and must not carry a signature into history.
    """
    request, began = step.takes.model_validate(raw), monotonic()
    its_tools = tools(step.duty(request))
    try:
        await stores.ready()
        answer = await _in_time(step.name, ACTIVITIES[step.name](its_tools, request))
        if monotonic() - began >= SIGN_AFTER_SECONDS:
            await _end_silence(its_tools, request, began)
    except BackupError as error:
        retryable = error.retryable or (isinstance(error, STORES_MISSING) and await stores.repair())
        fault = Fault(
            code=error.code,
            message=redacted(str(error)),
            retryable=retryable,
            wait_seconds=error.wait_seconds,
            silent_seconds=await _end_silence(its_tools, request, began) if retryable else 0,
        )
        log.warning("%s: %s: %s", step.name, fault.code, fault.message)
        return StepOutcome(fault=fault, step=step.name).model_dump(mode="json")
    except Exception as error:  # noqa: BLE001  raised again below, redacted
        message = redacted(f"{step.name}: {type(error).__name__}: {error}")
        await _end_silence(its_tools, request, began)
    else:
        return StepOutcome(value=answer.model_dump(mode="json"), step=step.name).model_dump(mode="json")
    raise UnexpectedError(message)
