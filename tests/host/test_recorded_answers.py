"""The host answers as Microsoft's extension was recorded to answer: see recorded/README.md."""

from __future__ import annotations

import json
import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

import pytest

from devhost.platform import Host, awaited

RECORDED = Path(__file__).parent / "recorded"
ENDED = ("Completed", "Failed", "Terminated")
ROWS = [json.loads(line) for line in (RECORDED / "answers.jsonl").read_text().split("\n") if line]
SCENARIOS = {name: list(rows) for name, rows in groupby(ROWS, key=lambda row: row["scenario"])}
TIMES = {"createdTime", "lastUpdatedTime", "Timestamp", "ScheduledTime", "FireAt", "timestamp"}
HEADERS = ("Location", "Retry-After", "x-ms-continuation-token")
PATTERNS = [
    (r"https?://[\d.]+:\d+", "ORIGIN"),
    (r"ORIGIN/durabletask/", "ORIGIN/runtime/webhooks/durabletask/"),
    (r"\b[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\b", "GUID"),
    (r"([?&](?:taskHub|connection|code)=)[^&\s]*", r"\1X"),
    (r"\s*(\{\\*\"\$type\\*\":|Message: ).*", " …"),
]


def plain(value, key=""):
    """The value without what differs from run to run, in the form of the recording."""
    if isinstance(value, dict):
        if value.get("ExceptionType") == "Newtonsoft.Json.JsonReaderException" and "JToken" not in value["ExceptionMessage"]:
            value = {**value, "ExceptionMessage": "…"}
        return {name: plain(one, name) for name, one in value.items() if name != "StackTrace"}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, str):
        return value
    if key in TIMES:
        return "TIME"
    if len(value) > 600 and len(set(value)) == 1:
        return f"{value[0]} times {len(value)}"
    for pattern, instead in PATTERNS:
        value = re.sub(pattern, instead, value, flags=re.DOTALL)
    return value


class Asker:
    """Sends the calls of one scenario, with ids of its own."""

    def __init__(self, host):
        self.host, self.prefix = host, f"m{uuid.uuid4().hex[:10]}-"

    def call(self, request, body=None, raw=None, kind=None):
        method, path = request.split(" ", 1)
        data = raw if raw is not None else None if body is None else json.dumps(body)
        headers = {"Content-Type": kind or "application/json"} if data is not None else {}
        return self.host.call(method, f"/runtime/webhooks/durabletask/{path}", data=data, headers=headers)

    def prepare(self, what, *request):
        if what == "start":
            orchestrator, instance, given = request
            repeated = isinstance(given["value"], dict) and given["value"].get("repeat") if "value" in given else None
            body = {"value": repeated[0] * repeated[1]} if repeated else given
            assert self.call(f"POST orchestrators/{orchestrator}/{instance}", body).status_code == 202, instance
            return
        instance, wanted = request
        look = self.has_happened if what == "happened" else self.shows
        awaited(lambda: look(instance, wanted), f"{what} {instance} {wanted}")

    def shows(self, instance, wanted):
        answer = self.call(f"GET instances/{instance}")
        if answer.status_code not in (200, 202):
            return False
        shown = answer.json()
        return shown["runtimeStatus"] in ENDED if wanted == "ended" else {**shown, **wanted} == shown

    def has_happened(self, instance, kind):
        answer = self.call(f"GET instances/{instance}?showHistory=true")
        return answer.status_code in (200, 202) and kind in [one["EventType"] for one in answer.json().get("historyEvents", [])]

    def difference(self, row):
        """The difference of the answer from the recorded one, in words; empty when they are equal."""
        row = json.loads(json.dumps(row).replace("MINE-", self.prefix))
        for step in row.get("before", []):
            self.prepare(*step)
        answer = self.call(row["ask"], row.get("body"), row.get("raw"), row.get("kind"))
        try:
            body = answer.json()
        except ValueError:
            body = answer.text
        token = answer.headers.get("x-ms-continuation-token")
        got = {
            "status": answer.status_code,
            "headers": plain({name: answer.headers[name] for name in HEADERS if answer.headers.get(name)}),
            "token": bool(token),
            "body": plain(body),
            "rows": len(body) if isinstance(body, list) else None,
        }
        got = {name: got[name] for name in row["answer"]}
        if got == row["answer"]:
            return ""
        return f"{unquote(row['ask'])}\n  recorded {json.dumps(row['answer'])}\n  answered {json.dumps(got)}"


def differences(host, rows):
    asker = Asker(host)
    return [found for row in rows if (found := asker.difference(row))]


@pytest.fixture(scope="module")
def compared(storage, tmp_path_factory):
    """All scenarios side by side: most of their time is waiting."""
    environment = {**os.environ, "AzureWebJobsStorage": storage.host.connection_string}
    host = Host(tmp_path_factory.mktemp("recorded"), environment, timers="demand", app=RECORDED / "app")
    try:
        with ThreadPoolExecutor(len(SCENARIOS)) as pool:
            waiting = {name: pool.submit(differences, host, rows) for name, rows in SCENARIOS.items()}
            yield {name: one.result() for name, one in waiting.items()}
    finally:
        host.stop()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_answers_as_recorded(scenario, compared):
    found = compared[scenario]

    assert not found, "\n".join(found)
