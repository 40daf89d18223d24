"""Proof that the comparisons can fail: the twin, its weights or the data change a little, which must be seen."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

import ttm_torch
from parity import twins, weights
from parity.cases import data, machine, scenic, training, weights as weight_cases
from parity.compare import Case, Row
from ttm_jax.multiplication import problems as multiplication
from ttm_torch.machine import layers, memory
from ttm_torch.multiplication import losses, model as multiplier


@dataclass(frozen=True, eq=False)
class MutationCase:
    """A case that must be in bounds as it is, and out of bounds under a change.

    Attributes:
        change: makes the context in which the change holds, for the whole process.
    """

    title: str
    what: str
    change: Callable[[], AbstractContextManager]
    case: Case

    @property
    def name(self) -> str:
        return f"mutation/{self.title}"

    def rows(self, device: str) -> list[Row]:
        as_it_is = max(self.case.rows(device), key=_excess)
        with self.change():
            changed = max(self.case.rows(device), key=_excess)
        return [
            Row(f"{self.case.name} as it is", as_it_is.difference, as_it_is.bound, as_it_is.at),
            Row(self.what, changed.difference, changed.bound, f"{changed.what}: {changed.at}", above=True),
        ]


def _excess(row: Row) -> float:
    if row.bound == 0:
        return math.inf if row.difference else 0.0
    return row.difference / row.bound


def _weights_changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[], AbstractContextManager]:
    """Give the twin JAX's weights, with the one called `name` changed."""

    def changed(params: Any) -> dict[str, Tensor]:
        state = weights.to_torch(params)
        return state | {name: change(state[name])}

    return lambda: patch.object(twins, "to_torch", changed)


def _one_number(weight: Tensor) -> Tensor:
    weight[0, 0] *= 1 + 1e-6
    return weight


def _epsilon_of_adam() -> AbstractContextManager:
    make_optimizer = ttm_torch.make_optimizer

    def changed(*args: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(*args)
        for group in optimizer.param_groups:
            group["eps"] *= 1.01
        return optimizer

    return patch.object(ttm_torch, "make_optimizer", changed)


class _NextStep(ttm_torch.MultiplicationDataset):
    def batch(self, seed: int, step: int, mixture: Any = None) -> Any:
        return super().batch(seed, step + 1, mixture)


def _saved_in_half() -> AbstractContextManager:
    save = weights.save
    return patch.object(weights, "save", lambda path, state: save(path, {name: x.half() for name, x in state.items()}))


_MACHINE = next(case for case in machine.CASES if case.name == "gradients/mlp-mlp-transformer")
_TRAINING = next(case for case in training.CASES if case.name == "training/mlp-mlp-transformer")
_PRODUCTS = next(case for case in training.CASES if case.name == "training/schedule-product")
_OPTIMIZER = next(case for case in training.CASES if case.name == "optimizer/adam")
_SCENIC = next(case for case in scenic.CASES if case.stem == "unit_TL_transformer_pos")
_BATCHES, _HELD_OUT = (next(case for case in data.CASES if case.name == f"data/{of}") for of in ("batches", "held_out"))
_WEIGHTS = weight_cases.CASES[0]


def _swapped(memory_BxMxD: Tensor, output_BxRxD: Tensor, input_BxNxD: Tensor) -> Tensor:
    return torch.cat([memory_BxMxD, input_BxNxD, output_BxRxD], dim=1)


def _exchanged(inputs_BxS: Tensor) -> Tensor:
    return ttm_torch.create_product_steps(inputs_BxS)[..., [0, 2, 1]]


CASES = (
    MutationCase(
        "weight",
        "one weight of the read x (1 + 1e-6)",
        _weights_changed("step.read.summarizer.mlp.hidden.weight", _one_number),
        _MACHINE,
    ),
    MutationCase(
        "transposed",
        "the kernel of the queries, 8 x 8, transposed",
        _weights_changed("step.process.block_0.attention.query.weight", lambda weight: weight.T.contiguous()),
        _MACHINE,
    ),
    MutationCase(
        "epsilon",
        "LayerNorm with epsilon 1e-5 for 1e-6",
        lambda: patch.object(layers, "LAYER_NORM_EPS", 1e-5),
        _MACHINE,
    ),
    MutationCase("gelu", "exact GELU for its tanh form", lambda: patch.object(layers, "gelu", F.gelu), _MACHINE),
    MutationCase(
        "write-order",
        "memory, input, output written for memory, output, input",
        lambda: patch.object(memory, "concat_for_write", _swapped),
        _MACHINE,
    ),
    MutationCase(
        "read-order",
        "input, memory read for memory, input",
        lambda: patch.object(memory, "concat_memory_input", lambda memory, tokens: torch.cat([tokens, memory], dim=1)),
        _MACHINE,
    ),
    MutationCase(
        "scenic-write-order",
        "memory, output, input written for memory, input, output",
        lambda: patch.object(memory, "concat_for_write", _swapped),
        _SCENIC,
    ),
    MutationCase(
        "eos-loss",
        "the loss of EOS x 0.1001 for 0.1",
        lambda: patch.object(losses, "EOS_LOSS_SCALE", 0.1001),
        _TRAINING,
    ),
    MutationCase(
        "product-steps",
        "the two digits of each step exchanged",
        lambda: patch.object(multiplier, "create_product_steps", _exchanged),
        _PRODUCTS,
    ),
    MutationCase("adam-epsilon", "Adam's epsilon x 1.01", _epsilon_of_adam, _OPTIMIZER),
    MutationCase(
        "batches",
        "batches of the next step in ttm_torch",
        lambda: patch.object(ttm_torch, "MultiplicationDataset", _NextStep),
        _BATCHES,
    ),
    MutationCase(
        "held-out",
        "another seed of the held-out pairs, in both",
        lambda: patch.object(multiplication, "_EVALUATION_SEED", 0),
        _HELD_OUT,
    ),
    MutationCase("weights-file", "weights saved in float16", _saved_in_half, _WEIGHTS),
)
