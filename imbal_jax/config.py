"""Loading config files and applying command-line overrides.

ml_collections' own flags are not used because of how they fail: a missing file surfaces as a missing attribute, and
the hint of a mistyped key is buried in a traceback.
"""

import ast
import difflib
import importlib.util
import inspect
import pathlib
import types
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from imbal_jax.errors import InputError


def load_config(spec: str) -> ConfigDict:
    """Runs a config file.

    Args:
      spec: "path/to/file.py" or "path/to/file.py:argument"; the argument is handed to its `get_config`.

    Returns:
      What the file's `get_config()` or `get_config(argument)` returns.

    Raises:
      InputError: there is no such file, it has no get_config, it fails, or it takes no (or not this) argument.
    """
    path_text, _, argument = spec.partition(":")
    path = pathlib.Path(path_text)
    if not path.is_file():
        raise InputError(f"--config: no such file: {path_text!r}{_similar_files(path)}")
    module = run_python_file(path, "--config")
    return _call_get_config(getattr(module, "get_config", None), path_text, argument)


def run_python_file(path: pathlib.Path, argument: str) -> types.ModuleType:
    """Runs a user's Python file as a module of its own.

    Args:
      path: of the file, which exists.
      argument: of the command line that names it, for messages.

    Raises:
      InputError: it is no Python file, or it fails.
    """
    module_spec = importlib.util.spec_from_file_location(f"imbal_jax_file_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"{argument}: expected a Python file, got {str(path)!r}")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        raise InputError(f"{argument}: {path} failed: {type(error).__name__}: {error}") from error
    return module


def _call_get_config(get_config: Callable[..., ConfigDict] | None, path: str, argument: str) -> ConfigDict:
    """Calls a file's get_config and checks what it returns."""
    if get_config is None:
        raise InputError(f"--config: expected a function get_config in {path}, found none")
    if argument and not inspect.signature(get_config).parameters:
        raise InputError(f"--config: get_config of {path} takes no argument, got {argument!r}")
    try:
        config = get_config(argument) if argument else get_config()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--config: get_config of {path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config: expected a ConfigDict from get_config of {path}, got {type(config).__name__}")
    return config


def _similar_files(path: pathlib.Path) -> str:
    """A hint at config files of similar name."""
    if not path.parent.is_dir():
        return f" (and no folder {str(path.parent)!r})"
    close = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=2)
    return f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """Reads "--config.a.b=value" or "--config.a.b value" into {"a.b": "value"}.

    Raises:
      InputError: an argument is something else, or has no value.
    """
    overrides = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--config."):
            raise InputError(f"unknown argument {argument!r}; see --help")
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{argument}: expected a value, got none")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def parse_value(text: str, expected: type, where: str) -> Any:
    """Reads an override's text as a value of the expected type.

    Args:
      text: from the command line.
      expected: bool, int, float, str, or tuple.
      where: the key, for the message.

    Raises:
      InputError: the text is no such value.
    """
    if expected is str:
        return text
    if expected is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = float(text) if text.lstrip("+-").lower() in ("inf", "nan") else text
    if expected is tuple and isinstance(value, list | int | float) and not isinstance(value, bool):
        return tuple(value) if isinstance(value, list) else (value,)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        raise InputError(f"config.{where}: expected {expected.__name__}, got {text!r}")
    return value
