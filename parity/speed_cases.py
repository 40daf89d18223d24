"""What is timed: a model, a number of machine steps, a kind of call and a dtype; its weights and its batch.

Knows neither framework: weights are NumPy arrays (or files of them), drawn at random, since speed does not depend on
their values.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttm_jax.config import Config, find_config, load_config
from ttm_jax.multiplication import MultiplicationDataset

Kind = Literal["forward", "train", "stream"]
KINDS: tuple[Kind, ...] = ("train", "forward", "stream")
DTYPES = ("float32", "bfloat16")
MULTIPLIERS = ("quick", "multiplication")  # configs of the multiplier
MULTIPLIER_BATCH = 64
CHECK_CALLS = 3  # whose results are compared between workers; they are the warm-up too

JAX, UNROLLED = "jax", "jax-unrolled"
EAGER, COMPILE, COMPILE_STEP, AUTOTUNE = "torch-eager", "torch-compile", "torch-compile-step", "torch-max-autotune"
VARIANTS = (JAX, EAGER, COMPILE, COMPILE_STEP, AUTOTUNE)


@dataclass(frozen=True)
class Machine:
    """A machine alone, on random tokens; fields as of `TokenTuringMachine`."""

    width: int
    num_tokens: int
    mlp_dim: int
    num_heads: int
    batch_size: int
    memory_size: int = 96
    process_size: int = 16
    num_layers: int = 4

    def options(self) -> dict[str, Any]:
        """The arguments that both twins' machines take; the width and the number of tokens are the inputs'."""
        left_out = ("width", "num_tokens", "batch_size")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}


PAPER = dict(width=768, mlp_dim=512, num_heads=12)
MACHINES = {
    "small-16": Machine(width=128, num_tokens=16, mlp_dim=512, num_heads=4, batch_size=16),
    "paper-16": Machine(**PAPER, num_tokens=16, batch_size=4),
    "paper-3136": Machine(**PAPER, num_tokens=3136, batch_size=1),
}


@dataclass(frozen=True)
class Case:
    """`steps` machine steps of the model called `size`, in one call of a kind.

    "forward" is an inference, "train" a whole optimiser step, "stream" one step of a batch of one with the memory
    carried from call to call.
    """

    size: str
    steps: int
    dtype: str
    kind: Kind
    variants: tuple[str, ...] = VARIANTS

    @property
    def name(self) -> str:
        """As `--only` sees it: "quick/6/float32/train"."""
        return f"{self.size}/{self.steps}/{self.dtype}/{self.kind}"

    @property
    def batch_size(self) -> int:
        """Examples a call."""
        if self.kind == "stream":
            return 1
        return MULTIPLIER_BATCH if self.size in MULTIPLIERS else MACHINES[self.size].batch_size

    @property
    def is_multiplier(self) -> bool:
        """A whole multiplier, and not a machine alone."""
        return self.size in MULTIPLIERS and self.kind != "stream"

    @property
    def config(self) -> Config:
        """Of a multiplier: the shipped config, in this dtype, at its full rate from the first step.

        The rate matters only to the check that all variants do the same: at a warm-up's first rates an optimiser
        changes too little to be told from another.
        """
        config = load_config(find_config(self.size))
        name = "adamw" if config.optimizer.name == "muon" else config.optimizer.name  # the twin has no Muon yet
        return dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, dtype=self.dtype),
            optimizer=dataclasses.replace(config.optimizer, name=name, warmup_steps=1),
        )

    @property
    def optimizer(self) -> str | None:
        """The optimiser of a training step."""
        if self.kind != "train":
            return None
        return self.config.optimizer.name if self.is_multiplier else "adam"

    @property
    def machine(self) -> Machine:
        """Of a machine alone: its sizes."""
        if self.size in MACHINES:
            return MACHINES[self.size]
        c = load_config(find_config(self.size)).model
        return Machine(c.width, c.seq_len, c.mlp_dim, c.num_heads, 1, c.memory_size, c.process_size, c.num_layers)

    def batch(self) -> dict[str, np.ndarray]:
        """The batch: "inputs", "targets" and "carries" of a multiplier, "tokens" [B, T, N, D] of a machine."""
        if self.is_multiplier:
            dataset = _dataset(self.size)
            drawn = dataset.batch(seed=0, step=0)
            trimmed = {"targets": drawn.targets[:, : self.steps], "carries": drawn.carries[:, : self.steps]}
            return {"inputs": drawn.inputs, **trimmed}
        machine = self.machine
        shape = (self.batch_size, self.steps, machine.num_tokens, machine.width)
        return {"tokens": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


def _dataset(size: str) -> MultiplicationDataset:
    """The problems that a config trains in the end: the last stage, the longest products."""
    config = load_config(find_config(size))
    return MultiplicationDataset(
        MULTIPLIER_BATCH,
        stages=config.data.stages,
        start_stage=config.curriculum.last_stage,
        max_digits=config.data.max_digits,
    )


def all_cases() -> list[Case]:
    """Every case, in the order of measuring; cases of one size, number of steps and dtype are neighbours."""
    return list(_cases())


def quick_cases() -> list[Case]:
    """The training steps of the two configs."""
    return [case for case in _cases() if case.size in MULTIPLIERS and (case.kind, case.dtype) == ("train", "float32")]


def _cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for size in MULTIPLIERS:
            for kind in ("train", "forward"):
                yield Case(size, _dataset(size).num_steps(), dtype, kind)
            yield Case(size, 1, dtype, "stream")
        for size in ("paper-16", "paper-3136"):
            for steps in (1, 8, 64):
                for kind in KINDS if steps == 1 else ("train", "forward"):
                    yield Case(size, steps, dtype, kind)
    yield Case("small-16", 64, "float32", "train", (*VARIANTS, UNROLLED))


def write_weights(case: Case, folder: Path) -> None:
    """Draws weights and writes them for both twins: `jax.safetensors` and `torch.safetensors`."""
    import jax
    from safetensors.numpy import save_file

    from parity import weights
    from parity.compare import as_dict, random_params
    from ttm_jax.machine import TokenTuringMachine
    from ttm_jax.multiplier import TTMModel

    if case.is_multiplier:
        inputs = jax.ShapeDtypeStruct((1, case.config.model.seq_len), np.int32)
        params = random_params(TTMModel(case.config.model), inputs, dtype=np.float32, num_steps=1)
    else:
        machine = case.machine
        tokens = jax.ShapeDtypeStruct((1, 1, machine.num_tokens, machine.width), np.float32)
        params = random_params(TokenTuringMachine(**machine.options()), tokens, dtype=np.float32)
    save_file({name: np.ascontiguousarray(leaf) for name, leaf in as_dict(params).items()}, folder / "jax.safetensors")
    weights.save(folder / "torch.safetensors", weights.to_torch(params))


def digest(outputs: np.ndarray) -> list[float]:
    """A scalar as it is; of an array its mean, root mean square and eight of its numbers."""
    flat = np.asarray(outputs, np.float64).ravel()
    if flat.size == 1:
        return [float(flat[0])]
    picked = flat[np.linspace(0, flat.size - 1, 8).astype(int)]
    return [float(flat.mean()), math.sqrt(float((flat**2).mean())), *map(float, picked)]
