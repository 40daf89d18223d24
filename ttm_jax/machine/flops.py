"""Multiply-adds of one step in closed form, as the paper counts its "GFLOPS" (section 4).

Only the matrix products of a forward pass are counted, for batch 1. Everything elementwise is left out: norms,
softmax, GELU, the erase products, the averages of pooling. At the paper's sizes that is below 1 % of the whole
for the Transformer, and up to 4 % for the other processing units.
"""

from dataclasses import dataclass

from ttm_jax.machine.causal_transformer import CausalTransformer, query_groups
from ttm_jax.machine.machine import (
    SimpleTokenTuringMachine,
    SimpleTokenTuringMachineStep,
    TokenTuringMachine,
    TokenTuringMachineStep,
)
from ttm_jax.machine.memory import NUM_WRITES
from ttm_jax.machine.processing import TOKEN_MIXING_DIM
from ttm_jax.machine.summarize import BOTTLENECK_DIM

TRAINING_PASSES = 3  # a backward pass costs two forward passes; what is recomputed is not counted, nor the optimiser

Machine = TokenTuringMachine | TokenTuringMachineStep | SimpleTokenTuringMachine | SimpleTokenTuringMachineStep


@dataclass(frozen=True)
class StepCost:
    """Multiply-adds of the parts of one step; for the simple machine, `read` is its summary of the input."""

    read: int
    process: int
    write: int

    @property
    def total(self) -> int:
        """Return read + process + write."""
        return self.read + self.process + self.write


def multiply_adds(machine: Machine, num_tokens: int, width: int) -> StepCost:
    """Count the multiply-adds of one step of `machine` on N = `num_tokens` input tokens of width D, batch 1.

    The total is the sum of `summary_cost`, `process_cost` and `write_cost`: all matrix products of the step.

    Raises:
        ValueError: unless both numbers are positive.
    """
    for name, value in (("num_tokens", num_tokens), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value!r}")
    M, R, N, D = machine.memory_size, machine.process_size, num_tokens, width
    if isinstance(machine, SimpleTokenTuringMachine | SimpleTokenTuringMachineStep):
        return StepCost(summary_cost("mlp", N, R, D), process_cost(machine, M + R, D), 0)
    return StepCost(summary_cost(machine.read, M + N, R, D), process_cost(machine, R, D), write_cost(machine, N, D))


def forward_flops(machine: Machine, num_tokens: int, width: int, steps: int = 1, batch: int = 1) -> int:
    """Count the floating-point operations of a forward pass: 2 x multiply-adds x machine steps x batch."""
    return 2 * multiply_adds(machine, num_tokens, width).total * steps * batch


def summary_cost(kind: str, n: int, k: int, width: int) -> int:
    """Count the multiply-adds of a summary of n tokens to k tokens.

    "mlp": n D 64 + n 64 k for the weights, k n D to apply them.
    "query": 2 k D^2 + 2 n D^2 for the projections, 2 k n D for the attention.
    "pooling": 0.

    Raises:
        ValueError: for another kind.
    """
    match kind:
        case "mlp":
            return n * BOTTLENECK_DIM * (width + k) + k * n * width
        case "query":
            return _attention_cost(k, n, width)
        case "pooling":
            return 0
    raise ValueError(f"no cost is known of the summarizer {kind!r}")


def process_cost(machine: Machine, r: int, width: int) -> int:
    """Count the multiply-adds of the processing unit's L layers on r tokens.

    "transformer": L (4 r D^2 + 2 r^2 D + 2 r D F). "mixer": L (2 D r 128 + 2 r D F). "mlp": L 2 r D F.
    """
    mixing = {
        "transformer": _attention_cost(r, r, width),
        "mixer": 2 * width * r * TOKEN_MIXING_DIM,
        "mlp": 0,
    }
    return machine.num_layers * (mixing[machine.processing] + 2 * r * width * machine.mlp_dim)


def write_cost(machine: TokenTuringMachine | TokenTuringMachineStep, num_tokens: int, width: int) -> int:
    """Count the multiply-adds of the write.

    "mlp", "query", "pooling": a summary of M + R + N tokens to M, see `summary_cost`.
    "erase_add", with W = 8 writes and C control tokens: M 64 (D + W) to select, M W D to add, and
    2 D 64 (C + W) + 2 W 64 (D + D) for the erase and add vectors. C is R + N, or R under `compat="scenic"`.
    "concat", "none": 0.
    """
    M, R, N, D = machine.memory_size, machine.process_size, num_tokens, width
    if machine.write in ("concat", "none"):
        return 0
    if machine.write != "erase_add":
        return summary_cost(machine.write, M + R + N, M, D)
    control = R if machine.compat == "scenic" else R + N
    select = M * BOTTLENECK_DIM * (D + NUM_WRITES)
    vectors = D * BOTTLENECK_DIM * (control + NUM_WRITES) + NUM_WRITES * BOTTLENECK_DIM * 2 * D
    return select + 2 * vectors + M * NUM_WRITES * D


def causal_step_cost(transformer: CausalTransformer, num_tokens: int, history: int, width: int) -> int:
    """Count the multiply-adds of N new tokens of a causal Transformer after `history` earlier ones.

    L (4 N D^2 + 2 P D + 2 N D F), where P is the number of pairs of a query and a key: N (history + N), or for a
    whole sequence, without history, the pairs of `query_groups`. Pairs that the mask hides are computed and counted.
    """
    N, D = num_tokens, width
    pairs = sum((end - start) * seen for start, end, seen in query_groups(N, history + N))
    attention = 4 * N * D**2 + 2 * pairs * D
    return transformer.num_layers * (attention + 2 * N * D * transformer.mlp_dim)


def _attention_cost(queries: int, n: int, width: int) -> int:
    """Return 2 q D^2 + 2 n D^2 + 2 q n D."""
    return 2 * (queries + n) * width**2 + 2 * queries * n * width
