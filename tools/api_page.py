"""Writes the table of calls in docs/api.md from the OpenAPI document: `python -m tools.api_page`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from backup_core.api.openapi import document
from backup_core.api.routes import ROUTES

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
_TABLE = re.compile(r"(?<=\| call \| does \| takes \| answers \|\n\|---\|---\|---\|---\|\n)(?:\|.*\n)+")


def page(text: str) -> str:
    """The page with the table as the OpenAPI document has it now."""
    api = document(ROUTES, "/api")
    rows = [
        _row(f"{method.upper()} {api['servers'][0]['url']}{path}", operation, api["components"]["schemas"])
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    ]
    return _TABLE.sub(lambda _: "".join(rows), text, count=1)


def _row(call: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    taken = [one["name"] for one in operation["parameters"] if one["in"] != "path"]
    if body := operation.get("requestBody"):
        model = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        taken += schemas[model]["properties"]
    statuses = ", ".join(status for status in operation["responses"] if status != "default")
    does = f"{operation['summary']} {operation['description']}".strip()
    return f"| `{call}` | {does} | {', '.join(f'`{name}`' for name in taken)} | {statuses} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
