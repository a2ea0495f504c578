"""Performance tiers of premium page blobs."""

from __future__ import annotations

from backup_core.domain.ranges import GIB, PAGE

_GIB_BY_TIER = {
    "P4": 32, "P6": 64, "P10": 128, "P15": 256, "P20": 512, "P30": 1024, "P40": 2048, "P50": 4096, "P60": 8192,
}  # fmt: skip
"""The largest blob of each tier (Azure Storage limits, premium page blobs)."""


def fitting_tier(kept: str, size: int) -> str:
    """The tier for a restored disk of `size` bytes whose predecessor had the tier `kept` by somebody's choice. The tier is
    `kept`, or the smallest that fits. Empty stays empty: then the service chooses by size, which always fits.
    """
    tiers = list(_GIB_BY_TIER)
    if kept not in tiers:
        return ""
    # A VHD's footer is not counted: a disk of 128 GiB and a page is a P10.
    fitting = [tier for tier in tiers if size - PAGE <= _GIB_BY_TIER[tier] * GIB]
    return kept if kept in fitting else (fitting[0] if fitting else "")
