"""The stand-in's access to snapshots and uploads, and the permissions of the addresses that it grants."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.core.exceptions import HttpResponseError
from azure.mgmt.compute.models import Encryption
from azure.storage.blob import BlobServiceClient

from devhost.disks import vhd_footer
from devhost.machines import GROUP
from devhost.platform import awaited
from tests.ports.arm_client import MIB, PAGE, RESOURCES, answer, listed, plain, read, refused

# -- access -------------------------------------------------------------------------------------------------------------


async def test_revoked_access_ends_at_once(azure):
    await azure.take()
    url = await azure.grant()
    assert read(url)[0] == 206
    assert (await azure.get()).disk_state == "ActiveSAS"
    await azure.revoke()
    await azure.revoke()

    assert read(url)[:2] == (403, "AuthenticationFailed")
    assert (await azure.get()).disk_state == "Unattached"


async def test_access_expires(azure, machines):
    await azure.take()
    url = await azure.grant(seconds=1)
    awaited(lambda: read(url)[:2] == (403, "AuthenticationFailed"), "the end of the SAS")
    awaited(lambda: (azure.disk + "-1").replace("/disks/", "/snapshots/").lower() not in machines.open(), "the grant's end")
    await azure.delete()


async def test_a_second_grant_extends_the_first(azure):
    """Its SAS is the same, and lives as long as the second one says."""
    await azure.take()
    first = await azure.grant(seconds=1)
    second = await azure.grant(seconds=600)

    assert second == first
    ended = datetime.now(UTC) + timedelta(seconds=1.1)
    while datetime.now(UTC) < ended:
        assert read(first)[0] == 206


async def test_a_second_grant_replaces_the_first(azure, machines):
    machines.switch(grant_extends=False)
    await azure.take()
    first, second = await azure.grant(), await azure.grant()

    assert second != first
    assert read(first)[:2] == (403, "AuthenticationFailed")
    assert read(second)[0] == 206


async def test_both_ways_of_following_a_grant(azure, machines):
    """By the operation, whose output has the SAS, and by its result."""
    taken = await azure.take()
    machines.faults({"method": "POST", "path": "beginGetAccess", "operation": True, "held": True})
    body = {"access": "Read", "durationInSeconds": 60}
    begun = plain("POST", f"{machines.endpoint}{taken.id}/beginGetAccess", body)
    operation, result = begun.headers["Azure-AsyncOperation"], begun.headers["Location"]
    assert begun.status_code == 202
    assert plain("GET", operation).json()["status"] == "InProgress"
    assert plain("GET", result).status_code == 202
    machines.faults()
    awaited(lambda: plain("GET", operation).json()["status"] != "InProgress", "the end of the grant")
    shown = plain("GET", operation).json()

    assert shown["status"] == "Succeeded"
    assert plain("GET", result).json() == shown["properties"]["output"]
    assert read(shown["properties"]["output"]["accessSAS"])[0] == 206


async def test_five_snapshots_of_a_disk_are_open_at_once(azure, machines):
    for number in range(6):
        await azure.take(number)
    for number in range(5):
        await azure.grant(number)
    await refused(azure.grant(5), 409, "OperationNotAllowed", "5 snapshots open")
    await azure.grant(4)
    other = machines.make_disk(f"{azure.name}-other", data_bytes=MIB)
    await azure.take(7, other)
    await azure.grant(7)
    await azure.revoke(0)

    assert read(await azure.grant(5))[0] == 206


@pytest.mark.parametrize("seconds", [0, 60 * 24 * 3600 + 1])
async def test_no_access_for_so_long(azure, seconds):
    await azure.take()
    await refused(azure.grant(seconds=seconds), 400, "InvalidParameter")


async def test_an_export_that_is_denied(azure):
    """The policy is what the request for the snapshot says, not the disk's."""
    await azure.take(network_access_policy="DenyAll")
    await refused(azure.grant(), 409, "OperationNotAllowed", "DenyAll")
    await azure.take(network_access_policy="AllowAll")

    assert read(await azure.grant())[0] == 206


async def test_sectors_of_4096_bytes(azure, machines):
    disk = machines.make_disk(azure.name, data_bytes=MIB, properties={"creationData": {"logicalSectorSize": 4096}})
    assert (await azure.client.disks.get(RESOURCES, azure.name)).creation_data.logical_sector_size == 4096
    await azure.take(disk=disk)
    await refused(azure.grant(), 400, "BadRequest", "file format")


async def test_a_disk_that_a_machine_uses(azure, machines):
    """Attached, it cannot be opened; open, its machine cannot start."""
    machines.make(azure.name, data={0: azure.disk})
    assert (await azure.client.disks.get(RESOURCES, azure.name)).disk_state == "Attached"
    await refused(azure.grant_disk(), 409, "OperationNotAllowed", "running VM")
    await azure.take()
    assert read(await azure.grant())[0] == 206
    poller = await azure.client.virtual_machines.begin_deallocate(RESOURCES, azure.name)
    await poller.result()
    assert (await azure.client.disks.get(RESOURCES, azure.name)).disk_state == "Reserved"
    url = await azure.grant_disk()
    assert read(url)[0] == 206
    await refused(azure.client.virtual_machines.begin_start(RESOURCES, azure.name), 409, "OperationNotAllowed", "cannot start")
    await azure.revoke_disk()
    await (await azure.client.virtual_machines.begin_start(RESOURCES, azure.name)).result()

    assert read(url)[:2] == (403, "AuthenticationFailed")
    machines.delete(azure.name)


async def test_siblings_of_a_deleted_snapshot(azure, machines):
    """Refused until they are granted again, where the switch says so; the same SAS is good again then."""
    for number in (1, 2, 3):
        await azure.take(number)
    url = await azure.grant(2)
    await azure.delete(1)
    assert read(url)[0] == 206
    machines.switch(siblings_denied=True)
    await azure.delete(3)
    assert read(url)[:2] == (403, "AuthenticationFailed")

    assert await azure.grant(2) == url
    assert read(url)[0] == 206


# -- the export addresses -----------------------------------------------------------------------------------------------


async def test_the_form_of_an_export_address(azure):
    """All snapshots of a disk share one blob; time, policy and signature tell them apart, and no expiry is shown."""
    await azure.take(1)
    await azure.take(2)
    first, second = urlsplit(await azure.grant(1)), urlsplit(await azure.grant(2))
    queries = [parse_qs(one.query) for one in (first, second)]

    assert first.path == second.path
    assert re.fullmatch(r"/md-local/[0-9a-f]{32}/abcd", first.path)
    assert [list(query) for query in queries] == [["snapshot", "sv", "sr", "si", "sig"]] * 2
    assert [(query["sv"], query["sr"]) for query in queries] == [(["2018-11-09"], ["bs"])] * 2
    assert all(queries[0][name] != queries[1][name] for name in ("snapshot", "si", "sig"))


async def test_a_sas_reads_its_own_snapshot_alone(azure):
    """Not another, not the disk, not without its time."""
    await azure.take(1)
    await azure.take(2)
    first, second = await azure.grant(1), await azure.grant(2)
    times = [parse_qs(urlsplit(one).query)["snapshot"][0].replace(":", "%3A") for one in (first, second)]

    assert read(first.replace(*times))[:2] == (403, "AuthenticationFailed")
    assert read(first.replace(f"snapshot={times[0]}&", ""))[:2] == (403, "AuthenticationFailed")
    assert read(first.partition("?")[0])[:2] == (404, "ResourceNotFound"), "nobody's request"
    assert read(first)[0] == 206


async def test_nothing_is_written_through_a_sas(azure):
    azure.write(b"\1" * PAGE, 0)
    await azure.take()
    url = await azure.grant()
    put = {"x_ms_page_write": "update", "x_ms_range": f"bytes=0-{PAGE - 1}"}

    assert answer("PUT", f"{url}&comp=page", b"\2" * PAGE, **put)[0] == 403
    assert answer("PUT", f"{url}&comp=snapshot")[0] == 403
    assert answer("DELETE", url)[0] == 403
    assert read(url)[2].content == b"\1" * PAGE


async def test_the_headers_of_a_snapshots_blob(azure):
    """The blob is an incremental copy by its headers, with one Content-MD5 for all snapshots, which says nothing of the
    content.
    """
    await azure.take(1)
    azure.write(b"\1" * PAGE, 0)
    await azure.take(2)
    headers = [answer("HEAD", await azure.grant(number))[2].headers for number in (1, 2)]

    assert headers[0]["content-md5"] == headers[1]["content-md5"]
    assert [(one["x-ms-incremental-copy"], one["x-ms-copy-status"], one["x-ms-blob-sequence-number"]) for one in headers] == [
        ("true", "success", "2")
    ] * 2
    assert read(await azure.grant(1), MIB + PAGE)[:2] == (416, "InvalidRange")


async def test_both_snapshots_of_a_diff_have_to_be_open(azure):
    await azure.take(1)
    await azure.take(2)
    base, new = await azure.grant(1), await azure.grant(2)
    assert listed(new, base)[2].text.endswith("<PageList />")
    assert listed(new, base.partition("&sv")[0])[:2] == (403, "AuthenticationFailed")
    await azure.revoke(1)
    assert listed(new, base)[:2] == (403, "AuthenticationFailed")
    await azure.delete(1)

    assert listed(new, base)[:2] == (403, "AuthenticationFailed")


async def test_requests_that_are_no_diff_of_a_managed_disk_are_refused(azure, machines):
    """The previous snapshot by the parameter of page blobs; another disk's; a newer one."""
    await azure.take(1)
    await azure.take(2)
    other = machines.make_disk(f"{azure.name}-other", data_bytes=MIB)
    await azure.take(3, other)
    base, new, foreign = await azure.grant(1), await azure.grant(2), await azure.grant(3)
    time = parse_qs(urlsplit(base).query)["snapshot"][0]

    assert answer("GET", f"{new}&comp=pagelist&prevsnapshot={time}")[:2] == (400, "InvalidQueryParameterValue")
    assert listed(new, foreign)[:2] == (403, "AuthenticationFailed")
    assert listed(base, new)[:2] == (400, "PreviousSnapshotCannotBeNewer")


async def test_pages_of_a_diff(azure, calm):
    """By `maxresults` and a marker; by a switch refused, or ignored."""
    await azure.take(1)
    for page in (8, 16, 24):
        azure.write(b"\1" * PAGE, page * PAGE)
    await azure.take(2)
    base, new = await azure.grant(1), await azure.grant(2)
    first = listed(new, base, "&maxresults=2")[2].text
    marker = first.partition("<NextMarker>")[2].partition("</")[0]
    assert first.count("<PageRange>") == 2
    assert listed(new, base, f"&maxresults=2&marker={marker}")[2].text.count("<PageRange>") == 1
    calm.switch(exports={"maxresults": "refused"})
    assert listed(new, base, "&maxresults=2")[:2] == (400, "UnsupportedQueryParameter")
    assert listed(new, base, f"&marker={marker}")[:2] == (400, "UnsupportedQueryParameter")
    assert listed(new, base)[2].text.count("<PageRange>") == 3
    calm.switch(exports={"maxresults": "ignored"})
    found = listed(new, base, f"&maxresults=2&marker={marker}")[2].text

    assert found.count("<PageRange>") == 3
    assert "NextMarker" not in found


@pytest.mark.parametrize("in_diff", [True, False])
async def test_footers_that_differ(azure, machines, calm, in_diff):
    """Footers differ between two snapshots of a disk by a switch, whether or not the diff reports them; else they are the same."""
    await azure.take(1)
    await azure.take(2)
    machines.switch(footer="differs")
    calm.switch(exports={"footerInDiff": in_diff})
    azure.write(b"\1" * PAGE, MIB - PAGE)
    await azure.take(3)
    urls = [await azure.grant(number) for number in (1, 2, 3)]
    footers = [read(url, MIB)[2].content for url in urls]
    end = MIB + PAGE if in_diff else MIB

    assert footers[0] == footers[1] != footers[2]
    assert f"<Start>{MIB - PAGE}</Start><End>{end - 1}</End></PageRange></PageList>" in listed(urls[2], urls[1])[2].text


@pytest.mark.parametrize("ends", [False, True])
async def test_a_disk_that_has_grown(azure, machines, calm, ends):
    """The former footer's place has data now; a switch makes the diff end where the smaller disk ended."""
    calm.switch(diffEnds=ends)
    await azure.take(1)
    machines.grow_disk(azure.disk, 2 * MIB)
    azure.write(b"\1" * PAGE, 2 * MIB - PAGE)
    taken = await azure.take(2)
    base, new = await azure.grant(1), await azure.grant(2)
    found = listed(new, base)[2].text

    assert taken.disk_size_bytes == 2 * MIB
    assert read(new, MIB)[2].content == bytes(PAGE)
    assert read(new, 2 * MIB)[2].content.startswith(b"conectix")
    assert read(base, MIB)[2].content.startswith(b"conectix")
    assert f"<ClearRange><Start>{MIB}</Start><End>{MIB + PAGE - 1}</End></ClearRange>" in found
    assert (f"<Start>{2 * MIB - PAGE}</Start>" in found) is not ends
    with pytest.raises(ValueError, match="cannot shrink"):
        machines.grow_disk(azure.disk, MIB)


async def test_no_diff_across_four_tebibytes(azure, machines):
    disk = machines.make_disk(azure.name, data_bytes=4 * 1024**4 - MIB)
    await azure.take(1, disk)
    machines.grow_disk(disk, 4 * 1024**4)
    await azure.take(2, disk)
    machines.grow_disk(disk, 4 * 1024**4 + MIB)
    await azure.take(3, disk)
    first, second, third = [await azure.grant(number) for number in (1, 2, 3)]

    assert listed(second, first)[0] == 200
    assert listed(third, second)[:2] == (409, "PreviousSnapshotOperationNotSupported")


@pytest.mark.parametrize("policy", ["AllowAll", "AllowPrivate"])
async def test_put_page_from_url_reads_an_export_address(azure, calm, policy):
    """Put Page From URL reads an export address; it refuses one for private access, which can only be read."""
    azure.write(b"\1" * PAGE, 0)
    await azure.take(1, network_access_policy=policy)
    azure.write(b"\2" * PAGE, 0)
    await azure.take(2, network_access_policy=policy)
    base, new = await azure.grant(1), await azure.grant(2)
    with BlobServiceClient(calm.backup.blobs, credential=calm.backup.credential) as client:
        blob = client.create_container(azure.name).get_blob_client("copy")
        blob.create_page_blob(PAGE)
        if policy == "AllowAll":
            blob.upload_pages_from_url(new, 0, PAGE, 0)
            assert blob.download_blob().readall() == b"\2" * PAGE
            return
        with pytest.raises(HttpResponseError) as refusal:
            blob.upload_pages_from_url(new, 0, PAGE, 0)
    assert (refusal.value.status_code, refusal.value.error_code) == (409, "CopySourceCannotBeIncrementalCopyBlob")
    assert re.fullmatch(r"/md-impexp-local/[0-9a-f]{32}-\d{21}/abcd", urlsplit(new).path)
    assert list(parse_qs(urlsplit(new).query)) == ["sv", "sr", "si", "sig"]
    assert [read(url)[2].content for url in (base, new)] == [b"\1" * PAGE, b"\2" * PAGE]
    assert listed(new, base)[2].text.count("<PageRange>") == 1
    await azure.revoke(1)
    assert read(base)[:2] == (403, "AuthenticationFailed")
    assert listed(new, base)[:2] == (403, "AuthenticationFailed")


# -- uploads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def upload(azure, machines):
    """A disk of 1 MiB to be uploaded to."""
    machines.switch(upload_bytes_min=MIB)
    azure.name += "-up"
    azure.disk += "-up"
    await azure.make_upload(MIB + PAGE)
    return azure


def put(url, offset, data):
    """A page written through a SAS."""
    written = {"x_ms_page_write": "update", "x_ms_range": f"bytes={offset}-{offset + len(data) - 1}"}
    return answer("PUT", f"{url}&comp=page", data, **written)


async def test_a_disk_is_unusable_until_its_upload_ends(upload, machines):
    """Ready, active, then a disk like another; until then nothing can be done with it."""
    shown = await upload.client.disks.get(RESOURCES, upload.name)
    assert (shown.disk_state, shown.disk_size_bytes) == ("ReadyToUpload", None)
    assert shown.creation_data.upload_size_bytes == MIB + PAGE
    url = await upload.grant_disk("Write")
    assert (await upload.client.disks.get(RESOURCES, upload.name)).disk_state == "ActiveUpload"
    with pytest.raises(ValueError, match="ActiveUpload"):
        machines.make(upload.name, data={0: upload.disk})
    await refused(upload.take(), 409, "OperationNotAllowed", "ActiveUpload")
    await refused(upload.client.disks.begin_delete(RESOURCES, upload.name), 409, "OperationNotAllowed", "ActiveUpload")
    assert put(url, 0, b"\1" * PAGE)[0] == 201
    assert put(url, MIB, vhd_footer(MIB))[0] == 201
    assert answer("HEAD", url)[2].headers["content-length"] == str(MIB + PAGE)
    assert answer("GET", f"{url}&comp=pagelist")[2].text.count("<PageRange>") == 2
    await upload.revoke_disk()

    assert put(url, 0, b"\2" * PAGE)[0] == 403
    shown = await upload.client.disks.get(RESOURCES, upload.name)
    assert (shown.disk_state, shown.disk_size_bytes) == ("Unattached", MIB)
    machines.make(upload.name, data={0: upload.disk})
    await upload.take()
    assert read(await upload.grant())[2].content == b"\1" * PAGE
    machines.delete(upload.name)


async def test_an_upload_that_is_no_vhd(upload):
    """Found when access is ended; what is there is found by the next writer."""
    url = await upload.grant_disk("Write")
    put(url, 0, b"\1" * PAGE)
    for footer in (bytes(PAGE), vhd_footer(MIB - PAGE), b"x" + vhd_footer(MIB)[1:]):
        assert put(url, MIB, footer)[0] == 201
        await refused(upload.revoke_disk(), 400, "InvalidVhd", "conectix")
        assert (await upload.client.disks.get(RESOURCES, upload.name)).disk_state == "ActiveUpload"
    again = await upload.grant_disk("Write")
    assert f"<Start>0</Start><End>{PAGE - 1}</End>" in answer("GET", f"{again}&comp=pagelist")[2].text
    put(again, MIB, vhd_footer(MIB))
    await upload.revoke_disk()


@pytest.mark.parametrize("reads", [False, True])
async def test_a_write_grant_reads_the_disk_only_if_the_switch_is_on(upload, calm, reads):
    """Nobody knows whether Azure allows that."""
    calm.switch(exports={"uploadReads": reads})
    url = await upload.grant_disk("Write")
    put(url, 0, b"\1" * PAGE)

    assert read(url)[:2] == ((206, "") if reads else (403, "AuthorizationPermissionMismatch"))


async def test_an_uploaded_disk_rejects_writes(upload):
    """Neither by what was granted before, nor by a grant for reading; and there is none for writing."""
    before = await upload.grant_disk("Write")
    put(before, MIB, vhd_footer(MIB))
    await upload.revoke_disk()
    await refused(upload.grant_disk("Write"), 409, "OperationNotAllowed", "upload")
    url = await upload.grant_disk("Read")

    assert put(before, 0, b"\1" * PAGE)[:2] == (403, "AuthenticationFailed")
    assert put(url, 0, b"\1" * PAGE)[:2] == (403, "AuthorizationPermissionMismatch")
    assert read(url)[2].content == bytes(PAGE)


async def test_a_disk_that_was_not_made_for_it_is_not_written(azure):
    await refused(azure.grant_disk("Write"), 409, "OperationNotAllowed", "upload")


@pytest.mark.parametrize(
    ("header", "value"),
    [("x_ms_lease_id", "11111111-2222-3333-4444-555555555555"), ("x_ms_if_sequence_number_eq", "2"), ("If_Match", "*")],
)
async def test_an_upload_takes_no_conditions(upload, header, value):
    """The stand-in refuses conditions; Azure's behaviour is not documented."""
    url = await upload.grant_disk("Write")
    written = {"x_ms_page_write": "update", "x_ms_range": f"bytes=0-{PAGE - 1}", header: value}

    assert answer("PUT", f"{url}&comp=page", b"\1" * PAGE, **written)[:2] == (400, "UnsupportedHeader")


@pytest.mark.parametrize(("taken", "status"), [(True, 201), (False, 400)])
async def test_an_upload_takes_checksums_or_refuses_them(upload, calm, taken, status):
    calm.switch(exports={"uploadMd5": taken})
    digest = base64.b64encode(hashlib.md5(b"\1" * PAGE, usedforsecurity=False).digest()).decode()
    written = {"x_ms_page_write": "update", "x_ms_range": f"bytes=0-{PAGE - 1}", "Content_MD5": digest}

    assert answer("PUT", f"{await upload.grant_disk('Write')}&comp=page", b"\1" * PAGE, **written)[0] == status


async def test_an_upload_whose_end_fails_has_not_ended(upload, machines):
    url = await upload.grant_disk("Write")
    put(url, MIB, vhd_footer(MIB))
    machines.faults({"method": "POST", "path": "endGetAccess", "code": "InternalExecutionError", "operation": True})
    with pytest.raises(HttpResponseError):
        await upload.revoke_disk()
    assert (await upload.client.disks.get(RESOURCES, upload.name)).disk_state == "ActiveUpload"
    assert put(url, 0, b"\1" * PAGE)[0] == 201
    await upload.revoke_disk()


async def test_an_upload_address_rejects_every_other_operation(upload):
    """Read only, made, deleted, labelled, leased."""
    await refused(upload.grant_disk("Read"), 409, "OperationNotAllowed", "upload")
    url = await upload.grant_disk("Write")
    made = {"x_ms_blob_type": "PageBlob", "x_ms_blob_content_length": str(MIB)}

    assert urlsplit(url).path.startswith("/md-impexp-local/")
    for method, query, headers in (
        ("PUT", "", made),
        ("DELETE", "", {}),
        ("PUT", "&comp=metadata", {"x_ms_meta_a": "b"}),
        ("PUT", "&comp=properties", {"x_ms_sequence_number_action": "increment"}),
        ("PUT", "&comp=lease", {"x_ms_lease_action": "acquire", "x_ms_lease_duration": "-1"}),
        ("PUT", "&comp=snapshot", {}),
    ):
        assert answer(method, url + query, **headers)[:2] == (403, "AuthorizationPermissionMismatch"), query


@pytest.mark.parametrize("size", [0, 20 * MIB, 20 * MIB + PAGE + 1, 19 * MIB + PAGE, 32 * 1024**4 + MIB + PAGE])
async def test_sizes_of_an_upload(azure, size):
    """Whole MiB and a footer, from 20 MiB to 32 TiB."""
    azure.name += "-up"
    await refused(azure.make_upload(size), 400, "InvalidParameter", "uploadSizeBytes")
    await refused(azure.client.disks.get(RESOURCES, azure.name), 404, "ResourceNotFound")


async def test_no_upload_with_both_disk_access_and_a_key(azure):
    azure.name += "-up"
    access, key = (
        f"{GROUP}/providers/Microsoft.Compute/diskAccesses/a",
        f"{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/e",
    )
    encryption = Encryption(type="EncryptionAtRestWithCustomerKey", disk_encryption_set_id=key)
    fields = {"network_access_policy": "AllowPrivate", "disk_access_id": access}
    await refused(azure.make_upload(20 * MIB + PAGE, encryption=encryption, **fields), 400, "BadRequest", "diskAccessId")
    await azure.make_upload(20 * MIB + PAGE, **fields)
