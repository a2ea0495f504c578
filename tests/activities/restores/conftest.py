"""Restores begin with a disk that has restore points, and a machine that uses it."""

from __future__ import annotations

import pytest


@pytest.fixture
def scene(restorable):
    """The disk of a machine with three restore points."""
    return restorable
