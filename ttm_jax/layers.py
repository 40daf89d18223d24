"""Layers that summarisers and processing units share.

Shapes in names, here and in every module of this package and of its PyTorch twin:
B batch, T steps, S sequence positions, N input tokens a step, M memory tokens, R read tokens,
W writes, D width, H heads, K head width, F MLP width, V vocabulary, L layers. Where a function takes any set of
tokens, N is the number of its tokens and Q the number it gives. Where a place of the answer may take several machine
steps, T are its places and U the machine steps.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Dtype = Any

_xavier = nn.initializers.xavier_uniform()


def apply(module: nn.Module, params: Any, *inputs: jax.Array, method: str | None = None) -> Any:
    """A module as a pure function of its parameters and inputs."""
    return module.apply({"params": params}, *inputs, method=method)


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where its dtype is wider: for softmax and memory under bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class FeedForward(nn.Module):
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
    """The last axes of `x` times the first of `kernel`: what `lax.dot_general` gives.

    For the gradient of a product with more than two axes XLA copies an operand into another layout, at each step of a
    scan. A kernel larger than the activations is therefore multiplied as a matrix, which needs no copy.
    """
    if kernel.size <= x.size:
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    (_, contracted), _ = dimension_numbers
    rows, features = x.shape[: x.ndim - len(contracted)], kernel.shape[len(contracted) :]
    inputs = math.prod(kernel.shape[: len(contracted)])
    y = jnp.dot(x.reshape(*rows, inputs), kernel.reshape(inputs, -1), precision=precision)
    return y.reshape(*rows, *features)


class MultiHeadAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over H heads, softmax in float32 at least.

    Takes queries [B, Q, D] and tokens [B, N, D], gives [B, Q, D]. Kernels are [D, H, K] and, of the
    output, [H, K, D], as in Flax.

    Raises:
        ValueError: if `num_heads` does not divide the width.
    """

    num_heads: int
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries_BxQxD: jax.Array, tokens_BxNxD: jax.Array, train: bool = False) -> jax.Array:
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
        weights_BxHxQxN = jax.nn.softmax(at_least_float32(scores_BxHxQxN))
        self.sow("intermediates", "weights", weights_BxHxQxN)
        weights_BxHxQxN = weights_BxHxQxN.astype(v_BxNxHxK.dtype)
        weights_BxHxQxN = nn.Dropout(self.dropout_rate, deterministic=not train)(weights_BxHxQxN)
        heads_BxQxHxK = jnp.einsum("bhqn,bnhk->bqhk", weights_BxHxQxN, v_BxNxHxK)
        return dense(features=width, axis=(-2, -1), name="out")(heads_BxQxHxK)


class Positions(nn.Module):
    """Adds a learned embedding to each location: [B, N, D] to [B, N, D] (Scenic `AddPositionEmbs`)."""

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens_BxNxD: jax.Array) -> jax.Array:
        shape = (1, *tokens_BxNxD.shape[1:])
        embedding_1xNxD = self.param("embedding", nn.initializers.normal(0.02), shape, self.param_dtype)
        return tokens_BxNxD + embedding_1xNxD.astype(tokens_BxNxD.dtype)
