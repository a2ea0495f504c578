"""The deployment and the code agree on settings, roles, functions that are off, host.json."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re

import pytest

from backup_core import settings as app_settings
from backup_core.api import access
from backup_core.api.routes import ROUTES
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.settings import Settings
from backup_core.steps import BY_NAME
from backup_core.steps.messages import Step
from devhost.platform import REPOSITORY, SAMPLE_SETTINGS
from tests.infra.bicep import load, properties, text, walk
from tools import settings_page

INFRA = REPOSITORY / "infra"
MAIN = load(INFRA / "main.bicep")
SAMPLE = json.loads(SAMPLE_SETTINGS.read_text())["Values"]
READ = {name.upper() for name in Settings.model_fields}
ONLY_LOCAL = {"DEVELOPMENT", "DEVELOPMENT_KEYS"}
BY_PLATFORM = {name.upper() for name in settings_page.BY_PLATFORM}
OF_THE_HOST = {"AzureFunctionsJobHost__extensions__durableTask__hubName"}
DOCS = REPOSITORY / "docs"


# -- settings ---------------------------------------------------------------------------------------------------------


def given(module):
    """Setting to the text of its value, as the module sets them; those that both apps share included."""
    common = next(one for one in walk(MAIN.of("var")["common"].node) if one.type == "object")
    own = properties(properties(MAIN.of("module")[module].body)["params"])["settings"]
    own = next(one for one in walk(own) if one.type == "object")
    return {name: text(value) for name, value in (properties(common) | properties(own)).items()}


@pytest.mark.parametrize("module", ["app", "custody"])
def test_every_setting_that_is_read_is_set_and_every_one_set_is_read(module):
    """Custody omits identities that are not its own: it uses the common identity there."""
    elsewhere = {"SOURCE_CLIENT_ID", "WRITER_CLIENT_ID", "RESTORE_CLIENT_ID"} if module == "custody" else set()

    assert set(given(module)) - OF_THE_HOST == READ - ONLY_LOCAL - BY_PLATFORM - elsewhere


def test_the_sample_has_every_setting_and_its_default():
    assert set(SAMPLE) - {"FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage"} == READ - BY_PLATFORM
    for name, one in Settings.model_fields.items():
        if one.is_required() or name.upper() in ONLY_LOCAL | BY_PLATFORM:
            continue
        default = " ".join(one.default) if isinstance(one.default, tuple) else str(one.default)
        assert SAMPLE[name.upper()].lower() == default.lower(), name


def test_the_deployment_has_the_values_of_the_sample():
    """The values agree, except those that the deployment takes from itself."""
    params = {name: text(one.node.children[-1]) for name, one in MAIN.of("param").items() if one.has_default}
    for name, value in given("app").items():
        literal = params.get(value, value)
        if re.fullmatch(r"'[^$']*'", literal):
            assert literal.strip("'") == SAMPLE[name], name
    assert f"'{SAMPLE['BACKUP_SCHEDULE']}'" in given("app")["BACKUP_SCHEDULE"]
    assert {"BACKUP_SCHEDULE", "FULL_COPY", "SIGN_IN", "WAVE_SHARDS", "RUN_DAYS"} <= set(given("app"))


def test_every_setting_is_listed_with_its_default():
    page = (DOCS / "settings.md").read_text()
    rows = dict(re.findall(r"^\| (`[A-Z_`, ]+`) \| ([^|]+) \|", page, re.MULTILINE))
    listed = {name: default for names, default in rows.items() for name in re.findall(r"[A-Z_]+", names)}

    assert set(listed) == READ - BY_PLATFORM
    for name, default in listed.items():
        one = Settings.model_fields[name.lower()]
        shown = default.strip().strip("`")
        if one.is_required():
            assert shown == "required", name
        elif name not in ONLY_LOCAL:
            assert shown.replace("empty", "") == SAMPLE[name], name


# -- roles --------------------------------------------------------------------------------------------------------------

ROLES = json.loads((INFRA / "roles.json").read_text())
PREFIX = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"


def test_the_table_of_roles_agrees_with_the_deployment():
    table = (DOCS / "security.md").read_text().partition("## Signing in")[0]
    rows = re.findall(r"^\| (Pagekeeper [a-z ]+) \| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)

    assert {name: (scope, sorted(re.findall(r"`([^`]+)`", actions))) for name, scope, actions in rows} == {
        role["name"]: (
            role["scope"],
            sorted([*role["actions"], *(one.replace(PREFIX, "blobs/") for one in role["dataActions"])]),
        )
        for role in ROLES.values()
    }


def test_no_role_has_more_than_its_duty():
    """Sources are never written by backups; keys are never listed; no wildcard."""
    every = [action for role in ROLES.values() for action in (*role["actions"], *role["dataActions"])]
    assert not [action for action in every if "*" in action or "listkeys" in action.lower()]
    for role in ("source", "retentionSource"):
        assert f"{PREFIX}write" not in ROLES[role]["dataActions"]
    assert f"{PREFIX}delete" not in ROLES["writer"]["dataActions"]
    assert [name for name, role in ROLES.items() if any("Compute" in one for one in role["actions"])] == [
        "disks", "retentionDisks", "retentionMachine", "machine",
    ]  # fmt: skip
    for role in ("disks", "retentionDisks", "retentionMachine"):
        assert not [one for one in ROLES[role]["actions"] if re.search(r"(disks|virtualMachines)/(write|delete)", one)]


def test_each_role_is_assigned_at_its_documented_scope():
    """Sources in sourceGrants, backups in backupGrants, machines in their groups; each key of roles.json once or as it says."""
    granted = {name: set(re.findall(r"roles\.outputs\.ids\.(\w+)", text(one.node))) for name, one in MAIN.of("module").items()}

    assert {name: roles for name, roles in granted.items() if roles} == {
        "sourceGrants": {"source", "retentionSource", "restore"},
        "backupGrants": {"writer", "retention", "restore"},
        "machineGrants": {"machine", "retentionMachine"},
        "diskGrants": {"disks", "retentionDisks"},
    }
    assert set.union(*granted.values()) == set(ROLES)


def test_each_identity_gets_its_own_roles():
    """A role that is named for a duty is assigned to that duty's identity."""
    pairs = re.findall(
        r"to: identities\.outputs\.(\w+)\.principalId,?\s+role: roles\.outputs\.ids\.(\w+)", (INFRA / "main.bicep").read_text()
    )

    assert sorted(pairs) == [
        ("restore", "disks"), ("restore", "machine"), ("restore", "restore"), ("restore", "restore"), ("restore", "retentionDisks"),
        ("retention", "retention"), ("retention", "retentionDisks"), ("retention", "retentionMachine"),
        ("retention", "retentionSource"), ("source", "disks"), ("source", "source"), ("writer", "writer"),
    ]  # fmt: skip


def test_the_app_roles_are_those_that_the_code_requires():
    described = json.loads((INFRA / "app-roles.json").read_text())

    assert {one["value"] for one in described} == set(access.READER)
    assert len({one["id"] for one in described}) == len(described)


# -- functions that are off -------------------------------------------------------------------------------------------------

OFF = json.loads((INFRA / "switches.json").read_text())
STARTED_BY_ROUTE = {
    "put_disk": "backup_disk",
    "post_backup": "backup_disk",
    "post_restore": "restore_disk",
    "post_rebuild": "rebuild_catalogue",
}
STARTED_BY_TIMER = {"scheduled_backup": "backup_fleet", "housekeeping": "clean_up_disks"}


def functions():
    """Every function of the app: steps, orchestrators, routes, and what function_app.py itself defines with a trigger."""
    tree = ast.parse((REPOSITORY / "function_app.py").read_text())
    defined = {one.name for one in tree.body if isinstance(one, ast.AsyncFunctionDef) and one.decorator_list}
    return set(BY_NAME) | set(ORCHESTRATORS) | {route.name for route in ROUTES} | defined


SHARED = ("backup_core.orchestrations.kit", "backup_core.orchestrations.shard_waves")
"""The functions by which orchestrators call steps."""


def called(name, seen=None):
    """Everything that an orchestrator may call, itself included: by the steps and the orchestrations its module names."""
    seen = set() if seen is None else seen
    if name in seen:
        return seen
    seen.add(name)
    module = importlib.import_module(f"backup_core.orchestrations.{name}")
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute) and node.attr == "NAME":
            called(node.value.id, seen)
        if isinstance(node, ast.ImportFrom) and node.module in SHARED:
            seen |= {one.name for one in vars(importlib.import_module(node.module)).values() if isinstance(one, Step)}
    seen |= {one.name for one in vars(module).values() if isinstance(one, Step)}
    return seen


def test_functions_that_are_switched_off_exist():
    assert not {name for off in OFF.values() for name in off} - functions()
    assert not set(OFF["backup"]) & set(OFF["custody"]), "a function that is off in both runs nowhere"


@pytest.mark.parametrize("app", ["backup", "custody"])
def test_no_function_that_is_on_calls_one_that_is_off(app):
    off = set(OFF[app])
    on = [name for name in ORCHESTRATORS if name not in off]
    for name in on:
        assert not called(name) & off, f"{name} is on and calls what is off"
    for starter, started in (STARTED_BY_ROUTE | STARTED_BY_TIMER).items():
        assert (starter in off) == (started in off), f"{starter} starts {started}"


def test_each_app_runs_the_functions_of_its_duty():
    """One app backs up, the other prunes and restores: no function is on that the app has no permission for."""
    needed = {
        "backup": called("backup_fleet") | called("rebuild_catalogue"),
        "custody": called("restore_disk") | called("clean_up_disks"),
    }
    every = set(ORCHESTRATORS) | set(BY_NAME)
    for app, names in needed.items():
        assert every - names == set(OFF[app]) & every


def test_starters_are_known():
    assert {route.name for route in ROUTES if route.starts} == set(STARTED_BY_ROUTE)


# -- host.json ----------------------------------------------------------------------------------------------------------------

HOST = json.loads((REPOSITORY / "host.json").read_text())


def leaves(value, name=""):
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, f"{name}.{key}".strip("."))
    else:
        yield name, value


def test_each_value_of_host_json_has_its_reason():
    """Those of durableTask have a table of their own: see test_host_settings."""
    table = (DOCS / "host-settings.md").read_text().partition("## The other keys of host.json")[2]
    outside = {name: value for name, value in leaves(HOST) if not name.startswith("extensions.durableTask.")}
    own = re.compile(r"(logging\.logLevel\.Function)\.\w+\.User")
    for name, value in {own.sub(r"\1.<name>.User", name): value for name, value in outside.items()}.items():
        row = next((line for line in table.splitlines() if f"`{name}`" in line), "")
        assert row, f"{name} is not in docs/host-settings.md"
        assert f"`{value}`" in row or f"`{str(value).lower()}`" in row, f"{name}: another value"
        assert len(row.split("|")[3].split()) >= 4, f"{name}: no reason"


def test_the_apps_log_lines_pass_the_filter_of_every_function_that_may_log():
    """The host's lines for each call are dropped, to save cost; alerts read the lines of steps, calls and timers. Orchestrators
    write nothing.
    """
    levels = HOST["logging"]["logLevel"]
    assert levels["Function"] == levels["Host.Triggers.DurableTask"] == "Warning"
    own = {name: level for name, level in levels.items() if name.endswith(".User")}
    assert own == {f"Function.{name}.User": "Information" for name in functions() - set(ORCHESTRATORS)}, (
        "each function but orchestrators needs its entry in host.json, logging.logLevel"
    )
    assert set(levels) == {"Function", "Host.Triggers.DurableTask", *own}


def test_log_lines_that_alerts_read_are_never_sampled():
    """A lost line would be an alert that is not raised, or one that is not cleared."""
    sampling = HOST["logging"]["applicationInsights"]["samplingSettings"]
    assert {"Request", "Exception", "Trace"} <= set(sampling["excludedTypes"].split(";"))


def test_every_call_but_health_requires_the_function_key():
    assert [route.name for route in ROUTES if route.anonymous] == ["health"]
    assert app_settings.Settings.model_fields["sign_in"].default == "keys"
