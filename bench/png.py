"""A PNG of curves over one time, by the standard library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

Colour = tuple[int, int, int]
WHITE, GREY, BLUE, RED, BLACK = (255, 255, 255), (225, 225, 225), (60, 110, 190), (200, 50, 40), (40, 40, 40)
WIDTH, HEIGHT, LEFT, MARGIN = 900, 190, 110, 34
"""Pixels: of the picture, of each curve's part, left of it, and above and below it."""
SCALE = 2
_GLYPHS = {
    "0": "69996", "1": "26227", "2": "e168f", "3": "e161e", "4": "99f11", "5": "f8e1e", "6": "68e96", "7": "f1244",
    "8": "69696", "9": "69716", "a": "06197", "b": "88e9e", "c": "07887", "d": "11797", "e": "069c7", "f": "34e44",
    "g": "07971", "h": "88e99", "i": "20222", "k": "89aca", "l": "44446", "m": "0adbb", "n": "0e999", "o": "06996",
    "p": "0e9e8", "q": "07971", "r": "0b888", "s": "07c3e", "t": "4e443", "u": "09997", "v": "0aaa4", "x": "09669",
    "y": "09971", "M": "9fd99", "B": "e9e9e", "/": "12248", ",": "00024", ".": "00004", " ": "00000",
}  # fmt: skip
"""Five rows of four pixels each, a hexadecimal digit a row."""


@dataclass(frozen=True)
class Curve:
    """A titled curve, drawn in one part of the picture."""

    title: str
    values: Sequence[float]
    """One for each moment, from the left to the right."""
    limit: float = 0.0
    """Drawn as a line where it is given."""


class Canvas:
    """Pixels, white at first."""

    def __init__(self, width: int, height: int) -> None:
        """Of that size."""
        self.width, self.height = width, height
        self._rows = [bytearray(bytes(WHITE) * width) for _ in range(height)]

    def box(self, left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
        """Fill [left, right) x [top, bottom), as far as it is on the canvas."""
        left, right = max(left, 0), min(right, self.width)
        for row in self._rows[max(top, 0) : bottom] if left < right else []:
            row[3 * left : 3 * right] = bytes(colour) * (right - left)

    def write(self, left: int, top: int, text: str) -> None:
        """Draw the text."""
        for place, character in enumerate(text):
            for down, digit in enumerate(_GLYPHS[character]):
                for across in range(4):
                    if int(digit, 16) >> (3 - across) & 1:
                        x, y = left + SCALE * (5 * place + across), top + SCALE * down
                        self.box(x, y, x + SCALE, y + SCALE, BLACK)

    def png(self) -> bytes:
        """The picture as a file."""
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in self._rows), 9)
        parts = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
        )


def drawn(curves: Sequence[Curve], until: str) -> bytes:
    """The curves below each other; all begin at 0 and go on to the moment `until`."""
    canvas = Canvas(WIDTH, HEIGHT * len(curves))
    for number, curve in enumerate(curves):
        top, bottom, right = number * HEIGHT + MARGIN, (number + 1) * HEIGHT - MARGIN, WIDTH - 20
        highest = max(*curve.values, curve.limit)
        canvas.box(LEFT, top, right, bottom, GREY)
        for x in range(LEFT, right):
            value = curve.values[(x - LEFT) * len(curve.values) // (right - LEFT)]
            canvas.box(x, bottom - round((bottom - top) * value / highest), x + 1, bottom, BLUE)
        if curve.limit:
            y = bottom - round((bottom - top) * curve.limit / highest)
            for x in range(LEFT, right, 12):
                canvas.box(x, y - 1, x + 6, y + 1, RED)
        canvas.write(LEFT, top - 20, curve.title)
        canvas.write(LEFT - 14 - 10 * len(most := f"{highest:,.0f}"), top, most)
        canvas.write(LEFT - 24, bottom - 10, "0")
        canvas.write(LEFT, bottom + 8, "0")
        canvas.write(right - 10 * len(until), bottom + 8, until)
    return canvas.png()
