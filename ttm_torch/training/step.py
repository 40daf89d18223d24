"""The state of a training and one step on it, whatever the objective."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map

from ttm_jax.training.config import OptimizerConfig
from ttm_torch.training.optimizer import Scheduler, make_optimizer, make_scheduler

Carry = Any


class Loss(NamedTuple):
    """The loss of a batch as a sum, and the count that makes it a mean. Both add up over micro-batches.

    Attributes:
        total: summed over the items of the batch.
        count: how many items these are, or their weight.
        metrics: of each example [B].
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, Tensor]

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


class Objective(Protocol):
    """A model with its loss; the counterpart of `ttm_jax.training.step.Objective`."""

    @property
    def muon(self) -> str: ...

    def make_model(self) -> nn.Module:
        """Make the model with fresh weights."""
        ...

    def init_carry(self, batch_size: int) -> Carry:
        """Make what the first batch of a run gets in place of a batch before: tensors [B, ...], or ()."""
        ...

    def loss(self, model: Any, arrays: Mapping[str, Tensor], carry: Carry) -> tuple[Loss, Carry]:
        """Compute the loss of a batch, and what the next batch gets."""
        ...

    def predict(self, model: Any, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute what an evaluation asks for, each [B, ...]."""
        ...


@dataclass
class TrainState:
    """All that training changes."""

    model: Any
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    carry: Carry = ()

    @property
    def step(self) -> int:
        """Return the number of optimiser steps done."""
        return self.scheduler.last_epoch


def make_state(
    objective: Objective,
    config: OptimizerConfig,
    seed: int,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> TrainState:
    """Make a fresh state; parameters follow from the seed alone."""
    model = make_model(objective, seed).to(device)
    optimizer = make_optimizer(model, config, objective.muon)
    carry = tree_map(lambda x: x.to(device), objective.init_carry(batch_size))
    return TrainState(model, optimizer, make_scheduler(optimizer, config), carry)


def make_model(objective: Objective, seed: int) -> nn.Module:
    """Make the model of a fresh state, on the CPU; leave the global random numbers where they are."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # whatever the default device is
        torch.random.default_generator.manual_seed(random_seed(seed))  # of the CPU alone, which is what was forked
        return objective.make_model()


def random_seed(seed: int, step: int = -1) -> int:
    """Return the seed of the initialisation, or of the dropout in step n, which a resumed run repeats."""
    return int(np.random.SeedSequence([seed, step + 1]).generate_state(1, np.uint64)[0])


def take_step(
    loss_of: Callable[[Mapping[str, Tensor], Carry], tuple[Loss, Carry]],
    model: nn.Module,
    arrays: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    max_grad_norm: float | None = 1.0,
    micro_batches: int = 1,
    carry: Carry = (),
) -> tuple[dict[str, Any], Carry]:
    """Take one optimiser step; return its metrics and the next carry.

    The batch is cut into `micro_batches` equal parts. Their gradients are computed one after the other and added up.
    Metrics are "loss", "grad_norm" (before clipping), "learning_rate" and those of the loss [B].

    Raises:
        ValueError: if `micro_batches` doesn't divide B.
    """
    model.train()
    optimizer.zero_grad()
    loss, carry = _compute_gradients(loss_of, model, arrays, carry, micro_batches)
    metrics = {
        "loss": loss.mean,
        "grad_norm": _clip_gradients(model, max_grad_norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
        **loss.metrics,
    }
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return metrics, carry


def _compute_gradients(
    loss_of: Callable[[Mapping[str, Tensor], Carry], tuple[Loss, Carry]],
    model: nn.Module,
    arrays: Mapping[str, Tensor],
    carry: Carry,
    micro_batches: int,
) -> tuple[Loss, Carry]:
    """Set the parameters' gradients to those of the mean; return the whole batch's loss and the next carry."""
    B = len(next(iter(arrays.values())))
    if micro_batches < 1 or B % micro_batches:
        raise ValueError(f"micro_batches must divide the batch of {B}, got {micro_batches}")
    parts: list[tuple[Loss, Carry]] = []
    for start in range(0, B, B // micro_batches):
        rows = slice(start, start + B // micro_batches)
        loss, after = loss_of(_take_rows(dict(arrays), rows), _take_rows(carry, rows))
        loss.total.backward()
        parts.append((loss._replace(total=loss.total.detach()), after))
    total, count = (torch.stack([getattr(loss, name) for loss, _ in parts]).sum() for name in ("total", "count"))
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= count
    metrics = {name: torch.cat([loss.metrics[name] for loss, _ in parts]) for name in parts[0][0].metrics}
    carry = tree_map(lambda *leaves: torch.cat(leaves).detach(), *(after for _, after in parts))
    return Loss(total, count, metrics), carry


def _take_rows(tree: Any, rows: slice) -> Any:
    return tree_map(lambda x: x[rows], tree)


def _clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Scale the gradients down to a norm, where one is given; return the norm that they had."""
    if max_norm is None:
        return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm=max_norm)


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None, None, None]:
    """Switch dropout and gradients off; afterwards put the model back in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
