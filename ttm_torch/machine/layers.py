"""Layers that summarisers and processing units share.

Shapes in names are those of `ttm_jax.machine.layers`: B batch, T machine steps, S sequence positions,
N input tokens a step, M memory tokens, R read tokens, W writes, D width, H heads, K head width, F MLP width,
V vocabulary, L layers. A function of any set of tokens takes N tokens and gives Q. A summary gives K tokens.

Submodules are named like the parameters of their JAX twins, so that weights go from one to the other by rule
(`parity.weights`). Dropout is on in `module.train()` and off in `module.eval()`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6  # Flax's; torch's own default is 1e-5


class LayerNorm(nn.LayerNorm):
    """PyTorch's, which takes tokens wider than its parameters too: those in float32 that come with a memory."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return no_wider(F.layer_norm(input, self.normalized_shape, weight, bias, self.eps), self.weight)


def layer_norm(width: int) -> LayerNorm:
    """Make a LayerNorm with Flax's epsilon."""
    return LayerNorm(width, eps=LAYER_NORM_EPS)


def gelu(x: Tensor) -> Tensor:
    """Compute GELU in the tanh form, Flax's default."""
    return F.gelu(x, approximate="tanh")


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is where its dtype is wider: for softmax and memory under bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_wider(x: Tensor, parameter: Tensor) -> Tensor:
    """Return `x` in the dtype of the parameter where that is narrower, as after `module.bfloat16()`."""
    is_wider = torch.promote_types(x.dtype, parameter.dtype) != parameter.dtype
    return x.to(parameter.dtype) if is_wider else x


def keep_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return `x` with zeros where it is not valid, whatever it holds; `valid` has the first axes of `x`."""
    return x if valid is None else torch.where(valid[(..., *[None] * (x.ndim - valid.ndim))], x, 0)


def softmax_over_tokens(logits: Tensor, dim: int, valid_BxN: Tensor | None = None) -> Tensor:
    """Take the softmax over the valid tokens of axis `dim`, in float32 at least; `logits` are [B, ..., N, ...].

    A token that is not valid has weight 0. Where none is valid, all weights are 0.
    """
    logits = at_least_float32(logits)
    if valid_BxN is None:
        return logits.softmax(dim)
    valid = valid_BxN.view([size if axis in (0, dim) else 1 for axis, size in enumerate(logits.shape)])
    weights = logits.masked_fill(~valid, torch.finfo(logits.dtype).min).softmax(dim)
    return weights.masked_fill(~valid, 0)


def apply(
    make_module: Callable[[], nn.Module],
    params: Mapping[str, Tensor] | None,
    seed: int,
    *inputs: Tensor,
) -> Any:
    """Apply a module as a pure function of its parameters and inputs.

    `params` are as of the module's `state_dict()`. Where None, they are fresh and follow from `seed` alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # of the CPU alone, which is what was forked
        module = make_module().to(inputs[0]).eval()
    return module(*inputs) if params is None else torch.func.functional_call(module, dict(params), inputs, strict=True)


def _xavier_linear(in_dim: int, out_dim: int, bias_std: float = 0.0) -> nn.Linear:
    linear = nn.Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.normal_(linear.bias, std=bias_std)
    return linear


class FeedForward(nn.Module):
    """Dense, GELU (tanh form), Dense, with dropout after each (Scenic `MlpBlock`).

    Maps [..., `dim`] to [..., `out_dim`], or back to [..., `dim`] when `out_dim` is None.
    """

    def __init__(self, dim: int = 128, hidden_dim: int = 512, out_dim: int | None = None, dropout_rate: float = 0.0):
        super().__init__()
        self.hidden = _xavier_linear(dim, hidden_dim, bias_std=1e-6)
        self.out = _xavier_linear(hidden_dim, dim if out_dim is None else out_dim, bias_std=1e-6)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.out(self.dropout(gelu(self.hidden(x)))))


class MultiHeadAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over H heads, softmax in float32 at least.

    Takes queries [B, Q, D] and tokens [B, N, D]; gives [B, Q, D]. Without tokens, the queries attend to themselves.
    Tokens that are not valid are not attended to.

    Raises:
        ValueError: if `heads` does not divide the width.
    """

    def __init__(self, dim: int = 128, heads: int = 4, dropout_rate: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"num_heads must divide the width, got {heads} heads for width {dim}")
        self.heads = heads
        self.query = _xavier_linear(dim, dim)
        self.key = _xavier_linear(dim, dim)
        self.value = _xavier_linear(dim, dim)
        self.out = _xavier_linear(dim, dim)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self, queries_BxQxD: Tensor, tokens_BxNxD: Tensor | None = None, valid_BxN: Tensor | None = None
    ) -> Tensor:
        tokens_BxNxD = queries_BxQxD if tokens_BxNxD is None else tokens_BxNxD
        q_BxQxHxK = self.query(queries_BxQxD).unflatten(-1, (self.heads, -1))
        k_BxNxHxK = self.key(tokens_BxNxD).unflatten(-1, (self.heads, -1))
        v_BxNxHxK = self.value(tokens_BxNxD).unflatten(-1, (self.heads, -1))
        scores_BxHxQxN = torch.einsum("bqhk,bnhk->bhqn", q_BxQxHxK * q_BxQxHxK.shape[-1] ** -0.5, k_BxNxHxK)
        weights_BxHxQxN = softmax_over_tokens(scores_BxHxQxN, 3, valid_BxN).to(v_BxNxHxK.dtype)
        heads_BxQxHxK = torch.einsum("bhqn,bnhk->bqhk", self.dropout(weights_BxHxQxN), v_BxNxHxK)
        return self.out(heads_BxQxHxK.flatten(2))


class Positions(nn.Module):
    """A learned embedding added to each location: [B, N, D] to [B, N, D] (Scenic `AddPositionEmbs`)."""

    def __init__(self, num_tokens: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, num_tokens, width))
        nn.init.normal_(self.embedding, std=0.02)

    def forward(self, tokens_BxNxD: Tensor) -> Tensor:
        return tokens_BxNxD + self.embedding.to(tokens_BxNxD.dtype)


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` whose table `embedding_init` fills; with standard normal numbers where None."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        embedding_init: Callable[[Tensor], Any] | None = None,
        **options: Any,
    ):
        super().__init__(num_embeddings, embedding_dim, **options)
        if embedding_init is not None:
            embedding_init(self.weight)
