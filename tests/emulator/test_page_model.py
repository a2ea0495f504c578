"""The emulator against a page model: random writes, clears, resizes, snapshots and copies, with every listing compared."""

from __future__ import annotations

import pytest

PAGE = 512


class Model:
    """A page blob as a list of pages: content, whether allocated, and the number of its last change."""

    def __init__(self, pages):
        self.pages = [(b"\0" * PAGE, False)] * pages
        self.changed = [0] * pages
        self.clock = 0

    def write(self, first, count, byte):
        self.clock += 1
        for page in range(first, first + count):
            self.pages[page], self.changed[page] = (bytes([byte]) * PAGE, True), self.clock

    def clear(self, first, count):
        self.clock += 1
        for page in range(first, first + count):
            self.pages[page], self.changed[page] = (b"\0" * PAGE, False), self.clock

    def resize(self, pages):
        self.clock += 1
        grown = max(0, pages - len(self.pages))
        cut = len(self.pages) - pages
        self.pages = self.pages[:pages] + [(b"\0" * PAGE, False)] * grown
        self.changed = self.changed[:pages] + [self.clock if cut > 0 else 0] * grown

    def frozen(self):
        copy = Model(0)
        copy.pages, copy.changed, copy.clock = list(self.pages), list(self.changed), self.clock
        return copy

    def content(self):
        return b"".join(page for page, _ in self.pages)

    def allocated(self, first, last):
        return {page for page in range(first, min(last, len(self.pages))) if self.pages[page][1]}

    def written_since(self, previous, first, last):
        """{page: cleared} of every page written or cleared after the snapshot `previous` was taken."""
        return {
            page: not self.pages[page][1]
            for page in range(first, min(last, len(self.pages)))
            if self.changed[page] > previous.clock
        }

    def differing_from(self, previous, first, last):
        """{page: cleared} of every page whose bytes differ."""
        found = {}
        for page in range(first, min(last, len(self.pages))):
            before = previous.pages[page][0] if page < len(previous.pages) else b"\0" * PAGE
            if before != self.pages[page][0]:
                found[page] = not self.pages[page][1]
        return found


def disturb(rng, blob, model):
    """One random change of blob and model alike."""
    pages = len(model.pages)
    first = rng.randrange(pages)
    count = rng.randrange(1, min(24, pages - first) + 1)
    if rng.random() < 0.6:
        byte = rng.randrange(0, 4)
        blob.upload_page(bytes([byte]) * PAGE * count, first * PAGE, count * PAGE)
        model.write(first, count, byte)
    else:
        blob.clear_page(first * PAGE, count * PAGE)
        model.clear(first, count)


def pages_of(ranges):
    """{page: cleared} of a listing; fails when a page is listed twice or the order is not ascending."""
    found, last = {}, -1
    for one in ranges:
        assert one.start > last, "ranges must ascend and not overlap"
        last = one.end
        for page in range(one.start // PAGE, (one.end + 1) // PAGE):
            assert page not in found
            found[page] = bool(one.cleared)
    return found


@pytest.mark.parametrize("kind", ["writes", "content"])
def test_listings_agree_with_the_model(source, calm, rng, kind):
    """Plain and diff listings of random windows and page sizes are what the model says, for both kinds of diff."""
    calm.switch(diff=kind)
    for round_ in range(4):
        pages = rng.randrange(16, 300)
        blob, model, taken = source.page_blob(f"b{round_}", pages), Model(pages), []
        for _ in range(6):
            for _ in range(rng.randrange(1, 10)):
                disturb(rng, blob, model)
            taken.append((blob.create_snapshot()["snapshot"], model.frozen()))
        for newer in range(len(taken)):
            snapshot, state = taken[newer]
            client = source.client.get_blob_client(blob.blob_name, snapshot=snapshot)
            assert client.download_blob().readall() == state.content()
            for previous, before in taken[: newer + 1]:
                first = rng.randrange(pages)
                last = rng.randrange(first + 1, pages + 1)
                window = {
                    "offset": first * PAGE,
                    "length": (last - first) * PAGE,
                    "results_per_page": rng.choice([1, 2, 7, 10_000]),
                }
                listed = pages_of(client.list_page_ranges(previous_snapshot=previous, **window))
                expected = (
                    state.written_since(before, first, last) if kind == "writes" else state.differing_from(before, first, last)
                )
                assert listed == expected
                assert set(pages_of(client.list_page_ranges(**window))) == state.allocated(first, last)


def test_a_diff_ends_with_the_blob_or_with_the_previous_snapshot(source, calm):
    """With the switch `diffEnds`, pages by which the disk has grown are in no diff; without it they are."""
    blob = source.page_blob("disk", 16)
    previous = blob.create_snapshot()["snapshot"]
    blob.resize_blob(32 * PAGE)
    for page in (3, 20):
        blob.upload_page(b"\1" * PAGE, page * PAGE, PAGE)
    for ends, pages in ((False, {3, 20}), (True, {3})):
        for kind in ("writes", "content"):
            calm.switch(diff=kind, diffEnds=ends)
            assert set(pages_of(blob.list_page_ranges(previous_snapshot=previous))) == pages


def test_resizes_agree_with_the_model(source, rng):
    """Growing adds empty pages, shrinking drops them for good, and the diff says so."""
    blob, model = source.page_blob("disk", 64), Model(64)
    for _ in range(12):
        disturb(rng, blob, model)
        before = model.frozen()
        previous = blob.create_snapshot()["snapshot"]
        disturb(rng, blob, model)
        pages = rng.randrange(8, 128)
        blob.resize_blob(pages * PAGE)
        model.resize(pages)

        assert blob.download_blob().readall() == model.content()
        assert set(pages_of(blob.list_page_ranges())) == model.allocated(0, pages)
        listed = pages_of(blob.list_page_ranges(previous_snapshot=previous))
        differing = set(model.differing_from(before, 0, pages))
        assert differing <= set(listed), "a page whose bytes changed must be in the diff"


def test_copies_and_promotes_share_nothing_with_their_source(source, rng):
    """Writing a promoted base leaves the snapshot it was promoted from, and the copy's source, as they were."""
    blob, model = source.page_blob("disk", 64), Model(64)
    for _ in range(8):
        disturb(rng, blob, model)
    snapshot, frozen = blob.create_snapshot()["snapshot"], model.frozen()
    copy = source.client.get_blob_client("copy")
    for target in (copy, blob):
        target.start_copy_from_url(f"{blob.url}?snapshot={snapshot}")
        target.upload_page(b"\xff" * 512 * 64, 0, 512 * 64)

        assert source.client.get_blob_client("disk", snapshot=snapshot).download_blob().readall() == frozen.content()


def test_more_than_ten_thousand_ranges_come_in_pages(source):
    """One answer contains at most 10,000 ranges and a marker; following it gives all, once, in order."""
    blob = source.page_blob("disk", 2 * 10_050)
    snapshot = blob.create_snapshot()["snapshot"]
    blob.upload_page(b"\1" * 512 * 2048, 0, 512 * 2048)
    for start in range(2048, 2 * 10_050, 8192):
        count = min(8192, 2 * 10_050 - start)
        blob.upload_page(b"\1" * 512 * count, start * 512, 512 * count)
    for page in range(1, 2 * 10_050, 2):
        source.send(
            "PUT", "disk", {"x-ms-page-write": "clear", "x-ms-range": f"bytes={page * 512}-{page * 512 + 511}"}, comp="page"
        )

    first = source.send("GET", "disk", comp="pagelist", prevsnapshot=snapshot)[2].content
    listed = pages_of(blob.list_page_ranges(previous_snapshot=snapshot))

    assert first.count(b"<Start>") == 10_000
    assert b"<NextMarker>2!" in first
    assert listed == {page: page % 2 == 1 for page in range(2 * 10_050)}
