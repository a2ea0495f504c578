"""The queries of alerts and workbook: diagnostics of Kusto's language service, the fields that they read, and their filters."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from devhost.storage import node

BEGIN_BACKUP = "traces | where message startswith 'pagekeeper ' | extend e = parse_json(substring(message, 11)) | where tostring(e.event) == '"
TABLES = {"traces": "(timestamp: datetime, message: string)"}
"""Of Application Insights: what is used."""
CHECKER = Path(__file__).parent / "kusto" / "analyse.js"


def analysed(queries):
    """The faults that Microsoft's language service finds in each query, and the columns of its result with their types."""
    request = json.dumps({"tables": TABLES, "queries": queries})
    ended = subprocess.run([node(), str(CHECKER)], input=request, stdout=subprocess.PIPE, text=True, check=True)
    return [(one["faults"], one["columns"]) for one in json.loads(ended.stdout)]


def event(query):
    return re.search(r"tostring\(e\.event\) == '(\w+)'", query).group(1)


def fields(query):
    return set(re.findall(r"\be\.(\w+)", query)) - {"event"}


def lets_pass(query, fields):
    """Whether the query's filters let an event pass. Raises AssertionError for a filter that this cannot read."""
    for part in query.split(" | ")[2:]:
        if part.startswith("where ") and "{Disk}" not in part:
            condition = part.removeprefix("where ")
            if not all(_is_true(one, fields) for one in condition.split(" and ")):
                return False
    return True


def _is_true(condition, fields):
    if match := re.fullmatch(r"isnotempty\(tostring\(e\.(\w+)\)\)", condition):
        return bool(fields[match.group(1)])
    match = re.fullmatch(r"(tostring|tolong|tobool|todouble)\(e\.(\w+)\) (==|>) ('\w+'|true|[\d.]+)", condition)
    assert match, condition
    kind, name, sign, literal = match.groups()
    value = fields[name]
    assert (sign == ">") == (kind in {"tolong", "todouble"}), condition
    if kind == "tobool":
        return value is (literal == "true")
    if kind == "tostring":
        return (value or "") == literal.strip("'")
    return value is not None and value > float(literal)
