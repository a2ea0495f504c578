"""Known vulnerabilities among the packages that are deployed, by pip-audit. Tolerates being offline, and says so loudly.

An index that has no advisories makes pip-audit skip every package and then report "no known vulnerabilities": that is no pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
TIMEOUT_SECONDS = 120


def request() -> str:
    """The answer of pip-audit for requirements.txt, as JSON; its error text when it broke off."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", "requirements.txt", "--require-hashes", "--disable-pip",
        "--format", "json", "--progress-spinner", "off", "--timeout", "10",
    ]  # fmt: skip
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT_SECONDS} s"
    return ended.stdout or ended.stderr.strip().rpartition("\n")[2]


def judged(answer: str) -> tuple[int, str]:
    """(exit status, words) for pip-audit's answer."""
    try:
        packages: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return 0, loud(f"pip-audit broke off: {answer[:300]}")
    known = [(one["name"], one["version"], bad) for one in packages for bad in one.get("vulns", ())]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if known:
        lines = [
            f"  {name} {version}: {bad['id']}, fixed in {', '.join(bad['fix_versions']) or 'no version'}"
            for name, version, bad in known
        ]
        advice = "audit: known vulnerabilities; raise the versions in requirements.in and run 'make lock'"
        return 1, "\n".join([advice, *lines])
    if len(skipped) == len(packages):
        return 0, loud("the package index here knows no advisories, or cannot be reached")
    if skipped:
        return 0, loud(f"{len(skipped)} of {len(packages)} packages are unknown to the advisories: {', '.join(skipped)}")
    return 0, f"audit: {len(packages)} packages, no known vulnerability"


def loud(why: str) -> str:
    """A text that nobody takes for a pass."""
    line = "!" * 100
    return f"{line}\naudit: DEPENDENCIES WERE NOT CHECKED for known vulnerabilities: {why}\n{line}"


if __name__ == "__main__":
    status, words = judged(request())
    print(words)
    sys.exit(status)
