"""Uploads by the adapters alone: write access is granted, renewed and opened once more, and its end is reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from socket import EAI_NONAME, gaierror
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import ClientConnectorDNSError

from backup_core.adapters import transport
from backup_core.domain.errors import (
    AccessDeniedError,
    AccessLostError,
    BackupError,
    BlobMissingError,
    ContainerMissingError,
    FencedError,
    ManagedDiskRefusedError,
    ServiceUnavailableError,
)
from backup_core.domain.ranges import ByteRange
from devhost.platform import awaited
from tests.ports.test_uploads import CONTENT, DATA, FENCE, FOOTER, PAGE, RUN, SIZE, azure_upload

WAYS = ("copy_streamed", "copy_from_url", "clear")
SIGNED = "sig="


@pytest.fixture
async def made(calm, machines, name):
    """Makes a disk that waits for its upload, and the adapters with settings; counts what is granted."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**settings):
            upload = await azure_upload(calm, machines, name, **settings)
            stack.callback(machines.delete, name)
            stack.push_async_callback(upload.services.close)
            access, upload.granted = upload.blobs.disks._access, []
            granted = access._grant_access

            async def counted(door, seconds):
                upload.granted.append((door.access, seconds))
                return await granted(door, seconds)

            access._grant_access = counted
            await upload.make()
            return upload

        yield make


def write(upload, way):
    """Write a page in one of three ways."""
    part = ByteRange(DATA.start, DATA.start + PAGE)
    return upload.blobs.clear(upload.disk, part, FENCE) if way == "clear" else upload.copy(part, way)


async def elsewhere(upload, act):
    """The adapters of another process: this one has the URLs that it had."""
    access = upload.blobs.disks._access
    grants = dict(access._grants)
    await act()
    access._grants = grants


async def test_write_access_is_granted_once_for_many_writers(made):
    upload = await made()
    await asyncio.gather(*(upload.copy(DATA) for _ in range(8)))

    assert upload.granted == [("Write", 7200)]


async def test_access_is_granted_anew_at_half_of_its_time(made):
    """To write, and then to read what was written."""
    upload = await made(SNAPSHOT_ACCESS_SECONDS="1000")
    seconds = [100.0]
    upload.blobs.disks._access._monotonic = lambda: seconds[0]
    for now, grants in ((100.0, 1), (599.0, 1), (600.0, 2)):
        seconds[0] = now
        await upload.copy(FOOTER)
        assert upload.granted == [("Write", 1000)] * grants
    await upload.blobs.close_disk(upload.disk)
    upload.granted.clear()
    for now, grants in ((600.0, 1), (1099.0, 1), (1100.0, 2)):
        seconds[0] = now
        await upload.blobs.read(upload.disk, "", FOOTER)
        assert upload.granted == [("Read", 1000)] * grants


@pytest.mark.parametrize("extends", [True, False])
async def test_a_disk_that_another_process_opened_is_written_by_both(made, machines, extends):
    """A second grant is the first, or ends it: then access is requested once more."""
    machines.switch(grant_extends=extends)
    upload = await made()
    for way in WAYS:
        await write(upload, way)
        before = len(upload.granted)

        async def another(way=way):
            upload.blobs.disks._access.forget(upload.disk.id)
            await write(upload, way)

        await elsewhere(upload, another)
        await write(upload, way)
        assert len(upload.granted) == before + (1 if extends else 2)


@pytest.fixture
def moved(monkeypatch):
    """Moves the addresses that were granted to a host that no name server knows, or not yet."""
    unknown = "http://md-impexp-gone.invalid"
    asked = aiohttp.ClientSession.request

    def request(session, method, url, **options):
        if str(url).startswith(unknown):
            raise ClientConnectorDNSError(SimpleNamespace(host=url.host, port=443, ssl=True), gaierror(EAI_NONAME, "unknown"))
        return asked(session, method, url, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 0.5)

    def move(upload):
        grants = upload.blobs.disks._access._grants
        for key, one in grants.items():
            grants[key] = replace(one, url=unknown + one.url.removeprefix("http://"))

    return move


@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_whose_host_is_gone_is_fenced(made, moved, way):
    """Once the access has ended, its host may be gone with it."""
    upload = await made()
    await upload.copy(DATA)
    await upload.copy(FOOTER)
    await elsewhere(upload, lambda: upload.blobs.close_disk(upload.disk))
    moved(upload)
    with pytest.raises(FencedError, match="its upload has ended"):
        await write(upload, way)


@pytest.mark.parametrize("way", WAYS)
async def test_a_host_that_is_not_known_is_not_a_misspelt_account(made, moved, way):
    """The address is requested once more; when its host is not known either, the step is tried later."""
    upload = await made()
    await upload.copy(DATA)
    moved(upload)
    await write(upload, way)
    granted = upload.blobs.disks._access._grant_access

    async def unknown(door, seconds):
        return replace(await granted(door, seconds), url="http://md-impexp-gone.invalid/a?sig=b")

    upload.blobs.disks._access._grant_access = unknown
    moved(upload)
    with pytest.raises(AccessLostError, match="no host has that name") as caught:
        await write(upload, way)

    assert caught.value.retryable


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_that_another_process_has_ended_is_fenced(made, calm, way, gone):
    """Though this one has the URL still, and then has it granted anew: no byte is written. The address itself may be gone."""
    calm.switch(exports={"uploadGone": gone})
    upload = await made()
    await upload.copy(DATA)
    await upload.copy(FOOTER)
    await elsewhere(upload, lambda: upload.blobs.close_disk(upload.disk))
    with pytest.raises(FencedError, match="its upload has ended") as caught:
        await write(upload, way)

    assert SIGNED not in str(caught.value)
    assert upload.granted == [("Write", 7200)]
    assert upload.content() == CONTENT


@pytest.mark.parametrize("way", WAYS)
async def test_a_disk_that_is_made_anothers_between_the_look_and_the_grant_is_not_written(made, machines, way):
    """A later request may take over the disk, when Azure does not refuse it: the disk is read after the grant."""
    machines.switch(ignores_if_none_match=True)
    upload = await made()
    upload.disk = replace(upload.disk, run=RUN)
    access = upload.blobs.disks._access
    granted = access._grant_access

    async def taken_over(*args):
        await upload.make(run="another")
        return await granted(*args)

    access._grant_access = taken_over
    with pytest.raises(FencedError, match=f"expected one made by run {RUN}, found one made by another"):
        await write(upload, way)

    assert upload.content() == bytes(SIZE)


@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_that_ends_between_the_look_and_the_grant_is_fenced(made, way):
    """Azure refuses the grant, and another look says why."""
    upload = await made()
    access = upload.blobs.disks._access
    await upload.copy(DATA)
    await upload.copy(FOOTER)
    access.forget(upload.disk.id)
    granted = access._grant_access

    async def late(door, seconds):
        # As another process does: the lock belongs to this one.
        await access.end(door)
        return await granted(door, seconds)

    access._grant_access = late
    with pytest.raises(FencedError, match="its upload has ended"):
        await write(upload, way)

    assert upload.content() == CONTENT


@pytest.mark.parametrize("openings", [1, 2])
@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_that_ends_after_access_is_opened_is_fenced(made, way, openings):
    """Opened first, or once more after a refusal: another look says why the second write was refused."""
    upload = await made()
    access = upload.blobs.disks._access
    await upload.copy(DATA)
    await upload.copy(FOOTER)
    access.forget(upload.disk.id)
    access_open, opened = access.open, []

    async def ended_afterwards(door, *arguments, **options):
        grant = await access_open(door, *arguments, **options)
        opened.append(grant)
        if len(opened) < openings:
            access._grants[door.key] = replace(grant, url=grant.url.replace("sig=", "sig=x"))
            return access._grants[door.key]
        if len(opened) == openings:
            await access.end(door)
        return grant

    access.open = ended_afterwards
    with pytest.raises(FencedError, match="its upload has ended"):
        await write(upload, way)

    assert len(opened) == openings
    assert upload.content() == CONTENT


@pytest.mark.parametrize("state", ["ActiveUpload", "ReadyToUpload"])
async def test_an_upload_whose_access_has_expired(made, machines, state):
    """The upload continues, and ends at last, whatever Azure calls the disk until then."""
    machines.switch(upload_expiry="ready" if state == "ReadyToUpload" else "stays")
    upload = await made()
    access = upload.blobs.disks._access
    access._exporting = replace(access._exporting, seconds=1)

    for part in (DATA, FOOTER):
        await upload.copy(part)
        awaited(lambda: upload.disk.id.lower() not in machines.open(), "the end of the access")
        assert await upload.state() == state
    await upload.blobs.close_disk(upload.disk, ends=True)

    assert await upload.state() == "Unattached"
    assert upload.content() == CONTENT


@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_whose_address_is_gone_is_opened_once_more(made, calm, machines, way):
    """Or fails visibly, when it stays away."""
    machines.switch(grant_extends=False)
    calm.switch(exports={"uploadGone": True})
    upload = await made()
    await upload.copy(DATA)

    async def another():
        upload.blobs.disks._access.forget(upload.disk.id)
        await upload.copy(FOOTER)

    await elsewhere(upload, another)
    await write(upload, way)
    assert len(upload.granted) == 3
    verb = {"copy_streamed": "PUT page", "copy_from_url": "PUT page-from-url", "clear": "PUT clear"}[way]
    for code, kind in (("ContainerNotFound", ContainerMissingError), ("BlobNotFound", BlobMissingError)):
        before = len(upload.granted)
        calm.faults({"verb": verb, "url": "/md-local/", "status": 404, "code": code, "times": 9})
        with pytest.raises(kind):
            await write(upload, way)
        assert len(upload.granted) == before + 1


@pytest.mark.parametrize("code", ["AuthenticationFailed", "AuthorizationFailure"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_writer_that_is_refused_twice_fails_visibly(made, calm, caplog, way, code):
    """For good, unless it is its signature that is refused: another process may have been granted access meanwhile."""
    caplog.set_level(logging.DEBUG)
    upload = await made()
    verb = {"copy_streamed": "PUT page", "copy_from_url": "PUT page-from-url", "clear": "PUT clear"}[way]
    calm.faults({"verb": verb, "url": "/md-local/", "status": 403, "code": code, "times": 9})
    with pytest.raises(AccessDeniedError) as caught:
        await write(upload, way)

    assert len(upload.granted) == 2
    assert isinstance(caught.value, AccessLostError) == caught.value.retryable == (code == "AuthenticationFailed")
    assert str(upload.disk) in str(caught.value)
    assert SIGNED not in str(caught.value) + caplog.text


async def test_access_that_is_granted_without_an_address_is_a_temporary_failure(made, machines):
    """The next call requests the access again."""
    machines.switch(unnamed_grants=1)
    upload = await made()
    with pytest.raises(ServiceUnavailableError, match="named no address; temporary failure"):
        await upload.copy(DATA)
    await upload.copy(DATA)

    assert await upload.state() == "ActiveUpload"


async def test_access_that_is_not_possible_is_refused_in_azures_words(made, machines):
    """Nothing is written to a disk whose network policy denies it: that is no end of its upload."""
    upload = await made()
    machines.faults({"method": "POST", "path": "beginGetAccess", "status": 409, "code": "OperationNotAllowed", "times": 9})
    with pytest.raises(ManagedDiskRefusedError, match="OperationNotAllowed"):
        await upload.copy(DATA)
    machines.faults()
    await upload.copy(DATA)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(403, "AuthorizationFailed", False), (429, "TooManyRequests", True), (409, "Conflict", True)],
)
async def test_a_disk_that_cannot_be_closed_is_an_error(made, machines, status, code, retryable):
    """Then it is open still; and closed by the next try."""
    upload = await made()
    await upload.copy(FOOTER)
    fault = {"method": "POST", "path": "endGetAccess", "status": status, "code": code, "times": 9, "retry_after": "60"}
    machines.faults(fault)
    with pytest.raises(BackupError) as caught:
        await upload.blobs.close_disk(upload.disk)
    assert caught.value.retryable == retryable
    assert await upload.state() == "ActiveUpload"
    machines.faults()
    await upload.blobs.close_disk(upload.disk)

    assert await upload.state() == "Unattached"


async def test_no_address_is_kept_of_a_disk_that_is_closed(made):
    """Nor of one that somebody else has closed; nor is what was opened for one thing used for the other."""
    upload = await made()
    access = upload.blobs.disks._access
    await upload.copy(FOOTER)
    await elsewhere(upload, lambda: upload.blobs.close_disk(upload.disk))
    assert len(access._grants) == 1
    await upload.blobs.close_disk(upload.disk)
    assert access._grants == {}
    await upload.blobs.read(upload.disk, "", FOOTER)
    before = dict(access._grants)
    with pytest.raises(FencedError):
        await upload.copy(DATA)

    assert access._grants == before


async def test_nothing_is_written_to_a_host_that_is_not_azures(made, calm):
    """The error names no more of the address than the host."""
    upload = await made(EXPORT_HOSTS="md-*.blob.storage.azure.net")
    calm.reset()
    with pytest.raises(BackupError, match="is not one of the setting EXPORT_HOSTS") as caught:
        await upload.blobs.clear(upload.disk, DATA, FENCE)

    assert SIGNED not in str(caught.value)
    assert calm.counts() == {}


@pytest.mark.parametrize("taken", [True, False])
async def test_a_checksum_is_sent_where_the_address_takes_one(made, calm, taken):
    """An address that takes no checksum gets one once, then none."""
    upload = await made()
    calm.reset()
    calm.switch(exports={"uploadMd5": taken})
    for number in range(1, 4):
        await upload.copy(DATA)
        assert calm.counts()["PUT page"]["requests"] == number + (not taken)
    upload.blobs._data._unchecked.clear()
    await asyncio.gather(*(upload.copy(part) for part in (DATA, FOOTER) * 4))

    assert upload.content() == CONTENT


async def test_pages_that_are_altered_on_their_way_are_sent_again(made, calm):
    upload = await made()
    calm.faults({"verb": "PUT page", "url": "/md-local/", "status": 400, "code": "Md5Mismatch", "times": 2})
    await upload.copy(DATA)
    await upload.copy(FOOTER)

    assert upload.content() == CONTENT


async def test_the_access_of_an_uploaded_disk_is_opened_once_more(made):
    """Reads and listings go on where somebody has ended their access."""
    upload = await made()
    await upload.copy(DATA)
    await upload.copy(FOOTER)
    await upload.blobs.close_disk(upload.disk)
    for _ in range(2):
        assert await upload.blobs.read(upload.disk, "", FOOTER) == CONTENT[FOOTER.start :]
        await elsewhere(upload, lambda: upload.blobs.close_disk(upload.disk))
        window = ByteRange(0, FOOTER.end)
        assert [one async for one in upload.blobs.allocated(upload.disk, "", window)] == [DATA, FOOTER]
        await elsewhere(upload, lambda: upload.blobs.close_disk(upload.disk))
