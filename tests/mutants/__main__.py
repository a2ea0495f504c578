"""Breaks one guard of the product at a time, in a copy of the checkout, and runs the tests that must fail.

Exits with 1 when a fault was noticed by no test, or when one that is listed as such was noticed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mutants.guard import REPOSITORY
from tests.mutants.guards import GUARDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.mutants.guard import Guard

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "node_modules")
OURS = ("backup_core", "bench", "devhost", "function_app", "tests", "tools")
THEIRS = (
    "aiohttp", "azure.data.tables.aio", "azure.mgmt.compute.aio", "azure.storage.blob.aio", "hypothesis", "pydantic",
    "schemathesis",
)  # fmt: skip
"""What tests import and takes long: imported here once, and not in each process."""
# Only the plugins that the named tests need: the others take longer to load than most of these tests run. What waits for ever
# because a guard is broken has been noticed. What recurses for ever ends in a traceback for which pytest's own would have the
# sources parsed, which Python 3.11 cannot do at that depth.
OPTIONS = (
    "-x", "-q", "--tb=native", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "--timeout=60",
)  # fmt: skip


@contextmanager
def scratch() -> Iterator[Path]:
    """A copy of the checkout with what is installed in it, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder, "copy")
        shutil.copytree(REPOSITORY, copy, ignore=LEFT_OUT)
        emulator = Path("devhost", "emulator", "node_modules")
        (copy / emulator).symlink_to(REPOSITORY / emulator)
        yield copy


@contextmanager
def broken(copy: Path, guard: Guard) -> Iterator[None]:
    """The copy with that guard broken, meanwhile."""
    path = copy / guard.path
    source = path.read_text()
    _write(path, guard.broken(source))
    try:
        yield
    finally:
        _write(path, source)


def _write(path: Path, source: str) -> None:
    path.write_text(source)
    # A compiled file counts as fresh for a source of the same length and second.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def tested(copy: Path, tests: Iterable[str]) -> tuple[bool, str]:
    """Whether the tests pass in the copy, and their output. Raises RuntimeError when they did not come to a verdict."""
    with tempfile.TemporaryFile("w+") as said:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os._exit(_pytest(copy, tests, said.fileno()))
        _, status = os.waitpid(child, 0)
        said.seek(0)
        text = said.read()
    ended = os.waitstatus_to_exitcode(status)
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        message = f"pytest ended with {ended}, without a verdict: {' '.join(tests)}\n{text}"
        raise RuntimeError(message)
    return ended == pytest.ExitCode.OK, text


def _pytest(copy: Path, tests: Iterable[str], said: int) -> int:
    """Pytest's exit code, in this process, which from here on imports nothing from the checkout."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(said, stream.fileno())
    os.chdir(copy)
    sys.path[:] = [str(copy), *(place for place in sys.path if place and Path(place).resolve() != REPOSITORY)]
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PAGEKEEPER_SEED": "1"}
    ended = pytest.main([*OPTIONS, *(f"tests/{test}" for test in tests)])
    sys.stdout.flush()
    return ended


def run(guards: Sequence[Guard]) -> int:
    """Break each of the guards and print the result of each, then the numbers; returns the exit code."""
    began, accepted, wrong = time.monotonic(), [], []
    for name in THEIRS:
        importlib.import_module(name)
    with scratch() as copy:
        passed, said = tested(copy, sorted({test for guard in guards for test in guard.tests}))
        if not passed:
            print(f"tests fail with every guard in place:\n{said}", file=sys.stderr)
            return 1
        for guard in guards:
            with broken(copy, guard):
                survived, said = tested(copy, guard.tests)
            print(f"{'SURVIVED' if survived else 'killed':8}  {guard.file}: {guard.protects}", flush=True)
            if survived != bool(guard.survives):
                wrong.append(guard)
            elif survived:
                accepted.append(guard)
    for guard in accepted:
        print(f"no test can notice: {guard.file}: {guard.protects}: {guard.survives}")
    for guard in wrong:
        what = "is listed as one that no test can notice, and was noticed by" if guard.survives else "was not noticed by"
        words = f"WRONG: {guard.file}: {guard.protects}: {guard.instead!r} for {guard.text!r} {what} {' '.join(guard.tests)}"
        print(words, file=sys.stderr)
    noticed = len(guards) - len(accepted) - len(wrong)
    print(
        f"{len(guards)} guards broken: {noticed} noticed, {len(accepted)} that no test can notice, {len(wrong)} wrong; "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="guards whose file or words contain this")
    only = parser.parse_args().only
    chosen = [guard for guard in GUARDS if only in f"{guard.file}: {guard.protects}"]
    if not chosen:
        parser.error(f"no guard has {only!r} in its file or words")
    return run(chosen)


if __name__ == "__main__":
    sys.exit(main())
