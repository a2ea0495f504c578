"""Keeping secrets out of text that people and tables get to see."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    r"(?P<name>\b(?:sig|signature|code|accountkey|sharedaccesssignature|authorization)\b['\"]?\s*[=:]\s*['\"]?)"
    r"(?:(?:bearer|sharedkey)\s+)?[^\s&;,'\"<>]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(?P<scheme>bearer|sharedkey)\s+[A-Za-z0-9._~+/:=-]{8,}", re.IGNORECASE)
# An account key, and any signature, is 44 or 88 characters of base64.
_KEYS = re.compile(r"(?<![A-Za-z0-9+/%])(?:[A-Za-z0-9+/]{86}==|[A-Za-z0-9+/]{43}=)(?![A-Za-z0-9+/=])")


def redacted(text: str) -> str:
    """`text` with signatures, keys and tokens replaced; everything else as it was."""
    text = _SECRETS.sub(r"\g<name>REDACTED", text)
    text = _BEARER.sub(r"\g<scheme> REDACTED", text)
    return _KEYS.sub("REDACTED", text)
