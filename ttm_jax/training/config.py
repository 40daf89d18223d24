"""A run as data: frozen dataclasses, read from TOML and overridden by dotted flags, strictly checked.

A task has a dataclass of its own, with a section for each of its parts; what all have in common is here. Knows neither
JAX nor PyTorch: both twins read the same files.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from ttm_jax.files import PACKAGE, shipped, user_path

DEFAULT_TASK = "multiplication"  # of a file that names none
LATER = {"later": True}  # metadata of a key that a run may change when it goes on: nothing before depends on it
DTypeName = Literal["float32", "bfloat16", "float64"]


class ConfigError(ValueError):
    """A config that cannot be; the message is one line for the user."""


@dataclass(frozen=True)
class OptimizerConfig:
    """See `make_optimizer` and `learning_rate_schedule`."""

    name: Literal["adam", "adamw", "muon"] = "adam"
    learning_rate: float = 1e-3
    peak_factor: float = 2.0
    warmup_steps: int = 100
    decay_steps: int = 1000
    alpha: float = 0.1
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 1e-4
    muon_rms: float = 0.2
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "peak_factor", "warmup_steps", "decay_steps", "eps", "muon_rms")
        for name in ("b1", "b2"):
            require(self, name, 0 <= getattr(self, name) < 1, "be in [0, 1)")
        require(self, "alpha", 0 <= self.alpha <= self.peak_factor, "be in [0, peak_factor]")
        require(self, "weight_decay", self.weight_decay >= 0, "not be negative")
        require(self, "max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "be positive")


@dataclass(frozen=True)
class TrainConfig:
    """The loop: an epoch is `steps_per_epoch` optimiser steps (data are drawn anew, there is no pass over a set)."""

    seed: int = 0
    max_epochs: int = field(default=1000, metadata=LATER)
    steps_per_epoch: int = 100
    eval_every_epochs: int = 10
    eval_batch_size: int = field(default=512, metadata=LATER)

    def __post_init__(self) -> None:
        require_positive(self, "max_epochs", "steps_per_epoch", "eval_every_epochs")
        require_positive(self, "eval_batch_size")
        require(self, "seed", 0 <= self.seed < 2**32, "be in 0..2^32 - 1")


class RunConfig(Protocol):
    """What the trainer needs of a config, whatever the task; it is a frozen dataclass."""

    @property
    def task(self) -> str: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def train(self) -> TrainConfig: ...


C = TypeVar("C")


def read_values(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: naming the file and the reason.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"config {path}: cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config {path}: not valid TOML: {error}") from None


def override(config: C, overrides: Mapping[str, str]) -> C:
    """Replace dotted keys of a config; values are TOML, a bare word is a string, `none` is off.

    Raises:
        ConfigError: naming the flag and what is allowed.
    """
    values = config_to_dict(config)
    for key, text in overrides.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = _parse_value(text)
    try:
        return config_from_dict(type(config), values)
    except ConfigError as error:
        flags = " ".join(f"{flag_of(key)} {text}" for key, text in overrides.items())
        raise ConfigError(f"{flags}: {error}") from None


def flag_of(key: str) -> str:
    """Give the command-line flag of a dotted key: "--model.memory-size" of "model.memory_size"."""
    return "--" + key.replace("_", "-")


def config_keys(cls: type) -> dict[str, Any]:
    """Give each dotted key of a config's sections, and its type."""
    return {
        f"{section}.{name}": hint
        for section, hints in typing.get_type_hints(cls).items()
        if dataclasses.is_dataclass(hints)
        for name, hint in typing.get_type_hints(hints).items()
    }


def config_to_dict(config: Any) -> dict[str, Any]:
    """Give a config as nested plain values, tuples as lists: what TOML and JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat_values(config: Any) -> dict[str, Any]:
    """Give the plain values of a config by dotted key."""
    flat = {}
    for section, values in config_to_dict(config).items():
        if isinstance(values, dict):
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            flat[section] = values
    return flat


def show_value(value: Any) -> str:
    """Write the plain value of a key as a flag takes it."""
    return "none" if value is None else json.dumps(value).strip('"')


def config_to_toml(config: Any) -> str:
    """Give the whole config as TOML that reads back to the same config."""

    def lines(values: Mapping[str, Any]) -> str:
        return "".join(f"{key} = {json.dumps('none' if value is None else value)}\n" for key, value in values.items())

    values = config_to_dict(config)
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    top = lines({key: value for key, value in values.items() if key not in sections})
    return "\n".join([top, *(f"[{name}]\n{lines(section)}" for name, section in sections.items())])


def config_from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
    """Make a config of a class from nested plain values; keys left out keep their defaults.

    Raises:
        ConfigError: for an unknown key, a wrong type or an impossible value, naming the key.
    """
    return _build(cls, values, "")


def changed_keys(a: Any, b: Any) -> list[str]:
    """List the dotted keys in which two configs differ."""
    flat_a, flat_b = flat_values(a), flat_values(b)
    return [key for key in flat_a | flat_b if flat_a.get(key) != flat_b.get(key)]


def later_keys(config: Any) -> list[str]:
    """List the dotted keys that a run may change when it goes on."""
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return [
        f"{name}.{field.name}"
        for name, section in sections.items()
        if dataclasses.is_dataclass(section)
        for field in dataclasses.fields(section)
        if field.metadata.get("later")
    ]


def find_config(name: str) -> Path:
    """Find a config: a file, or a shipped one by its name ("default"), where need be with its task ("text/quick").

    Raises:
        ConfigError: if there is neither.
    """
    path = user_path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    folder = shipped_configs()
    for found in (folder / f"{name}.toml", folder / DEFAULT_TASK / f"{name}.toml"):
        if found.is_file():
            return found
    names = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.glob("*/*.toml"))
    known = ", ".join(known.removeprefix(f"{DEFAULT_TASK}/") for known in names)
    raise ConfigError(f"config {name}: no such file, and none of the shipped ones: {known}")


def shipped_configs() -> Path:
    """Give the folder of the configs that come with the package, a folder for each task."""
    return shipped(PACKAGE, "configs", "configs")


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a table, got {values!r}")
    hints = typing.get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            known = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
            raise ConfigError(f"unknown key {prefix}{key}; {known}")
    built = {}
    for key, value in values.items():
        where, hint = f"{prefix}{key}", hints[key]
        built[key] = _build(hint, value, where) if dataclasses.is_dataclass(hint) else _convert(value, hint, where)
    return cls(**built)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None or value == "none":
            return None
        return _convert(value, args[0], where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} must be one of {', '.join(args)}; got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        if args[-1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) != len(value):
            raise ConfigError(f"{where} must have {len(args)} elements, got {len(value)}")
        return tuple(
            _convert(element, arg, f"{where}[{i}]") for i, (element, arg) in enumerate(zip(value, args, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {describe(hint)}, got {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, got {value}")
    return value


def describe(hint: Any) -> str:
    """A type in words, for messages and help."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return f"{describe(args[0])} or none"
    if origin is Literal:
        return " | ".join(args)
    if origin is tuple:
        return f"list of {describe(args[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[hint]


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def require(config: Any, name: str, ok: bool, must: str) -> None:
    if not ok:
        section = type(config).__name__.removesuffix("Config").lower()
        raise ConfigError(f"{section}.{name} must {must}, got {getattr(config, name)!r}")


def require_positive(config: Any, *names: str) -> None:
    for name in names:
        require(config, name, getattr(config, name) > 0, "be positive")
