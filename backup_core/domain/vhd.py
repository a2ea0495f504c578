"""Whether an image is a fixed VHD that a managed disk can be made of (Virtual Hard Disk Image Format Specification)."""

from __future__ import annotations

import struct

from backup_core.domain.ranges import MIB, PAGE

FOOTER_BYTES = PAGE
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII")
_FIXED = 2


def vhd_faults(footer: bytes, size: int) -> list[str]:
    """The faults of an image of `size` bytes that ends with `footer` (512 bytes), in words."""
    cookie, _, _, offset, _, _, _, _, _, current, _, _, _, kind, checksum = _FOOTER.unpack_from(footer)
    if cookie != b"conectix":
        return ["its last 512 bytes are not the footer of a VHD"]
    faults = []
    if kind != _FIXED or offset != 2**64 - 1:
        faults.append("it is not a fixed VHD")
    if ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF != checksum:
        faults.append("its footer's checksum is wrong")
    if current != size - FOOTER_BYTES:
        faults.append(f"its footer says {current} bytes, it has {size - FOOTER_BYTES}")
    if (size - FOOTER_BYTES) % MIB:
        faults.append(f"its {size - FOOTER_BYTES} bytes are not whole mebibytes")
    return faults
