"""Reading from memory and writing to it (paper, sections 3.2 and 3.3).

A read summarises [memory ; input] to R tokens. A write turns memory, output and input into the next memory,
of the same size. Memory is carried in float32 or wider, whatever the compute dtype. Input tokens that are not
valid have no effect, whatever they hold.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ttm_jax.machine.layers import (
    Dtype,
    FeedForward,
    LayerNorm,
    Module,
    Positions,
    apply,
    at_least_float32,
    keep_valid,
    standard_promotion,
)
from ttm_jax.machine.summarize import BOTTLENECK_DIM, SUMMARIZERS, make_summarizer, normalize_weights

READS = SUMMARIZERS
WRITES = (*SUMMARIZERS, "erase_add", "concat", "none")
NUM_WRITES = 8  # slots that erase-and-add selects softly a step (Scenic `TokenAddEraseWrite`)


@standard_promotion()
def concat_memory_input(
    memory_BxMxD: Float[Array, "B M D"], input_BxNxD: Float[Array, "B N D"]
) -> Float[Array, "B M+N D"]:
    """Concatenate [memory ; input] along the token axis."""
    return jnp.concatenate([memory_BxMxD, input_BxNxD], axis=1)


@standard_promotion()
def concat_for_write(
    memory_BxMxD: Float[Array, "B M D"],
    output_BxRxD: Float[Array, "B R D"],
    input_BxNxD: Float[Array, "B N D"],
) -> Float[Array, "B M+R+N D"]:
    """Concatenate [memory ; output ; input] along the token axis, in the paper's order (equation 4)."""
    return jnp.concatenate([memory_BxMxD, output_BxRxD, input_BxNxD], axis=1)


def concat_write(memory_BxMxD: Float[Array, "B M D"], new_BxRxD: Float[Array, "B R D"]) -> Float[Array, "B M D"]:
    """Keep the last M tokens of [memory ; new]: first in, first out."""
    size = memory_BxMxD.shape[1]
    return concat_memory_input(memory_BxMxD, new_BxRxD.astype(memory_BxMxD.dtype))[:, -size:]


@standard_promotion()
def erase_and_add(
    memory_BxMxD: Float[Array, "B M D"],
    weights_BxWxM: Float[Array, "B W M"],
    erase_BxWxD: Float[Array, "B W D"],
    add_BxWxD: Float[Array, "B W D"],
) -> Float[Array, "B M D"]:
    """Compute memory * prod_w (1 - weight_w erase_w) + sum_w weight_w add_w (Neural Turing Machine, section 3.2).

    `weights` and `erase` lie in [0, 1]. With zero weights, memory is returned unchanged.
    """
    factors = 1 - weights_BxWxM[..., None] * erase_BxWxD[:, :, None]
    keep_BxMxD = reduce(jnp.multiply, [factors[:, w] for w in range(factors.shape[1])])
    return memory_BxMxD * keep_BxMxD + jnp.einsum("bwm,bwd->bmd", weights_BxWxM, add_BxWxD)


def _among_others(valid_BxN: jax.Array | None, before: int, after: int = 0) -> jax.Array | None:
    """Extend the mask of the input tokens by so many tokens before and after them, which are valid."""
    return None if valid_BxN is None else jnp.pad(valid_BxN, ((0, 0), (before, after)), constant_values=True)


class Read(Module):
    """Summary of [memory ; input] with location embeddings: R tokens [B, R, D]."""

    process_size: int
    kind: str = "mlp"
    num_heads: int = 8
    positions: bool = True
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        memory_BxMxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_BxN: jax.Array | None = None,
    ) -> jax.Array:
        all_tokens = concat_memory_input(memory_BxMxD, tokens_BxNxD)
        if self.positions:
            all_tokens = Positions(self.param_dtype, name="positions")(all_tokens)
        summarizer = make_summarizer(
            self.kind,
            self.process_size,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="summarizer",
        )
        return summarizer(all_tokens, train, _among_others(valid_BxN, memory_BxMxD.shape[1]))


class SummaryWrite(Module):
    """The next memory, as a summary of [memory ; output ; input] with location embeddings."""

    kind: str = "mlp"
    num_heads: int = 8
    positions: bool = True
    dropout_rate: float = 0.0
    compat: str | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        memory_BxMxD: jax.Array,
        output_BxRxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_BxN: jax.Array | None = None,
    ) -> jax.Array:
        M, R = memory_BxMxD.shape[1], output_BxRxD.shape[1]
        if self.compat == "scenic":
            all_tokens = concat_for_write(memory_BxMxD, tokens_BxNxD, output_BxRxD)
            valid = _among_others(valid_BxN, M, R)
        else:
            all_tokens = concat_for_write(memory_BxMxD, output_BxRxD, tokens_BxNxD)
            valid = _among_others(valid_BxN, M + R)
        if self.positions:
            all_tokens = Positions(self.param_dtype, name="positions")(all_tokens)
        summarizer = make_summarizer(
            self.kind,
            M,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="summarizer",
        )
        return summarizer(all_tokens, train, valid)


class EraseAddWrite(Module):
    """A soft selection of memory tokens to erase and to add to, as a Neural Turing Machine writes.

    The selection reads the memory. Erase and add vectors come from [output ; input]. All have location embeddings.
    `compat="scenic"` keeps the arithmetic of `TokenAddEraseWrite`: no embeddings, the input not seen, no sigmoid on
    erase, and the mean of 1 - w a added in place of the sum of w a.
    """

    positions: bool = True
    dropout_rate: float = 0.0
    compat: str | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        memory_BxMxD: jax.Array,
        output_BxRxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_BxN: jax.Array | None = None,
    ) -> jax.Array:
        # 1. select memory tokens  2. make erase and add vectors  3. erase and add
        scenic = self.compat == "scenic"
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        selected, control, valid = memory_BxMxD, output_BxRxD, None
        if not scenic:
            all_tokens = concat_for_write(memory_BxMxD, output_BxRxD, keep_valid(tokens_BxNxD, valid_BxN))
            valid = _among_others(valid_BxN, output_BxRxD.shape[1])
            if self.positions:
                all_tokens = Positions(self.param_dtype, name="positions")(all_tokens)
            selected, control = jnp.split(all_tokens, [memory_BxMxD.shape[1]], axis=1)

        mlp = partial(FeedForward, BOTTLENECK_DIM, dropout_rate=self.dropout_rate, **dtypes)
        logits_BxMxW = mlp(NUM_WRITES, name="select")(LayerNorm(**dtypes, name="select_norm")(selected), train)
        weights_BxWxM = normalize_weights(jnp.swapaxes(logits_BxMxW, 1, 2))
        self.sow("intermediates", "weights", weights_BxWxM)

        def vectors(name: str) -> jax.Array:
            mixed = keep_valid(LayerNorm(**dtypes, name=f"{name}_norm")(control), valid)
            mixed = mlp(NUM_WRITES, name=f"{name}_tokens")(jnp.swapaxes(mixed, 1, 2), train)
            return at_least_float32(mlp(name=f"{name}_channels")(jnp.swapaxes(mixed, 1, 2), train))

        erase_BxWxD, add_BxWxD = vectors("erase"), vectors("add")
        if not scenic:
            return erase_and_add(memory_BxMxD, weights_BxWxM, jax.nn.sigmoid(erase_BxWxD), add_BxWxD)
        # sum_w (1 - w a) / W = 1 - sum_w w a / W: an erase-and-add of -a / W, plus one.
        added = erase_and_add(memory_BxMxD, weights_BxWxM, erase_BxWxD, -add_BxWxD / NUM_WRITES)
        return added + 1.0


class ConcatWrite(Module):
    """Memory as a queue of the latest outputs, without parameters."""

    def __call__(
        self,
        memory_BxMxD: jax.Array,
        output_BxRxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_BxN: jax.Array | None = None,
    ) -> jax.Array:
        return concat_write(memory_BxMxD, output_BxRxD)


class NoWrite(Module):
    """A write that leaves the memory as it is, so that every step reads the same memory; without parameters."""

    def __call__(
        self,
        memory_BxMxD: jax.Array,
        output_BxRxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_BxN: jax.Array | None = None,
    ) -> jax.Array:
        return memory_BxMxD


def make_write(
    kind: str,
    *,
    num_heads: int = 8,
    positions: bool = True,
    dropout_rate: float = 0.0,
    compat: str | None = None,
    dtype: Dtype = None,
    param_dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> nn.Module:
    """Make the write called `kind`, one of WRITES: a module of (memory, output, input) that gives the next memory."""
    shared = dict(
        positions=positions,
        dropout_rate=dropout_rate,
        compat=compat,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )
    match kind:
        case "erase_add":
            return EraseAddWrite(**shared)
        case "concat":
            return ConcatWrite(name=name)
        case "none":
            return NoWrite(name=name)
        case _ if kind in SUMMARIZERS:
            return SummaryWrite(kind, num_heads, **shared)
    raise ValueError(f"write must be one of {', '.join(WRITES)}, got {kind!r}")


# The same modules as pure, jitted functions of (parameters, tokens).


@jax.jit
def add_positional_info(
    params: Any, memory_BxMxD: Float[Array, "B M D"], input_BxNxD: Float[Array, "B N D"]
) -> Float[Array, "B M+N D"]:
    """Add location embeddings to [memory ; input]; `params` as of `Positions()`."""
    return apply(Positions(), params, concat_memory_input(memory_BxMxD, input_BxNxD))


@jax.jit
def add_write_positional_info(
    params: Any,
    memory_BxMxD: Float[Array, "B M D"],
    output_BxRxD: Float[Array, "B R D"],
    input_BxNxD: Float[Array, "B N D"],
) -> Float[Array, "B M+R+N D"]:
    """Add location embeddings to [memory ; output ; input]; `params` as of `Positions()`."""
    return apply(Positions(), params, concat_for_write(memory_BxMxD, output_BxRxD, input_BxNxD))


@partial(jax.jit, static_argnames=("r", "kind", "num_heads", "positions"))
def read_operation(
    params: Any,
    memory_BxMxD: Float[Array, "B M D"],
    input_BxNxD: Float[Array, "B N D"],
    r: int = 16,
    kind: str = "mlp",
    num_heads: int = 8,
    positions: bool = True,
) -> Float[Array, "B {r} D"]:
    """Read R tokens from [memory ; input]; `params` as of `Read(r, kind, num_heads, positions)`."""
    module = Read(r, kind, num_heads, positions)
    return apply(module, params, memory_BxMxD, input_BxNxD)


@partial(jax.jit, static_argnames=("kind", "num_heads", "positions"))
def write_operation(
    params: Any,
    memory_BxMxD: Float[Array, "B M D"],
    output_BxRxD: Float[Array, "B R D"],
    input_BxNxD: Float[Array, "B N D"],
    kind: str = "mlp",
    num_heads: int = 8,
    positions: bool = True,
) -> Float[Array, "B M D"]:
    """Compute the next memory; `params` as of `make_write(kind, num_heads=..., positions=...)`."""
    module = make_write(kind, num_heads=num_heads, positions=positions)
    return apply(module, params, memory_BxMxD, output_BxRxD, input_BxNxD)


def erase_add_write(
    params: Any,
    memory_BxMxD: Float[Array, "B M D"],
    output_BxRxD: Float[Array, "B R D"],
    input_BxNxD: Float[Array, "B N D"],
    positions: bool = True,
) -> Float[Array, "B M D"]:
    """Write by erase and add, see `write_operation`; `params` as of `EraseAddWrite(positions)`."""
    return write_operation(params, memory_BxMxD, output_BxRxD, input_BxNxD, kind="erase_add", positions=positions)
