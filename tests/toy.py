"""The task that docs/tasks.md walks through: a line through points, in streams whose running sum is carried along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ttm_jax.training.config import OptimizerConfig, TrainConfig
from ttm_jax.training.step import Loss
from ttm_jax.training.task import Batch, Curve, Evaluation, Predict, Record, Verdict

WEIGHTS = np.array([[1.0], [-2.0], [0.5], [3.0]], np.float32)
OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup_steps=5)
TRAIN = TrainConfig(max_epochs=6, steps_per_epoch=5, eval_every_epochs=2)


@dataclass(frozen=True)
class Config:
    task: str = "toy"
    batch_size: int = 16
    optimizer: OptimizerConfig = OPTIMIZER
    train: TrainConfig = TRAIN


class Line:
    """Points x [B, 4] and what a line makes of them, y [B, 1]."""

    curves: ClassVar[Sequence[Curve]] = (
        Curve("close, %", "eval", lambda record: {"all": 100 * record["close"]}, "answers"),
    )

    def __init__(self, config: Config):
        self.batch_size, self._seed = config.batch_size, config.train.seed
        self._seen, self._best = 0, -1e9

    def _draw(self, *key: int) -> dict[str, np.ndarray]:
        x = np.random.default_rng([self._seed, *key]).normal(size=(self.batch_size, 4)).astype(np.float32)
        return {"x": x, "y": x @ WEIGHTS}

    def batch(self, step: int) -> Batch:
        return Batch(self._draw(0, step))

    def must_read(self, step: int) -> bool:
        return False

    def record(self, batch: Batch, metrics: Mapping[str, Any]) -> Record | None:
        self._seen += 1
        return {"error": float(np.mean(metrics["error"]))} if self._seen % 3 == 0 else None

    def evaluate(self, predict: Predict) -> Evaluation:
        points = self._draw(1)
        error = np.abs(predict(points)["y"] - points["y"])
        found = {"error": float(error.mean()), "close": float((error < 0.1).mean())}
        return Evaluation(found, score=-found["error"])

    def end_epoch(self, evaluation: Evaluation | None) -> Verdict:
        if evaluation is None or evaluation.score <= self._best:
            return Verdict()
        self._best = evaluation.score
        return Verdict(improved=True)

    def to_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "best": self._best}

    def load_dict(self, values: Mapping[str, Any]) -> None:
        self._seen, self._best = values["seen"], values["best"]

    def describe_training(self, record: Record) -> str:
        return f"error {record['error']:.3f}"

    describe_evaluation = describe_training

    def table(self, evaluations: Sequence[Record]) -> None:
        return None


@dataclass(frozen=True)
class LineObjective:
    """The squared error; the sum of each stream's points so far is carried from batch to batch."""

    rules: tuple[tuple[str, PartitionSpec], ...] = (("kernel", PartitionSpec("model", None)),)
    muon: str = "nothing"
    remats: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"kernel": 0.1 * jax.random.normal(key, (4, 1))}

    def init_carry(self, batch_size: int) -> jax.Array:
        return jnp.zeros((batch_size, 4))

    def loss(self, params: Any, arrays: Any, key: Any, carry: Any) -> tuple[Loss, Any]:
        error = arrays["x"] @ params["kernel"] - arrays["y"]
        metrics = {"error": jnp.abs(error[:, 0])}
        return Loss((error**2).sum(), jnp.float32(len(error)), metrics), carry + arrays["x"]

    def predict(self, params: Any, arrays: Any) -> dict[str, jax.Array]:
        return {"y": arrays["x"] @ params["kernel"]}

    def with_remat(self, remat: str) -> "LineObjective":
        return self
