"""Digests by which an orchestration's history holds what is stored: whoever else may write there changes nothing unseen."""

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
    """The digest of what a restore was asked for; what came of it since is left out."""
    request = replace(wanted, attention="", end="", downtime_seconds=None)
    return digest_of(json.dumps(asdict(request), sort_keys=True))
