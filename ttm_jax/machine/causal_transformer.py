"""A causal Transformer with a key-value cache: what the machine is measured against.

Like the machine, it takes new tokens at each step; unlike it, it attends to all tokens there ever were.
Q is the number of new tokens, C the capacity of the cache in tokens.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ttm_jax.machine.layers import Dtype, FeedForward, LayerNorm, Module, at_least_float32

QUERY_BLOCK = 256  # at most so many queries attend at a time, so that scores take memory C, not C^2
ROTARY_BASE = 10_000.0


class Cache(NamedTuple):
    """Keys and values of each layer, L times [B, H, C, K], of which the first `length` are filled."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array


class CausalTransformer(Module):
    """L pre-norm blocks with rotary positions (arXiv 2104.09864): tokens [B, Q, D] to outputs [B, Q, D].

        outputs_BxSxD, _ = transformer.apply(variables, tokens_BxSxD)                    # whole sequence
        cache = transformer.empty_cache(B, capacity, D)
        outputs_BxQxD, cache = transformer.apply(variables, tokens_BxQxD, cache)         # streaming

    The blocks are those of `TransformerStack`: same width, heads and MLP. Donate the cache to a jitted step;
    otherwise every step copies it. Nothing checks that the tokens fit the cache's capacity: the caller must.
    """

    num_layers: int = 4
    num_heads: int = 4
    mlp_dim: int = 512
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens_BxQxD: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = tokens_BxQxD
        if cache is None:
            cache = self.empty_cache(*x.shape, dtype=x.dtype if self.dtype is None else self.dtype)
        keys, values = list(cache.keys), list(cache.values)
        for layer in range(self.num_layers):
            attention = CachedAttention(self.num_heads, **dtypes, name=f"attention_{layer}")
            y = LayerNorm(**dtypes, name=f"attention_norm_{layer}")(x)
            y, keys[layer], values[layer] = attention(y, keys[layer], values[layer], cache.length)
            x = x + y
            y = LayerNorm(**dtypes, name=f"mlp_norm_{layer}")(x)
            x = x + FeedForward(self.mlp_dim, None, **dtypes, name=f"mlp_{layer}")(y)
        outputs_BxQxD = LayerNorm(**dtypes, name="norm")(x)
        return outputs_BxQxD, Cache(tuple(keys), tuple(values), cache.length + tokens_BxQxD.shape[1])

    def empty_cache(self, batch_size: int, capacity: int, width: int, dtype: Dtype = jnp.float32) -> Cache:
        """Make a cache with room for `capacity` tokens of width D."""
        shape = (batch_size, self.num_heads, capacity, width // self.num_heads)
        empty = tuple(jnp.zeros(shape, dtype) for _ in range(2 * self.num_layers))
        return Cache(empty[: self.num_layers], empty[self.num_layers :], jnp.zeros((), jnp.int32))


class CachedAttention(Module):
    """Causal attention of new tokens to a cache. The new tokens are added to the cache first.

    Raises:
        ValueError: unless the width makes heads of an even width each, as rotary positions need.
    """

    num_heads: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BxQxD: jax.Array, keys_BxHxCxK: jax.Array, values_BxHxCxK: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, Q, D = x_BxQxD.shape
        if D % (2 * self.num_heads):
            raise ValueError(f"width must be a multiple of 2 x num_heads ({2 * self.num_heads}), got {D}")
        dense = partial(nn.DenseGeneral, dtype=self.dtype, param_dtype=self.param_dtype)
        project = partial(dense, features=(self.num_heads, D // self.num_heads))
        # 1. project the new tokens  2. add them to the cache  3. attend to all that is in it
        q, k, v = (jnp.swapaxes(project(name=name)(x_BxQxD), 1, 2) for name in ("query", "key", "value"))
        positions_Q = length + jnp.arange(Q)
        start = (0, 0, length, 0)
        keys_BxHxCxK = jax.lax.dynamic_update_slice(keys_BxHxCxK, rotate(k, positions_Q), start)
        values_BxHxCxK = jax.lax.dynamic_update_slice(values_BxHxCxK, v, start)
        heads_BxHxQxK = attend(rotate(q, positions_Q), keys_BxHxCxK, values_BxHxCxK, positions_Q)
        out = dense(features=D, axis=(-2, -1), name="out")(jnp.swapaxes(heads_BxHxQxK, 1, 2))
        return out, keys_BxHxCxK, values_BxHxCxK


def attend(
    q_BxHxQxK: jax.Array, keys_BxHxCxK: jax.Array, values_BxHxCxK: jax.Array, positions_Q: jax.Array
) -> jax.Array:
    """Compute softmax(q k^T / sqrt(K)) v over the keys up to each query's position."""
    B, H, Q, K = q_BxHxQxK.shape
    size = block_size(Q)
    heads = []
    for start, end, C in query_groups(Q, keys_BxHxCxK.shape[2]):
        blocks = jnp.moveaxis(q_BxHxQxK[:, :, start:end].reshape(B, H, -1, size, K), 2, 0)
        attend_block = partial(_attend_block, keys_BxHxCxK[:, :, :C], values_BxHxCxK[:, :, :C])
        found = jax.lax.map(attend_block, (blocks, positions_Q[start:end].reshape(-1, size)))
        heads.append(jnp.moveaxis(found, 0, 2).reshape(B, H, end - start, K))
    return jnp.concatenate(heads, axis=2)


def _attend_block(
    keys_BxHxCxK: jax.Array, values_BxHxCxK: jax.Array, queries: tuple[jax.Array, jax.Array]
) -> jax.Array:
    q_BxHxQxK, positions_Q = queries
    C, K = keys_BxHxCxK.shape[2:]
    scores = at_least_float32(jnp.einsum("bhqk,bhck->bhqc", q_BxHxQxK * K**-0.5, keys_BxHxCxK))
    seen_QxC = jnp.arange(C)[None] <= positions_Q[:, None]
    weights = jax.nn.softmax(jnp.where(seen_QxC[None, None], scores, -jnp.inf))
    return jnp.einsum("bhqc,bhck->bhqk", weights.astype(values_BxHxCxK.dtype), values_BxHxCxK)


def block_size(Q: int) -> int:
    """Return how many of Q queries attend at a time: the largest divisor of Q up to QUERY_BLOCK."""
    return max(size for size in range(1, QUERY_BLOCK + 1) if Q % size == 0)


def query_groups(Q: int, C: int) -> list[tuple[int, int, int]]:
    """Group the queries by the keys that they attend to: (first query, end, number of the C keys) of each group.

    With fewer queries than keys there is one group, which attends to all keys. Otherwise the queries are a whole
    sequence. A group is then two blocks, and attends to the keys up to its own end: the mask hides all later ones.
    Two, because a loop over them holds the scores of one at a time; single blocks would all be computed first.
    """
    if Q < C:
        return [(0, Q, C)]
    size = 2 * block_size(Q)
    ends = [min(start + size, Q) for start in range(0, Q, size)]
    return [(start, end, end) for start, end in zip([0, *ends], ends, strict=False)]


def rotate(x_BxHxQxK: jax.Array, positions_Q: jax.Array) -> jax.Array:
    """Apply the rotary position embedding: turn pair i, the numbers i and i + K / 2, by position x base^(-2 i / K)."""
    half = x_BxHxQxK.shape[-1] // 2
    angles = positions_Q[:, None].astype(jnp.float32) * ROTARY_BASE ** (-jnp.arange(half) / half)[None]
    cos, sin = (f(angles).astype(x_BxHxQxK.dtype)[None, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x_BxHxQxK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
