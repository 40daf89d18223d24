"""Adam or Muon with warm-up, cosine decay and gradient clipping, in the arithmetic of torch.optim."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ttm_jax.config import OptimizerConfig

MUON_BETA = 0.95


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Rate of step n (from 0): linear up to the peak at `warmup_steps`, cosine to the floor, then constant.

    The peak is `peak_factor` x `learning_rate`, reached at `warmup_steps`; the floor is `alpha` x
    `learning_rate`, reached `decay_steps` later.
    """
    peak = config.peak_factor * config.learning_rate
    floor = config.alpha * config.learning_rate
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / (config.warmup_steps + 1), peak, config.warmup_steps),
            optax.cosine_decay_schedule(peak, config.decay_steps, floor / peak),
        ],
        [config.warmup_steps],
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does."""

    def update(updates, state, params=None):
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, then the optimiser that the config names.

    "adam" adds weight decay to the gradient, "adamw" to the step. "muon" orthogonalises the momentum of the
    machine's matrices (https://kellerjordan.github.io/posts/muon), gives it the root mean square `muon_rms`, near
    that of Adam's steps (arXiv 2502.16982), and is Adam with Nesterov momentum for all other parameters.
    """
    clip = optax.identity() if config.max_grad_norm is None else clip_by_global_norm(config.max_grad_norm)
    schedule = learning_rate_schedule(config)
    if config.name == "muon":
        muon = optax.contrib.muon(
            schedule,
            beta=MUON_BETA,
            eps=config.eps,
            weight_decay=config.weight_decay,
            consistent_rms=config.muon_rms,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
        return optax.chain(clip, muon)
    decay = optax.add_decayed_weights(config.weight_decay)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    order = (decay, adam) if config.name == "adam" else (adam, decay)
    return optax.chain(clip, *order, optax.scale_by_learning_rate(schedule))


def _matrices(params: Any) -> Any:
    """How Muon sees each parameter as a matrix: the machine's kernels as [inputs, outputs], None for the rest."""

    def dimensions(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        names = [key.key for key in path]
        if names[0] != "machine" or names[-1] != "kernel":
            return None
        num_inputs = leaf.ndim - 1 if names[-2] == "out" else 1  # an attention's output kernel is [H, K, D]
        axes = tuple(range(leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[:num_inputs], axes[num_inputs:])

    return jax.tree_util.tree_map_with_path(dimensions, params)
