"""The original's reference cases through both twins: outputs, and gradients by every parameter."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from flax.traverse_util import unflatten_dict

from parity import scenic
from parity.compare import Row, compared
from parity.scenic import (
    GRADIENT_BOUND,
    MODES,
    OUTPUT_BOUND,
    build_machine,
    from_scenic,
    load_case,
    shipped_cases,
    to_scenic,
)
from parity.twins import gradients_of, load_weights, tensors_of, to_numpy
from parity.weights import twin_of
from ttm_jax.machine.processing import PROCESSING_UNITS


@dataclass(frozen=True, eq=False)
class ScenicCase:
    """One file, computed with the original. Its rows raise `CaseError` where it is missing or damaged."""

    stem: str

    @property
    def name(self) -> str:
        return f"scenic/{self.stem}"

    def rows(self, device: str) -> list[Row]:
        case = load_case(shipped_cases() / f"{self.stem}.npz")
        return [
            row
            for package, (outputs, grads) in (("ttm_jax", scenic.run(case)), ("ttm_torch", run_torch(case, device)))
            for row in (
                compared(package, OUTPUT_BOUND, outputs=(outputs, case.outputs)),
                compared(package, GRADIENT_BOUND, gradients=(grads, case.grads)),
            )
        ]


def run_torch(case: scenic.Case, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the twin on a case; return the same as `parity.scenic.run`."""
    params = from_scenic(case.params, case.meta)
    names = [name for name in ("memory", "tokens") if name in case.inputs]
    inputs = [case.inputs[name] for name in names]
    twin = twin_of(build_machine(case.meta), width=inputs[-1].shape[-1], num_tokens=inputs[-1].shape[-2])
    load_weights(twin, params, inputs[0].dtype, device)
    # A step gives memory and outputs; the machine, whose memory the original does not return, outputs and memory.
    results = dict(
        zip(("memory", "output") if len(names) == 2 else ("output",), twin(*tensors_of(inputs, device)), strict=False)
    )
    cotangents = tensors_of([case.inputs[f"cot_{name}"] for name in results], device)
    torch.autograd.backward(list(results.values()), cotangents)
    outputs = {name: to_numpy(output) for name, output in results.items()}
    return outputs, to_scenic(unflatten_dict(gradients_of(twin, params), sep="/"), case.meta)


CASES = tuple(
    ScenicCase(stem)
    for stem in (
        *(f"unit_{mode}_{unit}_{pos}" for mode, unit, pos in product(MODES, PROCESSING_UNITS, ("pos", "nopos"))),
        *(f"simple_{unit}" for unit in PROCESSING_UNITS),
        *(f"encoder_{mode}_transformer" for mode in MODES),
    )
)
