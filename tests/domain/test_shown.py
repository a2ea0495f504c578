"""The status shown is bounded, and says when it was cut."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.shown import CUT, FAILURE_CHARS_MAX, NAMED_MAX, STATUS_BYTES_MAX, bounded, named, shortened


def size(status):
    return len(json.dumps(status, ensure_ascii=False).encode("utf-16-le", "surrogatepass"))


texts = st.text(max_size=50) | st.builds(
    lambda text, times: text * times, st.text(min_size=1, max_size=9), st.integers(0, 4000)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(["disk", "phase", "points", "end", "why"]) | st.text(max_size=20), values, max_size=12))
def test_no_status_is_too_long(status):
    """Every status is bounded, and a status that fits is shown unchanged."""
    shown = bounded(status)

    assert size(shown) <= STATUS_BYTES_MAX
    short = size(status) <= STATUS_BYTES_MAX and CUT not in json.dumps(shown, ensure_ascii=False)
    assert shown == json.loads(json.dumps(status)) if short else shown


def test_a_cut_can_be_seen():
    """A cut text keeps its beginning; a cut list says how many items are missing."""
    shown = bounded({"phase": "done", "end": "failed: " + "x" * 9000, "points": [str(n) for n in range(500)]})

    assert shown["phase"] == "done"
    assert shown["end"].startswith("failed: xxx")
    assert shown["end"].endswith(CUT)
    assert len(shown["end"]) == FAILURE_CHARS_MAX
    assert shown["points"] == [*(str(n) for n in range(NAMED_MAX)), f"{CUT} and {500 - NAMED_MAX} more"]


def test_more_is_cut_when_that_is_not_enough():
    """Of many long texts, each is cut further; short texts stay whole."""
    shown = bounded({"phase": "done", **{f"name{n}": "é" * 5000 for n in range(12)}})

    assert shown["phase"] == "done"
    assert all(shown[f"name{n}"] == "é" * 99 + CUT for n in range(12))


def test_a_part_that_cannot_be_cut_to_fit_is_omitted():
    """With too many names, the phase is still shown."""
    shown = bounded({"phase": "copying", **{f"name {n}": n for n in range(2000)}})

    assert shown == {"phase": "copying", "cut": "the rest is too long to be shown"}


def test_failures_are_named_up_to_a_bound():
    """The first failures are named, in full or cut, with the number of the others."""
    assert shortened("x" * FAILURE_CHARS_MAX) == "x" * FAILURE_CHARS_MAX
    assert named(["a: it broke", "b" * 9000]) == "a: it broke; " + "b" * (FAILURE_CHARS_MAX - 1) + CUT
    assert named([f"disk{n}" for n in range(25)]) == "; ".join(f"disk{n}" for n in range(NAMED_MAX)) + "; and 5 more"
