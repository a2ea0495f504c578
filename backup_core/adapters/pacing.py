"""The queue of requests: each waits at the pace of its blob, then at that of its account."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backup_core.domain.naming import BlobAddress
from backup_core.domain.pacing import ACCOUNT_RATES, BLOB_RATES, Admission, Pace, Rates

if TYPE_CHECKING:
    from collections.abc import Callable

    from backup_core.domain.naming import Source

BLOBS_KEPT = 1000
"""Paces of blobs that are remembered in a process; of more, the one used longest ago begins anew."""
_OVER_THE_ACCOUNT = "over the account limit"
"""The service's text for the account's own limits (Blob service error codes, ServerBusy); other refusals are the blob's."""


@dataclass
class _Gate:
    """The pace of a blob or an account, and its queue: first in, first out."""

    pace: Pace
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class Leave:
    """The permission to send one request; its result adjusts the gates that it has passed."""

    _blob: _Gate
    _account: _Gate
    _at_blob: Admission
    _at_account: Admission

    def succeeded(self) -> None:
        """Adjust the gates after a success."""
        self._blob.pace = self._blob.pace.on_success(self._at_blob)
        self._account.pace = self._account.pace.on_success(self._at_account)

    def refused(self, why: str, now: float, retry_after: float) -> None:
        """The service has refused it at `now` as one too many, in the words `why`, and asked for a pause of `retry_after` s."""
        of_account = _OVER_THE_ACCOUNT in why.lower()
        gate, admission = (self._account, self._at_account) if of_account else (self._blob, self._at_blob)
        gate.pace = gate.pace.on_refused(admission, now, retry_after)


class Pacers:
    """The gates of a process: one per blob, one per account. All transports of the process share them."""

    def __init__(
        self, blob: Rates = BLOB_RATES, account: Rates = ACCOUNT_RATES, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Start each blob and each account at these rates; `monotonic` gives seconds."""
        self._of_blob, self._of_account, self._monotonic = blob, account, monotonic
        self._blobs: OrderedDict[Source, _Gate] = OrderedDict()
        self._accounts: dict[str, _Gate] = {}

    async def leave(self, blob: Source, size: int) -> Leave:
        """Wait until a request that moves `size` bytes of pages may be sent to the blob, or to a snapshot of it.

        Of each blob one request at most waits for the account, so disks take turns there however many requests each has.
        """
        # A managed disk's snapshots are in an account of their own, which nobody else reads.
        name = blob.account if isinstance(blob, BlobAddress) else blob.place
        ours, account = self._gate(blob), self._accounts.setdefault(name, _Gate(Pace(self._of_account)))
        async with ours.turn:
            at_blob = await self._pass(ours, size)
            async with account.turn:
                at_account = await self._pass(account, size)
        return Leave(ours, account, at_blob, at_account)

    def _gate(self, blob: Source) -> _Gate:
        gate = self._blobs.setdefault(blob, _Gate(Pace(self._of_blob)))
        self._blobs.move_to_end(blob)
        if len(self._blobs) > BLOBS_KEPT:
            self._blobs.popitem(last=False)
        return gate

    async def _pass(self, gate: _Gate, size: int) -> Admission:
        while (pause := gate.pace.due - self._monotonic()) > 0:  # noqa: ASYNC110  a refusal meanwhile moves what is due
            await asyncio.sleep(pause)
        gate.pace, admission = gate.pace.admit(self._monotonic(), size)
        return admission
