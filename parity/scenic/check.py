"""Our machine on a case, beside what the original gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from parity.compare import FLOAT32_BOUND, largest_difference
from parity.fast_jit import fast_jit
from parity.scenic.files import Case, load_case
from parity.scenic.names import from_scenic, to_scenic
from parity.scenic.original import ENCODER, build_machine

# Float32 rounding; a gradient goes through the layers twice.
OUTPUT_BOUND, GRADIENT_BOUND = FLOAT32_BOUND, 2 * FLOAT32_BOUND


@dataclass(frozen=True)
class CaseCheck:
    """The largest difference of a case's outputs and of its gradients; see `parity.compare`."""

    case: str
    outputs: float
    gradients: float
    output_bound: float = OUTPUT_BOUND
    gradient_bound: float = GRADIENT_BOUND

    @property
    def ok(self) -> bool:
        """Tell whether both are within their bounds; False for NaN."""
        return self.outputs <= self.output_bound and self.gradients <= self.gradient_bound


def run(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run our machine on the case, in full float32; return outputs, and gradients under the original's names."""
    machine = build_machine(case.meta)
    params = from_scenic(case.params, case.meta)

    def loss(params: Any, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        if case.meta["cls"] == ENCODER:
            outputs: dict[str, Any] = {"output": machine.apply({"params": params}, inputs["tokens"])[0]}
        else:
            memory, output = machine.apply({"params": params}, inputs["memory"], inputs["tokens"])
            outputs = {"memory": memory, "output": output}
        products = [jnp.sum(out * inputs[f"cot_{name}"]) for name, out in outputs.items()]
        return jnp.stack(products).sum(), outputs

    with jax.default_matmul_precision("highest"):
        (_, outputs), grads = fast_jit(jax.value_and_grad(loss, has_aux=True))(params, dict(case.inputs))
    return outputs, to_scenic(grads, case.meta)


def compare(case: Case) -> CaseCheck:
    """Run our machine on the case and compare outputs and gradients."""
    outputs, grads = run(case)
    return CaseCheck(
        case.name,
        largest_difference(outputs, case.outputs).value,
        largest_difference(grads, case.grads).value,
    )


def check_case(path: str | Path) -> CaseCheck:
    """Load a case and compare it: `compare(load_case(path))`."""
    return compare(load_case(path))
