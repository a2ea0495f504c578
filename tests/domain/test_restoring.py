"""Rules of restores: VHD footers, tiers, estimates, names, ids, and the description of an end state."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import chain
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.estimate import estimate
from backup_core.domain.identity import Deployment
from backup_core.domain.metadata import Site, described, source_snapshot_metadata, to_point_metadata
from backup_core.domain.naming import (
    DISK_NAME,
    MACHINE_ID,
    BlobAddress,
    managed_disk_id,
    parse_blob_url,
    parse_resource_id,
    restored_blob_name,
    restored_disk_name,
    restored_head_name,
    run_of_stamp,
    stamp_of,
)
from backup_core.domain.outcome import RestoreEnd, end_words
from backup_core.domain.ranges import GIB, MIB
from backup_core.domain.tiers import fitting_tier
from backup_core.domain.vhd import vhd_faults
from devhost.disks import vhd_footer
from tests.domain.test_rules import POINT

RUN = "web.20261125T120000Z.0123abcd"


def test_a_fixed_vhd_of_whole_mebibytes_is_accepted():
    assert vhd_faults(vhd_footer(7 * MIB), 7 * MIB + 512) == []


def summed(footer):
    """The footer with its correct checksum."""
    return footer[:64] + struct.pack(">I", ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF) + footer[68:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: bytes(512), "not the footer of a VHD"),
        (lambda f: summed(f[:60] + struct.pack(">I", 3) + f[64:]), "not a fixed VHD"),
        (lambda f: summed(f[:16] + struct.pack(">Q", 512) + f[24:]), "not a fixed VHD"),
        (lambda f: f[:100] + b"\1" + f[101:], "checksum is wrong"),
        (lambda f: vhd_footer(8 * MIB), "footer says 8388608 bytes, it has 7340032"),
    ],
)
def test_each_fault_of_a_footer_is_reported(damage, said):
    (fault,) = vhd_faults(damage(vhd_footer(7 * MIB)), 7 * MIB + 512)

    assert said in fault


def test_an_unaligned_vhd_is_reported():
    assert vhd_faults(vhd_footer(7 * MIB + 512), 7 * MIB + 1024) == ["its 7340544 bytes are not whole mebibytes"]


@pytest.mark.parametrize(
    ("kept", "size", "tier"),
    [
        ("", 5 * GIB, ""),
        ("P30", 100 * GIB + 512, "P30"),
        ("P10", 128 * GIB + 512, "P10"),
        ("P10", 129 * GIB + 512, "P15"),
        ("P4", 8192 * GIB, "P60"),
        ("Hot", GIB, ""),
    ],
)
def test_the_restored_disk_keeps_the_tier_or_gets_one_that_fits(kept, size, tier):
    assert fitting_tier(kept, size) == tier


@given(
    st.integers(0, 2**43), st.integers(0, 10**7), st.lists(st.tuples(st.integers(0, 2**40), st.floats(0, 10**6)), max_size=5)
)
def test_estimates_are_ranges_with_a_basis(copied, requests, past):
    found = estimate(copied, requests, copied, past)

    assert 1 <= found.low <= found.high
    assert found.basis


def test_an_estimate_prefers_past_restores_to_limits():
    known = estimate(100 * MIB, 25, 0, [(50 * MIB, 10.0), (50 * MIB, 25.0)])

    assert (known.low, known.high) == (20, 51)
    assert "2 past restores" in known.basis
    assert "limits" in estimate(100 * MIB, 25, 0, []).basis


def test_without_past_restores_the_slower_of_bytes_and_requests_is_the_least():
    """A page blob takes 60 MiB/s and 500 requests/s, whichever is reached first; the comparison comes after the copy."""
    assert estimate(600 * MIB, 500, 0, []).low == 10
    assert estimate(60 * MIB, 5000, 0, []).low == 10
    assert estimate(60 * MIB, 5000, 300 * MIB, []).low == 15


def test_names_are_unique_to_the_run_and_allowed():
    assert restored_blob_name("web.vhd", RUN) == "web-restored-20261125T120000Z-0123abcd.vhd"
    assert restored_blob_name("a.b/web", RUN) == "a.b/web-restored-20261125T120000Z-0123abcd"
    assert len(restored_blob_name("x" * 1024, RUN)) <= 1024
    assert restored_blob_name("-restored-20261125T120000Z-0123abcd", RUN).count("-restored-") == 2, "no name is left empty"
    assert DISK_NAME.fullmatch(restored_disk_name("d" * 63, RUN.replace("web", "d" * 63)))
    assert restored_head_name("web", RUN) == f"web/restore-{RUN}/disk.vhd"


@given(st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=300), st.integers(1, 5))
def test_names_do_not_grow_from_restore_to_restore(stem, times):
    """Names that a URL has to encode do not grow either, in the form that is sent."""
    name = first = restored_blob_name(f"{stem}.vhd", RUN)
    for number in range(times):
        name = restored_blob_name(name, f"web.20261125T12000{number}Z.0123abc{number}")

    assert len(quote(first)) <= 1000
    assert len(name) == len(first)
    assert name.partition("-restored-2")[0] == first.partition("-restored-2")[0]


def test_a_stamp_identifies_its_run():
    assert run_of_stamp("web", stamp_of(RUN)) == RUN
    for wrong in ("", "x", stamp_of(RUN)[:-1], "20261325120000" + "0" * 8, stamp_of(RUN) + "0", "²" * 22):
        assert run_of_stamp("web", wrong) is None


@pytest.mark.parametrize("letter", ["a", "д", "磁", "🖴", " ", "%"])
def test_length_limits_apply_to_the_encoded_name(letter):
    """An encoded name is longer; it must fit the source of a copy, and the metadata of a head and a snapshot."""
    account = "https://account.blob.core.windows.net"

    def parsed(length):
        return parse_blob_url(BlobAddress(account, "vhds", letter * length).url, (account,))

    each = len(quote(letter))
    longest = min((1536 - len(f"{account}/vhds/")) // each, 1024)
    blob = parsed(longest)
    assert len(f"{blob.url}?snapshot=2026-11-22T12%3A00%3A00.0000000Z") + 450 <= 2048
    point, site = (
        replace(POINT, source=blob.url),
        Site(Deployment("account/pagekeeper"), BlobAddress(account, "heads", POINT.head)),
    )
    assert sum(map(len, chain(*source_snapshot_metadata(replace(site, blob=blob), "vm", POINT.run).items()))) < 8192 - 1024
    assert sum(len(name) + len(value) for name, value in to_point_metadata(described(point), site).items()) < 8192 - 1024
    assert all(value.isascii() for value in to_point_metadata(described(point), site).values())
    with pytest.raises(ValueError, match=r"as it is sent|must have a container and a blob name"):
        parsed(longest + 1)


def test_an_account_name_with_an_allowed_prefix_is_another_account():
    """An account that only begins like an allowed account is refused, even if the rest looks like a container."""
    allowed = ("https://account.blob.core.windows.net", "http://127.0.0.1:10000/account")
    for account in allowed:
        with pytest.raises(ValueError, match="not one this app may read"):
            parse_blob_url(f"{account}work/vhds/disk.vhd", allowed)


def test_a_name_of_too_many_segments_is_refused():
    account = "https://account.blob.core.windows.net"
    with pytest.raises(ValueError, match="path segments"):
        parse_blob_url(f"{account}/vhds/" + "a/" * 254 + "a", (account,))


VM = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg-1/providers/Microsoft.Compute/virtualMachines/web"


def test_resource_ids():
    assert MACHINE_ID.fullmatch(VM)
    assert parse_resource_id(VM).group_id == "/subscriptions/11111111-2222-3333-4444-555555555555/resourcegroups/rg-1"
    assert managed_disk_id(VM, "new") == VM.replace("virtualMachines/web", "disks/new")


@pytest.mark.parametrize(
    "text", ["", "/", "web", VM + "/", VM + "/x", VM.replace("1111-", "zzzz-", 1), VM + "?x", VM + "\n", VM.replace("/web", "/we b"),
             VM.replace("Compute", "Network"), "https://evil.example" + VM, VM.replace("rg-1", ".."), VM.replace("rg-1", "a/b")]
)  # fmt: skip
def test_invalid_machine_ids_are_refused(text):
    assert not MACHINE_ID.fullmatch(text)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (RestoreEnd(), "nothing was begun; restore points, machines and the disk's protection are unchanged"),
        (
            RestoreEnd(point="p", target="t", removed=True),
            (
                "restore point p is unchanged; the unfinished disk was removed; no machine was changed; the disk's protection is "
                "unchanged"
            ),
        ),
        (RestoreEnd(point="p", target="t", removed=True, left="t"), "an unfinished disk is left and may be deleted: t"),
        (
            RestoreEnd(point="p", target="t", slot=("/x/web", 0), holds="unknown"),
            "the new disk may be there, complete or not: t; look at the machine before you delete it",
        ),
        (
            RestoreEnd(point="p", target="t", removed=True, left="t", slot=("/x/web", 0), holds="unknown"),
            "look at the machine before you delete it; data disk at LUN 0 of VM web is settled by the next run",
        ),
        (
            RestoreEnd(point="p", target="t", complete=True, slot=("/x/web", 0), holds="old", power="running"),
            "uses the old disk again",
        ),
        (
            RestoreEnd(
                point="p",
                target="t",
                complete=True,
                slot=("/x/web", None),
                holds="new",
                power="running",
                old_disk="o",
                adopted="q",
            ),
            (
                "OS disk of VM web uses the new disk, the machine is running; the old disk o is kept; backups continue from the new disk, "
                "the next one is an increment on restore point q"
            ),
        ),
        (
            RestoreEnd(point="p", target="t", managed_disk="m", complete=True, follows=True, unprotected=True),
            "NOT backed up by this app",
        ),
        (
            RestoreEnd(point="p", target="t", managed_disk="m", complete=True, follows=True),
            "with the new disk, the next one is full",
        ),
        (
            RestoreEnd(point="p", target="t", managed_disk="m", complete=True, imported=False),
            "the new disk t is complete and equal to it; managed disk m, if it is there, was not used: delete it",
        ),
        (
            RestoreEnd(point="p", target="t", complete=True, left_snapshot="s"),
            "a snapshot of the managed disk is left, which the night",
        ),
        (
            RestoreEnd(point="p", target="t", complete=True, slot=("/x/web", 1), holds="other"),
            "given another disk by somebody else",
        ),
        (RestoreEnd(point="p", target="t", complete=True, slot=("/x/web", 1)), "data disk at LUN 1 of VM web was not touched"),
        (RestoreEnd(point="p", target="t", left_head="h"), "an unfinished backup blob is left and may be deleted: h"),
        (RestoreEnd(point="p", target="t", complete=True, follows=True), "the next one is full"),
    ],
)
def test_end_states_are_described_in_words(end, words):
    assert words in end_words(end)
