"""The config of a run on text: which model, which corpus or which facts to recall. NumPy only."""

from dataclasses import dataclass, field
from typing import Literal

from ttm_jax.training import config as training
from ttm_jax.training.config import ConfigError, DTypeName, OptimizerConfig, require, require_positive


@dataclass(frozen=True)
class ModelConfig:
    """The language model; see `ttm_jax.text.model`, and `TokenTuringMachine` for the fields of the machine.

    `segment` is N, the tokens of a machine step and of the attention's window. `context` is what the upper layers see
    of earlier segments: memory, the outputs of the step before, or both. `kind` "transformer" is the baseline without
    a machine: all its layers have the window alone, and `process_layers` more of them stand where the machine was.
    """

    kind: Literal["ttm", "transformer"] = "ttm"
    width: int = 128
    segment: int = 64
    lower_layers: int = 1
    upper_layers: int = 2
    mlp_dim: int = 512
    num_heads: int = 4
    memory_size: int = 32
    process_size: int = 16
    process_layers: int = 1
    read: Literal["mlp", "query", "pooling"] = "mlp"
    write: Literal["mlp", "query", "pooling", "erase_add", "concat", "none"] = "mlp"
    gate: Literal["none", "fixed"] = "none"
    context: Literal["memory", "outputs", "both"] = "both"
    dtype: DTypeName = "float32"
    param_dtype: DTypeName = "float32"

    def __post_init__(self) -> None:
        require_positive(self, "width", "segment", "lower_layers", "upper_layers", "mlp_dim", "num_heads")
        require_positive(self, "memory_size", "process_size", "process_layers")
        require(self, "num_heads", self.width % (2 * self.num_heads) == 0, f"divide half of model.width ({self.width})")

    @property
    def decoder_layers(self) -> int:
        """Return the number of layers with a window."""
        in_place = self.process_layers if self.kind == "transformer" else 0
        return self.lower_layers + in_place + self.upper_layers


@dataclass(frozen=True)
class DataConfig:
    """What is read; see `ttm_jax.text.corpus` and `ttm_jax.text.recall`.

    `kind` "files" takes the text files of `path`: a file, a folder, or "stdlib", the sources of this Python. `kind`
    "recall" makes up sequences of facts and questions. A batch has `batch_size` rows of `segments` segments.
    `tokenizer` "bytes" has a token for each byte, "bpe" learns `vocab_size` tokens on the training documents.
    """

    kind: Literal["files", "recall"] = "files"
    path: str = "stdlib"
    patterns: tuple[str, ...] = ("*.txt", "*.md", "*.py")
    held_out: float = 0.1
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: int = 4096
    batch_size: int = 16
    segments: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "segments")
        require(self, "held_out", 0 < self.held_out < 1, "be in (0, 1)")
        ok = self.tokenizer == "bytes" or self.vocab_size >= 512
        require(self, "vocab_size", ok, "be at least 512: 256 bytes, and pairs of them")
        require(self, "patterns", len(self.patterns) > 0, "name at least one pattern")
        require(self, "path", self.path != "", "name a file, a folder, or stdlib")


@dataclass(frozen=True)
class RecallConfig:
    """Facts in the first segment, questions in the last; see `ttm_jax.text.recall`.

    A level of the curriculum is (segments, facts). The next begins where the share of right answers, over a window of
    steps, reaches `threshold`. At the last level training ends where the mean recall of `eval_sequences`, over the
    level's segments and over four times as many, reaches `stop_at`.
    """

    levels: tuple[tuple[int, int], ...] = ((2, 1), (3, 1), (4, 1), (6, 1), (8, 1))
    num_keys: int = 32
    num_values: int = 32
    num_fillers: int = 32
    questions: int = 8
    threshold: float = 0.95
    window: int = 20
    eval_sequences: int = 256
    stop_at: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "num_keys", "num_values", "num_fillers", "questions", "window")
        require_positive(self, "eval_sequences")
        require(self, "threshold", 0 < self.threshold <= 1, "be in (0, 1]")
        ok = self.stop_at is None or 0 < self.stop_at <= 1
        require(self, "stop_at", ok, "be in (0, 1] or none")
        require(self, "levels", len(self.levels) > 0, "name at least one level")
        for segments, facts in self.levels:
            require(self, "levels", segments >= 2, "have at least two segments each")
            require(self, "levels", 1 <= facts <= self.num_keys, f"have from 1 to {self.num_keys} facts each")


@dataclass(frozen=True)
class TrainConfig(training.TrainConfig):
    """The loop; how many held-out documents an evaluation takes, and of each how many segments at most."""

    eval_documents: int = 32
    eval_segments: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "eval_documents", "eval_segments")


@dataclass(frozen=True)
class Config:
    """The whole config of a run on text."""

    task: Literal["text"] = "text"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recall: RecallConfig = field(default_factory=RecallConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.data.kind == "recall":
            facts = max(facts for _, facts in self.recall.levels)
            questions = self.recall.questions if facts > 1 else 1
            if 2 * facts > self.model.segment or 3 * questions > self.model.segment:
                raise ConfigError(
                    f"model.segment must hold the facts (2 tokens each) and the questions (3 each) of recall.levels, "
                    f"got {self.model.segment} for {facts} facts and {questions} questions"
                )
