"""Pins requirements.txt and requirements-dev.txt anew from their .in files, with hashes, for every supported Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def compile_(name: str, *constraints: str) -> None:
    """Pin one file."""
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
         "--generate-hashes", "--no-header", *constraints, "--output-file", f"{name}.txt", f"{name}.in"],
        cwd=REPOSITORY,
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    compile_("requirements")
    compile_("requirements-dev", "--constraint", "requirements.txt")
