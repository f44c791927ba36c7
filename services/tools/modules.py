"""Finds the Python modules that the settings name, by import or from a file."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from services.runtime.errors import ConfigurationError
from services.tools.registration import collect
from services.tools.tool import Tool


def load_tools(names: str) -> list[Tool]:
    """The tools of a comma list of modules (`shop.tools`) and files (`path/to/file.py`).

    Raises:
        ConfigurationError: a module cannot be imported, or holds no tool.
    """
    found: list[Tool] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        tools = collect(_load(name))
        if not tools:
            raise ConfigurationError(f"TURNLOG_TOOLS_MODULES: {name} holds no tool; decorate a function with @tool")
        found += [tool for tool in tools if tool not in found]
    return found


def _load(name: str) -> ModuleType:
    try:
        return _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"TURNLOG_TOOLS_MODULES: cannot import {name}: {error!r}") from error


def _from_file(path: Path) -> ModuleType:
    module_name = f"turnlog_tools_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigurationError(f"TURNLOG_TOOLS_MODULES: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # so that annotations and pickles of the file find their module
    spec.loader.exec_module(module)
    return module
