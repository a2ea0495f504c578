"""The emulator answers as the real service was recorded to answer: status, code and form."""

from __future__ import annotations

import base64
import hashlib

import pytest
import requests

PAGE = 512


@pytest.fixture
def disk(source):
    """A page blob of 16 pages with the first 4 written."""
    blob = source.page_blob("disk", 16)
    blob.upload_page(b"\1" * 4 * PAGE, 0, 4 * PAGE)
    return blob


def put(first, last, **headers):
    return {"x-ms-page-write": "update", "x-ms-range": f"bytes={first}-{last}", **headers}


class TestDiff:
    def test_written_then_cleared_since_is_a_clear_range(self, source, disk):
        """A page empty at the previous snapshot, written and cleared, is in the diff; kinds are interleaved by offset."""
        snapshot = disk.create_snapshot()["snapshot"]
        disk.upload_page(b"\2" * 3 * PAGE, 8 * PAGE, 3 * PAGE)
        disk.clear_page(9 * PAGE, PAGE)

        _, _, answer = source.send("GET", "disk", comp="pagelist", prevsnapshot=snapshot)

        assert answer.content == (
            b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?><PageList>'
            b"<PageRange><Start>4096</Start><End>4607</End></PageRange>"
            b"<ClearRange><Start>4608</Start><End>5119</End></ClearRange>"
            b"<PageRange><Start>5120</Start><End>5631</End></PageRange></PageList>"
        )
        assert answer.headers["x-ms-blob-content-length"] == str(16 * PAGE)

    def test_a_rewrite_with_equal_bytes_is_a_change(self, source, disk):
        """The diff tracks writes, not content."""
        snapshot = disk.create_snapshot()["snapshot"]
        disk.upload_page(b"\1" * PAGE, 0, PAGE)

        listed = [(one.start, one.end, one.cleared) for one in disk.list_page_ranges(previous_snapshot=snapshot)]

        assert listed == [(0, 511, False)]

    def test_previous_snapshot_by_url(self, source, disk):
        """The managed-disk form gives the same answer."""
        snapshot = disk.create_snapshot()["snapshot"]
        disk.upload_page(b"\2" * PAGE, 8 * PAGE, PAGE)

        header = {"x-ms-previous-snapshot-url": f"{disk.url}?snapshot={snapshot}"}
        _, _, answer = source.send("GET", "disk", header, comp="pagelist")

        assert answer.text.count("<PageRange>") == 1
        assert "<Start>4096</Start>" in answer.text

    def test_refusals(self, source, disk):
        """Overwritten base, unknown and newer previous snapshots have their own codes."""
        older = disk.create_snapshot()["snapshot"]
        newer = disk.create_snapshot()["snapshot"]
        unknown = source.send("GET", "disk", comp="pagelist", prevsnapshot="2020-01-01T00:00:00.0000000Z")
        backwards = source.send("GET", "disk", comp="pagelist", snapshot=older, prevsnapshot=newer)
        disk.start_copy_from_url(f"{disk.url}?snapshot={older}")
        overwritten = source.send("GET", "disk", comp="pagelist", prevsnapshot=older)

        assert unknown[:2] == (409, "PreviousSnapshotNotFound")
        assert backwards[:2] == (400, "PreviousSnapshotCannotBeNewer")
        assert overwritten[:2] == (409, "BlobOverwritten")

    def test_pages_end_in_an_empty_marker(self, source, disk):
        """NextMarker is present only when maxresults was sent, and is empty on the last page."""
        disk.upload_page(b"\2" * PAGE, 8 * PAGE, PAGE)

        plain = source.send("GET", "disk", comp="pagelist")[2].text
        first = source.send("GET", "disk", comp="pagelist", maxresults=1)[2].text
        marker = first.partition("<NextMarker>")[2].partition("</")[0]
        last = source.send("GET", "disk", comp="pagelist", maxresults=1, marker=requests.utils.quote(marker))[2].text

        assert "NextMarker" not in plain
        assert marker.startswith("2!")
        assert "<NextMarker/>" in last

    @pytest.mark.parametrize("size", [0, -1])
    def test_page_size_must_be_positive(self, source, disk, size):
        assert source.send("GET", "disk", comp="pagelist", maxresults=size)[0] == 400

    def test_window_beyond_the_end(self, source, disk):
        assert source.send("GET", "disk", {"x-ms-range": "bytes=8192-8703"}, comp="pagelist")[:2] == (416, "InvalidRange")

    def test_an_empty_blob_has_an_empty_list(self, source):
        source.page_blob("none", 0)

        assert source.send("GET", "none", comp="pagelist")[2].content.endswith(b"<PageList />")


class TestWrites:
    def test_sizes_and_ends(self, source, disk):
        """Over 4 MiB, past the end, unaligned, through a snapshot address: each refused, nothing written."""
        snapshot = disk.create_snapshot()["snapshot"]
        large = source.page_blob("large", 16384)
        before = disk.get_blob_properties().etag

        four = 4 * 1024 * 1024
        assert source.send("PUT", "large", put(0, four + 511), b"\1" * (four + 512), comp="page")[0] == 413
        assert source.send("PUT", "disk", put(15 * PAGE, 17 * PAGE - 1), b"\1" * 2 * PAGE, comp="page")[:2] == (
            416,
            "InvalidPageRange",
        )
        clear = {"x-ms-page-write": "clear", "x-ms-range": f"bytes={16 * PAGE}-{17 * PAGE - 1}"}
        assert source.send("PUT", "disk", clear, comp="page")[:2] == (416, "InvalidPageRange")
        assert source.send("PUT", "disk", put(1, 512), b"\1" * 512, comp="page")[:2] == (416, "InvalidPageRange")
        through = source.send("PUT", "disk", put(0, 511), b"\2" * 512, comp="page", snapshot=snapshot)
        assert through[:2] == (400, "InvalidQueryParameterValue")
        assert disk.get_blob_properties().etag == before
        assert not list(large.list_page_ranges())

    def test_sizes_of_blobs(self, source, disk):
        for size in (511, 8 * 1024**4 + 512):
            headers = {"x-ms-blob-content-length": str(size)}
            assert source.send("PUT", "disk", headers, comp="properties")[:2] == (400, "InvalidHeaderValue")
            created = source.send("PUT", "other", {**headers, "x-ms-blob-type": "PageBlob"})
            assert created[:2] == (400, "InvalidHeaderValue")

    def test_fences(self, source, disk):
        """Lease and sequence number guard every put, with a code for each."""
        lease = disk.acquire_lease()
        disk.set_sequence_number("max", "7", lease=lease)
        with_lease = {"x-ms-lease-id": lease.id}

        def code(**headers):
            return source.send("PUT", "disk", put(0, 511, **headers), b"\3" * 512, comp="page")[:2]

        assert code() == (412, "LeaseIdMissing")
        assert code(**{"x-ms-lease-id": "00000000-0000-0000-0000-000000000001"}) == (412, "LeaseIdMismatchWithBlobOperation")
        assert code(**with_lease, **{"x-ms-if-sequence-number-eq": "6"}) == (412, "SequenceNumberConditionNotMet")
        assert code(**with_lease, **{"x-ms-if-sequence-number-eq": "7"}) == (201, "")
        lease.release()
        assert code(**with_lease) == (412, "LeaseNotPresentWithBlobOperation")

    def test_a_wrong_checksum_writes_nothing(self, source, disk):
        wrong = base64.b64encode(hashlib.md5(b"else").digest()).decode()

        answer = source.send("PUT", "disk", put(0, 511, **{"Content-MD5": wrong}), b"\3" * 512, comp="page")

        assert answer[:2] == (400, "Md5Mismatch")
        assert disk.download_blob(offset=0, length=1).readall() == b"\1"


class TestReads:
    def test_ranges(self, source, disk):
        """A range is clipped at the end; one that begins there, or is read of an empty blob, is refused with the size."""
        source.page_blob("none", 0)
        clipped = source.send("GET", "disk", {"x-ms-range": "bytes=7680-99999"})[2]

        assert (clipped.status_code, clipped.headers["Content-Range"]) == (206, "bytes 7680-8191/8192")
        for blob, first, size in (("disk", 8192, 8192), ("disk", 9000, 8192), ("none", 0, 0)):
            status, code, answer = source.send("GET", blob, {"x-ms-range": f"bytes={first}-{first + 511}"})
            assert (status, code, answer.headers["Content-Range"]) == (416, "InvalidRange", f"bytes */{size}")

    def test_conditions(self, source, disk):
        """Reads answer 304 where writes answer 412."""
        etag = disk.get_blob_properties().etag
        for header, value, read in (("If-None-Match", etag, 304), ("If-Match", '"0x1"', 412)):
            assert source.send("GET", "disk", {header: value})[:2] == (read, "ConditionNotMet")
            assert source.send("GET", "disk", {header: value}, comp="pagelist")[:2] == (read, "ConditionNotMet")
            assert source.send("PUT", "disk", put(0, 511, **{header: value}), b"\1" * 512, comp="page")[:2] == (
                412,
                "ConditionNotMet",
            )


class TestFromUrl:
    def from_url(self, source, disk, *, authorised=True, **headers):
        copy_source = source.url("origin") if authorised else f"{source.account.blobs}/{source.name}/origin"
        sent = put(8 * PAGE, 9 * PAGE - 1, **{"x-ms-copy-source": copy_source, "x-ms-source-range": "bytes=0-511", **headers})
        return source.send("PUT", "disk", sent, comp="page")

    @pytest.fixture
    def origin(self, source):
        blob = source.page_blob("origin", 8)
        blob.upload_page(b"\7" * PAGE, 0, PAGE)
        return blob

    def test_copies_the_range(self, source, disk, origin):
        assert self.from_url(source, disk)[0] == 201
        assert disk.download_blob(offset=8 * PAGE, length=PAGE).readall() == b"\7" * PAGE

    def test_source_conditions(self, source, disk, origin):
        """A failed source condition answers CannotVerifyCopySource: 412, or 304 without a body; nothing is written."""
        etag, date = origin.get_blob_properties().etag, "Thu, 01 Jan 2015 00:00:00 GMT"
        cases = {
            ("x-ms-source-if-match", '"0x1"'): 412,
            ("x-ms-source-if-unmodified-since", date): 412,
            ("x-ms-source-if-none-match", etag): 304,
            ("x-ms-source-if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT"): 304,
        }
        for (header, value), status in cases.items():
            answered, code, answer = self.from_url(source, disk, **{header: value})
            assert (answered, code) == (status, "CannotVerifyCopySource"), header
            assert status == 412 or answer.content == b""
        assert disk.download_blob(offset=8 * PAGE, length=PAGE).readall() == bytes(PAGE)

    def test_unauthorised_and_missing_sources(self, source, disk, origin):
        assert self.from_url(source, disk, authorised=False)[:2] == (401, "CannotVerifyCopySource")
        origin.delete_blob()
        assert self.from_url(source, disk)[:2] == (404, "CannotVerifyCopySource")


class TestCopies:
    def test_large_copies_are_pending_then_done(self, source, calm):
        """While pending: zeros of the full length, no lease, write or snapshot; done: new ETag, the content."""
        calm.switch(copies={"mode": "hold"})
        origin = source.page_blob("origin", 8)
        origin.upload_page(b"\7" * PAGE, 0, PAGE)
        copy = source.client.get_blob_client("copy")
        started = copy.start_copy_from_url(origin.url)

        pending = copy.get_blob_properties()
        assert pending.copy.status == "pending"
        assert copy.download_blob().readall() == bytes(8 * PAGE)
        assert source.send("PUT", "copy", put(0, 511), b"\1" * 512, comp="page")[:2] == (409, "PendingCopyOperation")
        assert source.send("PUT", "copy", comp="snapshot")[:2] == (409, "PendingCopyOperation")
        lease = {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "-1"}
        assert source.send("PUT", "copy", lease, comp="lease")[:2] == (409, "PendingCopyOperation")

        calm.control("POST", "copies", {"account": "source", "container": source.name, "blob": "copy", "end": "success"})
        done = copy.get_blob_properties()
        assert done.copy.status == "success"
        assert done.copy.id == started["copy_id"]
        assert done.etag != pending.etag
        assert copy.download_blob().readall() == b"\7" * PAGE + bytes(7 * PAGE)

    def test_an_aborted_copy_is_empty_but_has_metadata(self, source, calm):
        calm.switch(copies={"mode": "hold"})
        origin = source.page_blob("origin", 8)
        copy = source.client.get_blob_client("copy")
        started = copy.start_copy_from_url(origin.url, metadata={"mine": "yes"})
        copy.abort_copy(started["copy_id"])

        aborted = copy.get_blob_properties()
        assert (aborted.copy.status, aborted.size, aborted.metadata) == ("aborted", 0, {"mine": "yes"})
        again = source.send("PUT", "copy", {"x-ms-copy-action": "abort"}, comp="copy", copyid=started["copy_id"])
        assert again[:2] == (409, "NoPendingCopyOperation")
        without = source.send("PUT", "copy", {"x-ms-copy-action": "abort"}, comp="copy")
        assert without[:2] == (400, "MissingRequiredQueryParameter")

    @pytest.mark.parametrize("length", [2048, 2049])
    def test_the_url_of_a_source_has_up_to_2_kib(self, source, disk, length):
        url = source.url("disk")
        long = {"x-ms-copy-source": url + "&x=" + "a" * (length - len(url) - 3)}
        page = {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511", "x-ms-source-range": "bytes=0-511"}
        source.page_blob("other", 8)
        refused = (400, "InvalidHeaderValue")

        assert (source.send("PUT", "copy", long)[:2] == refused) is (length > 2048)
        assert (source.send("PUT", "other", {**long, **page}, comp="page")[:2] == refused) is (length > 2048)

    def test_source_conditions_have_their_own_code(self, source, disk):
        headers = {"x-ms-copy-source": source.url("disk"), "x-ms-source-if-none-match": disk.get_blob_properties().etag}

        assert source.send("PUT", "copy", headers)[:2] == (412, "SourceConditionNotMet")

    def test_a_private_source_without_authority_does_not_exist(self, source, backup, disk):
        url = disk.url.partition("?")[0]

        assert backup.send("PUT", "copy", {"x-ms-copy-source": url})[:2] == (404, "CannotVerifyCopySource")


class TestSnapshots:
    def test_ids_are_unique_and_grow(self, source, disk):
        taken = [disk.create_snapshot()["snapshot"] for _ in range(50)]

        assert taken == sorted(set(taken))

    def test_conditions_are_those_of_a_write(self, source, disk):
        etag = disk.get_blob_properties().etag

        assert source.send("PUT", "disk", {"If-None-Match": etag}, comp="snapshot")[:2] == (412, "ConditionNotMet")
        future = {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}
        assert source.send("PUT", "disk", future, comp="snapshot")[:2] == (412, "ConditionNotMet")
        assert source.send("PUT", "disk", {"If-Match": etag}, comp="snapshot")[0] == 201
        assert disk.get_blob_properties().etag == etag

    def test_listings_are_complete_and_ordered(self, source, disk):
        """Paged or not: every blob, its snapshots oldest first, the base last."""
        source.page_blob("another", 1)
        taken = [disk.create_snapshot()["snapshot"] for _ in range(7)]
        expected = [("another", None), *[("disk", one) for one in taken], ("disk", None)]

        for size in (1, 2, 3, 5000):
            listed = [
                (one.name, one.snapshot) for one in source.client.list_blobs(include=["snapshots"], results_per_page=size)
            ]
            assert listed == expected

    def test_a_snapshot_has_no_lease(self, source, disk):
        disk.acquire_lease()
        snapshot = disk.create_snapshot()["snapshot"]

        answer = source.send("HEAD", "disk", snapshot=snapshot)[2]

        assert not [name for name in answer.headers if name.lower().startswith("x-ms-lease")]

    def test_a_base_with_snapshots_is_not_deleted_alone(self, source, disk):
        disk.create_snapshot()

        assert source.send("DELETE", "disk")[:2] == (409, "SnapshotsPresent")

    def test_a_malformed_snapshot_id(self, source, disk):
        status, code, _ = source.send("HEAD", "disk", snapshot="1")

        assert (status, code) == (400, "")


def test_anonymous_requests_see_nothing(source, disk):
    """An unsigned read of a private blob is answered as if there were none."""
    assert requests.get(disk.url.partition("?")[0], timeout=10).status_code == 404
