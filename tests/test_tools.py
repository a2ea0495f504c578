"""The checks of `make lint` that could pass without having looked: each is shown to fail, or to say that it did not run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from devhost.platform import REPOSITORY
from tools import audit, setup


def packages(*found):
    return json.dumps({"dependencies": list(found), "fixes": []})


GOOD = {"name": "aiohttp", "version": "3.14.5", "vulns": []}
BAD = {
    "name": "yarl",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}],
}
SKIPPED = {"name": "six", "skip_reason": "Dependency not found on PyPI"}


def test_a_known_vulnerability_fails_with_the_action_to_take():
    status, words = audit.judged(packages(GOOD, BAD, SKIPPED))

    assert status == 1
    assert "yarl 1.0: PYSEC-1, fixed in 1.1" in words
    assert "make lock" in words


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (packages(SKIPPED, SKIPPED), "knows no advisories"),
        (packages(GOOD, SKIPPED), "1 of 2 packages are unknown to the advisories: six"),
        ("ConnectionError: no route", "broke off: ConnectionError"),
        ("", "broke off"),
        ("[]", "broke off"),
    ],
)
def test_packages_that_were_not_checked_are_reported_prominently(answer, why):
    status, words = audit.judged(answer)

    assert status == 0
    assert "WERE NOT CHECKED" in words
    assert "!!!!!!" in words
    assert why in words


def test_a_clean_audit_is_quiet():
    assert audit.judged(packages(GOOD)) == (0, "audit: 1 packages, no known vulnerability")


def test_bandit_finds_a_planted_fault(tmp_path):
    """As make lint calls it: medium severity and up."""
    (tmp_path / "planted.py").write_text(
        "import subprocess\n\ndef run(text):\n    subprocess.Popen(text, shell=True)\n    eval(text)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "bandit", "-q", "-ll", "-r", str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert "B307" in ended.stdout
    assert "B602" in ended.stdout


def test_lint_calls_both():
    text = (REPOSITORY / "Makefile").read_text()
    lint = text[text.index("\nlint:") : text.index("\nformat:")]

    assert "tools/audit.py" in lint
    assert "bandit -q -ll -c pyproject.toml -r backup_core function_app.py bench devhost tools" in lint


def test_pre_commit_runs_the_commands_of_lint():
    """All hooks are local: nothing is downloaded for them."""
    text = (REPOSITORY / "Makefile").read_text()
    lint = subprocess.run(
        ["make", "-n", "lint", "VENV=.venv"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    lint = re.findall(r"^\.venv/bin/(\S+(?: (?:format|check|tools/\S+))?)", lint, flags=re.MULTILINE)
    kept = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for one in kept for hook in one["hooks"]]

    assert [one["repo"] for one in kept] == ["local"]
    assert len(lint) == 6
    assert [command for command in lint if not any(hook.startswith(command) for hook in hooks)] == []
    assert len(hooks) == len(lint)
    assert next(hook for hook in hooks if hook.startswith("bandit")) in text


def test_ci_runs_one_public_command_on_every_supported_python():
    """The oldest is the one that pyproject.toml promises."""
    job = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    oldest = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]

    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert oldest == ">=3.11"


# -- set-up -----------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Raised to end a set-up at any step, like a kill of its process."""


class Maker:
    """A stand-in for pip and npm: makes files step by step, and dies before step `dies_at`."""

    def __init__(self, dies_at=0, error=Killed):
        self.dies_at, self.error, self.steps = dies_at, error, 0

    def step(self):
        self.steps += 1
        if self.steps == self.dies_at:
            raise self.error

    def __call__(self, making, folder):
        (making / "bin").mkdir(parents=True)
        for name in ("python", "pip", "mypy"):
            self.step()
            (making / "bin" / name).write_text(f"#!{making}/bin/python\n")
        self.step()
        setup.rename_inside(making, folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of the environment, which is made from files of this test."""
    source, packages = tmp_path / "requirements.txt", tmp_path / "package"
    source.write_text("one")
    (packages / "node_modules").mkdir(parents=True)
    monkeypatch.setattr(setup, "INPUTS", (source,))
    monkeypatch.setattr(setup, "NODE_PACKAGES", (packages,))
    return tmp_path / ".venv"


def made(monkeypatch, place, maker):
    monkeypatch.setattr(setup, "make", maker)
    return setup.main(place)


def whole(place):
    programs = {one.name: one.read_text() for one in (place / "bin").iterdir()}
    return programs == dict.fromkeys(("python", "pip", "mypy"), f"#!{place}/bin/python\n") and (place / ".ready").exists()


@pytest.mark.parametrize("former", ["nothing", "whole", "half", "link"])
@pytest.mark.parametrize("step", range(1, 5))
def test_an_interrupted_set_up_leaves_nothing_half_and_the_next_ends_well(place, monkeypatch, tmp_path, former, step):
    """Killed before each step; also over what an older set-up left half-made, or over a link."""
    if former == "whole":
        assert made(monkeypatch, place, Maker()) == 0
        setup.INPUTS[0].write_text("two")
    elif former == "half":
        (place / "bin").mkdir(parents=True)
        (place / "bin" / "python").write_text("without pip")
    elif former == "link":
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "mine").write_text("not to be removed")
        place.symlink_to(tmp_path / "other")
    with pytest.raises(Killed):
        made(monkeypatch, place, Maker(step))
    assert not (place / ".ready").exists(), "make begins anew"

    assert made(monkeypatch, place, Maker()) == 0
    assert whole(place)
    assert {one.name for one in tmp_path.glob(".venv*")} == {".venv"}
    assert former != "link" or (tmp_path / "other" / "mine").exists()


def test_a_set_up_over_links_touches_nothing_of_the_checkout_behind_them(place, monkeypatch, tmp_path):
    """A worktree may use the environment and the Node packages of another one; `npm ci` removes what is in its folder."""
    other, packages = tmp_path / "other", setup.NODE_PACKAGES[0] / "node_modules"
    for name in ("packages", "environment"):
        (other / name).mkdir(parents=True)
        (other / name / ".ready").write_text("theirs")
    packages.rmdir()
    packages.symlink_to(other / "packages")
    place.symlink_to(other / "environment")

    def maker(making, folder):
        shutil.rmtree(packages, ignore_errors=True)
        for one in packages.glob("*"):  # what a link leads to, as npm does
            one.unlink()
        packages.mkdir(exist_ok=True)
        Maker()(making, folder)

    assert made(monkeypatch, place, maker) == 0
    assert whole(place)
    assert [one.read_text() for one in sorted(other.glob("*/.ready"))] == ["theirs", "theirs"]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_set_up_killed_while_it_moves_ends_well_the_next_time(place, monkeypatch, rename):
    assert made(monkeypatch, place, Maker()) == 0
    setup.INPUTS[0].write_text("two")
    real, renames = setup.Path.rename, []

    def dying(self, target):
        renames.append(target)
        if len(renames) == rename:
            raise Killed
        return real(self, target)

    monkeypatch.setattr(setup.Path, "rename", dying)
    with pytest.raises(Killed):
        made(monkeypatch, place, Maker())
    monkeypatch.setattr(setup.Path, "rename", real)

    assert made(monkeypatch, place, Maker()) == 0
    assert whole(place)


def test_an_environment_of_the_same_files_is_kept(place, monkeypatch):
    """A checkout that only touches the files costs nothing; another content, or a lost Node package, makes it anew."""
    first, second, third = Maker(), Maker(), Maker()
    assert made(monkeypatch, place, first) == 0
    setup.INPUTS[0].touch()
    assert made(monkeypatch, place, second) == 0
    assert second.steps == 0
    (setup.NODE_PACKAGES[0] / "node_modules").rmdir()
    assert made(monkeypatch, place, third) == 0
    assert third.steps == first.steps


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (subprocess.CalledProcessError(1, ["pip", "install"]), "pip install failed (1): "),
    ],
)
def test_a_set_up_that_fails_says_why_and_leaves_nothing(place, monkeypatch, capsys, tmp_path, error, words):
    assert made(monkeypatch, place, Maker(2, error)) == 1

    said = capsys.readouterr().err
    assert words in said
    assert "run make again" in said
    assert not list(tmp_path.glob(".venv*"))


@pytest.mark.parametrize(
    ("missing", "words"),
    [("ensurepip", "apt-get install python3-venv"), ("sqlite3", "use another by 'make PYTHON=")],
)
def test_a_missing_module_is_reported_before_the_set_up_begins(place, monkeypatch, capsys, tmp_path, missing, words):
    """On a bare Debian the first set-up stopped half way for want of python3-venv, and every later one for want of pip."""
    real = setup.importlib.util.find_spec
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    maker = Maker()

    assert made(monkeypatch, place, maker) == 1
    assert words in capsys.readouterr().err
    assert (maker.steps, list(tmp_path.glob(".venv*"))) == (0, [])


def test_a_full_disk_is_reported_before_the_set_up_begins(place, monkeypatch, capsys):
    monkeypatch.setattr(setup, "SPACE_BYTES", 10**18)

    assert made(monkeypatch, place, Maker()) == 1
    assert "free space" in capsys.readouterr().err
