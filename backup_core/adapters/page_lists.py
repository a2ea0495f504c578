"""Get Page Ranges, plain and as a diff, read as a stream. An answer of any size costs the memory of one page of ranges.

The SDK's listing holds the whole answer, and builds objects for every range several times over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote
from xml.parsers import expat

from backup_core.adapters.transport import Ask
from backup_core.domain.errors import ServiceTimedOutError, UnexpectedAnswerError
from backup_core.domain.ranges import MIB, PAGE, ByteRange, DiffRange, windows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from backup_core.adapters.transport import Transport
    from backup_core.domain.naming import Source

RANGES_PER_PAGE = 10_000
"""The service's own limit for one answer of Get Page Ranges."""
WINDOW_BYTES_MIN = 64 * MIB
"""A window that times out is halved down to this; the time-out of a smaller one is a failure of the service."""


@dataclass(frozen=True)
class Export:
    """The addresses for listing a managed disk's snapshot: whole URLs with signatures, its own and that of the one before."""

    url: str = field(repr=False)
    previous_url: str = field(default="", repr=False)
    whole_pages: bool = False
    """Whether the size of an answer's pages is left to the service: that of a diff of exports is not documented."""


class PageLists:
    """Lists the ranges of blobs and snapshots."""

    def __init__(self, transport: Transport) -> None:
        """Send by `transport`."""
        self._transport = transport

    async def ranges(
        self, blob: Source, snapshot: str, previous: str, window: ByteRange, export: Export | None = None
    ) -> AsyncIterator[DiffRange]:
        """The ranges inside the window, ascending, through every continuation; since `previous` when given. A window that
        times out is halved: a very fragmented blob hits a fixed time-out of the service. A snapshot of a managed disk is listed
        by its `export`.
        """
        waiting = [window]
        while waiting:
            part = waiting.pop()
            position = part.start
            try:
                marker = ""
                while True:
                    page, marker = await self._page(blob, snapshot, previous, part, marker, export)
                    for one in page:
                        if one.range.start < position:
                            message = f"{_what(blob, snapshot, previous, part)}: ranges came out of order at {one.range.start}"
                            raise UnexpectedAnswerError(message)
                        position = one.range.end
                        yield one
                    # G20: to the last page.
                    if not marker:
                        break
            except ServiceTimedOutError:
                if part.size <= WINDOW_BYTES_MIN:
                    raise
                half = max(part.size // 2 // PAGE * PAGE, WINDOW_BYTES_MIN)
                waiting += reversed([*windows(part.end, half, position)])

    async def _page(
        self, blob: Source, snapshot: str, previous: str, part: ByteRange, marker: str, export: Export | None
    ) -> tuple[list[DiffRange], str]:
        query = "comp=pagelist" if export and export.whole_pages else f"comp=pagelist&maxresults={RANGES_PER_PAGE}"
        query += f"&prevsnapshot={quote(previous, safe='')}" if previous and not export else ""
        query += f"&marker={quote(marker, safe='')}" if marker else ""
        what = _what(blob, snapshot, previous, part)
        headers = {"x-ms-range": f"bytes={part.start}-{part.end - 1}"}
        headers |= {"x-ms-previous-snapshot-url": export.previous_url} if export and previous else {}
        ask = Ask(
            "GET", blob, what, snapshot=snapshot, query=query, headers=headers, url=export.url if export else "",
            waits_out_timeouts=part.size <= WINDOW_BYTES_MIN,
        )  # fmt: skip

        async def receive(answer: aiohttp.ClientResponse) -> tuple[list[DiffRange], str]:
            parser = PageListParser(part, what)
            async for chunk in answer.content.iter_any():
                parser.feed(chunk)
            return parser.finish()

        return await self._transport.send(ask, receive)


def _what(blob: Source, snapshot: str, previous: str, part: ByteRange) -> str:
    kind = f"diff since {previous}" if previous else "ranges"
    return f"list the {kind} of {blob} {snapshot} in [{part.start}, {part.end})"


class PageListParser:
    """Parses a PageList fed in pieces. `Start` and `End` are inclusive in the service's answer, half-open here."""

    def __init__(self, window: ByteRange, what: str) -> None:
        """Ranges are cut at `window`: whether the service does so itself is not documented."""
        self._window, self._what = window, what
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._ranges: list[DiffRange] = []
        self._marker = ""
        self._root = ""
        self._words = ""
        self._first = self._last = -1

    def feed(self, data: bytes) -> None:
        """Parse the next piece. Raises UnexpectedAnswerError."""
        self._parse(data, final=False)

    def finish(self) -> tuple[list[DiffRange], str]:
        """The ranges and the marker of the next page; empty at the end. Raises UnexpectedAnswerError for a cut-off answer."""
        self._parse(b"", final=True)
        if self._root != "PageList":
            self._refuse(f"its root is {self._root!r}, not PageList")
        return self._ranges, self._marker

    def _parse(self, data: bytes, *, final: bool) -> None:
        try:
            self._parser.Parse(data, final)
        except expat.ExpatError as error:
            self._refuse(f"it is not XML: {error}")

    def _refuse(self, why: str) -> NoReturn:
        message = f"{self._what}: the answer cannot be read: {why}; nothing was assumed from it"
        raise UnexpectedAnswerError(message)

    def _doctype(self, *_: object) -> None:
        self._refuse("it declares a document type")

    def _start(self, name: str, _: object) -> None:
        self._root = self._root or name
        self._words = ""

    def _text(self, words: str) -> None:
        self._words += words

    def _end(self, name: str) -> None:
        if name == "Start":
            self._first = self._number()
        elif name == "End":
            self._last = self._number()
        elif name == "NextMarker":
            self._marker = self._words.strip()
        elif name in ("PageRange", "ClearRange"):
            self._add(cleared=name == "ClearRange")
        elif name != "PageList":
            self._refuse(f"it has an element {name!r}")

    def _number(self) -> int:
        words = self._words.strip()
        if not words.isascii() or not words.isdigit():
            self._refuse(f"{words[:40]!r} is not an offset")
        return int(words)

    def _add(self, *, cleared: bool) -> None:
        first, end = self._first, self._last + 1
        self._first = self._last = -1
        if first < 0 or end <= first or first % PAGE or end % PAGE:
            self._refuse(f"[{first}, {end}) is not a range of whole pages")
        first, end = max(first, self._window.start), min(end, self._window.end)
        if first < end:
            self._ranges.append(DiffRange(ByteRange(first, end), cleared))
