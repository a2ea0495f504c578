"""Workbook and alerts read what the app logs: names, filters, and both against the log of a real run on the platform."""

from __future__ import annotations

import json
from dataclasses import fields as fields_of

import pytest

from backup_core.domain.events import EVENTS, PREFIX
from devhost.platform import REPOSITORY
from tests.infra import kql

INFRA = REPOSITORY / "infra"
ALERTS = json.loads((INFRA / "alerts.json").read_text())
WORKBOOK = json.loads((INFRA / "workbook.json").read_text())
BY_NAME = {one.event: {field.name for field in fields_of(one)} for one in EVENTS}
HOUR = 3600


def workbook_queries():
    for item in WORKBOOK["items"]:
        content = item["content"]
        if "query" in content:
            yield item["name"], content["query"]
        for parameter in content.get("parameters", []):
            if "query" in parameter:
                yield parameter["name"], parameter["query"]


QUERIES = [*((one["name"], one["query"]) for one in ALERTS), *workbook_queries()]


@pytest.mark.parametrize(("name", "query"), QUERIES)
def test_a_query_names_only_fields_that_are_logged(name, query):
    assert query.startswith(kql.BEGIN_BACKUP)
    assert f"'{PREFIX}'" in kql.BEGIN_BACKUP
    assert len(PREFIX) == 11, "substring(message, 11) takes the line behind the prefix"
    unknown = kql.fields(query) - BY_NAME[kql.event(query)]
    assert not unknown, f"{name}: {kql.event(query)} has no {unknown}"


@pytest.fixture(scope="module")
def understood():
    """The language service's diagnostics of each query, by name; parameters are as the portal fills them in."""
    assert len(dict(QUERIES)) == len(QUERIES)
    filled = [query.replace("{Disk}", "'web', 'db'").replace("{rpoSeconds}", str(26 * HOUR)) for _, query in QUERIES]
    return dict(zip([name for name, _ in QUERIES], kql.analysed(filled), strict=True))


@pytest.mark.parametrize("name", [name for name, _ in QUERIES])
def test_a_query_is_understood_by_microsofts_language_service(name, understood):
    faults, columns = understood[name]
    assert faults == []
    assert "unknown" not in columns.values()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["name"])
def test_an_alert_uses_columns_of_its_querys_result(alert, understood):
    """The service takes the time of a row from `timestamp`, and its dimension from a column of text."""
    _, columns = understood[alert["name"]]
    assert columns["timestamp"] == "datetime"
    assert not alert["dimension"] or columns[alert["dimension"]] == "string"


CHARTS = [item for item in WORKBOOK["items"] if item["content"].get("visualization", "").endswith("chart")]


@pytest.mark.parametrize("item", CHARTS, ids=lambda item: item["name"])
def test_a_chart_has_the_columns_that_it_draws(item, understood):
    """A chart's query has a time, a number, and a name for each line."""
    kinds = set(understood[item["name"]][1].values())
    assert {"datetime", "string"} < kinds
    assert kinds & {"long", "real"}
    assert f"render {item['content']['visualization']}" in item["content"]["query"]


def test_faults_of_broken_queries_are_reported():
    """The language service reports a fault for each broken query."""
    broken = {
        "traces | wher message == 'a'": "Query operator expected",
        "trace | take 1": "does not refer to any known table",
        "traces | where massage == 'a'": "'massage' does not refer to any known column",
        "traces | extend a = tolng(message)": "'tolng' does not refer to any known function",
        "traces | where tostring(message) > 5": "not defined for the operand types string and long",
        "traces | project kind = message": "needs to be bracketed",
    }
    for (faults, _), expected in zip(kql.analysed([*broken]), broken.values(), strict=True):
        assert [one for one in faults if expected in one], (expected, faults)


def test_every_event_that_must_be_watched_has_an_alert():
    assert {one["name"] for one in ALERTS} == {
        "window-missed", "no-run-began", "run-failed", "run-warning", "rpo-over-limit", "verification-mismatch", "quarantine", "unprotected", "stuck", "attention",
        "churn", "app-silent", "disks-unseen", "points-lost",
    }  # fmt: skip
    shown = [name for name, _ in workbook_queries()]
    for what in ("Fleet", "RPO over time", "Runs", "Bytes per run", "Requests per run", "Failures by code"):
        assert any(name.startswith(what) for name in shown), what


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["name"])
def test_each_alert_names_the_first_thing_to_do(alert):
    assert alert["firstMove"].startswith("First: ")
    assert alert["firstMove"].endswith(f"docs/alerts.md#{alert['name']}")
    assert alert["severity"] in range(5)
    # Looked at twice: a line that arrives late would be in no window otherwise, and a watch that is late would clear the alert.
    assert (alert["every"], alert["window"]) in {("PT15M", "PT30M"), ("PT15M", "PT1H")}


# -- does each alert fire on its own events, and on no others? ------------------------------------------------------------

HEALTHY = {
    "disk": {
        "disk": "web", "protection": "protected", "newest_point": "20260101T0000000000000Z", "last_success": "2026-01-01T00:00:00+00:00",
        "rpo_seconds": 12 * HOUR, "overdue": False, "window_without_run": "", "last_status": "Succeeded", "last_code": "", "quarantined": False, "at_work": "",
        "silent_seconds": None, "attention": "",
    },
    "run": {
        "disk": "web", "run": "web.20260101T000000Z.timer", "operation": "backup", "state": "Succeeded", "code": "", "message": "",
        "kind": "incremental", "trigger": "timer", "window": "", "seconds": 9, "bytes_done": 512, "bytes_streamed": 0, "ranges": 1,
        "requests": 1, "retries": 0, "points": 1, "expired": 0, "churn_ratio": 4.9,
    },
    "warning": {"disk": "web", "run": "web.20260101T000000Z.timer", "message": "retention: AccessDenied: a lock"},
    "lost": {"disk": "web", "run": "house.20260101", "points": 2, "oldest": "20260101T0000000000000Z", "newest": "20260102T0000000000000Z"},
    "fleet": {"disks": 2, "protected": 2, "overdue": 0, "unseen": 0, "why": ""},
}  # fmt: skip
WRONG = [
    ("window-missed", "disk", {"overdue": True}),
    ("no-run-began", "disk", {"window_without_run": "2026-01-01T00:00:00+00:00"}),
    ("run-failed", "run", {"state": "Failed", "code": "SourceMissing"}),
    ("run-warning", "warning", {}),
    ("rpo-over-limit", "disk", {"rpo_seconds": 26 * HOUR + 1}),
    ("verification-mismatch", "run", {"state": "Failed", "code": "VerificationMismatch"}),
    ("quarantine", "disk", {"quarantined": True}),
    ("unprotected", "disk", {"protection": "unprotected"}),
    ("stuck", "disk", {"at_work": "web.20260101T000000Z.timer", "silent_seconds": 1801}),
    ("attention", "disk", {"attention": "Azure takes long"}),
    ("churn", "run", {"churn_ratio": 5.1}),
    ("points-lost", "lost", {}),
    ("disks-unseen", "fleet", {"unseen": 1}),
]
QUIET = [
    ("a disk at work", "disk", {"at_work": "web.20260101T000000Z.timer", "silent_seconds": 0}),
    ("a disk without a point yet", "disk", {"rpo_seconds": None, "newest_point": "", "last_success": ""}),
    ("a disk that is not to be protected", "disk", {"protection": "stopped", "rpo_seconds": None}),
    ("a full backup", "run", {"kind": "full", "churn_ratio": None}),
    ("a run that is not needed", "run", {"state": "Skipped"}),
    ("a canceled run", "run", {"state": "Canceled"}),
]


def line_of(kind, fields):
    """The log line of the event, as a query gets it."""
    event = next(one for one in EVENTS if one.event == kind)(**fields)
    return json.loads(event.line.removeprefix(PREFIX))


def raised(kind, fields):
    queries = {
        one["name"]: one["query"].replace("{rpoSeconds}", str(26 * HOUR)) for one in ALERTS if one["operator"] == "GreaterThan"
    }
    return {name for name, query in queries.items() if kql.event(query) == kind and kql.lets_pass(query, fields)}


@pytest.mark.parametrize(("name", "kind", "change"), WRONG)
def test_an_alert_fires_for_its_events(name, kind, change):
    assert set(change) <= BY_NAME[kind]
    assert set(HEALTHY[kind]) == BY_NAME[kind]
    allowed = {name, "run-failed"} if kind == "run" and change.get("state") == "Failed" else {name}
    assert raised(kind, line_of(kind, HEALTHY[kind] | change)) == allowed


@pytest.mark.parametrize(
    ("name", "kind", "change"), [("all is well", "disk", {}), ("all is well", "run", {}), ("all is well", "fleet", {}), *QUIET]
)
def test_no_alert_fires_without_a_reason(name, kind, change):
    assert raised(kind, line_of(kind, HEALTHY[kind] | change)) == set(), name


def test_every_alert_was_seen_to_fire():
    assert {name for name, *_ in WRONG} | {"app-silent"} == {one["name"] for one in ALERTS}


def test_a_missing_watch_raises_an_alert():
    silent = next(one for one in ALERTS if one["name"] == "app-silent")

    assert (kql.event(silent["query"]), silent["operator"], silent["threshold"], silent["window"]) == (
        "fleet",
        "LessThan",
        1,
        "PT1H",
    )
