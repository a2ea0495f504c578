"""The two disks most protocol tests begin with, under both kinds of diff."""

from __future__ import annotations

import pytest

from tests.scene import Scene

pytest.register_assert_rewrite("tests.activities.acts", "tests.activities.ways")


@pytest.fixture(params=["writes", "content", "managed"])
def scene(request):
    """A protected disk of 32 pages with some data: a page blob under both kinds of diff, and a managed disk."""
    stage = Scene(managed=True) if request.param == "managed" else Scene(diff=request.param)
    stage.protect()
    stage.write(0, 1, 2, 3, None, 5)
    stage.write(20, 9, 9)
    return stage


@pytest.fixture(params=["writes", "content"])
async def restorable(request):
    """A disk of a machine with three restore points, and something written since."""
    stage = Scene(diff=request.param)
    stage.protect()
    stage.write(0, 1, 2, 3, None, 5)
    stage.machine()
    await stage.back_up()
    stage.write(2, 30, None)
    await stage.back_up()
    stage.write(6, 60, 61)
    await stage.back_up()
    stage.write(0, 99)
    return stage
