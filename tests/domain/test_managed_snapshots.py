"""The rules for managed disks as sources: names, ownership of snapshots, comparable snapshots, refusals."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.identity import Deployment
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.managed_snapshots import (
    DiskSnapshot,
    diff_refusal,
    export_fault,
    snapshot_id,
    snapshot_name,
    strangeness,
)
from backup_core.domain.managed_source import faults, warnings
from backup_core.domain.metadata import Site, run_of_source_snapshot, source_snapshot_metadata
from backup_core.domain.naming import BlobAddress, DiskAddress, is_snapshot_id, parse_source, source_kind
from backup_core.domain.repoint import Machine, MachineDisk
from backup_core.settings import EXPORT_HOSTS

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/web"
ID = f"{GROUP}/providers/Microsoft.Compute/disks/data-1"
DISK = DiskAddress(SUBSCRIPTION, "web", "data-1")
GIB, TIB = 1024**3, 1024**4
RUN = "vm.20260105T030405Z.timer"
TAGS = {"pagekeeper_run": RUN}
TAKEN = DiskSnapshot(
    id=f"{GROUP}/providers/Microsoft.Compute/snapshots/s", name="s", snapshot="2026-01-05T03:04:09.1234567Z", state="Succeeded",
    access="Unattached", size=GIB + 512, percent=100, failure="", disk=ID, disk_unique="unique", family="family",
    incremental=True, tags=TAGS,
)  # fmt: skip
HOSTS = EXPORT_HOSTS


# -- addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [ID, ID.upper(), ID.lower(), ID.replace("web", "WEB").replace("data", "Data")])
def test_all_spellings_of_a_disk_are_one(spelling):
    found = parse_source(spelling, (), (GROUP.lower(),))

    assert (found, str(found), source_kind(str(found))) == (DISK, ID, "managedDisk")
    assert found.place == f"managed/{SUBSCRIPTION}/web/data-1"


@pytest.mark.parametrize(
    "text",
    ["/", "/subscriptions/x", f"{ID}/", f"{ID}?api-version=1", ID.replace("disks", "snapshots"), f"{ID} ", f"{GROUP}", ID + "x" * 80,
     ID.replace("Compute", "Storage"), f"https://host{ID}"],
)  # fmt: skip
def test_an_id_that_names_no_disk_is_refused(text):
    with pytest.raises(ValueError, match=r"expected /subscriptions|account"):
        parse_source(text, ("https://source.test",), (GROUP.lower(),))


@pytest.mark.parametrize("groups", [(), (f"{GROUP}2".lower(),), (GROUP.lower()[:-1],)])
def test_a_disk_of_another_group_is_refused(groups):
    with pytest.raises(ValueError, match="DISK_GROUPS"):
        parse_source(ID, (), groups)


def test_a_page_blob_is_named_by_its_url():
    found = parse_source("https://source.test/vhds/a.vhd", ("https://source.test",), ())

    assert isinstance(found, BlobAddress)
    assert source_kind(str(found)) == "pageBlob"


def test_run_metadata_fits_into_tags():
    """The tags fit 50 of 256 characters; read back, they name the run for this disk only."""
    longest = DiskAddress(SUBSCRIPTION, "g" * 90, "d" * 80)
    marks = source_snapshot_metadata(
        Site(Deployment("a" * 24 + "/" + "t" * 63), longest), "v" * 63, f"{'v' * 63}.20260105T030405Z.timer"
    )

    assert len(marks) <= 50
    assert max(map(len, marks.values())) <= 256
    site = Site(Deployment("a" * 24 + "/" + "t" * 63), longest)
    assert run_of_source_snapshot(marks, site).startswith("v" * 63)
    assert run_of_source_snapshot(marks, replace(site, blob=replace(longest, name="other"))) == ""


# -- names ----------------------------------------------------------------------------------------------------------------


@given(st.text("abcz09-", min_size=1, max_size=63), st.integers(0, 500), st.sampled_from(["timer", "0000abcd"]))
def test_snapshot_names_are_valid_short_and_repeatable(disk, number, tail):
    """No other run, disk or deployment has the same name: a request with an existing name would change another's snapshot."""

    def named(run=f"{disk}.20260105T030405Z.{tail}", at=DISK, number=number, deployment="backup/pagekeeper"):
        return snapshot_name(at, source_snapshot_metadata(Site(Deployment(deployment), at), disk, run), number)

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", named())
    assert named() == named()
    others = {"run": "x", "at": replace(DISK, name="other"), "number": number + 1, "deployment": "backup/other"}
    assert named() not in {named(**{what: value}) for what, value in others.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-28T14:58:00.1234567+00:00", "2026-11-28T14:58:00.1234567Z"),
        ("2026-11-28T14:58:00.123Z", "2026-11-28T14:58:00.1230000Z"),
        ("2026-11-28T14:58:00+00:00", "2026-11-28T14:58:00.0000000Z"),
        ("2026-11-28T14:58:00.123456789Z", "2026-11-28T14:58:00.1234567Z"),
    ],
)
def test_a_snapshots_id_is_its_time(text, expected):
    assert snapshot_id(text) == expected
    assert is_snapshot_id(expected)


@pytest.mark.parametrize("text", ["", "now", "2026-11-28T14:58:00.1+01:00", "2026-11-28 14:58:00Z"])
def test_text_that_is_no_time_gives_no_id(text):
    with pytest.raises(ValueError, match="not a time"):
        snapshot_id(text)


# -- which snapshots a run may use as its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        ({}, ""),
        ({"snapshot": "2026-01-05T02:59:06.0000000Z"}, ""),
        ({"snapshot": "2026-01-05T02:59:04.0000000Z"}, "timeCreated"),
        ({"snapshot": "2025-01-05T02:59:04.0000000Z"}, "timeCreated"),
        ({"snapshot": ""}, "timeCreated"),
        ({"disk": f"{ID}2"}, "disk"),
        ({"disk_unique": "another"}, "unique id"),
        ({"incremental": False}, "incremental"),
        ({"tags": {"pagekeeper_run": "vm.20260104T030405Z.timer"}}, "tags"),
        ({"tags": {}}, "tags"),
        ({"tags": {**TAGS, "costCenter": "42"}}, ""),
    ],
)
def test_only_the_snapshot_that_the_run_has_just_requested_is_its_own(change, expected_text):
    words = strangeness(replace(TAKEN, **change), DISK, "unique", TAGS, RUN)

    assert bool(words) == bool(expected_text)
    assert not words or (expected_text in words[0] and "expected" in words[0] and "found" in words[0])


@pytest.mark.parametrize(
    ("base", "taken", "expected_text"),
    [
        ({}, {}, ""),
        ({}, {"size": 2 * GIB + 512}, ""),
        ({"disk_unique": "former"}, {}, "made anew"),
        ({"family": "other"}, {}, "different families"),
        ({"family": ""}, {}, "different families"),
        ({"size": 2 * GIB + 512}, {}, "shrank"),
        ({"size": 4 * TIB + 512}, {"size": 4 * TIB + GIB + 512}, "4 TiB"),
        ({"size": 4 * TIB - GIB + 512}, {"size": 4 * TIB + 512}, ""),
        ({"size": 4 * TIB + GIB + 512}, {"size": 5 * TIB + 512}, ""),
    ],
)
def test_which_snapshots_can_be_compared(base, taken, expected_text):
    why = diff_refusal(replace(TAKEN, **taken), replace(TAKEN, **base))

    assert expected_text in why
    assert bool(why) == bool(expected_text)


def test_without_its_base_nothing_is_compared():
    assert "gone" in diff_refusal(TAKEN, None)


# -- exports ----------------------------------------------------------------------------------------------------------------

QUERY = "snapshot=2026&sv=2018-11-09&sr=bs&si=policy&sig=secret"


@pytest.mark.parametrize(
    "host", ["md-abc.blob.storage.azure.net", "md-abc.z12.blob.storage.azure.net", "md-impexp-abc.blob.core.windows.net"]
)
def test_azures_own_hosts_are_read(host):
    assert export_fault(f"https://{host}/abc/abcd?{QUERY}", HOSTS, local=False) == ""


@pytest.mark.parametrize(
    "url",
    [
        f"https://evil.test/abc/abcd?{QUERY}",
        f"https://md-abc.blob.storage.azure.net.evil.test/abc/abcd?{QUERY}",
        f"https://evil.test/md-abc.blob.storage.azure.net?{QUERY}",
        f"https://evil.test#md-abc.blob.storage.azure.net?{QUERY}",
        f"https://md-abc.blob.storage.azure.net@evil.test/abc?{QUERY}",
        f"https://user:secret@md-abc.blob.storage.azure.net/abc?{QUERY}",
        f"http://md-abc.blob.storage.azure.net/abc?{QUERY}",
        f"http://127.0.0.1/abc?{QUERY}",
        "https://md-abc.blob.storage.azure.net/abc",
        "",
    ],
)
def test_no_request_goes_to_another_host_and_no_signature_is_disclosed(url):
    why = export_fault(url, HOSTS, local=False)

    assert why
    assert "secret" not in why


# -- registration -----------------------------------------------------------------------------------------------------------

FIT = ManagedDisk(ID, "Succeeded", "", GIB, sku="Premium_LRS", network_access="AllowAll", public_access="Enabled")


def machine(*disks, security=""):
    return Machine("vm", "", "Succeeded", "running", "local", disks, security_type=security)


def attached(source=ID, lun=0, **model):
    return MachineDisk("disk", source, managed=True, lun=lun, model=model)


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        ({}, ""),
        ({"size_bytes": 8191 * GIB}, ""),
        ({"size_bytes": 8191 * GIB + 512}, "8191 GiB"),
        ({"size_bytes": 0}, "8191 GiB"),
        ({"sector_bytes": 4096}, "sectors of 4096"),
        ({"network_access": "DenyAll"}, "DenyAll"),
        ({"network_access": "AllowPrivate"}, ""),
        ({"security_type": "ConfidentialVM_DiskEncryptedWithPlatformKey"}, "confidential"),
        ({"security_type": "TrustedLaunch"}, ""),
    ],
)
def test_disks_that_cannot_be_protected(change, expected_text):
    """Each refusal says what was found and expected, and what to do."""
    found = faults(replace(FIT, **change), machine(attached()), "")

    assert (expected_text in found[0] and "expected" in found[0]) if expected_text else not found


def test_an_ephemeral_disk_and_a_confidential_machines_are_refused():
    ephemeral = machine(attached(lun=None, diffDiskSettings={"option": "Local"}))

    assert "ephemeral" in faults(FIT, ephemeral, "")[0]
    assert faults(FIT, machine(attached("other", None, diffDiskSettings={"option": "Local"}), attached()), "") == []
    assert "confidential" in faults(FIT, machine(attached(), security="ConfidentialVM"), "")[0]


def test_the_snapshot_group_is_of_the_disks_subscription():
    other = GROUP.lower().replace("1", "9")

    assert faults(FIT, None, GROUP.lower()) == []
    assert "SNAPSHOT_GROUP" in faults(FIT, None, other)[0]


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        ({"network_access": "AllowPrivate", "disk_access": "access-1"}, "access-1"),
        ({"public_access": "Disabled"}, "private endpoint"),
        ({"security_type": "TrustedLaunch", "os_type": "Windows"}, "guest state"),
        ({"guest_encrypted": True}, "Azure Disk Encryption"),
        ({"sharers": ("/vm/a", "/vm/b")}, "shared by 2 VMs"),
    ],
)
def test_limits_of_a_later_restore_are_listed(change, expected_text):
    (words,) = warnings(replace(FIT, **change), machine(attached()))

    assert expected_text in words
    assert warnings(FIT, machine(attached())) == []
    assert warnings(replace(FIT, security_type="TrustedLaunch"), None) == [], "a data disk has no guest state"


def test_snapshots_of_other_disks_of_the_machine_have_other_times():
    (words,) = warnings(FIT, machine(attached(), attached("other", 1), attached("os", None)))

    assert "2 more disks" in words
