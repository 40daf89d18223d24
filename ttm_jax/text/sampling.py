"""Drawing tokens: temperature, the k likeliest, the likeliest of a share p; and running a model token by token."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ttm_jax.machine.layers import apply, at_least_float32
from ttm_jax.text.model import Place, State, TransformerLanguageModel


def sample(
    key: jax.Array,
    logits_BxV: jax.Array,
    temperature: jax.Array | float = 1.0,
    top_k: int = 0,
    top_p: jax.Array | float | None = None,
) -> jax.Array:
    """Draw a token for each row, int32 [B]; each row draws from its own key.

    Args:
        key: of the draw.
        logits_BxV: of the next token.
        temperature: what the logits are divided by; 0 takes the likeliest token.
        top_k: how many of the likeliest tokens are left; 0 leaves all.
        top_p: the fewest of the likeliest tokens are left whose share is at least this (arXiv 1904.09751); None
            leaves all, and with `top_k` 0 nothing need be sorted.
    """
    V = logits_BxV.shape[-1]
    scaled_BxV = logits_BxV.astype(jnp.float32) / jnp.where(temperature > 0, temperature, 1.0)
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(logits_BxV)))
    draw_rows = jax.vmap(jax.random.categorical)
    if top_k == 0 and top_p is None:
        token_B = jnp.where(temperature > 0, draw_rows(keys_B, scaled_BxV), scaled_BxV.argmax(axis=-1))
        return token_B.astype(jnp.int32)
    best_BxK, order_BxK = jax.lax.top_k(scaled_BxV, min(top_k or V, V))
    if top_p is not None:
        shares_BxK = jax.nn.softmax(best_BxK, axis=-1)
        before_BxK = jnp.cumsum(shares_BxK, axis=-1) - shares_BxK
        best_BxK = jnp.where((before_BxK < top_p).at[:, 0].set(True), best_BxK, -jnp.inf)
    rank_B = jnp.where(temperature > 0, draw_rows(keys_B, best_BxK), 0)
    return jnp.take_along_axis(order_BxK, rank_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


def advance(
    model: TransformerLanguageModel, variables: Any, token_B: jax.Array, place: Place
) -> tuple[jax.Array, Place]:
    """Compute one token; where the segment is full it is closed first. Gives logits [B, V] and the next place."""
    full = place.tokens == model.config.segment
    close = partial(apply, model, variables["params"], method="close")
    place = jax.lax.cond(full, close, lambda place: place, place)
    logits_BxV, place = apply(model, variables["params"], token_B, place, method="step")
    return logits_BxV, place


@partial(jax.jit, static_argnums=(0, 7, 9))
def draw(
    model: TransformerLanguageModel,
    variables: Any,
    logits_BxV: jax.Array,
    place: Place,
    allowed_V: jax.Array,
    key: jax.Array,
    first: jax.Array | int,
    number: int,
    temperature: jax.Array | float = 1.0,
    top_k: int = 0,
    top_p: jax.Array | float | None = None,
) -> tuple[jax.Array, jax.Array, Place]:
    """Draw so many tokens, each from the logits after those before it; of a vocabulary those that are allowed.

    Returns the tokens [B, number], the logits after them [B, V], and the place. The i-th is drawn from
    `fold_in(key, first + i)`, so that pieces of any length draw the same.
    """

    def turn(carry: tuple[jax.Array, Place], key: jax.Array) -> Any:
        logits, place = carry
        token_B = sample(key, jnp.where(allowed_V[None], logits, -jnp.inf), temperature, top_k, top_p)
        return advance(model, variables, token_B, place), token_B

    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(number))
    (logits_BxV, place), tokens = jax.lax.scan(turn, (logits_BxV, place), keys)
    return tokens.T, logits_BxV, place


@partial(jax.jit, static_argnums=0)
def feed(
    model: TransformerLanguageModel, variables: Any, tokens_BxS: jax.Array, number: jax.Array | int, place: Place
) -> tuple[jax.Array, Place]:
    """Compute the first so many of the tokens, one after the other, in a segment that has room for them.

    Returns the logits of each next token, [B, S, V], of which as many are valid, and the place.
    """

    def turn(i: jax.Array, carry: tuple[jax.Array, Place]) -> tuple[jax.Array, Place]:
        logits_BxSxV, place = carry
        logits_BxV, place = apply(model, variables["params"], tokens_BxS[:, i], place, method="step")
        return logits_BxSxV.at[:, i].set(logits_BxV), place

    zeros_BxSxV = jnp.zeros((*tokens_BxS.shape, model.vocab_size), jnp.promote_types(model.config.dtype, jnp.float32))
    return jax.lax.fori_loop(0, number, turn, (zeros_BxSxV, place))


@partial(jax.jit, static_argnums=0)
def feed_segments(
    model: TransformerLanguageModel, variables: Any, tokens_BxTxN: jax.Array, state: State
) -> tuple[jax.Array, State]:
    """Compute whole segments; give the logits of each next token, [B, T N, V], and the state."""
    logits_BxTxNxV, state = apply(model, variables["params"], tokens_BxTxN, state)
    return logits_BxTxNxV.reshape(len(tokens_BxTxN), -1, model.vocab_size), state


@jax.jit
def last(logits_BxSxV: jax.Array, number: jax.Array | int) -> jax.Array:
    """Give the last of so many valid logits, [B, V]."""
    return jax.lax.dynamic_index_in_dim(logits_BxSxV, number - 1, axis=1, keepdims=False)


@partial(jax.jit, static_argnums=0)
def score_segments(
    model: TransformerLanguageModel, variables: Any, arrays: dict[str, jax.Array], state: State
) -> tuple[jax.Array, State]:
    """Give the nats of each target [B, T, N] of arrays as `Streams.batch` gives them, and the state."""
    logits, state = apply(model, variables["params"], arrays["tokens"], state, arrays["start"])
    return nats_of(logits, arrays), state


def nats_of(logits_BxTxNxV: jax.Array, arrays: dict[str, jax.Array]) -> jax.Array:
    """Give the cross-entropy of each target in nats, [B, T, N] in float32 at least; 0 where its weight is."""
    logits = at_least_float32(logits_BxTxNxV)
    of_target = jnp.take_along_axis(logits, arrays["targets"][..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - of_target) * arrays["weights"]


@partial(jax.jit, static_argnums=0)
def begin_segment(model: TransformerLanguageModel, variables: Any, state: State) -> Place:
    """Begin a segment that is not the first; see `TransformerLanguageModel.begin`."""
    return apply(model, variables["params"], state, method="begin")


@partial(jax.jit, static_argnums=0)
def close_segment(model: TransformerLanguageModel, variables: Any, place: Place) -> Place:
    """Go to the next segment; see `TransformerLanguageModel.close`."""
    return apply(model, variables["params"], place, method="close")


@partial(jax.jit, static_argnums=0)
def open_segment(
    model: TransformerLanguageModel, variables: Any, tokens_BxN: jax.Array, number: jax.Array, state: State
) -> tuple[jax.Array, Place]:
    """Begin a segment with some tokens; see `TransformerLanguageModel.open`."""
    return apply(model, variables["params"], tokens_BxN, number, state, method="open")
