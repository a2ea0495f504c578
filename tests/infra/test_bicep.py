"""Every Bicep file parses, and everything it refers to exists. Only Azure can check the rest."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from devhost.platform import REPOSITORY
from tests.infra.bicep import FUNCTIONS, File, load, properties, text, used, walk

INFRA = REPOSITORY / "infra"
FILES = sorted(INFRA.rglob("*.bicep"))
MAIN = INFRA / "main.bicep"
MAIN_FILE = load(MAIN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_name_is_declared_and_every_declaration_used(path):
    file = load(path)
    names = [one.name for one in file.declared if one.kind != "output"]
    assert len(names) == len(set(names)), "something is declared twice"
    mentioned = set()
    for declared in file.declared:
        for kind, name, node in used(declared):
            where = f"{path.name}:{node.start_point.row + 1}"
            if kind == "function":
                assert name in FUNCTIONS, f"{where}: unknown function {name}"
            else:
                assert name in names, f"{where}: {name} is not declared"
                mentioned.add(name)
    idle = [one.name for one in file.declared if one.kind in ("param", "var") and one.name not in mentioned]
    assert idle == [], "declared for nothing"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_that_is_loaded_exists(path):
    for declared in load(path).declared:
        if declared.kind == "module":
            assert (path.parent / declared.type).is_file(), f"{path.name}: module {declared.type} is missing"
    for function, name in re.findall(r"(load(?:Json|Text)Content)\('([^']+)'\)", path.read_text()):
        content = (path.parent / name).read_text()
        assert function == "loadTextContent" or json.loads(content)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_modules_get_their_required_parameters(path):
    """Each parameter that has no default is given, none that does not exist, the scope fits, and outputs that are read exist."""
    file = load(path)
    for module in file.of("module").values():
        target = load(path.parent / module.type)
        fields = properties(module.body)
        given, params = properties(fields["params"]), target.of("param")
        assert not set(given) - set(params), f"{module.name}: unknown parameters"
        assert not {name for name, one in params.items() if not one.has_default} - set(given), (
            f"{module.name}: parameters missing"
        )
        wanted = "subscription" if "scope" not in fields else "resourceGroup"
        assert target.scope() == wanted, f"{module.name} is deployed to the wrong scope"
    for name, output in re.findall(r"\b(\w+)!?\.outputs\.(\w+)", path.read_text()):
        module = file.of("module")[name]
        assert output in load(path.parent / module.type).of("output"), f"{name} has no output {output}"
    for name, output, key in re.findall(r"\b(\w+)!?\.outputs\.(\w+)\.(\w+)", path.read_text()):
        value = load(path.parent / file.of("module")[name].type).of("output")[output].node.children[-1]
        # The only other one is computed: the ids of the roles, by their keys.
        keys = properties(value) if value.type == "object" else json.loads((INFRA / "roles.json").read_text())
        assert key in keys, f"{name}.outputs.{output} has no {key}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_outputs_of_a_module_under_a_condition_are_read_as_such(path):
    """`!` says that the condition holds there; without it the compiler warns (BCP318)."""
    file = load(path)
    conditional = {
        name for name, one in file.of("module").items() if any(part.type == "if_statement" for part in walk(one.node))
    }
    bare = {name for name in re.findall(r"\b(\w+)\.outputs\b", path.read_text()) if name in conditional}
    assert bare == set()
    assert path != MAIN or {"network", "custody", "custodyState"} <= conditional


def dependencies(name, seen=()):
    """Everything in main.bicep that a module depends on."""
    modules = {**MAIN_FILE.of("module"), **MAIN_FILE.of("var"), **MAIN_FILE.of("resource")}
    found = set()
    for _, other, _ in used(modules[name]):
        if other in modules and other not in seen:
            found |= {other} | dependencies(other, (*seen, other))
    return found


@pytest.mark.parametrize("app", ["app", "custody"])
def test_no_app_depends_on_a_single_source_or_machine_group(app):
    """A missing group fails its own part of a deployment, and nothing of the app."""
    foreign = {
        name
        for name, one in MAIN_FILE.of("module").items()
        if re.search(r"= \[\s*for id in (sources|machineGroups|snapshotGroups):", text(one.node))
    }
    assert {"sourceGrants", "machineGrants", "diskGrants", "endpointsOfSources"} == foreign
    assert not dependencies(app) & foreign
    assert {"backupGrants", "ownEndpoints", "state" if app == "app" else "custodyState"} <= dependencies(app)
    assert "existing" not in MAIN.read_text(), "a source is looked up"


def test_parts_of_a_sites_configuration_are_deployed_one_after_another():
    """For parallel changes, Azure answers that it cannot acquire the site's lock."""
    resources = load(INFRA / "modules" / "app.bicep").of("resource")
    waits = {
        name: re.findall(r"\w+", text(properties(one.body)["dependsOn"])) if "dependsOn" in properties(one.body) else []
        for name, one in resources.items()
        if "parent" in properties(one.body)
    }
    assert waits == {
        "appSettings": [],
        "authentication": ["appSettings"],
        "noFtpPassword": ["appSettings", "authentication"],
        "noScmPassword": ["noFtpPassword"],
    }


def test_private_endpoints_are_deployed_one_at_a_time():
    endpoints = load(INFRA / "modules" / "endpoints.bicep").of("resource")["endpoints"]
    assert endpoints.decorators["batchSize"] == "1"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_lines_are_as_long_as_the_formatter_leaves_them(path):
    """120 characters, but for what it does not break: comments, texts."""
    long = [line for line in path.read_text().splitlines() if len(line) > 120]
    assert [line for line in long if not re.match(r"\s*(//|@description\(|var \w+ = '[^']*(\\'[^']*)*'$)", line)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_plain_resources_with_pinned_versions(path):
    """No module of a registry, which could not be had offline; each resource names its API version."""
    for declared in load(path).declared:
        if declared.kind == "resource":
            assert re.fullmatch(r"Microsoft\.[A-Za-z]+(/[A-Za-z]+)+@20\d\d-\d\d-\d\d", declared.type), declared.type
        if declared.kind == "module":
            assert not declared.type.startswith(("br", "ts")), declared.type


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_parameter_has_a_description(path):
    for name, declared in load(path).of("param").items():
        assert declared.decorators.get("description", "").endswith((".", "}.")), f"{path.name}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_parameter_or_output_is_a_secret(path):
    """No key is listed, no password is made, no parameter or output is named or filled like one."""
    source = path.read_text()
    for word in ("listKeys", "listAccountSas", "listSecrets", "@secure", "AccountKey", "SharedAccessSignature", "newGuid("):
        assert word not in source, f"{path.name}: {word}"
    for declared in load(path).declared:
        if declared.kind in ("param", "output"):
            assert not re.search(r"(?i)secret|password|token|sas\b|key|connection", declared.name), declared.name


def test_a_planted_fault_is_found(tmp_path):
    """The checks above detect faults that are planted in a copy."""
    broken = tmp_path / "broken.bicep"
    broken.write_text("param a string = \nvar b = [\n")
    with pytest.raises(AssertionError):
        File(broken)
    broken.write_text("var a = b\nvar c = map(a, x => y)\nresource d 'T/u@1' = [for e in f: { name: e, p: g(h.i) }]\n")
    assert [(kind, name) for one in File(broken).declared for kind, name, _ in used(one)] == [
        ("name", "b"), ("function", "map"), ("name", "a"), ("name", "y"), ("name", "f"), ("function", "g"), ("name", "h"),
    ]  # fmt: skip


def test_azure_yaml_names_the_app_and_the_template():
    """azure.yaml names the app's folder and the template; its parameters are the template's."""
    described = yaml.safe_load((REPOSITORY / "azure.yaml").read_text())
    template = REPOSITORY / described["infra"]["path"] / f"{described['infra']['module']}.bicep"
    assert template == MAIN
    assert (REPOSITORY / described["services"]["app"]["project"] / "function_app.py").exists()
    service = properties(properties(load(MAIN).of("module")["app"].body)["params"])["service"]
    assert text(service).strip("'") in described["services"]
    given = json.loads((INFRA / "main.parameters.json").read_text())["parameters"]
    params = load(MAIN).of("param")
    assert set(given) <= set(params)
    assert {name for name, one in params.items() if not one.has_default} <= set(given)
    for name, one in given.items():
        default = re.fullmatch(r"\$\{[A-Z_]+(?:=(.*))?\}", one["value"])
        assert default, one
        if params[name].has_default:
            assert text(params[name].node.children[-1]).strip("'") == default.group(1), f"{name}: two defaults"
    table = dict(
        re.findall(r"^\| `(PAGEKEEPER_\w+)` \| `?(\w*)`? \|", (REPOSITORY / "docs" / "deploy.md").read_text(), re.MULTILINE)
    )
    defaults = dict(re.findall(r"\$\{(PAGEKEEPER_\w+)=(\w*)\}", (INFRA / "main.parameters.json").read_text()))
    assert {name: default.replace("empty", "") for name, default in table.items()}.items() <= defaults.items()
    assert len(table) > 5


STORAGE = [(path, name) for path in FILES for name, one in load(path).of("resource").items()
           if one.type.startswith("Microsoft.Storage/storageAccounts@") and "existing" not in text(one.node).split("{", 1)[0]]  # fmt: skip


@pytest.mark.parametrize(("path", "name"), STORAGE, ids=lambda value: getattr(value, "name", value))
def test_accounts_take_identities_only(path, name):
    assert len(STORAGE) == 2
    fields = {
        key: text(value) for key, value in properties(properties(load(path).of("resource")[name].body)["properties"]).items()
    }
    assert fields["allowSharedKeyAccess"] == "false"
    assert fields["allowBlobPublicAccess"] == "false"
    assert fields["minimumTlsVersion"] == "'TLS1_2'"
    assert fields["supportsHttpsTrafficOnly"] == "true"


def test_backups_are_locked_and_deleted_blobs_can_be_restored():
    source = (INFRA / "modules" / "backups.bicep").read_text()
    lock = properties(properties(load(INFRA / "modules" / "backups.bicep").of("resource")["lock"].body)["properties"])
    assert text(lock["level"]) == "'CanNotDelete'"
    assert source.count("enabled: true, days: softDeleteDays") == 2
    containers = {
        text(node).strip("'")
        for node in walk(load(INFRA / "modules" / "backups.bicep").of("resource")["containers"].node)
        if node.type == "string"
    }
    assert {"heads", "plans"} <= containers


def test_the_package_contains_only_what_the_app_needs():
    """The package follows .funcignore, read as git would read it."""
    ignored = (REPOSITORY / ".funcignore").read_text().split()
    for name in ("function_app.py", "host.json", "requirements.txt", "backup_core"):
        assert not any(name == line.rstrip("/") for line in ignored), name
    # azd leaves out __pycache__ by itself only where there is no such file.
    for name in ("devhost", "tests", "tools", "infra", "docs", "__pycache__"):
        assert f"{name}/" in ignored, name
