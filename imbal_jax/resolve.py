"""Completing and checking a config before anything is built from it."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from imbal_jax.builders import FIXED, NAMED, SECTIONS, Builders, nested_builders, options_of
from imbal_jax.config import parse_value
from imbal_jax.errors import InputError, not_found


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
    tree = config.to_dict()
    overrides = dict(overrides or {})
    names = {key: value for key, value in overrides.items() if key.endswith(".name")}
    for key in sorted(names, key=lambda key: key.count(".")):
        _rename(tree, key.removesuffix(".name"), names[key])
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
    for key, text in overrides.items():
        if key not in names:
            _override(resolved, key, text)
    result = ConfigDict(resolved)
    result.lock()
    return result


def _rename(tree: dict[str, Any], section: str, name: str) -> None:
    """Sets a section's builder; options of another builder are dropped."""
    *above, last = section.split(".")
    for part in above:
        tree = tree.get(part) or {}
    old = tree.get(last)
    if not isinstance(old, dict) or old.get("name") != name:
        tree[last] = {"name": name}


def _resolve_named(where: str, section: Any, builders: Builders) -> dict[str, Any]:
    """A section with a name, completed."""
    if not isinstance(section, dict) or "name" not in section:
        raise InputError(f"config.{where}: expected a section with a 'name', got {section!r}")
    name = section["name"]
    if name not in builders:
        raise InputError(f"config.{where}.name: {not_found(str(name), builders)}")
    options = {key: value for key, value in section.items() if key != "name"}
    return {"name": name, **_resolve_options(where, options, builders[name])}


def _resolve_options(where: str, given: Any, builder: Callable) -> dict[str, Any]:
    """A builder's options, checked and completed."""
    if not isinstance(given, dict):
        raise InputError(f"config.{where}: expected a section, got {given!r}")
    valid = options_of(builder)
    for key in given:
        if key not in valid:
            raise InputError(f"config.{where}: {_builder_name(builder)} takes {not_found(key, valid)}")
    resolved = {}
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
            resolved[key] = _checked(f"{where}.{key}", value, _plain_type(parameter.annotation))
    return resolved


def _plain_type(annotation: Any) -> type:
    """The type of a leaf: tuple for tuple[int, ...]."""
    return typing.get_origin(annotation) or annotation


def _checked(where: str, value: Any, expected: type) -> Any:
    """A leaf of the expected type; whole numbers pass as floats, lists as tuples."""
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is tuple and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        raise InputError(f"config.{where}: expected {expected.__name__}, got {value!r}")
    return value


def _override(resolved: dict[str, Any], key: str, text: str) -> None:
    """Sets a leaf of a resolved config from the command line."""
    *above, last = key.split(".")
    section, where = resolved, "config"
    for part in above:
        if not isinstance(section.get(part), dict):
            raise InputError(f"{where}: {not_found(part, section)}")
        section, where = section[part], f"{where}.{part}"
    if last not in section:
        raise InputError(f"{where}: {not_found(last, section)}")
    if isinstance(section[last], dict) or section[last] is None:
        raise InputError(f"{where}.{last}: is a section; set {where}.{last}.name")
    section[last] = parse_value(text, type(section[last]), key)


def _builder_name(builder: Callable) -> str:
    """A builder's name in messages."""
    return "this section" if isinstance(builder, type) else builder.__name__
