"""The description of the API is true: every call is in it, and whatever is sent, the answer is one it describes.

Besides, tests/conftest.py holds every answer that any test gets through the platform to the description.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from backup_core.api.openapi import document
from backup_core.api.routes import ROUTES
from tests.conftest import SEED

SCHEMA = schemathesis.openapi.from_dict(document(ROUTES, "http://127.0.0.1/api"))
EXAMPLES = 25
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


def test_every_call_is_described(platform):
    shown = platform.api("GET", "/openapi.json").json()

    assert shown["servers"] == [{"url": f"{platform.host.origin}/api"}]
    described = {(method.upper(), path) for path, methods in shown["paths"].items() for method in methods}
    assert described == {(route.method, f"/{route.path}") for route in ROUTES}
    health = shown["paths"]["/health"]["get"]
    assert health["security"] == [], "health alone needs no key"
    assert "security" not in shown["paths"]["/disks"]["get"]


def test_an_untrue_answer_would_be_noticed(platform):
    """The check of all answers can fail."""
    answer = platform.api("GET", "/health")
    answer._content = b'{"status": "fine", "checks": {}}'

    with pytest.raises(Exception, match="fine"):
        SCHEMA["/health"]["GET"].validate_response(answer)


CASES = [
    pytest.param(route, mode, id=f"{route.name}-{mode.value}")
    for route in ROUTES
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or route.parameters or route.takes  # without either nothing can be wrong
]


@pytest.mark.parametrize(("route", "mode"), CASES)
def test_hostile_calls_get_described_answers(platform, calm, route, mode):
    """Generated requests, well formed and not: no failure of the server, no answer that is not described."""
    operation = SCHEMA[f"/{route.path}"][route.method]

    @seed(SEED)
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case):
        case.call_and_validate(base_url=f"{platform.host.origin}/api", checks=CHECKS)

    call()
