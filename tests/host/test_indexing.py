"""Faults the real worker refuses are refused here too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from devhost.platform import REPOSITORY

HEAD = "import azure.durable_functions as df\nimport azure.functions as func\napp = df.DFApp()\n"
FAULTS = {
    "a parameter without a binding": "@app.route(route='x')\ndef f(req: func.HttpRequest, more: str) -> str:\n    return ''\n",
    "a binding without its parameter": "@app.route(route='x')\ndef f(request: func.HttpRequest) -> str:\n    return ''\n",
    "an annotation the binding does not take": "@app.timer_trigger(schedule='* * * * * *', arg_name='t')\ndef f(t: int) -> None:\n    pass\n",
    "two apps": "other = df.DFApp()\n",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(tmp_path, fault):
    (tmp_path / "function_app.py").write_text(HEAD + FAULTS[fault])

    ended = subprocess.run(
        [sys.executable, "-m", "devhost.functions", str(tmp_path), "--hub", str(tmp_path / "hub.sqlite")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ended.returncode != 0
    assert "IndexingError" in ended.stderr
