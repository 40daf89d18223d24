"""What a language model costs, in closed form: parameters, multiply-adds and bytes."""

from dataclasses import dataclass
from typing import Any

import jax

from ttm_jax.machine.flops import TRAINING_PASSES, multiply_adds
from ttm_jax.machine.layers import apply
from ttm_jax.text.config import Config, ModelConfig
from ttm_jax.text.model import make_machine
from ttm_jax.text.objective import make_objective, vocab_size


@dataclass(frozen=True)
class Analysis:
    """What a config's model costs.

    Attributes:
        parameters: how many numbers they are.
        macs: multiply-adds of a forward pass over a segment, by the part of the model.
        segment: N, tokens of a segment.
        weight_bytes: of the parameters.
        machine_bytes: of those, the machine's, which are read once a segment.
        key_bytes: of the keys and values that a token attends to.
    """

    parameters: int
    macs: dict[str, int]
    segment: int
    weight_bytes: int
    machine_bytes: int
    key_bytes: int

    @property
    def forward_flops(self) -> float:
        """Return the floating-point operations of a token in a forward pass: 2 x multiply-adds."""
        return 2 * sum(self.macs.values()) / self.segment

    @property
    def training_flops(self) -> float:
        """Return the floating-point operations of a token in training."""
        return TRAINING_PASSES * self.forward_flops

    @property
    def decoding_bytes(self) -> int:
        """Return the bytes that writing one token reads, on average: what has to fit a cache to come from there."""
        return self.weight_bytes - self.machine_bytes + self.machine_bytes // self.segment + self.key_bytes


def analyse(config: Config) -> Analysis:
    """Compute what the model of a config costs."""
    objective = make_objective(config)
    model = objective.model
    params = jax.eval_shape(objective.init, jax.random.key(0))
    place = jax.eval_shape(lambda params: apply(model, params, model.initial_state(1), method="begin"), params)
    return Analysis(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        macs=segment_macs(config.model, vocab_size(config)),
        segment=config.model.segment,
        weight_bytes=_bytes(params),
        machine_bytes=_bytes(params.get("machine", ())),
        key_bytes=_bytes((place.own, place.state.window, place.context)),
    )


def segment_macs(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Count the multiply-adds of a forward pass over a segment of N tokens, one row, by the part of the model.

    With L decoder layers: "projections" L N 4 D^2, "mlp" L N 2 D F, "attention" L N 2 D 2 N, "head" N D V. A token has
    2 N keys, those of its segment and of the one before, of which the window hides half. Of a machine: "machine" its
    step, and with C context tokens "context" 2 C D^2 + N 2 D C in each upper layer.
    """
    D, F, N, L = config.width, config.mlp_dim, config.segment, config.decoder_layers
    found = {
        "projections": L * N * 4 * D**2,
        "mlp": L * N * 2 * D * F,
        "attention": L * N * 2 * D * 2 * N,
        "head": N * D * vocab_size,
    }
    if config.kind == "ttm":
        C = {"memory": config.memory_size, "outputs": config.process_size}
        C["both"] = sum(C.values())
        context = C[config.context]
        found["machine"] = multiply_adds(make_machine(config), N, D).total
        found["context"] = config.upper_layers * (2 * context * D**2 + N * 2 * D * context)
    return found


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
