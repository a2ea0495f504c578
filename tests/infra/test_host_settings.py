"""host.json's durableTask section: only keys and types that the extension knows, each value with its reason in the docs.

The extension ignores a key it does not know. `recorded/durable-options.json` is what version 3.19.0 printed of its configuration
when host.json set nothing: its names, and its defaults for Python.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from devhost.platform import REPOSITORY

DURABLE = json.loads((REPOSITORY / "host.json").read_text())["extensions"]["durableTask"]
PRINTED = json.loads((Path(__file__).parent / "recorded" / "durable-options.json").read_text())
CHAPTER = (REPOSITORY / "docs" / "host-settings.md").read_text()
SPAN = re.compile(r"\d\d:\d\d:\d\d")
TEXTS = {
    "hubName", "defaultVersion", "storageProvider.connectionName", "storageProvider.connectionStringName",
    "storageProvider.trackingStoreConnectionName", "storageProvider.trackingStoreConnectionStringName",
    "storageProvider.trackingStoreNamePrefix",
}  # fmt: skip
"""Text options that are printed as null when nothing sets them."""
CHOICES = {
    "versionMatchStrategy": {"None", "Strict", "CurrentOrOlder"},
    "versionFailureStrategy": {"Reject", "Fail"},
    "tracing.version": {"None", "V1", "V2"},
}
BOUNDS = {
    "storageProvider.partitionCount": (1, 16),
    "storageProvider.controlQueueBatchSize": (1, 32),
    "storageProvider.controlQueueBufferThreshold": (0, 1000),
    "maxConcurrentActivityFunctions": (1, 1000),
    "maxConcurrentOrchestratorFunctions": (1, 1000),
}
VISIBLE_AGAIN = re.compile(r"00:(0[1-9]|[1-5]\d):\d\d|01:00:00")
"""From a minute to an hour: the extension refuses to start with less or more."""


def leaves(value, name=""):
    for key, one in value.items():
        here = f"{name}.{key}".strip(".")
        if isinstance(one, dict):
            yield from leaves(one, here)
        else:
            yield here, one


KNOWN = dict(leaves(PRINTED))


def faults(section):
    """The parts of a durableTask section that the extension would ignore or refuse."""
    found = []
    for name, value in leaves(section):
        if name not in KNOWN:
            found.append(f"{name}: not an option of the extension; it would be ignored")
            continue
        default = KNOWN[name]
        if name in TEXTS:
            right = isinstance(value, str) and value != ""
        elif isinstance(default, str) and SPAN.fullmatch(default):
            right = isinstance(value, str) and bool(SPAN.fullmatch(value))
        else:
            right = type(value) is type(default)
        if name in CHOICES:
            right = value in CHOICES[name]
        if name in BOUNDS:
            low, high = BOUNDS[name]
            right = right and low <= value <= high
        if name.endswith("VisibilityTimeout"):
            right = right and bool(VISIBLE_AGAIN.fullmatch(value))
        if not right:
            found.append(f"{name}: {value!r} is not a value of this option")
    return found


def test_the_section_is_understood_by_the_extension():
    assert faults(DURABLE) == []


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"storageProvider": {"partitioncuont": 16}}, "storageProvider.partitioncuont: not an option"),
        ({"partitionCount": 16}, "partitionCount: not an option"),
        ({"storageprovider": {"partitionCount": 16}}, "storageprovider.partitionCount: not an option"),
        ({"maxQueuePollingInterval": "00:00:10"}, "maxQueuePollingInterval: not an option"),
        ({"storageProvider": {"partitionCount": "16"}}, "'16' is not a value"),
        ({"storageProvider": {"partitionCount": 32}}, "32 is not a value"),
        ({"storageProvider": {"controlQueueVisibilityTimeout": 300}}, "300 is not a value"),
        ({"storageProvider": {"controlQueueVisibilityTimeout": "300"}}, "'300' is not a value"),
        ({"storageProvider": {"controlQueueVisibilityTimeout": "00:00:30"}}, "'00:00:30' is not a value"),
        ({"extendedSessionsEnabled": "false"}, "'false' is not a value"),
        ({"useGracefulShutdown": 0}, "0 is not a value"),
        ({"defaultVersion": 1}, "1 is not a value"),
        ({"versionMatchStrategy": "Newer"}, "'Newer' is not a value"),
        ({"tracing": {"version": "v2"}}, "'v2' is not a value"),
    ],
)
def test_a_section_that_the_extension_would_ignore_or_refuse_is_refused(section, fault):
    (found,) = faults(section)
    assert fault in found


def rows(heading):
    """The table under a heading: key, value and reason."""
    section = CHAPTER.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {
        name: (value, reason)
        for name, value, reason in re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \| (.+) \|$", section, re.MULTILINE)
    }


def shown(value):
    return value if isinstance(value, str) else json.dumps(value)


def test_each_value_has_its_reason():
    decided = rows("Decided")
    assert {name: value for name, (value, _) in decided.items()} == {name: shown(value) for name, value in leaves(DURABLE)}
    assert all(len(reason.split()) >= 4 for _, reason in decided.values())


def test_options_left_at_their_defaults_are_listed():
    """Every option of the extension is either set or listed with its default."""
    left = {name: shown(value) for name, value in KNOWN.items() if name not in dict(leaves(DURABLE))}
    assert {name: value for name, (value, _) in rows("Left at the default").items()} == left


def test_concurrent_activities_fit_in_a_worker():
    """Requests in flight take at most half of the instance's memory."""
    from backup_core.domain.ranges import MIB, PUT_BYTES_MAX  # noqa: PLC0415
    from backup_core.settings import Settings  # noqa: PLC0415

    memory = int(re.search(r"instanceMemoryMB: (\d+)", (REPOSITORY / "infra" / "modules" / "app.bicep").read_text())[1]) * MIB
    in_flight = Settings.model_fields["in_flight"].default * PUT_BYTES_MAX
    assert DURABLE["maxConcurrentActivityFunctions"] * in_flight <= memory / 2


def test_no_run_counts_as_dead_while_its_messages_may_still_be_hidden():
    from backup_core.domain.ending import HEARTBEAT_MAX  # noqa: PLC0415

    for queue in ("controlQueue", "workItemQueue"):
        hours, minutes, seconds = map(int, DURABLE["storageProvider"][f"{queue}VisibilityTimeout"].split(":"))
        assert HEARTBEAT_MAX.total_seconds() > 2 * (hours * 3600 + minutes * 60 + seconds)
