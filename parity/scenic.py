"""Checks this library against the original implementation, case by case: outputs and gradients.

A case is an `.npz` file computed with the unmodified Scenic modules (`projects/token_turing`):
`meta` (JSON: the original class and its constructor arguments), `params/...` and `grads/...` under the
original's parameter names, `in/...` and `out/...`. The gradients are those of sum(out * cot).
"""

import argparse
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from parity.compare import largest_difference
from parity.fast_jit import fast_jit
from ttm_jax.cli import Parser, fail
from ttm_jax.machine import SimpleTokenTuringMachineStep, TokenTuringMachine, TokenTuringMachineStep

BOUND = 2e-5  # float32 rounding

_UNIT, _SIMPLE, _ENCODER = (
    "TokenTuringMachineUnit",
    "TokenTuringMachineSimpleUnit",
    "TokenTuringMachineEncoder",
)
_SHARED = dict(processing_unit="transformer", num_layers=1, dropout_rate=0.0)
_HEADS = dict(mlp_dim=512, num_heads=12)
# The constructor arguments of each original class, with its defaults.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    _UNIT: dict(process_size=8, memory_size=64, memory_mode="TL", use_positional_embedding=False, **_SHARED, **_HEADS),
    _SIMPLE: dict(process_size=16, memory_size=96, **_SHARED, **_HEADS),
    _ENCODER: dict(process_size=8, memory_size=64, memory_mode="TL", **(_SHARED | dict(num_layers=4))),
}
MODES = {"TL": ("mlp", "mlp"), "TL-MHA": ("query", "query"), "TL-AddErase": ("mlp", "erase_add")}

_Rows = Sequence[tuple[str, str | None, str]]
# The table of names. A row is (the original's module, ours, what it holds); {n} counts the original's
# summarisers, {at} is where ours is, {i} counts layers, {end} is their number.
_LEARNER = (
    ("TokenLearnerModuleV11_{n}/LayerNorm_0", "{at}/norm", "norm"),
    ("TokenLearnerModuleV11_{n}/token_masking", "{at}/mlp", "mlp"),
)
_QUERIES = (
    ("TokenLearnerMHA_{n}", "{at}", "queries"),
    ("TokenLearnerMHA_{n}/attn", "{at}/attention", "attention"),
)
_ERASE_ADD = (
    ("TokenAddEraseWrite_0/LayerNorm_0", "write/select_norm", "norm"),
    ("TokenAddEraseWrite_0/MlpBlock_0", "write/select", "mlp"),
    ("TokenAddEraseWrite_0/LayerNorm_1", "write/erase_norm", "norm"),
    ("TokenAddEraseWrite_0/MlpBlock_1", "write/erase_tokens", "mlp"),
    ("TokenAddEraseWrite_0/MlpBlock_2", "write/erase_channels", "mlp"),
    ("TokenAddEraseWrite_0/LayerNorm_2", "write/add_norm", "norm"),
    ("TokenAddEraseWrite_0/MlpBlock_3", "write/add_tokens", "mlp"),
    ("TokenAddEraseWrite_0/MlpBlock_4", "write/add_channels", "mlp"),
)
_LAYER = {
    "transformer": (
        ("Encoder_0/encoderblock_{i}/LayerNorm_0", "process/block_{i}/attention_norm", "norm"),
        (
            "Encoder_0/encoderblock_{i}/MultiHeadDotProductAttention_0",
            "process/block_{i}/attention",
            "attention",
        ),
        ("Encoder_0/encoderblock_{i}/LayerNorm_1", "process/block_{i}/mlp_norm", "norm"),
        ("Encoder_0/encoderblock_{i}/MlpBlock_0", "process/block_{i}/mlp", "mlp"),
    ),
    "mixer": (
        ("MixerBlock_{i}/LayerNorm_0", "process/token_norm_{i}", "norm"),
        ("MixerBlock_{i}/token_mixing", "process/token_mixing_{i}", "mlp"),
        ("MixerBlock_{i}/LayerNorm_1", "process/channel_norm_{i}", "norm"),
        ("MixerBlock_{i}/channel_mixing", "process/channel_mixing_{i}", "mlp"),
    ),
    "mlp": (
        ("LayerNorm_{i}", "process/mlp_norm_{i}", "norm"),
        ("MlpBlock_{i}", "process/mlp_{i}", "mlp"),
    ),
}
_AROUND_LAYERS = {
    "transformer": (
        ("Encoder_0/posembed_input", "process/positions", "positions"),
        ("Encoder_0/encoder_norm", "process/norm", "norm"),
    ),
    "mixer": (("LayerNorm_0", "process/norm", "norm"),),
    "mlp": (("LayerNorm_{end}", "process/norm", "norm"),),
}
_READ_POSITIONS = (("read_pos_embed", "read/positions", "positions"),)
_WRITE_POSITIONS = (("write_pos_embed", "write/positions", "positions"),)
# The original creates this parameter with TL-AddErase too, where nothing comes of it: we have none.
_UNUSED_POSITIONS = (("write_pos_embed", None, "positions"),)
_LEAVES = {
    "norm": (("scale", "scale"), ("bias", "bias")),
    "mlp": tuple(
        (f"{theirs}/{leaf}", f"{ours}/{leaf}")
        for theirs, ours in (("Dense_0", "hidden"), ("Dense_1", "out"))
        for leaf in ("kernel", "bias")
    ),
    "attention": tuple(
        (f"{part}/{leaf}", f"{part}/{leaf}") for part in ("query", "key", "value", "out") for leaf in ("kernel", "bias")
    ),
    "queries": (("tokens", "queries"),),
    "positions": (("pos_embedding", "embedding"),),
}


class CaseError(ValueError):
    """A case that cannot be read; the message is one line for the user."""


@dataclass(frozen=True)
class Case:
    """One case as read from its file; `params` and `grads` have the original's names."""

    name: str
    meta: Mapping[str, Any]
    params: Mapping[str, np.ndarray]
    grads: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CaseCheck:
    """The largest difference of a case's outputs and of its gradients; see `parity.compare`."""

    case: str
    outputs: float
    gradients: float
    bound: float = BOUND

    @property
    def ok(self) -> bool:
        """Both within the bound; False for NaN."""
        return self.outputs <= self.bound and self.gradients <= self.bound


def build_machine(meta: Mapping[str, Any]) -> nn.Module:
    """Our module for the original's class and arguments, with `compat="scenic"`.

    The encoder hands neither heads, MLP width nor positions on to its unit: 12, 512 and none.

    Raises:
        ValueError: for a class, argument or value that the original does not have.
    """
    arguments = _arguments(meta)
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
    if meta["cls"] == _SIMPLE:
        return SimpleTokenTuringMachineStep(**shared)
    read, write = MODES[arguments["memory_mode"]]
    unit = dict(read=read, write=write, positions=arguments["use_positional_embedding"])
    if meta["cls"] == _UNIT:
        return TokenTuringMachineStep(**shared, **unit)
    return TokenTuringMachine(**shared, **unit, learned_memory=False)


def from_scenic(params: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The original's parameters, nested or with names joined by "/", as the tree of `build_machine(meta)`.

    Raises:
        ValueError: naming the parameter that is missing or that the original does not have.
    """
    theirs = flatten_dict(dict(params), sep="/")
    ours = {}
    for their_name, our_name in _name_pairs(meta):
        if their_name not in theirs:
            raise ValueError(f"parameter {their_name} is missing; {_describe(meta)} has it")
        leaf = theirs.pop(their_name)
        if our_name is not None:
            ours[our_name] = leaf
    if theirs:
        raise ValueError(f"parameter {min(theirs)} is unknown; {_describe(meta)} does not have it")
    return unflatten_dict(ours, sep="/")


def to_scenic(tree: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters or gradients under the original's names; zeros for the parameter that has no effect.

    Raises:
        ValueError: naming the leaf that is missing or that the original does not have.
    """
    ours = flatten_dict(dict(tree), sep="/")
    theirs = {}
    for their_name, our_name in _name_pairs(meta):
        if our_name is None:  # location embeddings of the write [1, M+N+R, D]; the read has [1, M+N, D]
            _, rows, width = theirs["read_pos_embed/pos_embedding"].shape
            theirs[their_name] = np.zeros((1, rows + _arguments(meta)["process_size"], width), np.float32)
        elif our_name in ours:
            theirs[their_name] = ours.pop(our_name)
        else:
            raise ValueError(f"parameter {our_name} is missing; it is {their_name} of {_describe(meta)}")
    if ours:
        raise ValueError(f"parameter {min(ours)} has no counterpart in {_describe(meta)}")
    return theirs


def load_case(path: str | Path) -> Case:
    """Reads and checks a case, without pickle.

    Raises:
        CaseError: in one line: the file, what is wrong with it and what would be right.
    """
    path = Path(path)
    try:
        arrays = _read_arrays(path)
        meta = _read_meta(arrays.pop("meta", None))
        _check_arrays(arrays, meta)
    except ValueError as error:
        raise CaseError(f"{path}: {error}") from None
    params, grads, inputs, outputs = (
        {name.removeprefix(group): array for name, array in arrays.items() if name.startswith(group)}
        for group in ("params/", "grads/", "in/", "out/")
    )
    return Case(path.stem, meta, params, grads, inputs, outputs)


def shipped_cases() -> Path:
    """The folder of the cases that come with the package."""
    package = Path(__file__).parent
    inside = package / "scenic_cases"  # of a wheel
    return inside if inside.is_dir() else package.parent / "tests" / "data" / "scenic"


def run(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs, and gradients under the original's names, of our machine on the case, with full float32 products."""
    machine = build_machine(case.meta)
    params = from_scenic(case.params, case.meta)

    def loss(params: Any, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        if case.meta["cls"] == _ENCODER:
            outputs: dict[str, Any] = {"output": machine.apply({"params": params}, inputs["tokens"])[0]}
        else:
            memory, output = machine.apply({"params": params}, inputs["memory"], inputs["tokens"])
            outputs = {"memory": memory, "output": output}
        products = [jnp.sum(out * inputs[f"cot_{name}"]) for name, out in outputs.items()]
        return jnp.stack(products).sum(), outputs

    with jax.default_matmul_precision("highest"):
        (_, outputs), grads = fast_jit(jax.value_and_grad(loss, has_aux=True))(params, dict(case.inputs))
    return outputs, to_scenic(grads, case.meta)


def compare(case: Case) -> CaseCheck:
    """Runs our machine on the case and compares outputs and gradients."""
    outputs, grads = run(case)
    return CaseCheck(
        case.name,
        largest_difference(outputs, case.outputs).value,
        largest_difference(grads, case.grads).value,
    )


def check_case(path: str | Path) -> CaseCheck:
    """`compare(load_case(path))`."""
    return compare(load_case(path))


def _arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments in `meta`, checked, completed with the original's defaults."""
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
    if arguments["processing_unit"] not in _LAYER:
        raise ValueError(
            f"meta: processing_unit must be one of {', '.join(_LAYER)}; got {arguments['processing_unit']!r}"
        )
    if arguments.get("memory_mode", "TL") not in MODES:
        raise ValueError(f"meta: memory_mode must be one of {', '.join(MODES)}; got {arguments['memory_mode']!r}")
    if cls == _ENCODER:
        heads = 12 if arguments["processing_unit"] == "transformer" else 1
        arguments |= dict(mlp_dim=512, num_heads=heads, use_positional_embedding=False)
    return arguments


def _describe(meta: Mapping[str, Any]) -> str:
    arguments = _arguments(meta)
    told = ("memory_mode", "processing_unit", "num_layers", "use_positional_embedding")
    return f"{meta['cls']}({', '.join(f'{name}={arguments[name]}' for name in told if name in arguments)})"


def _name_pairs(meta: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Each parameter's original name and ours; None where we have no such parameter."""
    outside = ("unit_function/", "step/") if meta["cls"] == _ENCODER else ("", "")
    for rows, where in _modules(meta):
        for theirs, ours, holds in rows:
            for their_leaf, our_leaf in _LEAVES[holds]:
                our_name = ours and f"{outside[1]}{ours.format(**where)}/{our_leaf}"
                yield f"{outside[0]}{theirs.format(**where)}/{their_leaf}", our_name


def _modules(meta: Mapping[str, Any]) -> Iterator[tuple[_Rows, dict[str, Any]]]:
    """Rows of the table of names, and what their placeholders stand for."""
    arguments = _arguments(meta)
    unit, layers = arguments["processing_unit"], arguments["num_layers"]
    yield _AROUND_LAYERS[unit], dict(end=layers)
    for layer in range(layers):
        yield _LAYER[unit], dict(i=layer)
    if meta["cls"] == _SIMPLE:
        yield _LEARNER, dict(n=0, at="summarizer")
        return
    read, write = MODES[arguments["memory_mode"]]
    summarizers = {"mlp": _LEARNER, "query": _QUERIES}
    yield summarizers[read], dict(n=0, at="read/summarizer")
    yield summarizers.get(write, _ERASE_ADD), dict(n=1, at="write/summarizer")
    if arguments["use_positional_embedding"]:
        yield _READ_POSITIONS, {}
        yield _UNUSED_POSITIONS if write == "erase_add" else _WRITE_POSITIONS, {}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        exists, is_file = path.exists(), path.is_file()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if not exists:
        raise ValueError("no such file; give an .npz file of a case")
    if not is_file:
        raise ValueError("not a file; give the .npz files in it one by one")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        AttributeError,  # a single array in place of an archive
        EOFError,
        MemoryError,
        NotImplementedError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        raise ValueError("damaged, or not an .npz file; give a case as numpy.savez writes it") from None


def _read_meta(array: np.ndarray | None) -> dict[str, Any]:
    if array is None:
        raise ValueError("array meta is missing; it is the JSON of the original class and its arguments")
    try:
        meta = json.loads(str(array))
    except json.JSONDecodeError:
        meta = None
    if not isinstance(meta, dict):
        raise ValueError('meta must be a JSON object such as {"cls": "TokenTuringMachineUnit"}')
    build_machine(meta)
    return meta


def _check_arrays(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Every array that the case needs is there and no other, each float32, finite and of its shape."""
    expected = _expected_shapes(arrays.get("in/tokens"), meta)
    for name, shape in expected.items():
        if name not in arrays:
            raise ValueError(f"array {name} is missing; it must have shape {shape}")
        if arrays[name].shape != shape:
            raise ValueError(f"array {name} must have shape {shape}, got {arrays[name].shape}")
        if arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            raise ValueError(f"array {name} must be finite float32 numbers, got {arrays[name].dtype}")
    for name in arrays:
        if name not in expected:
            raise ValueError(f"array {name} is unknown; {_describe(meta)} does not have it")


def _expected_shapes(tokens: np.ndarray | None, meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a case with these input tokens."""
    encoder = meta["cls"] == _ENCODER
    axes = "[B, T, N, D]" if encoder else "[B, N, D]"
    if tokens is None:
        raise ValueError(f"array in/tokens is missing; it must be {axes}")
    if tokens.ndim != len(axes.split(",")) or 0 in tokens.shape:
        raise ValueError(f"array in/tokens must be {axes}, got shape {tokens.shape}")
    machine = build_machine(meta)
    *lead, _, width = tokens.shape
    output, memory = (*lead, machine.process_size, width), (*lead, machine.memory_size, width)
    shapes = {"in/tokens": tokens.shape, "in/cot_output": output, "out/output": output}
    if not encoder:
        shapes |= {"in/memory": memory, "in/cot_memory": memory, "out/memory": memory}
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (memory, tokens.shape)]
    variables = jax.eval_shape(machine.init, jax.random.key(0), *(inputs[1:] if encoder else inputs))
    for name, leaf in to_scenic(variables["params"], meta).items():
        shapes |= {f"params/{name}": leaf.shape, f"grads/{name}": leaf.shape}
    return shapes


def _parser() -> Parser:
    parser = Parser(
        prog="python -m parity.scenic",
        description="Check this library against cases computed with the original Scenic code: outputs and "
        "gradients, largest difference relative to the scale of each array.",
        epilog="example: python -m parity.scenic tests/data/scenic/*.npz\n\n"
        "exit status: 0 all in bounds, 1 one is out of bounds, 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="an .npz file holding one case")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command: one row a case as it is done; 0 when all are in bounds, 1 when one is not, 2 on bad input."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        cases = [load_case(path) for path in options.files]
    except CaseError as error:
        return fail(parser, error)
    if options.json:
        checks = [compare(case) for case in cases]
        print(json.dumps({"cases": [_as_json(check) for check in checks], "ok": all(c.ok for c in checks)}))
    else:
        checks = _print_table(cases)
    return 0 if all(check.ok for check in checks) else 1


def _print_table(cases: Sequence[Case]) -> list[CaseCheck]:
    width = max(len(case.name) for case in cases)
    print(f"{'case':{width}}  outputs  gradients    bound  ok")
    checks = []
    for case in cases:
        check = compare(case)
        verdict = "yes" if check.ok else "NO"
        print(
            f"{check.case:{width}}  {check.outputs:7.1e}  {check.gradients:9.1e}  {check.bound:7.1e}  {verdict}",
            flush=True,
        )
        checks.append(check)
    print(f"{sum(check.ok for check in checks)} of {len(checks)} cases within {BOUND:.0e} of the original")
    return checks


def _as_json(check: CaseCheck) -> dict[str, Any]:
    """The check with `ok`; a difference that is not finite as null, which JSON can say."""
    fields = asdict(check) | {"ok": check.ok}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


if __name__ == "__main__":
    sys.exit(main())
