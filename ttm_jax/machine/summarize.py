"""Token summarisation S_k: any number of tokens in, k tokens out (paper, section 3.1).

Each summariser is a linen module. Tokens that are not valid count in no summary, whatever they hold. The functions
at the end of the file are the same modules as pure, jitted functions of (parameters, tokens).
"""

import math
from functools import partial
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
    MultiHeadAttention,
    apply,
    at_least_float32,
    broadcast_batch,
    keep_valid,
    softmax_over_tokens,
)

SUMMARIZERS = ("mlp", "query", "pooling")
BOTTLENECK_DIM = 64  # of the importance MLP: TokenLearner 1.1


def normalize_weights(weights_BxKxN: Float[Array, "B K N"]) -> Float[Array, "B K N"]:
    """Take the softmax over the tokens, in float32 at least, so that the weights of each summary sum to 1."""
    return jax.nn.softmax(at_least_float32(weights_BxKxN), axis=-1)


def weighted_sum(tokens_BxNxD: Float[Array, "B N D"], weights_BxKxN: Float[Array, "B K N"]) -> Float[Array, "B K D"]:
    """Compute each summary as the weighted sum of all tokens, in the dtype of the tokens."""
    return jnp.einsum("bkn,bnd->bkd", weights_BxKxN.astype(tokens_BxNxD.dtype), tokens_BxNxD)


def pooling_summarize(tokens_BxNxD: Float[Array, "B N D"], k: int) -> Float[Array, "B {k} D"]:
    """Average the tokens to `k` summaries; summary i averages tokens floor(i N / k) up to ceil((i+1) N / k).

    Every N and `k` will do; neighbours share a token where `k` does not divide N.
    """
    B, N, D = tokens_BxNxD.shape
    if N % k == 0:
        return tokens_BxNxD.reshape(B, k, N // k, D).mean(axis=2)
    bounds = [(i * N // k, math.ceil((i + 1) * N / k)) for i in range(k)]
    return jnp.stack([tokens_BxNxD[:, start:stop].mean(axis=1) for start, stop in bounds], axis=1)


class MLPSummarizer(Module):
    """TokenLearner 1.1 (Scenic `TokenLearnerModuleV11`): softmax over tokens of MLP(LayerNorm(tokens)).

    The weights come from the normalised tokens. They are applied to the tokens as they are. Without a valid token,
    the summaries are zeros.
    """

    k: int
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        self.norm = LayerNorm(**dtypes)
        self.mlp = FeedForward(BOTTLENECK_DIM, self.k, self.dropout_rate, **dtypes)

    def importance_weights(self, tokens_BxNxD: jax.Array, train: bool = False) -> jax.Array:
        """Compute the logits [B, K, N] of the weights, before the softmax."""
        return jnp.swapaxes(self._logits(tokens_BxNxD, train), 1, 2)

    def __call__(self, tokens_BxNxD: jax.Array, train: bool = False, valid_BxN: jax.Array | None = None) -> jax.Array:
        # As `weighted_sum` of `normalize_weights`, without the transposition between: XLA's gradient of it is slow.
        tokens_BxNxD = keep_valid(tokens_BxNxD, valid_BxN)
        weights_BxNxK = softmax_over_tokens(self._logits(tokens_BxNxD, train), 1, valid_BxN)
        self.sow("intermediates", "weights", jnp.swapaxes(weights_BxNxK, 1, 2))
        return jnp.einsum("bnk,bnd->bkd", weights_BxNxK.astype(tokens_BxNxD.dtype), tokens_BxNxD)

    def _logits(self, tokens_BxNxD: jax.Array, train: bool) -> jax.Array:
        return self.mlp(self.norm(tokens_BxNxD), train)


class QuerySummarizer(Module):
    """k learned latent queries that attend to the tokens (Scenic `TokenLearnerMHA`; no dropout, as there).

    Without a valid token, each summary is the bias of the attention's output.
    """

    k: int
    num_heads: int = 8
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens_BxNxD: jax.Array, train: bool = False, valid_BxN: jax.Array | None = None) -> jax.Array:
        D = tokens_BxNxD.shape[-1]
        queries_1xKxD = self.param("queries", nn.initializers.normal(0.02), (1, self.k, D), self.param_dtype)
        queries_BxKxD = broadcast_batch(queries_1xKxD, tokens_BxNxD)
        attention = MultiHeadAttention(self.num_heads, dtype=self.dtype, param_dtype=self.param_dtype, name="attention")
        return attention(queries_BxKxD, keep_valid(tokens_BxNxD, valid_BxN), valid_BxN=valid_BxN)


class PoolingSummarizer(Module):
    """Average pooling to k tokens, without parameters. A summary that covers no valid token is zeros."""

    k: int

    def __call__(self, tokens_BxNxD: jax.Array, train: bool = False, valid_BxN: jax.Array | None = None) -> jax.Array:
        means_BxKxD = pooling_summarize(keep_valid(tokens_BxNxD, valid_BxN), self.k)
        if valid_BxN is None:
            return means_BxKxD
        shares_BxKx1 = pooling_summarize(valid_BxN[..., None].astype(means_BxKxD.dtype), self.k)
        return means_BxKxD / jnp.where(shares_BxKx1 > 0, shares_BxKx1, 1)


def make_summarizer(
    kind: str,
    k: int,
    *,
    num_heads: int = 8,
    dropout_rate: float = 0.0,
    dtype: Dtype = None,
    param_dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> nn.Module:
    """Make the summariser called `kind`, one of SUMMARIZERS."""
    dtypes = dict(dtype=dtype, param_dtype=param_dtype)
    match kind:
        case "mlp":
            return MLPSummarizer(k, dropout_rate, **dtypes, name=name)
        case "query":
            return QuerySummarizer(k, num_heads, **dtypes, name=name)
        case "pooling":
            return PoolingSummarizer(k, name=name)
    raise ValueError(f"summarizer must be one of {', '.join(SUMMARIZERS)}, got {kind!r}")


@partial(jax.jit, static_argnames="k")
def compute_importance_weights(params: Any, tokens_BxNxD: Float[Array, "B N D"], k: int) -> Float[Array, "B {k} N"]:
    """Compute the logits of the MLP summariser's weights; `params` as of `MLPSummarizer(k)`."""
    return apply(MLPSummarizer(k), params, tokens_BxNxD, method="importance_weights")


@partial(jax.jit, static_argnames="k")
def token_summarize(params: Any, tokens_BxNxD: Float[Array, "B N D"], k: int) -> Float[Array, "B {k} D"]:
    """Summarise the tokens by MLP; `params` as of `MLPSummarizer(k)`. Takes O(N D (64 + k)) multiply-adds."""
    return apply(MLPSummarizer(k), params, tokens_BxNxD)


@partial(jax.jit, static_argnames=("k", "num_heads"))
def query_summarize(
    params: Any, tokens_BxNxD: Float[Array, "B N D"], k: int, num_heads: int = 8
) -> Float[Array, "B {k} D"]:
    """Summarise the tokens by latent queries; `params` as of `QuerySummarizer(k, num_heads)`."""
    return apply(QuerySummarizer(k, num_heads), params, tokens_BxNxD)
