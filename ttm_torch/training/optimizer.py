"""Adam or Muon with warm-up and cosine decay, in the arithmetic of `ttm_jax.training.optimizer`."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ttm_jax.training.config import OptimizerConfig
from ttm_torch.machine.layers import at_least_float32

MUON_BETA = 0.95
MACHINE_WEIGHTS = r"machine\..*\.weight"
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.775, 2.0315)


def make_optimizer(
    model: nn.Module, config: OptimizerConfig | None = None, muon: str = MACHINE_WEIGHTS
) -> torch.optim.Optimizer:
    """Make the optimiser that the config names, at the base rate; `train_step` clips.

    "adam" adds weight decay to the gradient, "adamw" to the step. "muon" is `Muon` for the matrices whose names match
    the regular expression `muon`, by default the machine's linear layers. All other parameters get its Adam.

    Raises:
        ValueError: for "muon" and a model without such weights.
    """
    config = OptimizerConfig() if config is None else config
    options: dict[str, Any] = dict(
        lr=config.learning_rate, betas=(config.b1, config.b2), eps=config.eps, weight_decay=config.weight_decay
    )
    if config.name != "muon":
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name](model.parameters(), **options)
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and re.fullmatch(muon, name)
        (matrices if is_matrix else others).append(parameter)
    if not matrices:
        raise ValueError(f"muon is for matrices of the names {muon}; this model has none")
    return Muon(matrices, others, rms=config.muon_rms, **options)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices (https://kellerjordan.github.io/posts/muon), Adam for everything else.

    The momentum of a matrix is orthogonalised and given the root mean square `rms`, near that of Adam's steps
    (arXiv 2502.16982). Both have Nesterov momentum and add weight decay to the step, as `optax.contrib.muon` does.
    `torch.optim.Muon` orthogonalises in bfloat16; here it is the parameters' type, or float32 where that is narrower.

    Args:
        matrices: the weights [outputs, inputs] to orthogonalise; the first group of parameters.
        others: the parameters left to Adam; the second group.
        lr: rate of both.
        betas: Adam's decay rates.
        eps: added to Adam's denominator, and to the norm that a matrix is divided by.
        weight_decay: of both.
        momentum: decay rate of the matrices' momentum.
        rms: of an orthogonalised step, before the rate.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = MUON_BETA,
        rms: float = 0.2,
    ):
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum=momentum, rms=rms)
        groups = [
            {"params": list(matrices), "orthogonalize": True},
            {"params": list(others), "orthogonalize": False},
        ]
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step every parameter that has a gradient; return the loss, where `closure` computes it anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            direction = self._muon_direction if group["orthogonalize"] else self._adam_direction
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    names = ("momentum",) if group["orthogonalize"] else ("momentum", "square")
                    state.update(step=0, **{name: torch.zeros_like(parameter) for name in names})
                state["step"] += 1
                update = direction(parameter.grad, state, group)
                parameter.add_(update + group["weight_decay"] * parameter, alpha=-group["lr"])
        return loss

    def _muon_direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        momentum = _nesterov(grad, state, group["momentum"])
        scale = group["rms"] * max(grad.shape) ** 0.5
        return scale * newton_schulz(momentum.T, group["eps"]).T.to(grad.dtype)

    def _adam_direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        b1, b2 = group["betas"]
        momentum = _nesterov(grad, state, b1)
        square = state["square"]
        square.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        return momentum / ((square / (1 - b2 ** state["step"])).sqrt() + group["eps"])


def _nesterov(grad: Tensor, state: dict[str, Any], beta: float) -> Tensor:
    """Compute the running mean of gradients one step ahead, corrected for its start (Dozat 2016)."""
    mean, step = state["momentum"], state["step"]
    mean.mul_(beta).add_(grad, alpha=1 - beta)
    return beta * mean / (1 - beta ** (step + 1)) + (1 - beta) * grad / (1 - beta**step)


def newton_schulz(matrix: Tensor, eps: float = 1e-8) -> Tensor:
    """Pull a matrix's singular values towards 1, by five steps of x <- a x + (b x x^T + c (x x^T)^2) x."""
    x = at_least_float32(matrix)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (x.norm() + eps)
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Compute the rate of optimiser step n = `step`, from 0: linear to a peak, cosine to a floor, then constant.

    The peak is `peak_factor` x `learning_rate`, reached at `warmup_steps`. The floor is `alpha` x `learning_rate`,
    reached `decay_steps` later.
    """
    peak = config.peak_factor * config.learning_rate
    floor = config.alpha * config.learning_rate
    if step < config.warmup_steps:
        start = peak / (config.warmup_steps + 1)
        return start + (peak - start) * step / config.warmup_steps
    progress = min((step - config.warmup_steps) / config.decay_steps, 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


class Scheduler(LRScheduler):
    """The rate `learning_rate(config, n)` for step n; call `step()` after each `optimizer.step()`."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig | None = None):
        self.config = OptimizerConfig() if config is None else config
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of the present step, for each group of parameters."""
        return [learning_rate(self.config, self.last_epoch) for _ in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the config, so that `torch.load(..., weights_only=True)` takes it."""
        return {name: value for name, value in super().state_dict().items() if name != "config"}


def make_scheduler(optimizer: torch.optim.Optimizer, config: OptimizerConfig | None = None) -> Scheduler:
    """Make the scheduler of the config's rates."""
    return Scheduler(optimizer, config)
