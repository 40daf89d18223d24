"""Parameters under the original's names and under ours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from parity.scenic.original import ENCODER, MODES, SIMPLE, complete_arguments, describe

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


def from_scenic(params: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the original's parameters, nested or with names joined by "/", to the tree of `build_machine(meta)`.

    Raises:
        ValueError: naming the parameter that is missing or that the original does not have.
    """
    theirs = flatten_dict(dict(params), sep="/")
    ours = {}
    for their_name, our_name in _name_pairs(meta):
        if their_name not in theirs:
            raise ValueError(f"parameter {their_name} is missing; {describe(meta)} has it")
        leaf = theirs.pop(their_name)
        if our_name is not None:
            ours[our_name] = leaf
    if theirs:
        raise ValueError(f"parameter {min(theirs)} is unknown; {describe(meta)} does not have it")
    return unflatten_dict(ours, sep="/")


def to_scenic(tree: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our parameters or gradients to the original's names; zeros for the parameter that has no effect.

    Raises:
        ValueError: naming the leaf that is missing or that the original does not have.
    """
    ours = flatten_dict(dict(tree), sep="/")
    theirs = {}
    for their_name, our_name in _name_pairs(meta):
        if our_name is None:  # location embeddings of the write [1, M+N+R, D]; the read has [1, M+N, D]
            _, rows, width = theirs["read_pos_embed/pos_embedding"].shape
            theirs[their_name] = np.zeros((1, rows + complete_arguments(meta)["process_size"], width), np.float32)
        elif our_name in ours:
            theirs[their_name] = ours.pop(our_name)
        else:
            raise ValueError(f"parameter {our_name} is missing; it is {their_name} of {describe(meta)}")
    if ours:
        raise ValueError(f"parameter {min(ours)} has no counterpart in {describe(meta)}")
    return theirs


def _name_pairs(meta: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield each parameter's original name and ours; None where we have no such parameter."""
    outside = ("unit_function/", "step/") if meta["cls"] == ENCODER else ("", "")
    for rows, where in _modules(meta):
        for theirs, ours, holds in rows:
            for their_leaf, our_leaf in _LEAVES[holds]:
                our_name = ours and f"{outside[1]}{ours.format(**where)}/{our_leaf}"
                yield f"{outside[0]}{theirs.format(**where)}/{their_leaf}", our_name


def _modules(meta: Mapping[str, Any]) -> Iterator[tuple[_Rows, dict[str, Any]]]:
    """Yield rows of the table of names, and what their placeholders stand for."""
    arguments = complete_arguments(meta)
    unit, layers = arguments["processing_unit"], arguments["num_layers"]
    yield _AROUND_LAYERS[unit], dict(end=layers)
    for layer in range(layers):
        yield _LAYER[unit], dict(i=layer)
    if meta["cls"] == SIMPLE:
        yield _LEARNER, dict(n=0, at="summarizer")
        return
    read, write = MODES[arguments["memory_mode"]]
    summarizers = {"mlp": _LEARNER, "query": _QUERIES}
    yield summarizers[read], dict(n=0, at="read/summarizer")
    yield summarizers.get(write, _ERASE_ADD), dict(n=1, at="write/summarizer")
    if arguments["use_positional_embedding"]:
        yield _READ_POSITIONS, {}
        yield _UNUSED_POSITIONS if write == "erase_add" else _WRITE_POSITIONS, {}
