"""As much of the Kusto query language as the alerts and the workbook use: which names a query uses, and what its filters let pass."""

from __future__ import annotations

import re

BEGIN = "traces | where message startswith 'pagekeeper ' | extend e = parse_json(substring(message, 11)) | where tostring(e.event) == '"
COLUMNS = frozenset({"timestamp", "message", "traces"})
"""Of Application Insights' table `traces`; more is not used."""
WORDS = frozenset({
    "where", "extend", "project", "summarize", "by", "order", "asc", "desc", "render", "timechart", "scatterchart",
    "and", "or", "in", "bin", "startswith", "parse_json", "substring", "tostring", "tolong", "tobool", "todouble",
    "todatetime", "isnotempty", "arg_max", "count", "dcount", "max", "sum", "true",
})  # fmt: skip
"""Operators, functions and literals that may be used."""


def names(query):
    """Every word of the query outside strings, fields of `e` and numbers with a unit."""
    bare = re.sub(r"'[^']*'", "", query)
    bare = re.sub(r"\be\.\w+|\b\d+(\.\d+)?[mh]?\b|\{\w+\}", "", bare)
    return set(re.findall(r"[A-Za-z_]\w*", bare))


def made(query):
    """Names the query itself gives."""
    return set(re.findall(r"\b([a-z_]+) = ", re.sub(r"'[^']*'", "", query))) | {"e"}


def event(query):
    return re.search(r"tostring\(e\.event\) == '(\w+)'", query).group(1)


def fields(query):
    return set(re.findall(r"\be\.(\w+)", query)) - {"event"}


def lets_pass(query, told):
    """Whether the query's filters let an event pass. Raises AssertionError for a filter that this cannot read."""
    for part in query.split(" | ")[2:]:
        if part.startswith("where ") and "{Disk}" not in part:
            condition = part.removeprefix("where ")
            if not all(_holds(one, told) for one in condition.split(" and ")):
                return False
    return True


def _holds(condition, told):
    if match := re.fullmatch(r"isnotempty\(tostring\(e\.(\w+)\)\)", condition):
        return bool(told[match.group(1)])
    match = re.fullmatch(r"(tostring|tolong|tobool|todouble)\(e\.(\w+)\) (==|>) ('\w+'|true|[\d.]+)", condition)
    assert match, condition
    kind, name, sign, literal = match.groups()
    value = told[name]
    assert (sign == ">") == (kind in {"tolong", "todouble"}), condition
    if kind == "tobool":
        return value is (literal == "true")
    if kind == "tostring":
        return (value or "") == literal.strip("'")
    return value is not None and value > float(literal)
