"""How runs end other than by themselves: canceled on request, or given up because nothing was heard of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from backup_core.domain.records import Run, RunError, Versioned

HEARTBEAT_MAX = timedelta(minutes=15)
"""A run whose row has not changed for this long, by the table service's clock, is taken for dead."""
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
        return run if run.cancel_asked else replace(run, cancel_asked=now)
    return replace(run, state="Canceled", cancel_asked=now, ended=now, error=RunError(CANCELED, canceled_words(where)))


def canceled_words(where: str) -> str:
    """What a canceled run leaves behind, in words: the declared end state."""
    return (
        f"canceled on request {where}; restore points are unchanged, the disk is free for the next run, which first finishes "
        "what is half copied"
    )


def abandonment(run: Run, by: str, now: datetime) -> Run:
    """The row of a run that died and whose disk another run takes over."""
    if run.cancel_asked:
        return replace(run, state="Canceled", ended=now, error=RunError(CANCELED, canceled_words(f"while {run.phase}")))
    minutes = HEARTBEAT_MAX // timedelta(minutes=1)
    message = f"nothing was heard of the run for {minutes} minutes while {run.phase}; run {by} took the disk over"
    return replace(run, state="Failed", ended=now, error=RunError(ABANDONED, message))
