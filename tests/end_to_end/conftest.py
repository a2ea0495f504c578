"""What the tests of this folder share says what it found, as they do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.end_to_end.managed_restores")
