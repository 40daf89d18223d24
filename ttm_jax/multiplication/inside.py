"""What goes on in a multiplier while it works: the weights of its reads and writes, and what its heads say it holds."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ttm_jax.machine.summarize import pooling_summarize
from ttm_jax.multiplication.model import TTMModel, select_answers
from ttm_jax.multiplication.multiplier import Multiplier, load, wipe_memory
from ttm_jax.multiplication.vocab import TIMES_TOKEN
from ttm_jax.training.checkpoint_files import CheckpointError


def load_machine(path: str | Path) -> Multiplier:
    """Load as `ttm_jax.load` does, but only a model that has a memory to look at.

    Raises:
        CheckpointError: naming the path and what is wrong with it.
    """
    multiplier = load(path)
    if (kind := multiplier.config.model.kind) != "machine":
        raise CheckpointError(f"checkpoint {path}: model.kind is {kind}, which has no memory to show; name a machine's")
    return multiplier


class Inside(NamedTuple):
    """What a multiplier holds and looks at, at all S places or at all U machine steps.

    Attributes:
        carries: probabilities of the carry out of each place [B, S, C]; None without a carry head.
        sums: the column's sum after each machine step [B, U], by the heads; None without them, or under "digit".
        wiped: probabilities of tokens where the memory is wiped [B, S, V].
        read: weights of the reads [B, U, R, M + S], on [memory ; input].
        write: weights of the writes [B, U, M, M + R + S], on [memory ; output ; input]; None under "erase_add".
    """

    carries: Any
    sums: Any
    wiped: Any
    read: Any
    write: Any


@partial(jax.jit, static_argnums=0)
def look_inside(model: TTMModel, variables: dict, inputs_BxS: jax.Array) -> Inside:
    """Run the machine model over problems and return what `Inside` lists."""
    config = dataclasses.replace(model.config, remat="none")
    model = TTMModel(config)
    heads: Any = model.apply(variables, inputs_BxS, method="heads", mutable=["intermediates"])
    (logits_BxUxV, carry_logits), sown = heads
    sums = None
    if carry_logits is not None:
        if config.schedule == "product":
            sums = 10 * carry_logits.argmax(axis=-1) + logits_BxUxV[..., :TIMES_TOKEN].argmax(axis=-1)
        carry_logits = select_answers(config, inputs_BxS, carry_logits, config.seq_len)
    step = sown.get("intermediates", {}).get("machine", {}).get("step", {})
    wiped: Any = wipe_memory(model).apply(variables, inputs_BxS, method="raw_logits")
    M, R, S = config.memory_size, config.process_size, config.seq_len
    # Some kinds of write have weights that are always the same, and "erase_add" has none.
    match config.write:
        case "erase_add":
            write = None
        case "none":
            write = jnp.eye(M, M + R + S)
        case "concat":
            write = jnp.eye(M + R, M + R + S)[R:]
        case kind:
            write = _summary_weights(kind, step.get("write"), M, M + R + S)
    read = _summary_weights(config.read, step.get("read"), R, M + S)
    return Inside(
        None if carry_logits is None else jax.nn.softmax(carry_logits),
        sums,
        jax.nn.softmax(wiped),
        *(w if w is None else jnp.broadcast_to(w, (*logits_BxUxV.shape[:2], *w.shape[-2:])) for w in (read, write)),
    )


def _summary_weights(kind: str, sown: Any, k: int, N: int) -> jax.Array:
    """Return the weights of `k` summary tokens on `N` tokens: [B, T, k, N], or [1, k, N] where always the same."""
    match kind:
        case "mlp":
            (weights_TxBxKxN,) = sown["summarizer"]["weights"]
        case "query":
            (weights_TxBxHxKxN,) = sown["summarizer"]["attention"]["weights"]
            weights_TxBxKxN = weights_TxBxHxKxN.mean(axis=2)
        case _:  # "pooling"
            return pooling_summarize(jnp.eye(N)[None], k)
    return jnp.swapaxes(weights_TxBxKxN, 0, 1)
