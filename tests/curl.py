"""Stands for curl where a machine has none: the options that the handbook and `make up` use, by the library of the tests."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import requests

FAILED = 22
"""curl's own exit status for an answer of 400 and above."""


def path_with_curl(folder: Path) -> str:
    """The PATH, with this program as `curl` in `folder` before it where the machine has none."""
    path = os.environ.get("PATH", "")
    if shutil.which("curl"):
        return path
    program = folder / "curl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).absolute()}" "$@"\n')
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{path}"


def main(arguments: list[str]) -> int:
    """Send one request, print its answer."""
    parser = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    parser.add_argument("-X", "--request", default="")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data")
    parser.add_argument("-i", "--include", action="store_true")
    parser.add_argument("-f", "--fail-with-body", action="store_true")
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-S", "--show-error", action="store_true")
    parser.add_argument("url")
    request = parser.parse_args(arguments)
    headers = dict(one.split(": ", 1) for one in request.header)
    if request.data is not None:
        headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
    method = request.request or ("GET" if request.data is None else "POST")
    answer = requests.request(method, request.url, data=request.data, headers=headers, timeout=60)
    if request.include:
        print(f"HTTP/1.1 {answer.status_code} {answer.reason}", *(f"{n}: {v}" for n, v in answer.headers.items()), "", sep="\n")
    sys.stdout.write(answer.text)
    if request.fail_with_body and not answer.ok:
        print(f"curl: ({FAILED}) The requested URL returned error: {answer.status_code}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
