"""Fixtures of the API tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.records import Slot
from tests.scene import VM, Scene


@pytest.fixture
async def scene():
    """A disk of a machine, with two restore points."""
    stage = Scene()
    stage.protect()
    stage.write(0, 1, 2, None, 4)
    stage.machine()
    row = stage.catalogue.rows["vm", "registration"]
    stage.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, machine=Slot(VM, 0)))
    await stage.back_up()
    stage.write(5, 50)
    await stage.back_up()
    return stage
