"""The config of a multiplication run: what is trained, on which problems, in which order. NumPy only."""

from dataclasses import dataclass, field
from typing import Literal

from ttm_jax.multiplication.problems import (
    AUGMENTATIONS,
    MAX_DIGITS,
    SEQ_LEN,
    STAGES,
    MultiplicationDataset,
    held_out_pairs,
)
from ttm_jax.training import config as training
from ttm_jax.training.config import LATER, ConfigError, DTypeName, OptimizerConfig, require, require_positive

ScheduleName = Literal["digit", "product"]
RematName = Literal["none", "dots", "deep_dots", "full"]  # from the most memory to the least


@dataclass(frozen=True)
class ModelConfig:
    """The multiplier; see `TokenTuringMachine` for the fields of the machine.

    `schedule` is what a machine step works out: a digit of the product, or one product of two digits (see
    `ttm_jax.multiplication.steps`). `carry_head` adds logits of the carry out of each place. Their cross-entropy joins
    the training loss, under the schedule "product" also that of the column's sum after every step. With `remat` "none"
    no step is recomputed. `kind` "transformer" is a baseline without a machine, see `DirectTransformer`.
    """

    kind: Literal["machine", "transformer"] = "machine"
    width: int = 128
    memory_size: int = 96
    process_size: int = 16
    read: Literal["mlp", "query", "pooling"] = "mlp"
    write: Literal["mlp", "query", "pooling", "erase_add", "concat", "none"] = "mlp"
    processing: Literal["transformer", "mixer", "mlp"] = "transformer"
    num_layers: int = 4
    mlp_dim: int = 512
    num_heads: int = 4
    positions: bool = True
    dropout_rate: float = 0.1
    learned_memory: bool = True
    seq_len: int = SEQ_LEN
    schedule: ScheduleName = "digit"
    carry_head: bool = False
    dtype: DTypeName = "float32"
    param_dtype: DTypeName = "float32"
    remat: RematName = "dots"

    def __post_init__(self) -> None:
        require_positive(self, "width", "memory_size", "process_size", "num_layers", "mlp_dim", "num_heads")
        require(self, "num_heads", self.width % self.num_heads == 0, f"divide model.width ({self.width})")
        require(self, "dropout_rate", 0 <= self.dropout_rate < 1, "be in [0, 1)")
        require(self, "seq_len", self.seq_len == SEQ_LEN, f"be {SEQ_LEN}: the position table's rows")
        require(self, "width", self.width % 2 == 0, "be even")
        require(self, "schedule", self.kind == "machine" or self.schedule == "digit", "be digit without a machine")


@dataclass(frozen=True)
class DataConfig:
    """Which problems are trained; see `MultiplicationDataset`."""

    batch_size: int = 128
    stages: tuple[tuple[int, int], ...] = STAGES
    max_digits: tuple[int, int] = (MAX_DIGITS, MAX_DIGITS)
    augment: tuple[Literal["swap", "leading_zeros"], ...] = AUGMENTATIONS

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        require(self, "stages", len(self.stages) > 0, "name at least one stage")
        try:
            dataset = MultiplicationDataset(1, stages=self.stages, max_digits=self.max_digits)
        except ValueError as error:
            raise ConfigError(f"data: {error}") from None
        for i, stage in enumerate(self.stages):
            if not any(len(held_out_pairs(length, 1, stage)) for length in dataset.lengths(i)):
                raise ConfigError(f"data: stage {stage} has no held-out pairs to be evaluated on: widen it")


@dataclass(frozen=True)
class CurriculumConfig:
    """When to move to the next stage, and how the lengths within a stage are mixed.

    With `adaptive`, the share of a length follows its running training accuracy a and that of the length
    before it, b: (1 - a) min(1, b + `headroom`) + `floor`, renormalised every `mixture_every` steps. Otherwise
    lengths have equal shares.
    """

    start_stage: int = 0
    last_stage: int = 6
    threshold: float = 0.9
    window: int = 5
    max_epochs_per_stage: int = 1000
    adaptive: bool = True
    mixture_every: int = 25
    headroom: float = 0.15
    floor: float = 0.05

    def __post_init__(self) -> None:
        require_positive(self, "window", "max_epochs_per_stage", "mixture_every")
        require(self, "threshold", 0 < self.threshold <= 1, "be in (0, 1]")
        require(self, "headroom", self.headroom >= 0, "not be negative")
        require(self, "floor", 0 < self.floor <= 1, "be in (0, 1]: every length keeps a share")
        require(self, "start_stage", self.start_stage >= 0, "not be negative")
        require(self, "last_stage", self.start_stage <= self.last_stage, "not be before start_stage")


@dataclass(frozen=True)
class TrainConfig(training.TrainConfig):
    """The loop; how many held-out pairs of each length it takes and shows, and when the last stage ends early."""

    eval_pairs: int = 512
    num_examples: int = field(default=4, metadata=LATER)
    patience_epochs: int | None = field(default=20, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "eval_pairs")
        require(self, "num_examples", self.num_examples >= 3, "be at least 3")
        ok = self.patience_epochs is None or self.patience_epochs > 0
        require(self, "patience_epochs", ok, "be positive")


@dataclass(frozen=True)
class Config:
    """The whole config of a run; `Config()` has the checklist's sizes."""

    task: Literal["multiplication"] = "multiplication"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.model.schedule == "product" and "leading_zeros" in self.data.augment:
            raise ConfigError(
                'data.augment must not have "leading_zeros" with model.schedule "product", where each zero would be a '
                'digit with steps of its own; write data.augment = ["swap"]'
            )
        last = self.curriculum.last_stage
        if last >= len(self.data.stages):
            raise ConfigError(
                f"curriculum.last_stage must be below the number of data.stages ({len(self.data.stages)}), got {last}"
            )
