"""A run as data: frozen dataclasses, read from TOML and overridden by dotted flags, strictly checked.

Knows neither JAX nor PyTorch: both twins read the same files.
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
from typing import Any, Literal

from ttm_jax.files import PACKAGE, shipped
from ttm_jax.multiplication.problems import (
    AUGMENTATIONS,
    MAX_DIGITS,
    SEQ_LEN,
    STAGES,
    MultiplicationDataset,
    held_out_pairs,
)

DTypeName = Literal["float32", "bfloat16", "float64"]
ScheduleName = Literal["digit", "product"]
RematName = Literal["none", "dots", "deep_dots", "full"]  # the one that takes the least memory last


class ConfigError(ValueError):
    """A config that cannot be; the message is one line for the user."""


@dataclass(frozen=True)
class ModelConfig:
    """The multiplier; see `TokenTuringMachine` for the fields of the machine.

    `schedule` is what a machine step works out, a digit of the product or one product of two digits; see
    `ttm_jax.multiplication.steps`. `carry_head` adds logits of the carry out of each place, and their cross-entropy to
    the training loss; under the schedule "product" also that of the column's sum after every step. Under `remat`
    "none" no step is recomputed. `kind` "transformer" is a baseline without a machine, see `DirectTransformer`.
    """

    kind: Literal["machine", "transformer"] = "machine"
    width: int = 128
    memory_size: int = 96
    process_size: int = 16
    read: Literal["mlp", "query", "pooling"] = "mlp"
    write: Literal["mlp", "query", "pooling", "erase_add", "concat", "none"] = "mlp"
    processing: Literal["transformer", "mixer", "mlp"] = "transformer"
    num_layers: int = 4
    mlp_dim: int = 512
    num_heads: int = 4
    positions: bool = True
    dropout_rate: float = 0.1
    learned_memory: bool = True
    seq_len: int = SEQ_LEN
    schedule: ScheduleName = "digit"
    carry_head: bool = False
    dtype: DTypeName = "float32"
    param_dtype: DTypeName = "float32"
    remat: RematName = "dots"

    def __post_init__(self) -> None:
        _require_positive(self, "width", "memory_size", "process_size", "num_layers", "mlp_dim", "num_heads")
        _require(self, "num_heads", self.width % self.num_heads == 0, f"divide model.width ({self.width})")
        _require(self, "dropout_rate", 0 <= self.dropout_rate < 1, "be in [0, 1)")
        _require(self, "seq_len", self.seq_len == SEQ_LEN, f"be {SEQ_LEN}: the position table's rows")
        _require(self, "width", self.width % 2 == 0, "be even")
        _require(self, "schedule", self.kind == "machine" or self.schedule == "digit", "be digit without a machine")


@dataclass(frozen=True)
class DataConfig:
    """Which problems are trained; see `MultiplicationDataset`."""

    batch_size: int = 128
    stages: tuple[tuple[int, int], ...] = STAGES
    max_digits: tuple[int, int] = (MAX_DIGITS, MAX_DIGITS)
    augment: tuple[Literal["swap", "leading_zeros"], ...] = AUGMENTATIONS

    def __post_init__(self) -> None:
        _require_positive(self, "batch_size")
        _require(self, "stages", len(self.stages) > 0, "name at least one stage")
        try:
            dataset = MultiplicationDataset(1, stages=self.stages, max_digits=self.max_digits)
        except ValueError as error:
            raise ConfigError(f"data: {error}") from None
        for i, stage in enumerate(self.stages):
            if not any(len(held_out_pairs(length, 1, stage)) for length in dataset.lengths(i)):
                raise ConfigError(f"data: stage {stage} has no held-out pairs to be evaluated on: widen it")


@dataclass(frozen=True)
class CurriculumConfig:
    """When to move to the next stage, and how the lengths within a stage are mixed.

    With `adaptive`, the share of a length follows its running training accuracy a and that of the length
    before it, b: (1 - a) min(1, b + `headroom`) + `floor`, renormalised every `mixture_every` steps. Otherwise
    lengths have equal shares.
    """

    start_stage: int = 0
    last_stage: int = 6
    threshold: float = 0.9
    window: int = 5
    max_epochs_per_stage: int = 1000
    adaptive: bool = True
    mixture_every: int = 25
    headroom: float = 0.15
    floor: float = 0.05

    def __post_init__(self) -> None:
        _require_positive(self, "window", "max_epochs_per_stage", "mixture_every")
        _require(self, "threshold", 0 < self.threshold <= 1, "be in (0, 1]")
        _require(self, "headroom", self.headroom >= 0, "not be negative")
        _require(self, "floor", 0 < self.floor <= 1, "be in (0, 1]: every length keeps a share")
        _require(self, "start_stage", self.start_stage >= 0, "not be negative")
        _require(self, "last_stage", self.start_stage <= self.last_stage, "not be before start_stage")


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
        _require_positive(self, "learning_rate", "peak_factor", "warmup_steps", "decay_steps", "eps", "muon_rms")
        for name in ("b1", "b2"):
            _require(self, name, 0 <= getattr(self, name) < 1, "be in [0, 1)")
        _require(self, "alpha", 0 <= self.alpha <= self.peak_factor, "be in [0, peak_factor]")
        _require(self, "weight_decay", self.weight_decay >= 0, "not be negative")
        _require(self, "max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "be positive")


@dataclass(frozen=True)
class TrainConfig:
    """The loop: an epoch is `steps_per_epoch` optimiser steps (data are drawn anew, there is no pass over a set)."""

    seed: int = 0
    max_epochs: int = 1000
    steps_per_epoch: int = 100
    eval_every_epochs: int = 10
    eval_pairs: int = 512
    eval_batch_size: int = 512
    num_examples: int = 4
    patience_epochs: int | None = 20

    def __post_init__(self) -> None:
        _require_positive(self, "max_epochs", "steps_per_epoch", "eval_every_epochs", "eval_pairs")
        _require_positive(self, "eval_batch_size")
        _require(self, "seed", 0 <= self.seed < 2**32, "be in 0..2^32 - 1")
        _require(self, "num_examples", self.num_examples >= 3, "be at least 3")
        ok = self.patience_epochs is None or self.patience_epochs > 0
        _require(self, "patience_epochs", ok, "be positive")


@dataclass(frozen=True)
class Config:
    """All of a run; `Config()` has the checklist's sizes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.model.schedule == "product" and "leading_zeros" in self.data.augment:
            raise ConfigError(
                'data.augment must not have "leading_zeros" with model.schedule "product", where each zero would be a '
                'digit with steps of its own; write data.augment = ["swap"]'
            )
        last = self.curriculum.last_stage
        if last >= len(self.data.stages):
            raise ConfigError(
                f"curriculum.last_stage must be below the number of data.stages ({len(self.data.stages)}), got {last}"
            )


def load_config(path: str | Path) -> Config:
    """The config of a TOML file; keys left out keep their defaults.

    Raises:
        ConfigError: naming the file, the key, and what is allowed.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"config {path}: cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config {path}: not valid TOML: {error}") from None
    try:
        return config_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"config {path}: {error}") from None


def override(config: Config, overrides: Mapping[str, str]) -> Config:
    """`config` with dotted keys replaced; values are TOML, a bare word is a string, `none` is off.

    Raises:
        ConfigError: naming the flag and what is allowed.
    """
    values = config_to_dict(config)
    for key, text in overrides.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = _parse_value(text)
    try:
        return config_from_dict(values)
    except ConfigError as error:
        flags = " ".join(f"{flag_of(key)} {text}" for key, text in overrides.items())
        raise ConfigError(f"{flags}: {error}") from None


def flag_of(key: str) -> str:
    """The command-line flag of a dotted key: "--model.memory-size" of "model.memory_size"."""
    return "--" + key.replace("_", "-")


def config_keys() -> dict[str, Any]:
    """Each dotted key and its type."""
    sections = typing.get_type_hints(Config)
    return {
        f"{section}.{name}": hint
        for section, cls in sections.items()
        for name, hint in typing.get_type_hints(cls).items()
    }


def config_to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Nested plain values, tuples as lists: what TOML and JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat_values(config: Config) -> dict[str, Any]:
    """The plain values of a config by dotted key."""
    return {
        f"{section}.{name}": value
        for section, values in config_to_dict(config).items()
        for name, value in values.items()
    }


def config_to_toml(config: Config) -> str:
    """The whole config as TOML that `load_config` reads back to the same config."""
    sections = [
        f"[{section}]\n"
        + "".join(f"{key} = {json.dumps('none' if value is None else value)}\n" for key, value in values.items())
        for section, values in config_to_dict(config).items()
    ]
    return "\n".join(sections)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The config of nested plain values; keys left out keep their defaults.

    Raises:
        ConfigError: for an unknown key, a wrong type or an impossible value, naming the key.
    """
    return _build(Config, values, "")


def changed_keys(a: Config, b: Config) -> list[str]:
    """Dotted keys in which two configs differ."""
    flat_a, flat_b = flat_values(a), flat_values(b)
    return [key for key in flat_a if flat_a[key] != flat_b[key]]


def find_config(name: str) -> Path:
    """The path of a config: a file, or the name of a shipped one ("multiplication").

    Raises:
        ConfigError: if there is neither.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    folder = shipped_configs()
    names = sorted(file.stem for file in folder.glob("*.toml"))
    if name in names:
        return folder / f"{name}.toml"
    raise ConfigError(f"config {name}: no such file, and none of the shipped ones: {', '.join(names)}")


def shipped_configs() -> Path:
    """The folder of the configs that come with the package."""
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


def _require(config: Any, name: str, ok: bool, must: str) -> None:
    if not ok:
        section = type(config).__name__.removesuffix("Config").lower()
        raise ConfigError(f"{section}.{name} must {must}, got {getattr(config, name)!r}")


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        _require(config, name, getattr(config, name) > 0, "be positive")
