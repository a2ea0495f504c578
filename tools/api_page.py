"""Writes the table of calls in docs/api.md from the OpenAPI document: `python -m tools.api_page`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backup_core.api.openapi import document
from backup_core.api.routes import ROUTES
from tools.tables import with_rows

PAGE = Path(__file__).parent.parent / "docs" / "api.md"


def page(text: str) -> str:
    """The page with the table as the OpenAPI document has it now."""
    api = document(ROUTES, "/api")
    rows = [
        _row(f"{method.upper()} {api['servers'][0]['url']}{path}", operation, api["components"]["schemas"])
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    ]
    return with_rows(text, ("call", "does", "takes", "answers"), rows)


def _row(call: str, operation: dict[str, Any], schemas: dict[str, Any]) -> tuple[str, str, str, str]:
    taken = [one["name"] for one in operation["parameters"] if one["in"] != "path"]
    if body := operation.get("requestBody"):
        model = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        taken += schemas[model]["properties"]
    statuses = ", ".join(status for status in operation["responses"] if status != "default")
    does = f"{operation['summary']} {operation['description']}".strip()
    return f"`{call}`", does, ", ".join(f"`{name}`" for name in taken), statuses


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
