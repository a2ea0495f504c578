"""Redaction of secrets from text for people and tables: whole ones, and percent-encoded once or more often."""

from __future__ import annotations

import re

_SIGN = r"%(?:25)*"
"""A percent sign, encoded however often."""
_NAMES = (
    "sig|signature|code|x-functions-key|accountkey|sharedaccesssignature|authorization|password|client_secret|"
    "access_token|refresh_token|id_token"
)
_QUOTE = rf"(?:\\*['\"]|{_SIGN}2[27])"
_IS = rf"(?:[=:]|{_SIGN}3[DdAa]|\\+u003[DdAa])"
_SECRETS = re.compile(
    # Before it no word, or the end of an encoded &, ?, ; , a quote, a comma or a space.
    rf"(?P<name>(?:(?<![A-Za-z0-9_])|(?<=26|3F|3B|22|27|2C|20))(?:{_NAMES}){_QUOTE}?\s*{_IS}\s*{_QUOTE}?)"
    rf"(?:(?:bearer|sharedkey)\s+)?(?:(?!{_SIGN}26|\\+u0026)[^\s&;,'\"<>])+",
    re.IGNORECASE,
)
_SCHEMES = re.compile(r"\b(?P<scheme>bearer|sharedkey|basic)(?:\s|%20)+[A-Za-z0-9._~+/:=%-]{8,}", re.IGNORECASE)
# A token of Entra ID is three parts of base64 (JSON Web Token); the first begins with {"
_TOKENS = re.compile(r"(?<![A-Za-z0-9_-])ey[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?")
# An account key, a signature or a function key: 43 or more characters of base64 that end as base64 does.
_KEYS = re.compile(
    rf"(?<![A-Za-z0-9+/_%-])(?:[A-Za-z0-9+/_-]|{_SIGN}2[BbFf]){{43,}}(?:=|{_SIGN}3[Dd]){{1,2}}(?![A-Za-z0-9+/=_-])"
)


def redacted(text: str) -> str:
    """`text` with signatures, keys and tokens replaced; everything else as it was."""
    text = _SECRETS.sub(r"\g<name>REDACTED", text)
    text = _SCHEMES.sub(r"\g<scheme> REDACTED", text)
    text = _TOKENS.sub("REDACTED", text)
    return _KEYS.sub("REDACTED", text)
