"""The OpenAPI description contains every call.

Besides, tests/conftest.py checks every answer of the platform against it, and test_fuzz.py those to hostile requests.
"""

from __future__ import annotations

import pytest
import schemathesis

from backup_core import __version__
from backup_core.api.openapi import document
from backup_core.api.routes import ROUTES

SCHEMA = schemathesis.openapi.from_dict(document(ROUTES, "http://127.0.0.1/api"))


def test_every_call_is_described(platform):
    shown = platform.api("GET", "/openapi.json").json()

    assert shown["info"]["version"] == __version__
    assert shown["servers"] == [{"url": f"{platform.host.origin}/api"}]
    described = {(method.upper(), path) for path, methods in shown["paths"].items() for method in methods}
    assert described == {(route.method, f"/{route.path}") for route in ROUTES}
    health = shown["paths"]["/health"]["get"]
    assert health["security"] == [], "health alone needs no key"
    assert "security" not in shown["paths"]["/disks"]["get"]


def test_an_answer_that_contradicts_the_description_is_detected(platform):
    """The check of all answers fails for a wrong answer."""
    answer = platform.api("GET", "/health")
    answer._content = b'{"version": "0", "status": "fine", "checks": {}}'

    with pytest.raises(Exception, match="fine"):
        SCHEMA["/health"]["GET"].validate_response(answer)
