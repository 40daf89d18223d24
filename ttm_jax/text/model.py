"""The language models: a block-recurrent Transformer (arXiv 2203.07852) whose recurrent cell is a step of the machine.

    segment k ──> lower layers ──> H_k ──────────────────────────> upper layers ──> logits
                                    │                                    ^
    memory M_k ──────────────> machine step ──> M_k+1, outputs O_k       │
        └────────────────────────── context of segment k: M_k and O_k-1 ─┘

The step sees all tokens of its segment, so nothing of it goes back into that segment: a token sees the window of its N
latest tokens, memory from *before* its segment, and the outputs of the step before. The machine is the only thing that
is computed segment after segment. Shapes are those of `ttm_jax.machine.layers`; T counts segments, N is their length.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn, struct

from ttm_jax.machine.layers import LayerNorm, Module
from ttm_jax.machine.machine import TokenTuringMachine
from ttm_jax.text.attention import Keys, WindowBlock
from ttm_jax.text.config import ModelConfig


class State(struct.PyTreeNode):
    """What a segment is given from those before it; its size does not depend on how many they were.

    Attributes:
        began: bool [B]: whether there was one.
        window: keys of the latest segment, of each layer.
        memory: [B, M, D], in float32 at least; None without a machine.
        outputs: of the latest machine step, [B, R, D]; None without a machine.
    """

    began: jax.Array
    window: tuple[Keys, ...]
    memory: jax.Array | None
    outputs: jax.Array | None


class Place(struct.PyTreeNode):
    """A place within a segment, from which single tokens go on.

    Attributes:
        state: at the beginning of the segment.
        tokens: how many of the segment's tokens there are.
        own: keys of the segment so far, of each layer.
        hidden: what the machine will read of the segment, [B, N, D].
        context: keys of the context, of each upper layer; empty without a machine.
    """

    state: State
    tokens: jax.Array
    own: tuple[Keys, ...]
    hidden: jax.Array
    context: tuple[Keys, ...]


class TransformerLanguageModel(Module):
    """A decoder with an exact sliding window of N tokens in each layer, and nothing beyond it.

        logits_BxTxNxV, state = model.apply(variables, tokens_BxTxN, state)

    Whole segments go through `__call__`. `open` and `step` compute parts of a segment, for generation, to the same
    results.
    """

    config: ModelConfig
    vocab_size: int

    def setup(self) -> None:
        config = self.config
        dtypes = dict(dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype))
        self.embed = nn.Embed(self.vocab_size, config.width, embedding_init=nn.initializers.normal(0.02), **dtypes)
        block = dict(width=config.width, num_heads=config.num_heads, mlp_dim=config.mlp_dim, **dtypes)
        self.lower = [WindowBlock(**block) for _ in range(config.lower_layers)]
        self.upper = [WindowBlock(**block) for _ in range(config.decoder_layers - config.lower_layers)]
        self.norm = LayerNorm(**dtypes)
        self._set_up_machine(dtypes)

    def _set_up_machine(self, dtypes: dict[str, Any]) -> None:
        pass

    def initial_state(self, batch_size: int) -> State:
        """Make the state of streams that have not begun."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        H = config.num_heads
        shape = (batch_size, config.segment, H, config.width // H)
        layers = range(config.decoder_layers)
        window = tuple(Keys(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in layers)
        return State(jnp.zeros(batch_size, bool), window, *self._initial_machine(batch_size))

    def _initial_machine(self, batch_size: int) -> tuple[jax.Array | None, jax.Array | None]:
        return None, None

    def __call__(
        self, tokens_BxTxN: jax.Array, state: State | None = None, start_BxT: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        """Compute whole segments.

        Args:
            tokens_BxTxN: T segments of N tokens.
            state: of the segment before, as an earlier call returned it; that of a beginning where None.
            start_BxT: bool; where it is True a document begins, and nothing before is seen.

        Returns the logits of each next token, [B, T, N, V], and the state after the last segment.

        Raises:
            ValueError: if the segments have not `config.segment` tokens.
        """
        if tokens_BxTxN.ndim != 3 or tokens_BxTxN.shape[2] != self.config.segment:
            raise ValueError(f"tokens must be [B, T, {self.config.segment}], got shape {tokens_BxTxN.shape}")
        state = self.initial_state(tokens_BxTxN.shape[0]) if state is None else state
        if start_BxT is None:
            start_BxT = jnp.zeros(tokens_BxTxN.shape[:2], bool)
        start_BxT = jnp.asarray(start_BxT)
        start_BxT = start_BxT.at[:, 0].set(start_BxT[:, 0] | ~state.began)
        x, keys, _, _, machine = self._segments(tokens_BxTxN, state, start_BxT)
        return self._logits(x), State(jnp.ones_like(state.began), _last(keys), *machine)

    def open(self, tokens_BxN: jax.Array, num_tokens: jax.Array | int, state: State) -> tuple[jax.Array, Place]:
        """Begin a segment with its first tokens; those after `num_tokens` count for nothing.

        Returns the logits [B, N, V], of which the first `num_tokens` are valid, and the place.
        """
        x, keys, context, hidden, _ = self._segments(tokens_BxN[:, None], state, ~state.began[:, None])
        return self._logits(x)[:, 0], Place(state, jnp.int32(num_tokens), _last(keys), hidden[:, 0], _last(context))

    def step(self, token_B: jax.Array, place: Place) -> tuple[jax.Array, Place]:
        """Compute one token of a segment that has room for it; give its logits [B, V] and the next place."""
        state, n = place.state, place.tokens
        x, own = self.embed(token_B)[:, None], []
        contexts = (None,) * len(self.lower) + (place.context or (None,) * len(self.upper))
        hidden = place.hidden
        for i, (block, keys, before) in enumerate(zip(self._blocks(), place.own, state.window, strict=True)):
            if i == self.config.lower_layers:
                hidden = jax.lax.dynamic_update_slice_in_dim(hidden, x, n, axis=1)
            query, new = block.project(x, n)
            keys = Keys(*(jax.lax.dynamic_update_slice_in_dim(a, b, n, -3) for a, b in zip(keys, new, strict=True)))
            x = block.attend(x, query, keys, before, state.began, contexts[i], n)
            own.append(keys)
        return self._logits(x)[:, 0], Place(state, n + 1, tuple(own), hidden, place.context)

    def close(self, place: Place) -> Place:
        """Give the beginning of the next segment, after one all of whose tokens there are."""
        _, machine = self._machine_steps(place.hidden[:, None], place.state, ~place.state.began[:, None])
        return self.begin(State(jnp.ones_like(place.state.began), place.own, *machine))

    def begin(self, state: State) -> Place:
        """Give the beginning of a segment that is not the first of its document."""
        shape = (len(state.began), self.config.segment, self.config.width)
        hidden = jnp.zeros(shape, self.config.dtype)
        return Place(state, jnp.int32(0), state.window, hidden, self._context_keys(state))

    def _segments(
        self, tokens_BxTxN: jax.Array, state: State, start_BxT: jax.Array
    ) -> tuple[jax.Array, list[Keys], list[Keys], jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        """The last layer's tokens; of each layer all keys and the context's; what the machine read, and its state."""
        x, own, contexts = self.embed(tokens_BxTxN), [], []
        hidden, context, machine = x, None, (None, None)
        for i, (block, latest) in enumerate(zip(self._blocks(), state.window, strict=True)):
            if i == self.config.lower_layers:
                hidden = x
                context, machine = self._machine_steps(hidden, state, start_BxT)
            query, keys = block.project(x)
            before = Keys(*(_shift(now, last) for now, last in zip(keys, latest, strict=True)))
            own.append(keys)
            if context is None:
                x = block.attend(x, query, keys, before, ~start_BxT)
            else:
                contexts.append(block.context_keys(context))
                x = block.attend(x, query, keys, before, ~start_BxT, contexts[-1])
        return x, own, contexts, hidden, machine

    def _machine_steps(
        self, hidden_BxTxNxD: jax.Array, state: State, start_BxT: jax.Array
    ) -> tuple[jax.Array | None, tuple[jax.Array | None, jax.Array | None]]:
        """The context [B, T, C, D] of each segment, and memory and outputs after the last."""
        return None, (None, None)

    def _context_keys(self, state: State) -> tuple[Keys, ...]:
        """The context's keys of the segment after one, of each upper layer."""
        return ()

    def _blocks(self) -> list[WindowBlock]:
        return [*self.lower, *self.upper]

    def _logits(self, x: jax.Array) -> jax.Array:
        """Logits by the embeddings, in float32 at least: rounded ones would be rounded losses."""
        x = self.norm(x)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.matmul(x, self.embed.embedding.astype(x.dtype).T, preferred_element_type=wide)


class TTMLanguageModel(TransformerLanguageModel):
    """The decoder with a Token Turing Machine between its lower and its upper layers; called as its base class is.

    The machine reads the lower layers' tokens of a segment. The upper layers see, beside the window, the memory from
    before the segment and the outputs of the step before, as keys of the same softmax (`config.context`).
    """

    def _set_up_machine(self, dtypes: dict[str, Any]) -> None:
        config = self.config
        self.machine_norm, self.context_norm = LayerNorm(**dtypes), LayerNorm(**dtypes)
        self.machine = make_machine(config)
        shape = (config.memory_size + config.process_size, config.width)
        self.slots = self.param("slots", nn.initializers.normal(0.02), shape, dtypes["param_dtype"])

    def _initial_machine(self, batch_size: int) -> tuple[jax.Array, jax.Array]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        wide = jnp.promote_types(jnp.promote_types(dtype, config.param_dtype), jnp.float32)
        return (
            jnp.zeros((batch_size, config.memory_size, config.width), wide),
            jnp.zeros((batch_size, config.process_size, config.width), dtype),
        )

    def _machine_steps(
        self, hidden_BxTxNxD: jax.Array, state: State, start_BxT: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        memory_BxMxD, outputs_BxRxD = _with_machine(state)
        outputs_BxTxRxD, memory_BxMxD, memories_BxTxMxD = self.machine(
            self.machine_norm(hidden_BxTxNxD), memory_BxMxD, reset_BxT=start_BxT, return_memories=True
        )
        before_BxTxRxD = jnp.where(start_BxT[..., None, None], 0, _shift(outputs_BxTxRxD, outputs_BxRxD))
        return self._context(memories_BxTxMxD, before_BxTxRxD), (memory_BxMxD, outputs_BxTxRxD[:, -1])

    def _context(self, memory: jax.Array, outputs: jax.Array) -> jax.Array:
        """The context [..., C, D] of memory [..., M, D] and outputs [..., R, D]."""
        both = jnp.concatenate([memory.astype(outputs.dtype), outputs], axis=-2)
        slots = jnp.expand_dims(self.slots.astype(outputs.dtype), range(both.ndim - 2))
        both = self.context_norm(both) + slots
        M = self.config.memory_size
        return {"memory": both[..., :M, :], "outputs": both[..., M:, :], "both": both}[self.config.context]

    def _context_keys(self, state: State) -> tuple[Keys, ...]:
        context = self._context(*_with_machine(state))
        return tuple(block.context_keys(context) for block in self.upper)


def make_machine(config: ModelConfig) -> TokenTuringMachine:
    """Make the machine of a config."""
    return TokenTuringMachine(
        config.memory_size,
        config.process_size,
        read=config.read,
        write=config.write,
        gate=None if config.gate == "none" else config.gate,
        num_layers=config.process_layers,
        mlp_dim=config.mlp_dim,
        num_heads=config.num_heads,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
    )


def make_model(config: ModelConfig, vocab_size: int) -> TransformerLanguageModel:
    """Make the language model of a config."""
    return {"ttm": TTMLanguageModel, "transformer": TransformerLanguageModel}[config.kind](config, vocab_size)


def _with_machine(state: State) -> tuple[jax.Array, jax.Array]:
    """Memory and outputs of a state that has them."""
    assert state.memory is not None
    assert state.outputs is not None
    return state.memory, state.outputs


def _last(segments: list[Keys]) -> tuple[Keys, ...]:
    """Of each layer's keys [B, T, ...] those of the last segment."""
    return tuple(Keys(keys[:, -1], values[:, -1]) for keys, values in segments)


def _shift(segments: jax.Array, first: jax.Array) -> jax.Array:
    """What each of T segments [B, T, ...] has from the one before; `first` [B, ...] is that of the first."""
    return jnp.concatenate([first[:, None].astype(segments.dtype), segments[:, :-1]], axis=1)
