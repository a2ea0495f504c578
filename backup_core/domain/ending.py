"""Ends of runs that others write: canceled on request, or abandoned because their rows did not change for long."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from backup_core.domain.records import Restoring, Run, RunError, Versioned

# How long a living run may be silent. Every judgement of abandoned, stuck or late runs rests on these numbers.
STANDSTILL_MAX = timedelta(minutes=5)
"""How long a run is stalled when its worker died: until then host.json keeps the worker's messages invisible."""
STEP_SECONDS_MAX = 600.0
"""Deadline of one step, all its requests and pauses included: a longer one would outlast its run's heartbeat. The rest of it
is retried then; longer waits belong to durable timers.
"""
STEP_SECONDS_USUAL = 100.0
"""A long step, a shard or a comparison, stops after this time and returns its progress."""
PAUSE_SECONDS_MAX = 300.0
"""The longest pause between two polls."""
SIGN_AFTER_SECONDS = 60.0
"""A step that took as long changes its run's row when it ends, as a sign of life; one that is to be retried always does."""
SIGN_SECONDS_MAX = 20.0
"""Deadline of a sign of life."""
WAITS_MAX = timedelta(minutes=15)
"""All pauses between the attempts of a step, however long a service asks it to wait, and what those attempts took that could
not give a sign of life.
"""
HEARTBEAT_MAX = timedelta(seconds=PAUSE_SECONDS_MAX + 2 * STEP_SECONDS_MAX) + STANDSTILL_MAX
"""A run whose row has not changed for this long, by the table service's clock, is abandoned: half an hour.

It covers a pause, a step whose worker dies just before its deadline, the stall, and the retried step; with usual steps,
three crashes in a row. However often a step reaches its deadline, and however many slow steps come one after another, each
gives a sign of life when it ends. A living run that is taken for abandoned fails; its data are safe, because it is fenced off.
"""
CANCELED, ABANDONED = "Canceled", "Abandoned"


def dead(row: Versioned[Run], service_now: datetime) -> bool:
    """Whether an unfinished run has been silent for too long. Both times are the table service's: no worker's clock
    matters.
    """
    # G4: silence is measured by the table service's clock.
    return service_now - row.changed > HEARTBEAT_MAX


def cancellation(row: Versioned[Run], now: datetime) -> Run:
    """The row of a run that is to be canceled: ended at once when no worker executes it, otherwise with the request to end."""
    run = row.value
    if run.state == "NotStarted":
        where = "before it began"
    elif dead(row, now):
        where = f"while {run.phase}, after it had been silent for long"
    else:
        return run if run.cancel_requested else replace(run, cancel_requested=now)
    restore = run.restore
    if restore:
        untouched = "nothing was begun" if run.state == "NotStarted" else _left_words(restore)
        restore = replace(restore, attention="", end=untouched)
    error = RunError(CANCELED, canceled_words(where, run))
    return replace(run, state="Canceled", cancel_requested=now, ended=now, error=error, restore=restore)


def canceled_words(where: str, run: Run | None = None) -> str:
    """The declared end state of a canceled run, in words."""
    if run and run.restore:
        return f"canceled on request {where}; the restore's end state is in its own words"
    return (
        f"canceled on request {where}; restore points are unchanged, the disk is free for the next run, which first finishes "
        "what is half copied"
    )


def abandonment(run: Run, actor_id: str, now: datetime) -> Run:
    """The row of an abandoned run whose disk another run takes over."""
    minutes = HEARTBEAT_MAX // timedelta(minutes=1)
    restore = replace(run.restore, attention="", end=_left_words(run.restore)) if run.restore else None
    if run.cancel_requested:
        words = canceled_words(f"while {run.phase}, after it had been silent for long", run)
        return replace(run, state="Canceled", ended=now, error=RunError(CANCELED, words), restore=restore)
    message = f"the run was silent for {minutes} minutes while {run.phase}; run {actor_id} ended it"
    return replace(run, state="Failed", ended=now, error=RunError(ABANDONED, message), restore=restore)


def _left_words(restore: Restoring) -> str:
    machine = f"; {restore.slot} is settled by the next run that owns the disk" if restore.slot else ""
    return f"restore point {restore.point} is unchanged; {restore.target} may be there, unfinished{machine}"
