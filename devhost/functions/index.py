"""Loads an app's function_app.py unchanged and indexes its functions as the Python worker does."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import azure.functions as func
from azure.functions import durable_functions as _durable  # noqa: F401  registers its converters
from azure.functions import http as _http  # noqa: F401  registers its converters
from azure.functions import meta
from azure.functions import timer as _timer  # noqa: F401  registers its converters

if TYPE_CHECKING:
    from collections.abc import Callable


Taken = Literal["messages", "work"]
INVISIBLE_SETTINGS: dict[Taken, str] = {"messages": "controlQueueVisibilityTimeout", "work": "workItemQueueVisibilityTimeout"}
INVISIBLE_SECONDS, INVISIBLE_SECONDS_MIN = 300.0, 60.0
INVISIBLE_OVERRIDE = "DEVHOST_INVISIBLE_SECONDS"
"""Environment variable for tests: both timeouts in seconds, also below the minute that the real host wants at least."""


class IndexingError(Exception):
    """The app has a fault that the real worker would refuse too."""


class AppFunction:
    """One function of the app: its code, its trigger, its bindings by name."""

    def __init__(self, function: Any) -> None:  # noqa: ANN401  azure.functions' untyped Function
        """Index `function`; raises IndexingError where the worker would."""
        self.name: str = function.get_function_name()
        self.call: Callable[..., Any] = function.get_user_function()
        self.trigger = function.get_trigger()
        self.kind: str = self.trigger.type
        self.bindings = {binding.name: binding for binding in function.get_bindings()}
        self.is_async = inspect.iscoroutinefunction(self.call)
        self.client_parameters = [name for name, binding in self.bindings.items() if binding.type == "durableClient"]
        parameters = dict(inspect.signature(self.call).parameters)
        self.wants_context = "context" in parameters and "context" not in self.bindings
        if self.wants_context:
            del parameters["context"]
        self._check(parameters)

    def _check(self, parameters: dict[str, inspect.Parameter]) -> None:
        bound = {name for name in self.bindings if name != "$return"}
        if set(parameters) != bound:
            message = f"{self.name}: parameters {sorted(parameters)} and bindings {sorted(bound)} differ"
            raise IndexingError(message)
        for name, annotation in typing.get_type_hints(self.call).items():
            if name not in parameters:
                continue
            if not isinstance(annotation, type) and typing.get_origin(annotation) is None:
                message = f"{self.name}: the annotation of {name} is not a type: {annotation!r}"
                raise IndexingError(message)
            converter = meta.get_binding_registry().get(self.bindings[name].type)
            if converter and isinstance(annotation, type) and not converter.check_input_type_annotation(annotation):
                message = f"{self.name}: binding {name} ({self.bindings[name].type}) does not take {annotation!r}"
                raise IndexingError(message)

    @property
    def durable_name(self) -> str:
        """The name orchestrations call it by."""
        described = self.trigger.get_dict_repr()
        return described.get("orchestration") or described.get("activity") or self.name


_OVERRIDE = "AzureFunctionsJobHost__"


class App:
    """An indexed app with its host.json."""

    def __init__(self, directory: Path) -> None:
        """Import `directory`/function_app.py and index it."""
        extensions = _host_settings(directory / "host.json").get("extensions", {})
        self.route_prefix: str = extensions.get("http", {}).get("routePrefix", "api")
        self.durable: dict[str, Any] = extensions.get("durableTask", {})
        self.hub: str = self.durable.get("hubName", "TestHubName")
        self.version: str | None = self.durable.get("defaultVersion")
        """The version of a new instance whose starter names none."""
        self.invisible_seconds = _invisible_seconds(self.durable.get("storageProvider", {}))
        """How long what a worker has taken stays invisible to others, unless it is renewed."""
        registered = [AppFunction(function) for function in _registered(directory)]
        self.functions = [function for function in registered if not _disabled(function.name)]
        names = [function.name.lower() for function in self.functions]
        if len(set(names)) != len(names):
            message = f"function names are not unique: {sorted(names)}"
            raise IndexingError(message)
        self.orchestrators = self._durable("orchestrationTrigger")
        self.activities = self._durable("activityTrigger")
        self.http = [function for function in self.functions if function.kind == "httpTrigger"]
        self.timers = [function for function in self.functions if function.kind == "timerTrigger"]

    def _durable(self, kind: str) -> dict[str, AppFunction]:
        return {function.durable_name.lower(): function for function in self.functions if function.kind == kind}


def _disabled(name: str) -> bool:
    forms = (f"AzureWebJobs.{name}.Disabled", f"AzureWebJobs_{name}_Disabled")
    return any(os.environ.get(form, "").lower() in ("true", "1") for form in forms)


def _host_settings(file: Path) -> dict[str, Any]:
    """host.json, under what AzureFunctionsJobHost__path__to__value in the environment says instead."""
    host: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name, value in os.environ.items():
        if name.startswith(_OVERRIDE):
            *sections, key = name.removeprefix(_OVERRIDE).split("__")
            section = host
            for one in sections:
                section = section.setdefault(one, {})
            section[key] = value
    return host


def _invisible_seconds(storage: dict[str, str]) -> dict[Taken, float]:
    if INVISIBLE_OVERRIDE in os.environ:
        return dict.fromkeys(INVISIBLE_SETTINGS, float(os.environ[INVISIBLE_OVERRIDE]))
    found: dict[Taken, float] = {}
    for kind, setting in INVISIBLE_SETTINGS.items():
        text = storage.get(setting)
        hours, minutes, seconds = map(float, text.split(":")) if text else (0.0, 0.0, INVISIBLE_SECONDS)
        found[kind] = hours * 3600 + minutes * 60 + seconds
        if found[kind] < INVISIBLE_SECONDS_MIN:
            message = f"host.json: {setting} is {text}; the extension takes no less than 00:01:00"
            raise IndexingError(message)
    return found


def _registered(directory: Path) -> list[Any]:
    sys.path.insert(0, str(directory))
    spec = importlib.util.spec_from_file_location("function_app", directory / "function_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["function_app"] = module
    spec.loader.exec_module(module)
    apps = {id(value): value for value in vars(module).values() if isinstance(value, func.FunctionRegister)}
    if len(apps) != 1:
        message = f"expected one FunctionApp in {directory / 'function_app.py'}, found {len(apps)}"
        raise IndexingError(message)
    return list(next(iter(apps.values())).get_functions())


def schedule_of(function: AppFunction) -> str:
    """The timer's NCRONTAB expression with %SETTING% replaced from the environment."""

    def setting(match: re.Match[str]) -> str:
        value = os.environ.get(match.group(1))
        if value is None:
            message = f"{function.name}: its schedule names the setting {match.group(1)}, which is not set"
            raise IndexingError(message)
        return value

    return re.sub(r"%([^%]+)%", setting, function.trigger.schedule)
