"""The properties that an Azure resource may have, by the models of Microsoft's own management libraries.

They come in two makes: those made from Swagger carry a table of attributes, those made from TypeSpec annotated fields.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache

SCALARS = {"str": "string", "bool": "boolean", "int": "number", "float": "number", "duration": "string"}


@dataclass
class Shape:
    """A value: string, boolean, number, object, map, array, or any."""

    kind: str = "any"
    values: frozenset[str] = frozenset()
    """All there are, of an enumeration."""
    fields: dict[str, Field] = field(default_factory=dict)
    """Of an object."""
    item: Callable[[], Shape] | None = None
    """Of a map or an array, what is in it."""


@dataclass
class Field:
    """A named value of an object; `shape` is evaluated late, because models refer to each other in circles."""

    shape: Callable[[], Shape]
    read_only: bool = False
    needed: bool = False


def model(name):
    """The shape of a model, named `package:Class`."""
    package, _, cls = name.partition(":")
    models = importlib.import_module(f"azure.mgmt.{package}.models")
    return _shape(getattr(models, cls), models)


@cache
def _shape(cls, models):
    return _of_attributes(cls, models) if hasattr(cls, "_attribute_map") else _of_fields(cls, models)


def _of_attributes(cls, models):
    """Dots in a key lead into inner objects that have no class."""
    shape = Shape("object")
    for attribute, described in cls._attribute_map.items():
        *path, name = described["key"].replace("\\.", "\0").split(".")
        inner = shape
        for step in path:
            made = Shape("object")
            inner = inner.fields.setdefault(step, Field(lambda made=made: made)).shape()
        rule = cls._validation.get(attribute, {})
        inner.fields[name.replace("\0", ".")] = Field(
            lambda type_=described["type"]: _of_name(type_, models), rule.get("readonly", False), rule.get("required", False)
        )
    return shape


def _of_name(name, models):
    if name[0] in "[{":
        return Shape("array" if name[0] == "[" else "map", item=lambda: _of_name(name[1:-1], models))
    cls = getattr(models, name, None)
    return _shape(cls, models) if cls else Shape(SCALARS.get(name, "any"))


def _of_fields(cls, models):
    cls()  # the library fills in its table of fields at the first instance
    hints = typing.get_type_hints(cls, localns={"_models": models})
    shape = Shape("object")
    for attribute, described in cls._attr_to_rest_field.items():
        hint = hints[attribute]
        needed = type(None) not in typing.get_args(hint)
        shape.fields[described._rest_name] = Field(
            lambda hint=hint: _of_hint(hint, models), described._visibility == ["read"], needed
        )
    return shape


def _of_hint(hint, models):
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        shapes = [_of_hint(one, models) for one in inner if one is not type(None)]
        return next((one for one in shapes if one.values), shapes[0])
    if origin in (list, dict):
        return Shape("array" if origin is list else "map", item=lambda: _of_hint(inner[-1], models))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Shape("string", frozenset(one.value for one in hint))
    return _shape(hint, models) if hasattr(hint, "as_dict") else Shape(SCALARS.get(getattr(hint, "__name__", ""), "any"))
