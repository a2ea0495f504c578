"""The expected duration of a restore: a range with its basis, from past restores of the disk or from the service's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup_core.domain.pacing import BLOB_RATES

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW_FACTOR = 4
"""Without a past restore, it may take this many times as long as the limits allow."""


@dataclass(frozen=True)
class Estimate:
    """Seconds, from … to, and the basis of the estimate."""

    low: int
    high: int
    basis: str


def estimate(copied: int, requests: int, compared: int, past: Sequence[tuple[int, float]]) -> Estimate:
    """The estimate for so many bytes to copy in so many requests, and so many to compare afterwards; `past` are (bytes,
    seconds) of earlier restores.
    """
    floor = max(copied / BLOB_RATES.bytes, requests / BLOB_RATES.requests) + compared / BLOB_RATES.bytes
    rates = [count / seconds for count, seconds in past if count and seconds > 0]
    if rates and copied:
        low, high = copied / max(rates), copied / min(rates)
        basis = f"the rates of {len(rates)} past restores of this disk"
        return Estimate(max(1, int(low)), max(1, int(high) + 1), basis)
    basis = (
        "a page blob's limits, 60 MiB/s and 500 requests/s, as the least, and "
        f"{SLOW_FACTOR} times that as the most; no past restore of this disk is known"
    )
    return Estimate(max(1, int(floor)), max(1, int(floor * SLOW_FACTOR) + 60), basis)
