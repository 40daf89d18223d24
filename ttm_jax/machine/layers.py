"""Layers that summarisers and processing units share.

Names end in shapes, here and in every module of this package and of its PyTorch twin:
B batch, T machine steps, S sequence positions, N input tokens a step, M memory tokens, R read tokens,
W writes, D width, H heads, K head width, F MLP width, V vocabulary, L layers.
A function of any set of tokens takes N tokens and gives Q. A summary gives K tokens.
Where a place of the answer may take several machine steps, T counts the places and U the machine steps.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.export import is_symbolic_dim
from jax.sharding import NamedSharding, PartitionSpec

Dtype = Any
LAYER_NORM_EPS = 1e-6

_xavier = nn.initializers.xavier_uniform()


@contextmanager
def standard_promotion() -> Generator[None]:
    """Promote dtypes by JAX's standard rules, though the user may want strict ones: memory may be wider than tokens."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Module(nn.Module):
    """A linen module that may be called where the user wants dtypes to be promoted strictly."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "__call__" in vars(cls):
            cls.__call__ = standard_promotion()(cls.__call__)
        super().__init_subclass__(**kwargs)


@standard_promotion()
def apply(module: nn.Module, params: Any, *inputs: Any, method: str | None = None) -> Any:
    """Apply a module as a pure function of its parameters and inputs."""
    return module.apply({"params": params}, *inputs, method=method)


@standard_promotion()
def at_least_float32(x: jax.Array) -> jax.Array:
    """Return `x` in float32, or as it is where its dtype is wider: for softmax and memory under bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def broadcast_batch(x_1xKxD: jax.Array, tokens: jax.Array) -> jax.Array:
    """Broadcast [1, K, D] to the batch of `tokens` [B, ...], divided between devices as they are."""
    divided = jax.typeof(tokens).sharding
    batch_axis = divided.spec[0]  # of a mesh with explicit axes; otherwise None
    sharding = None if batch_axis is None else NamedSharding(divided.mesh, PartitionSpec(batch_axis))
    x_BxKxD = jnp.broadcast_to(x_1xKxD, (tokens.shape[0], *x_1xKxD.shape[1:]), out_sharding=sharding)
    of_tokens, of_x = (jax.typeof(array).manual_axis_type.varying for array in (tokens, x_BxKxD))  # under shard_map
    return jax.lax.pcast(x_BxKxD, tuple(of_tokens - of_x), to="varying")


def keep_valid(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Return `x` with zeros where it is not valid, whatever it holds; `valid` has the first axes of `x`."""
    return x if valid is None else jnp.where(jnp.expand_dims(valid, range(valid.ndim, x.ndim)), x, 0)


def softmax_over_tokens(logits: jax.Array, axis: int, valid_BxN: jax.Array | None = None) -> jax.Array:
    """Take the softmax over the valid tokens of `axis`, in float32 at least; `logits` are [B, ..., N, ...].

    A token that is not valid has weight 0. Where none is valid, all weights are 0.
    """
    logits = at_least_float32(logits)
    if valid_BxN is None:
        return jax.nn.softmax(logits, axis)
    valid = jnp.expand_dims(valid_BxN, [i for i in range(1, logits.ndim) if i != axis])
    weights = jax.nn.softmax(jnp.where(valid, logits, jnp.finfo(logits.dtype).min), axis)
    return jnp.where(valid, weights, 0)


class LayerNorm(Module):
    """Flax's `LayerNorm` of the last axis, [..., D] to [..., D], with a gradient that is faster on a CPU.

    Statistics are in float32 at least.
    """

    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        dtype = jnp.result_type(x, scale_D, bias_D)
        wide = jnp.promote_types(dtype, jnp.float32)
        y = _layer_norm(*(array.astype(wide) for array in (x, scale_D, bias_D)))
        return y.astype(dtype if self.dtype is None else self.dtype)


@jax.custom_jvp
def _layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> jax.Array:
    deviations, rstd = _deviations(x)
    axes = range(x.ndim - 1)
    return deviations * (rstd * jnp.expand_dims(scale_D, axes)) + jnp.expand_dims(bias_D, axes)


@_layer_norm.defjvp
def _layer_norm_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """Compute the derivative with sums and broadcasts written as products with ones.

    Their transposes, which make the gradient, are products too. On a CPU, XLA computes these in a fraction of the
    time that its own gradient of the layer takes.
    """
    x, scale_D, bias_D = primals
    x_dot, scale_dot_D, bias_dot_D = tangents
    deviations, rstd = _deviations(x)
    normal = deviations * rstd
    *rows, D = x.shape
    ones_D, ones_N = jnp.ones(D, x.dtype), jnp.ones(math.prod(rows), x.dtype)
    product = partial(jnp.matmul, precision="highest")

    def spread(values_N: jax.Array, values_D: jax.Array) -> jax.Array:
        return product(values_N[:, None], values_D[None]).reshape(x.shape)

    def average(y: jax.Array) -> jax.Array:
        return spread(product(y.reshape(-1, D), ones_D / D), ones_D)

    normal_dot = rstd * (x_dot - average(x_dot) - normal * average(normal * x_dot))
    scale = jnp.expand_dims(scale_D, range(len(rows)))
    y_dot = normal_dot * scale + normal * spread(ones_N, scale_dot_D) + spread(ones_N, bias_dot_D)
    return _layer_norm(x, scale_D, bias_D), y_dot


def _deviations(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the deviations from the mean of the last axis, and 1 / their standard deviation [..., 1].

    The variance is the mean of their squares. E[x^2] - E[x]^2 would lose all digits where the mean is large.
    """
    deviations = x - x.mean(axis=-1, keepdims=True)
    variance = (deviations * deviations).mean(axis=-1, keepdims=True)
    return deviations, jax.lax.rsqrt(variance + LAYER_NORM_EPS)


class FeedForward(Module):
    """Dense, GELU (tanh form), Dense, with dropout after each (Scenic `MlpBlock`).

    Maps [..., D] to [..., `out_dim`], or back to [..., D] when `out_dim` is None.
    """

    hidden_dim: int
    out_dim: int | None = None
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dense = partial(
            nn.Dense,
            kernel_init=_xavier,
            bias_init=nn.initializers.normal(1e-6),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        out_dim = x.shape[-1] if self.out_dim is None else self.out_dim
        x = dropout(nn.gelu(dense(self.hidden_dim, name="hidden")(x)))
        return dropout(dense(out_dim, name="out")(x))


def _matrix_product(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
    """Multiply the last axes of `x` with the first axes of `kernel`, as `lax.dot_general` does.

    In the gradient of a product with more than two axes, XLA copies an operand into another layout at each step of
    a scan. A kernel larger than the activations is therefore multiplied as a matrix, which needs no copy. Under
    `jax.export` the batch may have no number.
    """
    if is_symbolic_dim(x.size) or kernel.size <= x.size:
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    (_, contracted), _ = dimension_numbers
    rows, features = x.shape[: x.ndim - len(contracted)], kernel.shape[len(contracted) :]
    inputs = math.prod(kernel.shape[: len(contracted)])
    y = jnp.dot(x.reshape(*rows, inputs), kernel.reshape(inputs, -1), precision=precision)
    return y.reshape(*rows, *features)


class MultiHeadAttention(Module):
    """softmax(q k^T / sqrt(K)) v over H heads, softmax in float32 at least.

    Takes queries [B, Q, D] and tokens [B, N, D]; gives [B, Q, D]. Tokens that are not valid are not attended to.
    As in Flax, kernels are [D, H, K], and that of the output is [H, K, D].

    Raises:
        ValueError: if `num_heads` does not divide the width.
    """

    num_heads: int
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries_BxQxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_BxN: jax.Array | None = None,
    ) -> jax.Array:
        width = queries_BxQxD.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"num_heads must divide the width, got {self.num_heads} heads for width {width}")
        head_width = width // self.num_heads
        dense = partial(
            nn.DenseGeneral,
            kernel_init=_xavier,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=_matrix_product,
        )
        project = partial(dense, features=(self.num_heads, head_width))
        q_BxQxHxK = project(name="query")(queries_BxQxD)
        k_BxNxHxK = project(name="key")(tokens_BxNxD)
        v_BxNxHxK = project(name="value")(tokens_BxNxD)
        scores_BxHxQxN = jnp.einsum("bqhk,bnhk->bhqn", q_BxQxHxK * head_width**-0.5, k_BxNxHxK)
        weights_BxHxQxN = softmax_over_tokens(scores_BxHxQxN, 3, valid_BxN)
        self.sow("intermediates", "weights", weights_BxHxQxN)
        weights_BxHxQxN = weights_BxHxQxN.astype(v_BxNxHxK.dtype)
        weights_BxHxQxN = nn.Dropout(self.dropout_rate, deterministic=not train)(weights_BxHxQxN)
        heads_BxQxHxK = jnp.einsum("bhqn,bnhk->bqhk", weights_BxHxQxN, v_BxNxHxK)
        return dense(features=width, axis=(-2, -1), name="out")(heads_BxQxHxK)


class Positions(Module):
    """A learned embedding added to each location: [B, N, D] to [B, N, D] (Scenic `AddPositionEmbs`)."""

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens_BxNxD: jax.Array) -> jax.Array:
        shape = (1, *tokens_BxNxD.shape[1:])
        embedding_1xNxD = self.param("embedding", nn.initializers.normal(0.02), shape, self.param_dtype)
        return tokens_BxNxD + embedding_1xNxD.astype(tokens_BxNxD.dtype)
