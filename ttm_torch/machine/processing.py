"""Processing units: R tokens in, R tokens out (paper, section 3.2: Transformer, Mixer, MLP)."""

from collections.abc import Mapping

from torch import Tensor, nn

from ttm_torch.machine.layers import FeedForward, MultiHeadAttention, Positions, apply, layer_norm

PROCESSING_UNITS = ("transformer", "mixer", "mlp")
TOKEN_MIXING_DIM = 128  # hidden width of the Mixer's token-mixing MLP (Scenic)


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual (Scenic `Encoder1DBlock`): [B, R, D] to [B, R, D]."""

    def __init__(self, dim: int = 128, heads: int = 4, hidden_dim: int = 512, dropout_rate: float = 0.0):
        super().__init__()
        self.attention_norm = layer_norm(dim)
        self.attention = MultiHeadAttention(dim, heads, dropout_rate)
        self.mlp_norm = layer_norm(dim)
        self.mlp = FeedForward(dim, hidden_dim, None, dropout_rate)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.mlp(self.mlp_norm(x))


class TransformerStack(nn.Module):
    """Location embeddings, L pre-norm blocks, then LayerNorm (Scenic `vit.Encoder`): [B, R, D] to [B, R, D].

    `num_tokens` is R.
    """

    def __init__(
        self,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        hidden_dim: int = 512,
        dropout_rate: float = 0.0,
        num_tokens: int = 16,
    ):
        super().__init__()
        self.depth = depth
        self.positions = Positions(num_tokens, dim)
        self.dropout = nn.Dropout(dropout_rate)
        for layer in range(depth):
            self.add_module(f"block_{layer}", TransformerBlock(dim, heads, hidden_dim, dropout_rate))
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.positions(x))
        for layer in range(self.depth):
            x = self.get_submodule(f"block_{layer}")(x)
        return self.norm(x)


class MixerStack(nn.Module):
    """L Mixer blocks, then LayerNorm (Scenic). A block mixes tokens, then channels, each with a residual."""

    def __init__(
        self, dim: int = 128, depth: int = 4, hidden_dim: int = 512, dropout_rate: float = 0.0, num_tokens: int = 16
    ):
        super().__init__()
        self.depth = depth
        for layer in range(depth):
            self.add_module(f"token_norm_{layer}", layer_norm(dim))
            mixing = FeedForward(num_tokens, TOKEN_MIXING_DIM, None, dropout_rate)
            self.add_module(f"token_mixing_{layer}", mixing)
            self.add_module(f"channel_norm_{layer}", layer_norm(dim))
            self.add_module(f"channel_mixing_{layer}", FeedForward(dim, hidden_dim, None, dropout_rate))
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(self.depth):
            y = self.get_submodule(f"token_norm_{layer}")(x)
            y = self.get_submodule(f"token_mixing_{layer}")(y.transpose(1, 2))
            x = x + y.transpose(1, 2)
            y = self.get_submodule(f"channel_norm_{layer}")(x)
            x = x + self.get_submodule(f"channel_mixing_{layer}")(y)
        return self.norm(x)


class MLPStack(nn.Module):
    """L times LayerNorm and MLP on each token alone, then LayerNorm; without residuals, as in the original."""

    def __init__(self, dim: int = 128, depth: int = 4, hidden_dim: int = 512, dropout_rate: float = 0.0):
        super().__init__()
        self.depth = depth
        for layer in range(depth):
            self.add_module(f"mlp_norm_{layer}", layer_norm(dim))
            self.add_module(f"mlp_{layer}", FeedForward(dim, hidden_dim, None, dropout_rate))
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(self.depth):
            x = self.get_submodule(f"mlp_norm_{layer}")(x)
            x = self.get_submodule(f"mlp_{layer}")(x)
        return self.norm(x)


def make_processor(
    kind: str,
    *,
    num_layers: int = 4,
    mlp_dim: int = 512,
    num_heads: int = 4,
    dropout_rate: float = 0.0,
    width: int,
    num_tokens: int,
) -> nn.Module:
    """Make the processing unit called `kind`, one of PROCESSING_UNITS."""
    match kind:
        case "transformer":
            return TransformerStack(width, num_layers, num_heads, mlp_dim, dropout_rate, num_tokens)
        case "mixer":
            return MixerStack(width, num_layers, mlp_dim, dropout_rate, num_tokens)
        case "mlp":
            return MLPStack(width, num_layers, mlp_dim, dropout_rate)
    raise ValueError(f"processing must be one of {', '.join(PROCESSING_UNITS)}, got {kind!r}")


def process(
    tokens_BxRxD: Tensor,
    kind: str = "transformer",
    num_layers: int = 4,
    mlp_dim: int = 512,
    num_heads: int = 4,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """Process the tokens as a pure function; `params` as of `make_processor(kind, ...)`.

    Where `params` is None, parameters are fresh and follow from `seed` alone.
    """
    num_tokens, width = tokens_BxRxD.shape[1:]
    options = dict(num_layers=num_layers, mlp_dim=mlp_dim, num_heads=num_heads, width=width, num_tokens=num_tokens)
    return apply(lambda: make_processor(kind, **options), params, seed, tokens_BxRxD)
