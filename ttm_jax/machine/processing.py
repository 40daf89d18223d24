"""Processing units: R tokens in, R tokens out (paper, section 3.2: Transformer, Mixer, MLP)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ttm_jax.machine.layers import Dtype, FeedForward, LayerNorm, Module, MultiHeadAttention, Positions, apply

PROCESSING_UNITS = ("transformer", "mixer", "mlp")
TOKEN_MIXING_DIM = 128  # hidden width of the Mixer's token-mixing MLP (Scenic)


class TransformerBlock(Module):
    """Pre-norm attention and MLP, each with a residual (Scenic `Encoder1DBlock`): [B, R, D] to [B, R, D]."""

    num_heads: int = 4
    mlp_dim: int = 512
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = LayerNorm(**dtypes, name="attention_norm")(x)
        y = MultiHeadAttention(self.num_heads, self.dropout_rate, **dtypes, name="attention")(y, y, train)
        x = x + nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        y = LayerNorm(**dtypes, name="mlp_norm")(x)
        return x + FeedForward(self.mlp_dim, None, self.dropout_rate, **dtypes, name="mlp")(y, train)


class TransformerStack(Module):
    """Location embeddings, L pre-norm blocks, then LayerNorm (Scenic `vit.Encoder`): [B, R, D] to [B, R, D]."""

    num_layers: int = 4
    num_heads: int = 4
    mlp_dim: int = 512
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = Positions(self.param_dtype, name="positions")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        for layer in range(self.num_layers):
            block = TransformerBlock(self.num_heads, self.mlp_dim, self.dropout_rate, **dtypes, name=f"block_{layer}")
            x = block(x, train)
        return LayerNorm(**dtypes, name="norm")(x)


class MixerStack(Module):
    """L Mixer blocks, then LayerNorm (Scenic). A block mixes tokens, then channels, each with a residual."""

    num_layers: int = 4
    mlp_dim: int = 512
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        mlp = partial(FeedForward, dropout_rate=self.dropout_rate, **dtypes)
        for layer in range(self.num_layers):
            y = LayerNorm(**dtypes, name=f"token_norm_{layer}")(x)
            y = mlp(TOKEN_MIXING_DIM, name=f"token_mixing_{layer}")(jnp.swapaxes(y, 1, 2), train)
            x = x + jnp.swapaxes(y, 1, 2)
            y = LayerNorm(**dtypes, name=f"channel_norm_{layer}")(x)
            x = x + mlp(self.mlp_dim, name=f"channel_mixing_{layer}")(y, train)
        return LayerNorm(**dtypes, name="norm")(x)


class MLPStack(Module):
    """L times LayerNorm and MLP on each token alone, then LayerNorm; without residuals, as in the original."""

    num_layers: int = 4
    mlp_dim: int = 512
    dropout_rate: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for layer in range(self.num_layers):
            x = LayerNorm(**dtypes, name=f"mlp_norm_{layer}")(x)
            x = FeedForward(self.mlp_dim, None, self.dropout_rate, **dtypes, name=f"mlp_{layer}")(x, train)
        return LayerNorm(**dtypes, name="norm")(x)


def make_processor(
    kind: str,
    *,
    num_layers: int = 4,
    mlp_dim: int = 512,
    num_heads: int = 4,
    dropout_rate: float = 0.0,
    dtype: Dtype = None,
    param_dtype: Dtype = jnp.float32,
    name: str | None = None,
) -> nn.Module:
    """Make the processing unit called `kind`, one of PROCESSING_UNITS."""
    shared = dict(mlp_dim=mlp_dim, dropout_rate=dropout_rate, dtype=dtype, param_dtype=param_dtype, name=name)
    match kind:
        case "transformer":
            return TransformerStack(num_layers, num_heads, **shared)
        case "mixer":
            return MixerStack(num_layers, **shared)
        case "mlp":
            return MLPStack(num_layers, **shared)
    raise ValueError(f"processing must be one of {', '.join(PROCESSING_UNITS)}, got {kind!r}")


@partial(jax.jit, static_argnames=("kind", "num_layers", "mlp_dim", "num_heads"))
def process(
    params: Any,
    tokens_BxRxD: Float[Array, "B R D"],
    kind: str = "transformer",
    num_layers: int = 4,
    mlp_dim: int = 512,
    num_heads: int = 4,
) -> Float[Array, "B R D"]:
    """Process the tokens as a pure function; `params` as of `make_processor(kind, ...)`."""
    module = make_processor(kind, num_layers=num_layers, mlp_dim=mlp_dim, num_heads=num_heads)
    return apply(module, params, tokens_BxRxD)
