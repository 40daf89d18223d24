"""Attention within a window of N tokens, whichever segment they are in, and a context beside it.

Token i of a segment sees the tokens up to itself, and those after i of the segment before: N in all. Places are rotary
(arXiv 2104.09864) and relative, so that a segment's keys are the same wherever it stands: queries are turned by i for
the keys of their own segment and by N + i for those of the segment before. Shapes are those of
`ttm_jax.machine.layers`, with T for segments; C counts tokens of the context.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ttm_jax.machine.layers import Dtype, FeedForward, LayerNorm, at_least_float32

ROTARY_BASE = 10000.0


class Keys(NamedTuple):
    """Keys and values of a segment [..., N, H, K]; keys are turned by their place in it."""

    keys: jax.Array
    values: jax.Array


def rotate(x: jax.Array, places_N: jax.Array) -> jax.Array:
    """Turn queries or keys [..., N, H, K] by their places; in float32 at least."""
    half = x.shape[-1] // 2
    rates_K = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_NxK = jnp.outer(places_N.astype(jnp.float32), rates_K)
    first, second = jnp.split(at_least_float32(x), 2, axis=-1)
    cos, sin = (_like(f(angles_NxK)[:, None].astype(first.dtype), first) for f in (jnp.cos, jnp.sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _like(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` with as many axes as the other, new ones before the first."""
    return jnp.expand_dims(x, range(other.ndim - x.ndim))


class WindowBlock(nn.Module):
    """A pre-norm decoder block: attention in the window and to a context, then an MLP, each with a residual."""

    width: int
    num_heads: int
    mlp_dim: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = partial(nn.DenseGeneral, use_bias=False, **dtypes)
        heads = (self.num_heads, self.width // self.num_heads)
        self.query, self.key, self.value = dense(heads), dense(heads), dense(heads)
        self.out = dense(self.width, axis=(-2, -1))
        self.attention_norm, self.mlp_norm = LayerNorm(**dtypes), LayerNorm(**dtypes)
        self.mlp = FeedForward(self.mlp_dim, **dtypes)

    def project(self, x: jax.Array, place: jax.Array | int = 0) -> tuple[jax.Array, Keys]:
        """Give queries, not turned yet, and keys of tokens [..., Q, D] at the places from `place` on."""
        y = self.attention_norm(x)
        return self.query(y), Keys(rotate(self.key(y), place + jnp.arange(x.shape[-2])), self.value(y))

    def attend(
        self,
        x: jax.Array,
        query: jax.Array,
        own: Keys,
        before: Keys,
        began: jax.Array,
        context: Keys | None = None,
        place: jax.Array | int = 0,
    ) -> jax.Array:
        """Compute tokens [..., Q, D] of a segment, at the places from `place` on.

        Args:
            x: the tokens.
            query: theirs, as `project` gives them.
            own: keys of the segment, [..., N, H, K]; those after a query are not seen.
            before: keys of the segment before.
            began: bool [...]; where it is False there is no segment before.
            context: keys that all tokens see, [..., C, H, K], as `context_keys` gives them.
            place: of the first token.
        """
        scale, N = query.shape[-1] ** -0.5, before.keys.shape[-3]
        places_Q = place + jnp.arange(query.shape[-3])
        seen_QxN = jnp.arange(N)[None] <= places_Q[:, None]

        # 1. scores of the three sets of keys  2. one softmax over all  3. the mean of the values
        def scores(query: jax.Array, keys: jax.Array) -> jax.Array:
            return at_least_float32(jnp.einsum("...qhk,...nhk->...hqn", query * scale, keys))

        of_own = scores(rotate(query, places_Q), own.keys)
        of_before = scores(rotate(query, N + places_Q), before.keys)
        found = [
            jnp.where(_like(seen_QxN, of_own), of_own, -jnp.inf),
            jnp.where(_like(~seen_QxN, of_before) & began[..., None, None, None], of_before, -jnp.inf),
        ]
        values = [own.values, before.values]
        if context is not None:
            found.append(scores(query, context.keys))
            values.append(context.values)
        weights = jax.nn.softmax(jnp.concatenate(found, axis=-1), axis=-1)
        heads = jnp.einsum("...hqn,...nhk->...qhk", weights.astype(x.dtype), jnp.concatenate(values, axis=-3))
        x = x + self.out(heads)
        return x + self.mlp(self.mlp_norm(x))

    def context_keys(self, context: jax.Array) -> Keys:
        """Make the keys of a context [..., C, D], which has no places."""
        return Keys(self.key(context), self.value(context))
