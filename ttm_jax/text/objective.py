"""The language model as an objective of the trainer: parameters, loss, scores of held-out text, samples."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ttm_jax.machine.layers import apply
from ttm_jax.text import recall
from ttm_jax.text.config import Config, ModelConfig
from ttm_jax.text.model import State, TransformerLanguageModel, make_model
from ttm_jax.text.sampling import draw, last, nats_of, open_segment
from ttm_jax.text.tokenizer import ByteTokenizer
from ttm_jax.training.config import ConfigError
from ttm_jax.training.step import Loss

SAMPLING = dict(temperature=0.8, top_k=40, top_p=0.9)  # of the samples that an evaluation shows


@dataclass(frozen=True)
class TextObjective:
    """The language model of a config; its arrays are those of `Streams.batch`.

    The mean cross-entropy of a token is minimised. Memory and window are carried from batch to batch; no gradient goes
    back to the batch before. Where `carries` is off each batch begins anew. The metric "right" is of the targets that
    are "counted", which are all with a weight where the arrays don't say it.
    """

    config: ModelConfig
    vocab_size: int
    carries: bool = True
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    muon: str = ".*kernel"
    remats: tuple[str, ...] = ()

    @property
    def model(self) -> TransformerLanguageModel:
        """Return the linen module."""
        return make_model(self.config, self.vocab_size)

    def with_remat(self, remat: str) -> "TextObjective":
        return self

    def init(self, key: jax.Array) -> dict:
        tokens_1x1xN = jnp.zeros((1, 1, self.config.segment), jnp.int32)
        return dict(self.model.init(key, tokens_1x1xN)["params"])

    def init_carry(self, batch_size: int) -> State | tuple[()]:
        return self.model.initial_state(batch_size) if self.carries else ()

    def loss(self, params: dict, arrays: dict[str, jax.Array], key: jax.Array, carry: Any) -> tuple[Loss, Any]:
        B = len(arrays["tokens"])
        state = jax.lax.stop_gradient(carry) if self.carries else self.model.initial_state(B)
        after, (nats_BxTxN, right_BxTxN) = self._score(params, state, arrays)
        counted_BxTxN = arrays.get("counted", arrays["weights"])
        by_row = {"nats": nats_BxTxN, "right": right_BxTxN * counted_BxTxN, "counted": counted_BxTxN}
        metrics = {name: x.sum(axis=(1, 2)) for name, x in by_row.items()}
        return Loss(nats_BxTxN.sum(), arrays["weights"].sum(), metrics), after if self.carries else ()

    def predict(self, params: dict, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Score rows, or write on.

        Of "tokens", "targets", "weights" [P, W, T, N] and "start" [P, W, T], W windows one after the other: "nats" and
        "right" [P, W, T, N]. Of "prompt" [P, N] and, which count in the first row alone, "number" [P] of its tokens,
        "allowed" [P, V] to be drawn and "seed" [P]: "sample" [P, 2 N], what the model writes next.
        """
        variables = {"params": params}
        if "prompt" in arrays:
            N, begun = self.config.segment, self.model.initial_state(len(arrays["prompt"]))
            number, key = arrays["number"][0], jax.random.key(arrays["seed"][0])
            logits_PxNxV, place = open_segment(self.model, variables, arrays["prompt"], number, begun)
            first, allowed_V = last(logits_PxNxV, number), arrays["allowed"][0]
            sampled = draw(self.model, variables, first, place, allowed_V, key, 0, 2 * N, *SAMPLING.values())
            tokens_PxS = sampled[0]
            return {"sample": tokens_PxS}

        by_window = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), arrays)
        _, found = jax.lax.scan(
            partial(self._score, params), self.model.initial_state(len(arrays["tokens"])), by_window
        )
        nats, right = (jnp.swapaxes(x, 0, 1) for x in found)
        return {"nats": nats, "right": right}

    def _score(
        self, params: dict, state: State, arrays: dict[str, jax.Array]
    ) -> tuple[State, tuple[jax.Array, jax.Array]]:
        """The state after a window [B, T, N], the nats of its targets, and which of them are the likeliest token."""
        logits_BxTxNxV, state = apply(self.model, params, arrays["tokens"], state, arrays["start"])
        right_BxTxN = (logits_BxTxNxV.argmax(axis=-1) == arrays["targets"]) * arrays["weights"]
        return state, (nats_of(logits_BxTxNxV, arrays), right_BxTxN)


def make_objective(config: Config) -> TextObjective:
    """Make the objective of a config.

    Raises:
        ConfigError: if the config asks for float64 and JAX is not allowed it.
    """
    if "float64" in (config.model.dtype, config.model.param_dtype) and not jax.config.read("jax_enable_x64"):
        raise ConfigError("model.dtype and model.param_dtype float64 need JAX_ENABLE_X64=1 in the environment")
    return TextObjective(config.model, vocab_size(config), carries=config.data.kind == "files")


def vocab_size(config: Config) -> int:
    """Give the number of tokens that a config's model knows."""
    if config.data.kind == "recall":
        return recall.Vocabulary(config.recall).size
    return config.data.vocab_size if config.data.tokenizer == "bpe" else ByteTokenizer.vocab_size
