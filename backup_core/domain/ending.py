"""How runs end other than by themselves: canceled on request, or given up because nothing was heard of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from backup_core.domain.records import Restoring, Run, RunError, Versioned

# How long a run that is alive may be silent. All that is judged dead, stuck or late rests on these numbers.
STANDSTILL_MAX = timedelta(minutes=5)
"""How long a run stands still when its worker died: until then host.json keeps the worker's messages for it."""
STEP_SECONDS_MAX = 600.0
"""Deadline of one step, all its requests and pauses included: a longer one would outlast its run's heartbeat. What is not done
then is retried; longer waits belong to durable timers.
"""
STEP_SECONDS_USUAL = 100.0
"""What a step that could go on for long, a shard or a comparison, stops after and says where it is."""
PAUSE_SECONDS_MAX = 300.0
"""The longest pause between two looks at something that takes its time."""
HEARTBEAT_MAX = timedelta(seconds=PAUSE_SECONDS_MAX + 2 * STEP_SECONDS_MAX) + STANDSTILL_MAX
"""A run whose row has not changed for this long, by the table service's clock, is taken for dead: half an hour.

It survives a pause, a step whose worker dies just before its deadline, the standstill, and the step again; with usual steps,
three crashes in a row. A run that is judged dead and is not is lost, its data is not: it is fenced off.
"""
CANCELED, ABANDONED = "Canceled", "Abandoned"


def dead(row: Versioned[Run], service_now: datetime) -> bool:
    """Whether a run that has not ended gave no sign of life for too long. Both times are the table service's: no worker's clock
    matters.
    """
    return service_now - row.changed > HEARTBEAT_MAX


def cancellation(row: Versioned[Run], service_now: datetime, now: datetime) -> Run:
    """The row of a run that is to be canceled: ended at once when nobody is at work on it, otherwise asked to end."""
    run = row.value
    if run.state == "NotStarted":
        where = "before it began"
    elif dead(row, service_now):
        where = f"while {run.phase}, when nothing had been heard of it for long"
    else:
        return run if run.cancel_requested else replace(run, cancel_requested=now)
    restore = run.restore
    if restore:
        untouched = "nothing was begun" if run.state == "NotStarted" else _left_words(restore)
        restore = replace(restore, attention="", end=untouched)
    error = RunError(CANCELED, canceled_words(where, run))
    return replace(run, state="Canceled", cancel_requested=now, ended=now, error=error, restore=restore)


def canceled_words(where: str, run: Run | None = None) -> str:
    """What a canceled run leaves behind, in words: the declared end state."""
    if run and run.restore:
        return f"canceled on request {where}; the restore's end state is in its own words"
    return (
        f"canceled on request {where}; restore points are unchanged, the disk is free for the next run, which first finishes "
        "what is half copied"
    )


def abandonment(run: Run, actor_id: str, now: datetime) -> Run:
    """The row of a run that died and whose disk another run takes over."""
    minutes = HEARTBEAT_MAX // timedelta(minutes=1)
    restore = replace(run.restore, attention="", end=_left_words(run.restore)) if run.restore else None
    if run.cancel_requested:
        words = canceled_words(f"while {run.phase}, when nothing had been heard of it for long", run)
        return replace(run, state="Canceled", ended=now, error=RunError(CANCELED, words), restore=restore)
    message = f"nothing was heard of the run for {minutes} minutes while {run.phase}; run {actor_id} ended it"
    return replace(run, state="Failed", ended=now, error=RunError(ABANDONED, message), restore=restore)


def _left_words(restore: Restoring) -> str:
    machine = f"; {restore.slot} is settled by the next run that owns the disk" if restore.slot else ""
    return f"restore point {restore.point} is unchanged; {restore.target} may be there, unfinished{machine}"
