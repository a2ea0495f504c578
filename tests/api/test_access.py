"""Access to the API needs HTTPS and the role of the call; a header that any client can send proves nothing."""

from __future__ import annotations

import base64
import json

import pytest

from backup_core.api.access import Access
from backup_core.api.routes import ROUTES
from backup_core.operations.refusal import RefusedError
from devhost.platform import Platform
from tests.disk import PAGE, Disk

ALL = ("Reader", "Backup.Operator", "Restore.Operator")
URL = "https://app.test/api/disks"


def principal(*roles, kind="roles", **fields):
    principal_document = {"auth_typ": "aad", "claims": [{"typ": kind, "val": role} for role in roles], **fields}
    return base64.b64encode(json.dumps(principal_document).encode()).decode()


def headers(*roles, **fields):
    return {"x-ms-client-principal": principal(*roles, **fields)}


def refusal(access, url=URL, given=None, roles=ALL):
    with pytest.raises(RefusedError) as refused:
        access.admit(url, given or {}, roles)
    return refused.value.status, refused.value.code


ENTRA = Access(by_roles=True, platform_signs_in=True)


# -- rules ------------------------------------------------------------------------------------------------------------------


def test_with_function_keys_the_principal_header_is_ignored():
    """Any client could send the header."""
    assert Access().admit(URL, headers("Restore.Operator"), ALL) is None
    assert Access(platform_signs_in=True).admit(URL, {}, ALL) is None


def test_a_role_is_needed():
    assert ENTRA.admit(URL, headers("Reader", "Other"), ALL) == {"Reader"}
    assert refusal(ENTRA, given=headers("Reader"), roles=("Backup.Operator",)) == (403, "RoleMissing")
    assert refusal(ENTRA, given=headers()) == (403, "RoleMissing")
    assert refusal(ENTRA, given=headers("Global Administrator")) == (403, "RoleMissing")


def test_roles_under_the_claim_type_the_platform_names():
    kind = "http://schemas.microsoft.com/ws/2008/06/identity/claims/role"
    assert ENTRA.admit(URL, headers("Reader", kind=kind, role_typ=kind), ALL) == {"Reader"}
    assert refusal(ENTRA, given=headers("Reader", kind="name", role_typ=kind)) == (403, "RoleMissing")


@pytest.mark.parametrize(
    "sent",
    ["", "not base64", base64.b64encode(b"{").decode(), base64.b64encode(b"[]").decode(), base64.b64encode(b"{}").decode(),
     base64.b64encode(b'{"claims": [5]}').decode(), base64.b64encode(b'{"claims": null}').decode(), "\u00e4" * 9,
     base64.b64encode(b"[" * 100_000).decode(), base64.b64encode(b'{"claims": ' + b"[" * 50_000).decode(),
     base64.b64encode(b'{"claims": [{"typ": "roles", "val": ' + b"[" * 900 + b"]" * 900 + b"}]}").decode(),
     base64.b64encode(b'{"claims": [{"typ": ["roles"], "val": "Reader"}]}').decode(),
     base64.b64encode(b'{"role_typ": {"a": 1}, "claims": [{"typ": "roles", "val": "Reader"}]}').decode(),
     base64.b64encode(b"1" * 10_000).decode()],
)  # fmt: skip
def test_an_invalid_principal_header_signs_nobody_in(sent):
    assert refusal(ENTRA, given={"x-ms-client-principal": sent}) == (401, "SignInRequired")


def test_without_the_platforms_own_sign_in_nobody_is_known():
    """The header proves nothing then, whatever SIGN_IN says."""
    access = Access(by_roles=True, platform_signs_in=False)
    assert refusal(access, given=headers(*ALL)) == (401, "SignInOff")


@pytest.mark.parametrize("access", [Access(), ENTRA, Access(by_roles=True)])
def test_an_anonymous_call_needs_no_role(access):
    assert access.admit(URL, {}, ()) is None


def test_http_is_refused_unless_the_front_end_ended_tls():
    access = Access(https_only=True)
    http = "http://app.test/api/disks"
    assert refusal(access, http) == (403, "HttpsRequired")
    assert refusal(access, http, roles=()) == (403, "HttpsRequired")
    for sent in ("http", "https,http", "http, https", "", "https."):
        assert refusal(access, http, {"x-forwarded-proto": sent}) == (403, "HttpsRequired"), sent
    for secure in ((URL, {}), (http, {"x-forwarded-proto": "https"}), (http, {"x-forwarded-proto": "https, https"})):
        assert access.admit(*secure, ALL) is None


@pytest.mark.parametrize("sent", ["", "2048|256|C=US|CN=app.test"])
def test_a_header_that_any_client_can_send_proves_no_tls(sent):
    """X-ARR-SSL does not count when the front end reports http in X-Forwarded-Proto."""
    access, http = Access(https_only=True), "http://app.test/api/disks"
    assert refusal(access, http, {"x-arr-ssl": sent}) == (403, "HttpsRequired")
    assert refusal(access, http, {"x-arr-ssl": sent, "x-forwarded-proto": "http"}) == (403, "HttpsRequired")


# -- the table ----------------------------------------------------------------------------------------------------------------


def test_only_health_is_anonymous():
    assert [route.name for route in ROUTES if not route.roles] == ["health"]
    assert [route.name for route in ROUTES if route.anonymous] == ["health"]


def test_a_reader_changes_nothing_and_only_the_restore_operator_restores():
    for route in ROUTES:
        if route.method != "GET":
            assert "Reader" not in route.roles, route.name
    needed = {route.name: route.roles for route in ROUTES if "Reader" not in route.roles and route.roles}
    assert needed == {
        "put_disk": ("Backup.Operator",),
        "delete_disk": ("Backup.Operator",),
        "post_backup": ("Backup.Operator",),
        "post_restore": ("Restore.Operator",),
        "post_rebuild": ("Restore.Operator",),
        "post_rebuild_cancel": ("Restore.Operator",),
        "post_cancel": ("Backup.Operator", "Restore.Operator"),
    }


# -- the app --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def signing_in(calm, machines, tmp_path):
    """The real app with roles, as behind a platform that signs in."""
    settings = {"CATALOGUE_TABLE": "roles", "SIGN_IN": "entra", "WEBSITE_AUTH_ENABLED": "True"}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as running:
        yield running


def test_each_call_requires_its_role(signing_in):
    """Over HTTP a call is answered 401 without a caller, 403 with any other role, and differently with the right role."""
    assert signing_in.api("GET", "/health").ok
    assert signing_in.api("GET", "/disks").status_code == 401
    assert "WWW-Authenticate" in signing_in.api("GET", "/disks").headers
    for route in ROUTES:
        path = "/" + route.path.format(
            disk="d",
            point="20261122T1200000000000Z",
            run="d.20261122T120000Z.timer",
            rebuild="catalogue.rebuild.20261122T120000Z.0123abcd",
        )
        for role in ALL:
            status = signing_in.api(route.method, path, headers=headers(role)).status_code
            allowed = not route.roles or role in route.roles
            assert (status != 403) is allowed, (route.name, role, status)
            assert status != 401, (route.name, role)


def test_canceling_requires_the_role_of_the_canceled_operation(signing_in, name):
    call = signing_in.api

    def by_backup_operator(method, path, body=None, **options):
        return call(method, path, body, headers=headers("Backup.Operator"), **options)

    signing_in.api = by_backup_operator
    described_paths = signing_in.api("GET", "/openapi.json").json()["paths"]
    assert described_paths["/runs/{run}/cancel"]["post"]["x-app-roles"] == ["Backup.Operator", "Restore.Operator"]
    disk = Disk(signing_in, name, 1024 * 1024).protect()
    disk.write(0, b"\1" * PAGE)
    backup = disk.back_up()["id"]
    restore = call("POST", f"/disks/{name}/restores", {}, headers=headers("Restore.Operator")).json()["id"]

    refused = call("POST", f"/runs/{restore}/cancel", headers=headers("Backup.Operator"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "RoleMissing")
    assert call("POST", f"/runs/{backup}/cancel", headers=headers("Restore.Operator")).status_code == 403
    assert call("POST", f"/runs/{restore}/cancel", headers=headers("Restore.Operator")).status_code in (202, 409)
    signing_in.wait(restore)
    disk.service.close()


def test_a_forged_header_is_rejected_where_the_platform_does_not_sign_in(calm, machines, tmp_path):
    settings = {"CATALOGUE_TABLE": "forged", "SIGN_IN": "entra"}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        answer = platform.api("GET", "/disks", headers=headers(*ALL))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "SignInOff")
        assert platform.api("GET", "/health").ok
