"""The templates deploy only what Microsoft's own management libraries could send: known names, valid values, nothing missing."""

from __future__ import annotations

import re

import pytest

from devhost.platform import REPOSITORY
from tests.infra.bicep import File, child, load, properties, text, walk
from tests.infra.models import model

INFRA = REPOSITORY / "infra"
MAIN = INFRA / "main.bicep"
FILES = sorted(INFRA.rglob("*.bicep"))
MODELS = {
    "Microsoft.Authorization/locks": "resource.locks:ManagementLockObject",
    "Microsoft.Authorization/roleAssignments": "authorization.v2022_04_01:RoleAssignmentCreateParameters",
    "Microsoft.Authorization/roleDefinitions": "authorization.v2022_04_01:RoleDefinition",
    "Microsoft.Insights/actionGroups": "monitor:ActionGroupResource",
    "Microsoft.Insights/components": "applicationinsights.v2020_02_02:ApplicationInsightsComponent",
    "Microsoft.Insights/scheduledQueryRules": "monitor:ScheduledQueryRuleResource",
    "Microsoft.Insights/workbooks": "applicationinsights.v2023_06_01:Workbook",
    "Microsoft.ManagedIdentity/userAssignedIdentities": "msi.v2024_11_30:Identity",
    "Microsoft.Network/privateDnsZones": "privatedns:PrivateZone",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks": "privatedns:VirtualNetworkLink",
    "Microsoft.Network/privateEndpoints": "network:PrivateEndpoint",
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": "network:PrivateDnsZoneGroup",
    "Microsoft.Network/virtualNetworks": "network:VirtualNetwork",
    "Microsoft.OperationalInsights/workspaces": "loganalytics:Workspace",
    "Microsoft.Resources/resourceGroups": "resource.resources:ResourceGroup",
    "Microsoft.Storage/storageAccounts": "storage:StorageAccountCreateParameters",
    "Microsoft.Storage/storageAccounts/blobServices": "storage:BlobServiceProperties",
    "Microsoft.Storage/storageAccounts/blobServices/containers": "storage:BlobContainer",
    "Microsoft.Web/serverfarms": "web:AppServicePlan",
    "Microsoft.Web/sites": "web:Site",
    "Microsoft.Web/sites/config/appsettings": "web:StringDictionary",
    "Microsoft.Web/sites/config/authsettingsV2": "web:SiteAuthSettingsV2",
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies": "web:CsmPublishingCredentialsPoliciesEntity",
}
READ = {"Microsoft.Storage/storageAccounts": "storage:StorageAccount"}
"""Resources whose response has a model of its own."""
BICEPS_OWN = {"name", "parent", "scope", "dependsOn"}
"""Properties of a resource's address, or of the language."""


def resources(file):
    """Each resource that is created, not only referred to, with its type; the type of a setting has its name in it."""
    for one in file.of("resource").values():
        if not any(part.type == "existing" for part in one.node.children):
            type_ = one.type.partition("@")[0]
            yield one, type_ if type_ in MODELS else f"{type_}/{text(properties(one.body)['name']).strip(chr(39))}"


def parts(node):
    return [one for one in node.children if one.is_named and one.type != "comment"]


def literals(node, file):
    """The literal values an expression may have, as far as they can be read; parameters of a module are what main gives it."""
    if node.type == "ternary_expression":
        return [value for one in parts(node)[1:] for value in literals(one, file)]
    if node.type == "identifier":
        declared = next((one for one in file.declared if one.name == text(node)), None)
        if declared and declared.kind == "var":
            return literals(parts(declared.node)[-1], file)
        if declared and declared.kind == "param":
            return [value for one, where in given(declared, file) for value in literals(one, where)]
    return [node] if node.type in ("string", "boolean", "number") and "${" not in text(node) else []


def given(param, file):
    """Expressions for a parameter, each with the file it stands in."""
    if "allowed" in param.decorators:
        allowed = next(one for one in param.node.prev_named_sibling.children if text(one).startswith("@allowed"))
        return [(one, file) for one in walk(allowed) if one.type == "string"]
    main = load(MAIN)
    found = [
        (properties(properties(module.body)["params"])[param.name], main)
        for module in main.of("module").values()
        if load(MAIN.parent / module.type) is file and param.name in properties(properties(module.body)["params"])
    ]
    return [*found, (parts(param.node)[-1], file)] if param.has_default else found


def alternatives(node):
    """The expressions that an expression is one of, or is put together from."""
    match node.type:
        case "ternary_expression":
            return parts(node)[1:]
        case "parenthesized_expression":
            return parts(node)
        case "call_expression" if text(node.child_by_field_name("function")) in ("union", "concat"):
            return parts(child(node, "arguments"))
    return []


def faults(node, shape, file, where):
    """The parts of an expression that the shape does not allow."""
    if others := alternatives(node):
        for one in others:
            yield from faults(one, shape, file, where)
        return
    if node.type == "object" and shape.kind == "object":
        yield from _object_faults(properties(node), shape, file, where)
    elif node.type == "object" and shape.kind == "map":
        for name, value in properties(node).items():
            yield from faults(value, shape.item(), file, f"{where}.{name}")
    elif node.type == "array" and shape.kind == "array":
        for one in parts(node):
            yield from faults(one, shape.item(), file, f"{where}[]")
    elif node.type in ("object", "array"):
        yield f"{where}: {node.type}, expected {shape.kind}"
    for one in literals(node, file):
        if one.type != shape.kind != "any":
            yield f"{where}: {one.type} {text(one)}, expected {shape.kind}"
        elif shape.values and text(one).strip("'") not in shape.values:
            yield f"{where}: {text(one)}, expected one of {', '.join(sorted(shape.values))}"


def _object_faults(values, shape, file, where, own=frozenset()):
    for name, value in values.items():
        if name in own:
            continue
        known = shape.fields.get(name)
        if known is None:
            yield f"{where}.{name}: no such property; there are {', '.join(sorted(shape.fields))}"
        elif known.read_only:
            yield f"{where}.{name}: read-only"
        else:
            yield from faults(value, known.shape(), file, f"{where}.{name}")
    missing = [name for name, known in shape.fields.items() if known.needed and not known.read_only and name not in values]
    yield from (f"{where}.{name}: missing" for name in missing)


def all_faults(file):
    for one, type_ in resources(file):
        assert type_ in MODELS, f"{one.name}: say in MODELS which model {type_} has"
        yield from _object_faults(properties(one.body), model(MODELS[type_]), file, one.name, BICEPS_OWN)
    source = text(file.root)
    for one in file.of("resource").values():
        type_ = one.type.partition("@")[0]
        for path in re.findall(rf"\b{one.name}\.(properties(?:\.\w+)+)", source):
            shape = model(READ.get(type_) or MODELS[type_])
            for name in path.split("."):
                known = shape.fields.get(name)
                if known is None:
                    yield f"{one.name}.{path}: {type_} answers with no {name}"
                    break
                shape = known.shape()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_resource_fits_its_model(path):
    assert list(all_faults(load(path))) == []


@pytest.mark.parametrize(
    ("module", "was", "planted", "fault"),
    [
        ("app", "httpsOnly: true", "httpOnly: true", "site.properties.httpOnly: no such property"),
        ("app", "httpsOnly: true", "httpsOnly: 'true'", "site.properties.httpsOnly: string 'true', expected boolean"),
        ("app", "name: 'python'", "name: 'Python'", "runtime.name: 'Python', expected one of custom"),
        ("app", "{ name: 'durable', instanceCount:", "{ name: 'durable', count:", "alwaysReady[].count: no such property"),
        ("app", "'Return401'", "401", "unauthenticatedClientAction: number 401, expected string"),
        ("app", "properties: { allow: false }", "properties: {}", "noFtpPassword.properties.allow: missing"),
        ("app", "site.properties.defaultHostName", "site.properties.hostName", "Microsoft.Web/sites answers with no hostName"),
        ("backups", "bypass: 'None'", "bypass: 'Nothing'", "networkAcls.bypass: 'Nothing', expected one of AzureServices"),
        ("backups", "name: sku", "names: sku", "account.sku.names: no such property"),
        ("grants", "principalId: grant.to\n", "", "assignments.properties.principalId: missing"),
        ("monitoring", "WorkspaceResourceId", "workspaceResourceId", "properties.workspaceResourceId: no such property"),
        ("monitoring", "threshold: alert.threshold", "limit: 1", "criteria.allOf[].limit: no such property"),
        ("network", "addressPrefixes: ['10.80.0.0/22']", "addressPrefixes: '10.80.0.0/22'", "addressPrefixes: string"),
        ("roles", "type: 'CustomRole'", "type: ['CustomRole']", "roles.properties.type: array, expected string"),
        ("state", "primaryEndpoints.blob", "primaryEndpoint.blob", "answers with no primaryEndpoint"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_reported(tmp_path, module, was, planted, fault):
    """The check reports a resource that the library could not send."""
    source = (INFRA / "modules" / f"{module}.bicep").read_text()
    assert was in source
    broken = tmp_path / "broken.bicep"
    broken.write_text(source.replace(was, planted, 1))

    assert [one for one in all_faults(File(broken)) if fault in one], list(all_faults(File(broken)))


def test_values_that_main_allows_are_those_that_the_module_allows():
    """A parameter's values are followed from main into the module that uses them."""
    backups = load(INFRA / "modules" / "backups.bicep")
    sku = properties(properties(backups.of("resource")["account"].body)["sku"])["name"]

    assert {text(one).strip("'") for one in literals(sku, backups)} >= {"Standard_LRS", "Standard_RAGZRS"}
