"""Writes the table of docs/settings.md from `Settings`: `python -m tools.settings_page`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

from backup_core.settings import Settings
from tools.tables import with_rows

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
BY_PLATFORM = frozenset({"website_auth_enabled", "website_hostname"})
"""App Service sets these itself: they are no settings of an operator's."""


def meanings() -> dict[str, str]:
    """Each setting's docstring in one line, by field; empty without one."""
    body = ast.parse(textwrap.dedent(inspect.getsource(Settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found[field.target.id] = " ".join(str(text).split())
    return found


def default(name: str) -> str:
    """The setting's default as an operator writes it."""
    one = Settings.model_fields[name]
    if one.is_required():
        return "required"
    value = one.get_default(call_default_factory=True)
    if value in ("", (), {}):
        return "empty"
    if isinstance(value, tuple):
        value = " ".join(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page(text: str) -> str:
    """The page with the table as `Settings` has it now."""
    shown = {name: meaning for name, meaning in meanings().items() if name not in BY_PLATFORM}
    rows = [(f"`{name.upper()}`", default(name), meaning) for name, meaning in shown.items()]
    return with_rows(text, ("setting", "default", "meaning"), rows)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
