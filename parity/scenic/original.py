"""The original's classes and their arguments, and our machine for each."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from ttm_jax.machine.machine import SimpleTokenTuringMachineStep, TokenTuringMachine, TokenTuringMachineStep
from ttm_jax.machine.processing import PROCESSING_UNITS

UNIT, SIMPLE, ENCODER = (
    "TokenTuringMachineUnit",
    "TokenTuringMachineSimpleUnit",
    "TokenTuringMachineEncoder",
)
_SHARED = dict(processing_unit="transformer", num_layers=1, dropout_rate=0.0)
_HEADS = dict(mlp_dim=512, num_heads=12)
# The constructor arguments of each original class, with its defaults.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    UNIT: dict(process_size=8, memory_size=64, memory_mode="TL", use_positional_embedding=False, **_SHARED, **_HEADS),
    SIMPLE: dict(process_size=16, memory_size=96, **_SHARED, **_HEADS),
    ENCODER: dict(process_size=8, memory_size=64, memory_mode="TL", **(_SHARED | dict(num_layers=4))),
}
MODES = {"TL": ("mlp", "mlp"), "TL-MHA": ("query", "query"), "TL-AddErase": ("mlp", "erase_add")}


def build_machine(meta: Mapping[str, Any]) -> nn.Module:
    """Make our module for the original's class and arguments, with `compat="scenic"`.

    The original's encoder passes neither heads nor MLP width nor positions on to its unit: 12, 512 and none hold.

    Raises:
        ValueError: for a class, argument or value that the original does not have.
    """
    arguments = complete_arguments(meta)
    shared = dict(
        memory_size=arguments["memory_size"],
        process_size=arguments["process_size"],
        processing=arguments["processing_unit"],
        num_layers=arguments["num_layers"],
        mlp_dim=arguments["mlp_dim"],
        num_heads=arguments["num_heads"],
        dropout_rate=float(arguments["dropout_rate"]),
        compat="scenic",
    )
    if meta["cls"] == SIMPLE:
        return SimpleTokenTuringMachineStep(**shared)
    read, write = MODES[arguments["memory_mode"]]
    unit = dict(read=read, write=write, positions=arguments["use_positional_embedding"])
    if meta["cls"] == UNIT:
        return TokenTuringMachineStep(**shared, **unit)
    return TokenTuringMachine(**shared, **unit, learned_memory=False)


def complete_arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the constructor arguments in `meta` with the original's defaults.

    Raises:
        ValueError: for a class, argument or value that the original does not have.
    """
    cls = meta.get("cls")
    if not isinstance(cls, str) or cls not in _ARGUMENTS:
        raise ValueError(f"meta: cls must be one of {', '.join(_ARGUMENTS)}; got {cls!r}")
    defaults = _ARGUMENTS[cls]
    given = {name: value for name, value in meta.items() if name != "cls"}
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"meta: {cls} has no argument {name!r}; it has {', '.join(sorted(defaults))}")
        kind = type(defaults[name])
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise ValueError(f"meta: {name} must be of type {kind.__name__}, got {value!r}")
    arguments = defaults | given
    if arguments["processing_unit"] not in PROCESSING_UNITS:
        raise ValueError(
            f"meta: processing_unit must be one of {', '.join(PROCESSING_UNITS)}; got {arguments['processing_unit']!r}"
        )
    if arguments.get("memory_mode", "TL") not in MODES:
        raise ValueError(f"meta: memory_mode must be one of {', '.join(MODES)}; got {arguments['memory_mode']!r}")
    if cls == ENCODER:
        heads = 12 if arguments["processing_unit"] == "transformer" else 1
        arguments |= dict(mlp_dim=512, num_heads=heads, use_positional_embedding=False)
    return arguments


def describe(meta: Mapping[str, Any]) -> str:
    """Name the original's class with the arguments that decide which parameters it has."""
    arguments = complete_arguments(meta)
    told = ("memory_mode", "processing_unit", "num_layers", "use_positional_embedding")
    return f"{meta['cls']}({', '.join(f'{name}={arguments[name]}' for name in told if name in arguments)})"
