"""Digests of stored values, kept in an orchestration's history: a change by another writer is noticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup_core.domain.records import Restoring


def digest_of(text: str) -> str:
    """SHA-256 of the text, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_request(wanted: Restoring) -> str:
    """The digest of a restore's request, without its progress and end."""
    request = replace(wanted, attention="", end="", downtime_seconds=None)
    return digest_of(json.dumps(asdict(request), sort_keys=True))
