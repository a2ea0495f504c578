"""Refusals of Azure Resource Manager as the SDK raises them, and the mark of every signature."""

from __future__ import annotations

from typing import NoReturn

from azure.core.exceptions import HttpResponseError, ODataV4Format

SIGNATURE = "c2lnbmF0dXJl"
"""What begins the signature of every export: who finds it elsewhere has found a secret."""


def refuse(status: int, code: str, message: str) -> NoReturn:
    """Raise what the SDK raises for such an answer."""
    error = HttpResponseError(message)
    error.status_code, error.error = status, ODataV4Format({"code": code, "message": message})
    raise error
