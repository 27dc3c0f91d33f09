"""Configuration is strict data: YAML -> typed dataclass. An unknown key is refused with the nearest name.

A file may name one `base:` (a path relative to itself) and then holds only its differences. `key=value` overrides come
last. `save_config` writes the resolved copy that stands beside the weights.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xllm_speech.base.errors import ConfigError
from xllm_speech.base.files import atomic_write

Config = TypeVar("Config")


def _read(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base:` leads back to itself")
    try:
        tree = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except Exception as error:  # PyYAML's own hierarchy
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: a configuration file is a mapping of keys to values")
    base = tree.pop("base", None)
    if base is None:
        return tree
    merged = OmegaConf.merge(_read(path.parent / str(base), (*seen, path.resolve())), tree)
    assert isinstance(merged, DictConfig)
    return merged


def _refuse_unknown(tree: Any, cls: type, where: str, prefix: str = "") -> None:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = _type_hints(cls)
    for key, value in tree.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(sorted(fields))}"
            raise ConfigError(f"{where}: unknown key `{prefix}{key}`; {hint}")
        inner = hints[key]
        if not (dataclasses.is_dataclass(inner) and isinstance(inner, type)):
            continue
        for path, part in _parts(value, _origin(cls, key), f"{prefix}{key}"):
            if isinstance(part, dict):
                _refuse_unknown(part, inner, where, f"{path}.")


def _origin(cls: type, key: str) -> Any:
    import typing

    return typing.get_origin(typing.get_type_hints(cls)[key])


def _parts(value: Any, origin: Any, path: str) -> list[tuple[str, Any]]:
    """(dotted name, value) of what a key holds: itself, or the members of a list or a mapping of configurations."""
    if origin is list and isinstance(value, list):
        return [(f"{path}[{number}]", part) for number, part in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return [(f"{path}.{name}", part) for name, part in value.items()]
    return [(path, value)]


def _type_hints(cls: type) -> dict[str, Any]:
    import typing

    hints = typing.get_type_hints(cls)
    return {
        name: next((arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)), hint)
        for name, hint in hints.items()
    }


def load_config(path: str | Path | None, cls: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read `path` (or only defaults when None), apply `key=value` overrides, and return a `cls` instance.

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, missing file, or a value that `cls.__post_init__`
            refuses; the text names the file or the override.
    """
    where = str(path) if path is not None else "defaults"
    trees: list[DictConfig] = [] if path is None else [_read(Path(path))]
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override `{override}`: expected key=value")
        try:
            trees.append(OmegaConf.from_dotlist([override]))
        except Exception as error:
            raise ConfigError(f"override `{override}`: {str(error).splitlines()[0]}") from error
    return _build(trees, cls, where)


def read_key(path: str | Path, key: str, overrides: Sequence[str] = (), default: Any = None) -> Any:
    """One top-level value of a configuration file, by which the class of the whole is chosen; nothing else is checked.

    Raises:
        ConfigError: the file is missing or no mapping.
    """
    given = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == key]
    return given[-1] if given else _read(Path(path)).get(key, default)


def config_from_dict(value: dict[str, Any], cls: type[Config], where: str = "config") -> Config:
    """Build a `cls` instance from plain nested dicts, as strictly as `load_config`."""
    return _build([OmegaConf.create(value)], cls, where)


def _build(trees: list[DictConfig], cls: type[Config], where: str) -> Config:
    try:
        merged = OmegaConf.merge(*trees) if trees else OmegaConf.create({})
        plain = OmegaConf.to_container(merged, resolve=True)
        _refuse_unknown(plain, cls, where)
        value = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), plain))
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_first_lines(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    assert isinstance(value, cls)
    return value


def _first_lines(error: OmegaConfBaseException) -> str:
    key = f"`{error.full_key}`: " if getattr(error, "full_key", None) else ""
    return key + str(error).splitlines()[0]


def as_yaml(config: Any) -> str:
    """A resolved configuration, defaults and all, as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def save_config(path: str | Path, config: Any) -> None:
    """Write the resolved configuration as YAML, atomically."""
    with atomic_write(path) as stream:
        stream.write(as_yaml(config))


def require(condition: bool, message: str) -> None:
    """For `__post_init__` of configuration classes: `ConfigError(message)` unless `condition`."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """`ConfigError` that lists the choices unless `value` is one of them."""
    require(value in choices, f"{name}: `{value}` is not one of {', '.join(choices)}")
