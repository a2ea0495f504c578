"""Reads Bicep files as far as the tests need: declarations and references."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import tree_sitter_bicep
from tree_sitter import Language, Parser

FUNCTIONS = frozenset({
    "concat", "empty", "environment", "filter", "flatten", "guid", "indexOf", "items", "join", "last", "loadJsonContent",
    "loadTextContent", "map", "replace", "resourceGroup", "resourceId", "split", "string", "subscription", "subscriptionResourceId",
    "take", "tenant", "toObject", "union", "uniqueString",
})  # fmt: skip
"""Functions of the language that are used: a misspelt one is found by not being here."""


@dataclass
class Declared:
    """A declaration: its kind is param, var, resource, module or output."""

    kind: str
    name: str
    node: object
    decorators: dict[str, str] = field(default_factory=dict)

    @property
    def type(self):
        """Of a parameter or output, its type; of a resource, type and version; of a module, its path."""
        if self.kind in ("resource", "module"):
            return text(child(self.node, "string")).strip("'")
        return text(child(self.node, "type"))

    @property
    def has_default(self):
        return self.kind == "param" and any(one.type == "=" for one in self.node.children)

    @property
    def body(self):
        """The object of a resource or module, also inside a loop or a condition."""
        return next(one for one in walk(self.node) if one.type == "object")


class File:
    """One parsed file. Raises AssertionError with the place when it is not Bicep."""

    def __init__(self, path):
        self.path = Path(path)
        tree = Parser(Language(tree_sitter_bicep.language())).parse(self.path.read_bytes())
        self.root = tree.root_node
        for node in walk(self.root):
            assert node.type != "ERROR", f"{path}:{node.start_point.row + 1}: not Bicep: {text(node)[:80]}"
            assert not node.is_missing, f"{path}:{node.start_point.row + 1}: {node.type} is missing"
        self.declared = []
        decorators = {}
        for node in self.root.children:
            if node.type == "decorators":
                decorators = dict(_decorator(one) for one in node.children)
            elif node.type.endswith("_declaration"):
                kind = {"parameter": "param", "variable": "var"}.get(node.type.removesuffix("_declaration"))
                kind = kind or node.type.removesuffix("_declaration")
                self.declared.append(Declared(kind, text(child(node, "identifier")), node, decorators))
                decorators = {}

    def of(self, kind):
        return {one.name: one for one in self.declared if one.kind == kind}

    def scope(self):
        return next(
            (text(child(one, "string")).strip("'") for one in self.root.children if one.type == "target_scope_assignment"),
            "resourceGroup",
        )


@cache
def load(path):
    return File(path)


def walk(node):
    yield node
    for one in node.children:
        yield from walk(one)


def text(node):
    return node.text.decode()


def child(node, kind):
    return next(one for one in node.children if one.type == kind)


def _decorator(node):
    call = child(node, "call_expression")
    arguments = [one for one in child(call, "arguments").children if one.is_named]
    return text(call.child_by_field_name("function")), text(arguments[0]).strip("'") if arguments else ""


def properties(node):
    """Key to value node of an object."""
    found = {}
    for one in node.children:
        if one.type == "object_property":
            key, *_, value = [part for part in one.children if part.type not in (":", "comment")]
            found[text(key).strip("'")] = value
    return found


def references(node, known=frozenset()):
    """(kind, name, node) of each name used in an expression: kind is `function` or `name`; loop and lambda names are known."""
    parts, names = list(node.children), frozenset()
    match node.type:
        case "identifier":
            if text(node) not in known:
                yield "name", text(node), node
        case "object_property":  # its key is none
            parts = [one for one in parts if one.is_named][1:]
        case "lambda_expression":
            names, parts = _introduced(parts[0]), parts[1:]
        case "for_statement":
            start = node.child_by_field_name("initializer") or child(node, "for_loop_parameters")
            names, parts = _introduced(start), [one for one in parts if one != start]
        case "call_expression":
            function = node.child_by_field_name("function")
            if function.type == "identifier":
                yield "function", text(function), node
                parts = [one for one in parts if one != function]
    for one in parts:
        yield from references(one, known | names)


def _introduced(node):
    return frozenset(text(one) for one in walk(node) if one.type in ("identifier", "loop_variable", "loop_enumerator"))


def used(declared):
    """References of a declaration, without its own name and type."""
    skipped = {child(declared.node, "identifier")} | {one for one in declared.node.children if one.type == "type"}
    for one in declared.node.children:
        if one not in skipped:
            yield from references(one)
