"""Adam with warm-up and cosine decay."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ttm_torch.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig | None = None) -> torch.optim.Optimizer:
    """The optimiser that the config names, at the base rate: "adam" or "adamw".

    "adam" adds weight decay to the gradient, "adamw" to the step. Clipping is `train_step`'s.

    Raises:
        ValueError: for "muon", which the twin does not have.
    """
    config = OptimizerConfig() if config is None else config
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config.name not in kinds:
        raise ValueError(f"optimizer.name must be one of {', '.join(kinds)} in PyTorch, got {config.name!r}")
    return kinds[config.name](
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.b1, config.b2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Rate of step n (from 0): linear up to the peak at `warmup_steps`, cosine to the floor, then constant.

    The peak is `peak_factor` x `learning_rate`, reached at `warmup_steps`; the floor is `alpha` x
    `learning_rate`, reached `decay_steps` later.
    """
    peak = config.peak_factor * config.learning_rate
    floor = config.alpha * config.learning_rate
    if step < config.warmup_steps:
        start = peak / (config.warmup_steps + 1)
        return start + (peak - start) * step / config.warmup_steps
    progress = min((step - config.warmup_steps) / config.decay_steps, 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


class Scheduler(LRScheduler):
    """Sets the rate of `learning_rate(config, n)` for step n; call `step()` after each `optimizer.step()`."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig | None = None):
        self.config = OptimizerConfig() if config is None else config
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of the present step, for each group of parameters."""
        return [learning_rate(self.config, self.last_epoch) for _ in self.base_lrs]


def make_scheduler(optimizer: torch.optim.Optimizer, config: OptimizerConfig | None = None) -> Scheduler:
    """The scheduler of the config's rates."""
    return Scheduler(optimizer, config)
