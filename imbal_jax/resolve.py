"""Completing and checking a config before anything is built from it."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imbal_jax.builders import DEFAULTS, FIXED, NAMED, SECTIONS, Builders, nested_builders, options_of
from imbal_jax.config import parse_value
from imbal_jax.errors import InputError, not_found
from imbal_jax.reports.records import plain


def resolve(config: ConfigDict, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Applies overrides, checks every key and type, and fills in the builders' defaults.

    Overriding a section's `name` with another one drops the section's other options, which belonged to the old builder.

    Args:
      config: as a config file returns it.
      overrides: texts by dotted key, {"profile.alpha": "0.1"}.

    Returns:
      A locked config in which every option of every chosen builder stands.

    Raises:
      InputError: an unknown section, builder or option (the nearest valid ones are named), or a value of a wrong type.
    """
    tree = {**{section: dict(default) for section, default in DEFAULTS.items()}, **config.to_dict()}
    overrides = dict(overrides or {})
    for key in sorted(overrides, key=lambda key: (not key.endswith(".name"), key.count("."))):
        _insert(tree, key, overrides[key])
    for section in tree:
        if section not in SECTIONS:
            raise InputError(f"config: {not_found(section, SECTIONS)}")
    missing = [section for section in NAMED if section not in tree]
    if missing:
        raise InputError(f"config: expected the sections {', '.join(NAMED)}; missing: {', '.join(missing)}")
    resolved: dict[str, Any] = {"seeds": _checked("seeds", tree.get("seeds", "0"), str)}
    for section, builders in NAMED.items():
        resolved[section] = _resolve_named(section, tree[section], builders)
    for section, builder in FIXED.items():
        resolved[section] = _resolve_options(section, tree.get(section, {}), builder)
    result = ConfigDict(resolved)
    result.lock()
    return result


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """The config of a run folder with the options that are newer than it."""
    return plain(resolve(ConfigDict(stored)).to_dict())


class _Text(NamedTuple):
    """A value from the command line, read once its type is known."""

    text: str


def _insert(tree: dict[str, Any], key: str, text: str) -> None:
    """Puts an override into a tree; choosing another builder drops the options of the old one."""
    *path, last = key.split(".")
    if last != "name" or not path:
        _descend(tree, path)[last] = _Text(text)
        return
    parent = _descend(tree, path[:-1])
    old = parent.get(path[-1])
    if not isinstance(old, dict) or old.get("name") != text:
        parent[path[-1]] = {"name": text}


def _descend(tree: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The section at a path; a fixed section that the config file leaves out begins empty."""
    where = "config"
    for part in path:
        if where == "config" and part in FIXED:
            tree.setdefault(part, {})
        if not isinstance(tree.get(part), dict):
            raise InputError(f"{where}: {not_found(part, SECTIONS if where == 'config' else tree)}")
        tree, where = tree[part], f"{where}.{part}"
    return tree


def _resolve_named(where: str, section: Any, builders: Builders) -> dict[str, Any]:
    """A section with a name, completed."""
    if not isinstance(section, dict) or "name" not in section:
        raise InputError(f"config.{where}: expected a section with a 'name', got {_shown(section)}")
    name = section["name"]
    if name not in builders:
        raise InputError(f"config.{where}.name: {not_found(str(name), builders)}")
    options = {key: value for key, value in section.items() if key != "name"}
    return {"name": name, **_resolve_options(where, options, builders[name])}


def _resolve_options(where: str, given: Any, builder: Callable) -> dict[str, Any]:
    """A builder's options, checked and completed."""
    if not isinstance(given, dict):
        raise InputError(f"config.{where}: expected a section, got {_shown(given)}")
    valid = options_of(builder)
    for key in given:
        if key not in valid:
            raise InputError(f"config.{where}: {_builder_name(builder)} takes {not_found(key, valid)}")
    resolved: dict[str, Any] = {}
    for key, parameter in valid.items():
        if key not in given and parameter.default is inspect.Parameter.empty:
            raise InputError(f"config.{where}.{key}: {_builder_name(builder)} needs this option")
        value = given.get(key, parameter.default)
        nested = nested_builders(parameter.annotation)
        if nested is not None and value is not None:
            resolved[key] = _resolve_named(f"{where}.{key}", value, nested)
        elif nested is not None:
            resolved[key] = None
        else:
            resolved[key] = _checked(f"{where}.{key}", value, parameter.annotation)
    return resolved


def _checked(where: str, value: Any, annotation: Any) -> Any:
    """A leaf of the annotated type; whole numbers pass as floats, lists as tuples."""
    expected = typing.get_origin(annotation) or annotation
    if isinstance(value, _Text):
        value = parse_value(value.text, expected, where)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is tuple and isinstance(value, list | tuple):
        return tuple(_checked(f"{where}[{i}]", each, typing.get_args(annotation)[0]) for i, each in enumerate(value))
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        raise InputError(f"config.{where}: expected {expected.__name__}, got {value!r}")
    return value


def _shown(value: Any) -> str:
    """A value as it was given."""
    return repr(value.text if isinstance(value, _Text) else value)


def _builder_name(builder: Callable) -> str:
    """A builder's name in messages."""
    return "this section" if isinstance(builder, type) else builder.__name__
