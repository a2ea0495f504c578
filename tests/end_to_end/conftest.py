"""Assertion messages for helpers: pytest rewrites the assertions of the module that these tests share."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.end_to_end.managed_restores")
