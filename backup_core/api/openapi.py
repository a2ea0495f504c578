"""The description of all calls, OpenAPI 3.1, made from the table of routes and the models of bodies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic.json_schema import models_json_schema

from backup_core import __version__
from backup_core.api.answers import ErrorEnvelope
from backup_core.api.http import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backup_core.api.routes import Parameter, Route

_REFERENCE = "#/components/schemas/{model}"
_JSON = "application/json"


def document(routes: Iterable[Route], base: str) -> dict[str, Any]:
    """The OpenAPI document of the routes served at `base`."""
    routes = tuple(routes)
    answers = {model for route in routes for model in route.answers.values() if model} | {ErrorEnvelope}
    taken = {route.takes for route in routes if route.takes}
    models: list[tuple[type[Any], Literal["validation", "serialization"]]] = [
        *((model, "serialization") for model in sorted(answers, key=lambda one: one.__name__)),
        *((model, "validation") for model in sorted(taken, key=lambda one: one.__name__)),
    ]
    _, schemas = models_json_schema(models, ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(f"/{route.path}", {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pagekeeper", "version": __version__, "description": "Backups of Azure disks."},
        "servers": [{"url": base}],
        "security": [{"functionKey": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "functionKey": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
                "entraId": {"type": "http", "scheme": "bearer", "description": "Besides, where SIGN_IN is 'entra'."},
            },
        },
    }


def described(routes: Iterable[Route], base: str) -> Answer:
    """The document as an answer."""
    return Answer(200, json.dumps(document(routes, base)) + "\n")


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": route.description,
        "parameters": [_parameter(one) for one in route.parameters],
        "responses": {str(status): _response(model) for status, model in route.answers.items()}
        | {"default": {"description": "Refused or failed; nothing was changed.", "content": _content(ErrorEnvelope)}},
    }
    if route.roles:
        operation["x-app-roles"] = list(route.roles)
    if route.takes:
        operation["requestBody"] = {"required": False, "content": _content(route.takes)}
    if route.anonymous:
        operation["security"] = []
    return operation


def _parameter(one: Parameter) -> dict[str, Any]:
    return {"name": one.name, "in": one.place, "required": one.place == "path", "description": one.says, "schema": one.schema}


def _response(model: type[Any] | None) -> dict[str, Any]:
    return {"description": (model.__doc__ or "") if model else "A JSON object.", "content": _content(model)}


def _content(model: type[Any] | None) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(model=model.__name__)} if model else {"type": "object"}
    return {_JSON: {"schema": schema}}
