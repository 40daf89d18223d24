"""Token summarisation S_k: any number of tokens in, k tokens out (paper, section 3.1).

Each summariser is a module. Tokens that are not valid count in no summary, whatever they hold. The functions at the
end of the file are the same modules as pure functions of (tokens, parameters).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ttm_torch.machine.layers import (
    FeedForward,
    MultiHeadAttention,
    apply,
    at_least_float32,
    keep_valid,
    layer_norm,
    no_wider,
    softmax_over_tokens,
)
from ttm_torch.machine.script import script

SUMMARIZERS = ("mlp", "query", "pooling")
BOTTLENECK_DIM = 64  # of the importance MLP: TokenLearner 1.1


@script
def normalize_weights(weights_BxKxN: Tensor) -> Tensor:
    """Take the softmax [B, K, N] over the tokens, in float32 at least: the weights of each summary sum to 1."""
    return at_least_float32(weights_BxKxN).softmax(dim=-1)


@script
def weighted_sum(tokens_BxNxD: Tensor, weights_BxKxN: Tensor) -> Tensor:
    """Compute each summary [B, K, D] as the weighted sum of all tokens, in the dtype of the tokens."""
    return torch.einsum("bkn,bnd->bkd", weights_BxKxN.to(tokens_BxNxD.dtype), tokens_BxNxD)


def pooling_summarize(tokens_BxNxD: Tensor, k: int) -> Tensor:
    """Average the tokens to `k` summaries; summary i averages tokens floor(i N / k) up to ceil((i+1) N / k).

    Every N and `k` will do; neighbours share a token where `k` does not divide N.
    """
    B, N, D = tokens_BxNxD.shape
    if N % k == 0:
        return tokens_BxNxD.reshape(B, k, N // k, D).mean(dim=2)
    bounds = [(i * N // k, math.ceil((i + 1) * N / k)) for i in range(k)]
    return torch.stack([tokens_BxNxD[:, start:stop].mean(dim=1) for start, stop in bounds], dim=1)


class MLPSummarizer(nn.Module):
    """TokenLearner 1.1 (Scenic `TokenLearnerModuleV11`): softmax over tokens of MLP(LayerNorm(tokens)).

    The weights come from the normalised tokens. They are applied to the tokens as they are. Without a valid token,
    the summaries are zeros.
    """

    def __init__(self, k: int, width: int = 128, dropout_rate: float = 0.0):
        super().__init__()
        self.norm = layer_norm(width)
        self.mlp = FeedForward(width, BOTTLENECK_DIM, k, dropout_rate)

    def importance_weights(self, tokens_BxNxD: Tensor) -> Tensor:
        """Compute the logits [B, K, N] of the weights, before the softmax."""
        return self.mlp(self.norm(tokens_BxNxD)).transpose(1, 2)

    def forward(self, tokens_BxNxD: Tensor, valid_BxN: Tensor | None = None) -> Tensor:
        tokens_BxNxD = keep_valid(tokens_BxNxD, valid_BxN)
        weights_BxKxN = softmax_over_tokens(self.importance_weights(tokens_BxNxD), 2, valid_BxN)
        return torch.einsum("bkn,bnd->bkd", weights_BxKxN.to(tokens_BxNxD.dtype), tokens_BxNxD)


class QuerySummarizer(nn.Module):
    """k learned latent queries that attend to the tokens (Scenic `TokenLearnerMHA`; no dropout, as there).

    Without a valid token, each summary is the bias of the attention's output.
    """

    def __init__(self, k: int, width: int = 128, num_heads: int = 8):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, k, width))
        nn.init.normal_(self.queries, std=0.02)
        self.attention = MultiHeadAttention(width, num_heads)

    def forward(self, tokens_BxNxD: Tensor, valid_BxN: Tensor | None = None) -> Tensor:
        queries_BxKxD = self.queries.expand(tokens_BxNxD.shape[0], -1, -1)
        tokens_BxNxD = no_wider(keep_valid(tokens_BxNxD, valid_BxN), self.queries)
        return self.attention(queries_BxKxD, tokens_BxNxD, valid_BxN)


class PoolingSummarizer(nn.Module):
    """Average pooling to k tokens, without parameters. A summary that covers no valid token is zeros."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, tokens_BxNxD: Tensor, valid_BxN: Tensor | None = None) -> Tensor:
        means_BxKxD = pooling_summarize(keep_valid(tokens_BxNxD, valid_BxN), self.k)
        if valid_BxN is None:
            return means_BxKxD
        shares_BxKx1 = pooling_summarize(valid_BxN[..., None].to(means_BxKxD.dtype), self.k)
        return means_BxKxD / torch.where(shares_BxKx1 > 0, shares_BxKx1, 1)


def make_summarizer(kind: str, k: int, *, width: int, num_heads: int = 8, dropout_rate: float = 0.0) -> nn.Module:
    """Make the summariser called `kind`, one of SUMMARIZERS."""
    match kind:
        case "mlp":
            return MLPSummarizer(k, width, dropout_rate)
        case "query":
            return QuerySummarizer(k, width, num_heads)
        case "pooling":
            return PoolingSummarizer(k)
    raise ValueError(f"summarizer must be one of {', '.join(SUMMARIZERS)}, got {kind!r}")


# The same modules as pure functions. `params` are as of the module's `state_dict()`. Where None, they are fresh
# and follow from `seed` alone.


class _ImportanceWeights(MLPSummarizer):
    def forward(self, tokens_BxNxD: Tensor, valid_BxN: Tensor | None = None) -> Tensor:
        return self.importance_weights(tokens_BxNxD)


def compute_importance_weights(
    tokens_BxNxD: Tensor, k: int, params: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Tensor:
    """Compute the logits [B, K, N] of the MLP summariser's weights; `params` as of `MLPSummarizer(k)`."""
    return apply(lambda: _ImportanceWeights(k, tokens_BxNxD.shape[-1]), params, seed, tokens_BxNxD)


def token_summarize(tokens_BxNxD: Tensor, k: int, params: Mapping[str, Tensor] | None = None, seed: int = 0) -> Tensor:
    """Summarise by MLP to [B, K, D]; `params` as of `MLPSummarizer(k)`. Takes O(N D (64 + k)) multiply-adds."""
    return apply(lambda: MLPSummarizer(k, tokens_BxNxD.shape[-1]), params, seed, tokens_BxNxD)


def query_summarize(
    tokens_BxNxD: Tensor, k: int, num_heads: int = 8, params: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Tensor:
    """Summarise by latent queries to [B, K, D]; `params` as of `QuerySummarizer(k, num_heads=num_heads)`."""
    return apply(lambda: QuerySummarizer(k, tokens_BxNxD.shape[-1], num_heads), params, seed, tokens_BxNxD)
