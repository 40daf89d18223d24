"""What is timed: a model, a number of machine steps in one call, a dtype, and a kind of call.

JAX and PyTorch are imported only where weights are drawn.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ttm_jax.multiplication.config import Config, ModelConfig
from ttm_jax.multiplication.problems import MultiplicationDataset
from ttm_jax.multiplication.steps import training_arrays
from ttm_jax.multiplication.task import make_dataset
from ttm_jax.tasks import load_config

Kind = Literal["train", "forward", "stream"]
DType = Literal["float32", "bfloat16"]
DTYPES: tuple[DType, ...] = get_args(DType)
CONFIGS = ("quick", "three_digits")
CONFIG_BATCH = 64

# Which implementation a worker times.
JAX, EAGER, COMPILE, COMPILE_STEP = VARIANTS = "jax", "torch-eager", "torch-compile", "torch-compile-step"
ONE_STEP_VARIANTS = (JAX, EAGER, COMPILE)  # where the whole pass is one step


class Machine(NamedTuple):
    """Sizes of a machine alone, and of its batch of random tokens."""

    batch_size: int
    num_tokens: int
    model: ModelConfig

    def options(self) -> dict[str, Any]:
        """Return what both twins' machines take as arguments; JAX sees width and number of tokens in its inputs."""
        sizes = "memory_size", "process_size", "num_layers", "mlp_dim", "num_heads"
        return {name: getattr(self.model, name) for name in (*sizes, "read", "write", "processing", "positions")}


MACHINES = {
    "paper-16": Machine(4, 16, ModelConfig(width=768, num_heads=12)),
    "paper-3136": Machine(1, 3136, ModelConfig(width=768, num_heads=12)),
}


@dataclass(frozen=True)
class Case:
    """Calls of one kind that run `steps` machine steps of a model.

    Attributes:
        size: a config (of the whole multiplier, but for "stream", where it is of its machine), or one of MACHINES.
        steps: T machine steps; of a whole multiplier also the places that it answers, one a step.
        dtype: of computation; parameters are float32.
        kind: "train" is a whole optimiser step, "forward" an inference, "stream" an inference of one example at a time
            with the memory carried from call to call.
        variants: what takes part.
    """

    size: str
    steps: int
    dtype: DType
    kind: Kind
    variants: tuple[str, ...] = VARIANTS

    @property
    def name(self) -> str:
        """Return a name such as "quick/6/float32/train"."""
        return f"{self.size}/{self.steps}/{self.dtype}/{self.kind}"

    @property
    def is_multiplier(self) -> bool:
        """Say whether it is the whole multiplier of a config, not a machine alone."""
        return self.size not in MACHINES and self.kind != "stream"

    @property
    def batch_size(self) -> int:
        """Return B, the examples of a call."""
        if self.kind == "stream":
            return 1
        return MACHINES[self.size].batch_size if self.size in MACHINES else CONFIG_BATCH

    @property
    def optimizer(self) -> str | None:
        """Name the optimiser of a training step: the config's, or Adam for a machine alone; None for an inference."""
        if self.kind != "train":
            return None
        return self.config.optimizer.name if self.is_multiplier else "adam"

    @property
    def config(self) -> Config:
        """Return a multiplier's config: as shipped, but for the dtype and a warm-up of one step.

        In the first steps of a long warm-up the optimiser changes too little for a wrong one to be seen.
        """
        config = load_config(self.size)
        return dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, dtype=self.dtype),
            optimizer=dataclasses.replace(config.optimizer, warmup_steps=1),
        )

    @property
    def machine(self) -> Machine:
        """Return the sizes of a machine alone."""
        if self.size in MACHINES:
            return MACHINES[self.size]
        model = load_config(self.size).model
        return Machine(self.batch_size, model.seq_len, model)

    def batch(self) -> dict[str, np.ndarray]:
        """Make the batch, always the same: that of `training_arrays` for a multiplier, else "tokens" [B, T, N, D]."""
        if self.is_multiplier:
            return training_arrays(_problems(self.size).batch(seed=0, step=0), self.config.model, self.steps)
        shape = (self.batch_size, self.steps, self.machine.num_tokens, self.machine.model.width)
        return {"tokens": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def _problems(config_name: str) -> MultiplicationDataset:
    """Return the problems that a config trains in its last stage, which has the longest products."""
    config = load_config(config_name)
    return make_dataset(config, CONFIG_BATCH, config.curriculum.last_stage)


def quick_cases() -> list[Case]:
    """List the training steps of the two configs."""
    return [case for case in all_cases() if case.size in CONFIGS and (case.kind, case.dtype) == ("train", "float32")]


def all_cases() -> list[Case]:
    """List every case, in the order of measuring."""
    return [case for dtype in DTYPES for case in _cases(dtype)]


def _cases(dtype: DType) -> Iterator[Case]:
    for size in CONFIGS:
        steps = _problems(size).num_steps()
        yield Case(size, steps, dtype, "train")
        yield Case(size, steps, dtype, "forward")
        yield Case(size, 1, dtype, "stream", ONE_STEP_VARIANTS)
    # Compiling many steps as a whole takes minutes: float32 shows what comes of it.
    many = VARIANTS if dtype == "float32" else (JAX, EAGER, COMPILE_STEP)
    for size in ("paper-16", "paper-3136"):
        for steps, variants in ((1, ONE_STEP_VARIANTS), (8, many), (64, many)):
            yield Case(size, steps, dtype, "train", variants)
            yield Case(size, steps, dtype, "forward", variants)
        yield Case(size, 1, dtype, "stream", ONE_STEP_VARIANTS)


def write_weights(case: Case, folder: Path) -> None:
    """Write the same fresh weights for both twins: `torch.safetensors` and `jax.safetensors`."""
    import jax
    import torch
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    import ttm_jax
    import ttm_torch
    from parity import weights

    torch.manual_seed(0)
    if case.is_multiplier:
        twin, model = ttm_torch.TTMModel(case.config.model), ttm_jax.TTMModel(case.config.model)
        inputs = jax.ShapeDtypeStruct((1, case.config.model.seq_len), np.int32)
    else:
        N, D = case.machine.num_tokens, case.machine.model.width
        model = ttm_jax.TokenTuringMachine(**case.machine.options())
        twin = weights.twin_of(model, width=D, num_tokens=N)
        inputs = jax.ShapeDtypeStruct((1, 1, N, D), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    state = twin.state_dict()
    weights.save(folder / "torch.safetensors", state)
    leaves: dict[str, Any] = dict(flatten_dict(weights.to_jax(state, shapes), sep="/"))
    save_file(leaves, folder / "jax.safetensors")


def digest(result: np.ndarray) -> list[float]:
    """Return a scalar as it is, or of an array its mean, root mean square and eight of its numbers."""
    flat = np.asarray(result, np.float64).ravel()
    if flat.size == 1:
        return [float(flat[0])]
    picked = flat[np.linspace(0, flat.size - 1, 8).astype(int)]
    return [float(flat.mean()), math.sqrt(float((flat**2).mean())), *map(float, picked)]
