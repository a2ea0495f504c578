"""The data path against a server with scripted answers: retries, budget, Retry-After, lengths, checksums, tokens, signatures."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from azure.core.credentials import AccessToken
from azure.storage.blob import UserDelegationKey

from backup_core.adapters import transport as transport_module
from backup_core.adapters.authority import BearerAuthority, KeyAuthority, SharedSasAuthority
from backup_core.adapters.page_data import PageData
from backup_core.adapters.page_lists import PageLists
from backup_core.adapters.transport import REQUEST_SECONDS, Transport
from backup_core.domain.errors import (
    AccessDeniedError,
    CopySourceRefusedError,
    CopySourceUnreachableError,
    FencedError,
    ServiceTimedOutError,
    ServiceUnavailableError,
    TransferDamagedError,
    UnexpectedAnswerError,
)
from backup_core.domain.naming import BlobAddress
from backup_core.domain.plan import COPY_DEADLINE
from backup_core.domain.ranges import ByteRange
from backup_core.ports import Fence

PART, FENCE = ByteRange(512, 1536), Fence("lease", 7)
SECRET = "sig=c2VjcmV0c2VjcmV0c2VjcmV0"
GOOD = bytes(range(256)) * 4
SNAPSHOT = "2026-01-01T00:00:00.0000000Z"


class Service:
    """Answers in the scripted order, then always 206 with the content; remembers the requests."""

    def __init__(self):
        self.answers, self.seen = [], []
        self.pauses = []
        self.clock = 0.0
        self.seconds_per_answer = 0.0

    async def handle(self, request):
        self.seen.append(
            SimpleNamespace(method=request.method, url=request.path_qs, headers=request.headers, body=await request.read())
        )
        self.clock += self.seconds_per_answer
        if self.answers:
            answer = self.answers.pop(0)
            if answer == "reset":
                request.transport.abort()
                return web.Response()
            return answer
        if request.method == "PUT":
            return web.Response(status=201)
        return good()


class BrokenOff(web.Response):
    """An answer whose connection breaks in its body."""

    async def write_eof(self, data=b""):
        self._req.transport.abort()


def good(body=GOOD, digest=None):
    md5 = base64.b64encode(hashlib.md5(digest or body).digest()).decode()
    return web.Response(status=206, body=body, headers={"Content-MD5": md5})


def refused(status, code="", **headers):
    return web.Response(status=status, headers={"x-ms-error-code": code, **headers})


@pytest.fixture
async def service(monkeypatch):
    running = Service()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", running.handle)
    sleep = asyncio.sleep

    async def noted(seconds, *rest):
        running.pauses.append(seconds)
        running.clock += seconds
        await sleep(0, *rest)

    monkeypatch.setattr(transport_module.asyncio, "sleep", noted)
    async with TestServer(app) as server:
        running.account = str(server.make_url("/source")).rstrip("/")
        running.blob = BlobAddress(running.account, "vhds", "disk.vhd")
        running.head = BlobAddress(running.account, "heads", "a/b.vhd")
        running.transport = Transport({running.account: SharedSasAuthority(SECRET)}, lambda: running.clock)
        running.data = PageData(running.transport)
        yield running
        await running.transport.close()


async def test_a_read_is_exact(service):
    assert await service.data.read(service.blob, SNAPSHOT, PART) == GOOD
    (request,) = service.seen
    assert request.headers["x-ms-range"] == "bytes=512-1535"
    assert parse_qs(urlsplit(request.url).query)["snapshot"] == [SNAPSHOT]


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("body", [GOOD[:-1], GOOD + b"\0", b""])
async def test_other_lengths_are_damage(service, body, digest):
    """With or without a checksum of the service's, however often it is read again."""
    service.answers = [good(body) if digest else web.Response(status=206, body=body) for _ in range(100)]
    with pytest.raises(TransferDamagedError, match=f"{len(body)} bytes arrived, expected 1024"):
        await service.data.read(service.blob, SNAPSHOT, PART)


async def test_an_altered_byte_is_damage(service):
    service.answers = [good(GOOD[:-1] + b"\x00", digest=GOOD) for _ in range(100)]
    with pytest.raises(TransferDamagedError):
        await service.data.stream(service.blob, SNAPSHOT, PART, service.head, FENCE)
    assert {one.method for one in service.seen} == {"GET"}, "nothing was written from it"


@pytest.mark.parametrize("damage", ["altered", "short", "long", "broken off"])
async def test_a_damaged_read_is_one_request_to_repeat(service, damage):
    """Not a verification to begin anew, nor a run to fail."""
    bodies = {"altered": good(GOOD[:-1] + b"\x00", digest=GOOD), "short": good(GOOD[:-1]), "long": good(GOOD + b"\0")}
    service.answers = [bodies.get(damage) or BrokenOff(status=206, body=GOOD)]

    assert await service.data.read(service.blob, SNAPSHOT, PART) == GOOD
    assert len(service.seen) == 2


async def test_a_write_whose_bytes_were_altered_is_one_request_to_repeat(service):
    service.answers = [refused(400, "Md5Mismatch")]
    await service.data.write(service.head, 512, GOOD, FENCE)

    assert [one.body for one in service.seen] == [GOOD, GOOD]


async def test_a_listing_that_breaks_off_is_requested_again(service):
    page = b"<PageList><PageRange><Start>0</Start><End>511</End></PageRange></PageList>"
    service.answers = [BrokenOff(body=page), web.Response(body=page)]
    lists = PageLists(service.transport)

    assert [one.range async for one in lists.ranges(service.blob, SNAPSHOT, "", ByteRange(0, 4096))] == [ByteRange(0, 512)]
    assert len(service.seen) == 2


async def test_a_request_that_only_times_out_ends_with_its_deadline(service):
    """A request that is refused slowly ends after few attempts, not after a quarter of an hour.

    A service that takes half a minute for each refusal uses up the time by its attempts too.
    """
    service.answers, service.seconds_per_answer = [refused(500, "OperationTimedOut") for _ in range(100)], 30.0
    with pytest.raises(ServiceTimedOutError):
        await service.data.clear(service.head, PART, FENCE)

    assert len(service.seen) <= 5
    assert service.clock <= REQUEST_SECONDS + 30


@pytest.mark.parametrize("hiccup", [refused(500, "InternalError"), refused(503, "ServerBusy"), refused(429), "reset"])
async def test_short_faults_are_retried(service, hiccup):
    service.answers = [hiccup]
    await service.data.clear(service.head, PART, FENCE)

    assert len(service.seen) == 2
    assert service.seen[0].headers["x-ms-lease-id"] == service.seen[1].headers["x-ms-lease-id"] == "lease"
    assert service.seen[1].headers["x-ms-if-sequence-number-eq"] == "7"
    assert len(service.pauses) == (hiccup != "reset"), "the library itself sends again at once where a kept connection broke"


async def test_retry_after_is_honoured(service):
    service.answers = [refused(503, "ServerBusy", **{"Retry-After": "3"})]
    await service.data.clear(service.head, PART, FENCE)

    assert 3 <= service.pauses[0] < 4
    service.answers = [refused(503, "ServerBusy", **{"Retry-After": "25"})]
    await service.data.clear(service.head, PART, FENCE)
    assert 25 <= service.pauses[1] < 26
    service.answers = [refused(503, "ServerBusy", **{"Retry-After": "600"})]
    with pytest.raises(ServiceUnavailableError):
        await service.data.clear(service.head, PART, FENCE)
    assert len(service.pauses) == 2, "longer than the budget: left to the orchestrator"


async def test_pauses_grow_and_end_with_the_budget(service):
    """A service at its limits is waited for, request by request, two minutes long; then the orchestrator takes over."""
    service.answers = [refused(503, "ServerBusy") for _ in range(1000)]
    with pytest.raises(ServiceUnavailableError):
        await service.data.clear(service.head, PART, FENCE)

    assert REQUEST_SECONDS - transport_module.PAUSE_SECONDS_MAX <= sum(service.pauses) <= REQUEST_SECONDS
    assert all(pause <= transport_module.PAUSE_SECONDS * 2 ** (n + 1) for n, pause in enumerate(service.pauses))
    assert max(service.pauses) <= transport_module.PAUSE_SECONDS_MAX
    assert len(service.seen) == len(service.pauses) + 1


async def test_a_request_succeeds_in_the_end(service):
    service.answers = [refused(503, "ServerBusy") for _ in range(8)]
    await service.data.clear(service.head, PART, FENCE)

    assert len(service.seen) == 9


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refused(412, "SequenceNumberConditionNotMet"), FencedError),
        (refused(412, "LeaseLost"), FencedError),
        (refused(403, "AuthorizationFailure"), AccessDeniedError),
    ],
)
async def test_refusals_are_final_and_reported_without_the_signature(service, answer, error):
    service.answers = [answer]
    with pytest.raises(error) as failure:
        await service.data.clear(service.head, PART, FENCE)

    assert len(service.seen) == 1
    assert SECRET.removeprefix("sig=") not in str(failure.value)
    assert f"clear bytes [512, 1536) of {service.head}" in str(failure.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("act", ["clear", "read"])
async def test_no_request_is_sent_on_to_another_address(service, status, act):
    """Neither its bytes nor its signature go to a host that no setting names, and the answer of another one is no success."""
    service.answers = [web.Response(status=status, headers={"Location": f"{service.account}/elsewhere"})]
    with pytest.raises(UnexpectedAnswerError):
        await (service.data.clear(service.head, PART, FENCE) if act == "clear" else service.data.read(service.blob, "", PART))

    assert len(service.seen) == 1


@pytest.mark.parametrize("status", [200, 202, 204, 206])
async def test_a_write_counts_only_when_the_service_says_so(service, status):
    """Put Page answers 201. Any other good status is another server's, and the page may be unwritten: over an old one, only the
    samples of the comparison would show it.
    """
    service.answers = [web.Response(status=status)]
    await service.data.clear(service.head, PART, FENCE)

    assert len(service.seen) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412, 304])
async def test_a_source_the_service_cannot_read(service, status):
    """One code, six statuses: always the same error, never a retry."""
    service.answers = [refused(status, "CannotVerifyCopySource")]
    with pytest.raises(CopySourceRefusedError):
        await service.data.from_url(service.blob, SNAPSHOT, PART, service.head, FENCE)
    assert len(service.seen) == 1


async def test_a_copy_that_the_account_does_not_permit(service):
    """Put Page From URL has an error of its own; a Put Page that is refused so is denied."""
    service.answers = [refused(403, "AuthorizationFailure"), refused(403, "AuthorizationFailure")]
    with pytest.raises(CopySourceRefusedError, match="allowedCopyScope"):
        await service.data.from_url(service.blob, SNAPSHOT, PART, service.head, FENCE)
    with pytest.raises(AccessDeniedError, match="the account's firewall"):
        await service.data.clear(service.head, PART, FENCE)
    assert len(service.seen) == 2


async def test_a_source_the_service_does_not_reach(service):
    """The documented answer of a source whose network keeps the service away: not retried here, so that bytes are streamed."""
    service.answers = [refused(500, "CannotVerifyCopySource")]
    with pytest.raises(CopySourceUnreachableError) as caught:
        await service.data.from_url(service.blob, SNAPSHOT, PART, service.head, FENCE)

    assert len(service.seen) == 1
    assert isinstance(caught.value, CopySourceRefusedError)
    assert caught.value.retryable, "it may be slow, and nothing else is to be tried"


async def test_from_url_carries_no_byte_and_the_fence(service):
    await service.data.from_url(service.blob, SNAPSHOT, PART, service.head, FENCE)
    (request,) = service.seen

    assert (request.method, request.body, request.headers["Content-Length"]) == ("PUT", b"", "0")
    assert request.headers["x-ms-source-range"] == request.headers["x-ms-range"] == "bytes=512-1535"
    assert (request.headers["x-ms-lease-id"], request.headers["x-ms-if-sequence-number-eq"]) == ("lease", "7")
    source = urlsplit(request.headers["x-ms-copy-source"])
    assert parse_qs(source.query)["snapshot"] == [SNAPSHOT]
    assert len(request.headers["x-ms-copy-source"]) < 2048, "the service's limit"


async def test_buffers_are_used_again_and_not_after_a_failure(service):
    for _ in range(3):
        await service.data.stream(service.blob, SNAPSHOT, PART, service.head, FENCE)
    assert len(service.data._buffers) == 1
    service.answers = [good(), refused(412, "LeaseLost")]
    with pytest.raises(FencedError):
        await service.data.stream(service.blob, SNAPSHOT, PART, service.head, FENCE)
    assert service.data._buffers == []
    assert {one.body for one in service.seen if one.method == "PUT"} == {GOOD}


async def test_a_listing_that_times_out_is_not_repeated_unchanged(service):
    """A small window that times out is tried again; a large one is cut at once (see test_page_lists)."""
    lists = PageLists(service.transport)
    service.answers = [refused(500, "OperationTimedOut") for _ in range(100)]
    with pytest.raises(ServiceTimedOutError):
        [one async for one in lists.ranges(service.blob, SNAPSHOT, "", ByteRange(0, 1 << 20))]

    assert len(service.seen) > 5


async def test_a_window_that_times_out_is_halved(service):
    """Halves of halves, in order, none of it twice and none of it left out."""
    empty = web.Response

    def listing(start, end):
        return empty(body=f"<PageList><PageRange><Start>{start}</Start><End>{end - 1}</End></PageRange></PageList>".encode())

    mib = 1 << 20
    service.answers = [
        refused(500, "OperationTimedOut"), refused(500, "OperationTimedOut"),
        listing(0, 64 * mib), listing(64 * mib, 65 * mib), listing(200 * mib, 201 * mib),
    ]  # fmt: skip
    found = [
        one.range async for one in PageLists(service.transport).ranges(service.blob, SNAPSHOT, "", ByteRange(0, 256 * mib))
    ]
    listed = [one.headers["x-ms-range"] for one in service.seen]

    assert listed == [
        f"bytes=0-{256 * mib - 1}", f"bytes=0-{128 * mib - 1}",
        f"bytes=0-{64 * mib - 1}", f"bytes={64 * mib}-{128 * mib - 1}", f"bytes={128 * mib}-{256 * mib - 1}",
    ]  # fmt: skip
    assert found == [ByteRange(0, 64 * mib), ByteRange(64 * mib, 65 * mib), ByteRange(200 * mib, 201 * mib)]


async def test_a_disk_of_odd_size_is_halved_too(service):
    """A fixed VHD has a page more than whole mebibytes: halves are still whole pages."""
    size = (1 << 27) + 512
    service.answers = [refused(500, "OperationTimedOut"), *(web.Response(body=b"<PageList/>") for _ in range(3))]
    found = [one async for one in PageLists(service.transport).ranges(service.blob, SNAPSHOT, "old", ByteRange(0, size))]

    assert found == []
    listed = [tuple(map(int, one.headers["x-ms-range"].removeprefix("bytes=").split("-"))) for one in service.seen[1:]]
    assert [first for first, _ in listed] == [0, *(last + 1 for _, last in listed[:-1])]
    assert listed[-1][1] == size - 1
    assert all(first % 512 == 0 for first, _ in listed)


async def test_a_listing_continues_until_there_is_no_marker(service):
    """An empty page is not the end."""

    def page(inside, marker):
        return web.Response(body=f"<PageList>{inside}<NextMarker>{marker}</NextMarker></PageList>".encode())

    def one(start):
        return f"<PageRange><Start>{start}</Start><End>{start + 511}</End></PageRange>"

    service.answers = [page(one(0), "a b"), page("", "c"), page(one(1024), "")]
    lists = PageLists(service.transport)
    found = [one.range.start async for one in lists.ranges(service.blob, SNAPSHOT, "", ByteRange(0, 4096))]

    assert found == [0, 1024]
    assert [parse_qs(urlsplit(one.url).query).get("marker") for one in service.seen] == [None, ["a b"], ["c"]]
    service.answers = [page(one(1024) + one(0), "")]
    with pytest.raises(UnexpectedAnswerError, match="out of order at 0"):
        [one async for one in lists.ranges(service.blob, SNAPSHOT, "", ByteRange(0, 4096))]


# -- authority ------------------------------------------------------------------------------------------------------


class Credential:
    """Gives another token each time, as one near its expiry does."""

    def __init__(self):
        self.given = 0

    async def get_token(self, *scopes):
        assert scopes == ("https://storage.azure.com/.default",)
        self.given += 1
        return AccessToken(f"token{self.given}", 0)


async def test_each_request_has_the_token_of_its_moment(service):
    """A long shard outlives its first token: no request is sent with one that was kept aside."""
    bearing = Transport({service.account: BearerAuthority(Credential(), None)})
    data = PageData(bearing)
    service.answers = [refused(503, "ServerBusy")]
    await data.clear(service.head, PART, FENCE)
    await data.from_url(service.blob, SNAPSHOT, PART, service.head, FENCE)
    await bearing.close()

    assert [one.headers["Authorization"] for one in service.seen] == ["Bearer token1", "Bearer token2", "Bearer token4"]
    assert service.seen[2].headers["x-ms-copy-source-authorization"] == "Bearer token3"
    assert "sig" not in service.seen[2].headers["x-ms-copy-source"]


async def test_a_delegated_signature_reads_one_snapshot_as_long_as_a_copy_may_take():
    """Copy Blob takes no token: the identity requests a key and signs with it, inside the activity."""
    periods = []

    class Account:
        account_name = "source"

        async def get_user_delegation_key(self, start, expiry):
            periods.append((start, expiry))
            key = UserDelegationKey()
            key.signed_oid = key.signed_tid = "00000000-0000-0000-0000-000000000000"
            key.signed_start, key.signed_expiry = f"{start:%Y-%m-%dT%H:%M:%SZ}", f"{expiry:%Y-%m-%dT%H:%M:%SZ}"
            key.signed_service, key.signed_version, key.value = "b", "2021-12-02", base64.b64encode(b"k" * 32).decode()
            return key

    authority = BearerAuthority(Credential(), Account())
    query = parse_qs(await authority.signed(BlobAddress("https://source.test", "vhds", "d.vhd"), SNAPSHOT))

    check_scope(query, COPY_DEADLINE)
    assert COPY_DEADLINE <= periods[0][1] - datetime.now(UTC) <= timedelta(days=7), "a signature cannot last longer than 7 days"


async def test_a_local_signature_reads_one_snapshot():
    """For an hour, a whole copy for longer."""
    key = base64.b64encode(b"k" * 64).decode()
    authority = KeyAuthority("source", key)
    blob = BlobAddress("http://127.0.0.1:1/source", "vhds", "d.vhd")
    whole, part = await authority.signed(blob, SNAPSHOT), (await authority.as_source(blob, SNAPSHOT))[0]
    check_scope(parse_qs(whole), COPY_DEADLINE)
    check_scope(parse_qs(part), timedelta(minutes=30))
    assert key not in whole + part


def check_scope(query, at_least):
    """One snapshot, read only, until an hour after what it is for at most."""
    assert (query["sr"], query["sp"]) == (["bs"], ["r"])
    until = datetime.strptime(query["se"][0], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert at_least <= until - datetime.now(UTC) <= at_least + timedelta(hours=1)
