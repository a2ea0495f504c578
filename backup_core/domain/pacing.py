"""The pace of requests: near a limit that the service enforces and does not publish.

A pace starts at the documented rates, grows a little with each success while requests wait for it, and shrinks by a factor when
one is refused (additive increase, multiplicative decrease). So processes that share a blob each find their part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from backup_core.domain.ranges import MIB

CREDIT_SECONDS = 0.1
"""Unused time that may be made up: a timer that fires late costs nothing, and an idle blob gets no real burst."""
GROWTH_PER_SECOND = 0.02
"""Growth of the share for a second's worth of successful requests, at the documented rates. It is added per success, so a
process that sends less grows less, as it is refused less: those that share a blob stay together, whatever their number.
"""
CUT = 0.9
"""The share that a refusal leaves. Requests are refused in bunches; one bunch cuts once."""
SHARE_MIN, SHARE_MAX = 1 / 32, 64.0
"""At the least, a large request is sent each two seconds; at the most, a premium blob's limits are reached."""
HOLD_SECONDS_MAX = 120.0
"""How long a Retry-After stops everything: one that asks for more is left to the slower retries of the orchestrator."""
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Rates:
    """Limits per second; both hold side by side."""

    requests: float
    bytes: float


BLOB_RATES = Rates(500, 60 * MIB)
"""Limits of one standard page blob (scalability targets of Blob storage)."""
ACCOUNT_RATES = Rates(20_000, 2_980 * MIB)
"""Limits of a storage account by default in most regions: 25 Gbit/s in (scalability targets of standard accounts)."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The permission to send one request."""

    at: float
    """The second at which it was given."""
    size: int
    """Bytes of pages the request moves."""
    pressed: bool
    """Whether requests followed each other about as closely as the pace allowed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace at which requests may be sent. Times are seconds of a monotonic clock."""

    rates: Rates
    share: float = 1.0
    """The rate that the service seems to accept, as a multiple of `rates`."""
    requests_due: float = _NEVER
    bytes_due: float = _NEVER
    """Time at which the rate of requests, and that of bytes, allows the next one."""
    held_until: float = _NEVER
    """The service has asked for no request before then."""
    cut_at: float = _NEVER
    """Time of the last cut of the share."""

    @property
    def due(self) -> float:
        """The second from which on the next request may be sent."""
        return max(self.requests_due, self.bytes_due, self.held_until)

    def admit(self, now: float, size: int) -> tuple[Pace, Admission]:
        """Send a request that moves so many bytes, at or after `due`."""
        earliest = now - CREDIT_SECONDS
        pressed = max(self.requests_due, self.bytes_due) > now - CREDIT_SECONDS / 2
        after = replace(
            self,
            requests_due=max(self.requests_due, earliest) + 1 / (self.rates.requests * self.share),
            bytes_due=max(self.bytes_due, earliest) + size / (self.rates.bytes * self.share),
        )
        return after, Admission(now, size, pressed)

    def on_success(self, admission: Admission) -> Pace:
        """Raise the share after a success. A request sent below the pace says nothing about the limit."""
        if not admission.pressed:
            return self
        seconds = max(1 / self.rates.requests, admission.size / self.rates.bytes)
        return replace(self, share=min(self.share + GROWTH_PER_SECOND * seconds, SHARE_MAX))

    def on_refused(self, admission: Admission, now: float, retry_after: float = 0.0) -> Pace:
        """Cut the share after the service throttled a request. One sent before the last cut says nothing new."""
        until = max(self.held_until, now + min(retry_after, HOLD_SECONDS_MAX))
        if admission.at < self.cut_at:
            return replace(self, held_until=until)
        return replace(self, share=max(self.share * CUT, SHARE_MIN), cut_at=now, held_until=until)
