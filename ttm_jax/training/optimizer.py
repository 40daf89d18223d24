"""Adam or Muon with warm-up, cosine decay and gradient clipping, in the arithmetic of torch.optim."""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ttm_jax.training.config import OptimizerConfig

MUON_BETA = 0.95
MACHINE_KERNELS = "machine/.*kernel"


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


def make_optimizer(config: OptimizerConfig, muon: str = MACHINE_KERNELS) -> optax.GradientTransformation:
    """Make clipping and the optimiser that the config names.

    "adam" adds weight decay to the gradient, "adamw" to the step. "muon" orthogonalises the momentum of some matrices
    (https://kellerjordan.github.io/posts/muon), gives it the root mean square `muon_rms`, near that of Adam's steps
    (arXiv 2502.16982), and is Adam with Nesterov momentum for all other parameters.

    Args:
        config: of the optimiser.
        muon: a regular expression of the paths of the kernels that Muon takes.
    """
    clip = optax.identity() if config.max_grad_norm is None else clip_by_global_norm(config.max_grad_norm)
    schedule = learning_rate_schedule(config)
    if config.name == "muon":
        orthogonal = optax.contrib.muon(
            schedule,
            beta=MUON_BETA,
            eps=config.eps,
            weight_decay=config.weight_decay,
            consistent_rms=config.muon_rms,
            muon_weight_dimension_numbers=lambda stacks: jax.tree.map(lambda _: _STACK, stacks),
        )
        adam = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, nesterov=True)
        return optax.chain(clip, optax.partition({"muon": _stacked_by_shape(orthogonal), "adam": adam}, _labels(muon)))
    decay = optax.add_decayed_weights(config.weight_decay)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    order = (decay, adam) if config.name == "adam" else (adam, decay)
    return optax.chain(clip, *order, optax.scale_by_learning_rate(schedule))


_STACK = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)


def _labels(muon: str) -> Callable[[Any], Any]:
    """Which optimiser each parameter has: Muon those whose path matches, Adam the rest."""

    def label(path: tuple, leaf: jax.Array) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return "muon" if re.fullmatch(muon, name) else "adam"

    return lambda params: jax.tree_util.tree_map_with_path(label, params)


def _stacked_by_shape(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` applied to kernels as matrices, those of one shape as one array [n, inputs, outputs].

    A product of stacks takes about half the time of as many products of single matrices.
    """

    def init(params):
        return transform.init(_stack(params))

    def update(updates, state, params=None):
        stacks, state = transform.update(_stack(updates), state, None if params is None else _stack(params))
        return _unstack(stacks, updates), state

    return optax.GradientTransformation(init, update)


def _stack(kernels: Any) -> dict[str, jax.Array]:
    stacks = defaultdict(list)
    for path, kernel in jax.tree_util.tree_leaves_with_path(kernels):
        stacks[_stack_of(path, kernel)].append(kernel.reshape(_matrix_shape(path, kernel)))
    return {name: jnp.stack(matrices) for name, matrices in stacks.items()}


def _unstack(stacks: Any, like: Any) -> Any:
    matrices = {name: iter(stack) for name, stack in stacks.items()}

    def take(path, kernel):
        return next(matrices[_stack_of(path, kernel)]).reshape(kernel.shape)

    return jax.tree_util.tree_map_with_path(take, like)


def _stack_of(path: tuple, kernel: jax.Array) -> str:
    return "{}x{}".format(*_matrix_shape(path, kernel))


def _matrix_shape(path: tuple, kernel: jax.Array) -> tuple[int, int]:
    """Inputs and outputs of a kernel; an attention's is [D, H, K], but [H, K, D] of its output."""
    num_inputs = kernel.ndim - 1 if path[-2].key == "out" else 1
    return math.prod(kernel.shape[:num_inputs]), math.prod(kernel.shape[num_inputs:])
