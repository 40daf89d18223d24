"""The Token Turing Machine: one step, and the scan of that step over a sequence (arXiv 2211.09119).

tokens_BxTxNxD ──> step 1 ──> step 2 ──> ... ──> outputs_BxTxRxD
memory_BxMxD ────────^──────────^───────────────> memory_BxMxD
"""

import math
from functools import reduce
from numbers import Integral
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from ttm_jax.machine.layers import Dtype, Module, at_least_float32, broadcast_batch, keep_valid, standard_promotion
from ttm_jax.machine.memory import READS, WRITES, Read, concat_memory_input, make_write
from ttm_jax.machine.processing import PROCESSING_UNITS, make_processor
from ttm_jax.machine.summarize import MLPSummarizer

COMPATS = (None, "scenic")
GATES = (None, "fixed")
_GATE_BIAS = math.log(0.9 / 0.1)  # a gate keeps 0.9 of memory before training
_DEEP = 256
_SCENIC_MODES = (("mlp", "mlp"), ("query", "query"), ("mlp", "erase_add"))
_SCENIC_QUERY_HEADS = 8  # the original's TokenLearnerMHA takes no number of heads


def _is_deep_dot(primitive: Any, *operands: Any, **params: Any) -> bool:
    """Tell whether an operation is a product with parameters that sums over at least `_DEEP` numbers."""
    if not jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *operands, **params):
        return False
    (contracted, _), _ = params["dimension_numbers"]
    return math.prod(operands[0].shape[axis] for axis in contracted) >= _DEEP


# What a rematerialised step keeps for the backward pass; `python -m ttm_jax.benchmark --remat` compares them.
REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "deep_dots": _is_deep_dot,
}
DEFAULT_REMAT = "dots"


class _Options(Module):
    """What a step and a machine have in common; see `TokenTuringMachine`."""

    memory_size: int = 96
    process_size: int = 16
    processing: str = "transformer"
    num_layers: int = 4
    mlp_dim: int = 512
    num_heads: int = 4
    dropout_rate: float = 0.0
    compat: str | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32
    gate: str | None = None

    def __post_init__(self) -> None:
        for name in ("memory_size", "process_size", "num_layers", "mlp_dim", "num_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
            setattr(self, name, int(value))  # of NumPy's integers, too
        if not isinstance(self.dropout_rate, int | float) or not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate must be in [0, 1), got {self.dropout_rate!r}")
        _check_choice("processing", self.processing, PROCESSING_UNITS)
        _check_choice("compat", self.compat, COMPATS)
        _check_choice("gate", self.gate, (None,) if self.compat == "scenic" else GATES)
        if self.dtype is not None:
            _check_dtype("dtype", self.dtype)
        _check_dtype("param_dtype", self.param_dtype)
        super().__post_init__()

    def _processor(self) -> nn.Module:
        return make_processor(
            self.processing,
            num_layers=self.num_layers,
            mlp_dim=self.mlp_dim,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="process",
        )

    def _begin(
        self, tokens_BxNxD: jax.Array, train: Any, valid_B: jax.Array | None, valid_BxN: jax.Array | None
    ) -> jax.Array:
        """Check the inputs of a step; return the tokens, of steps that are not valid zeros."""
        B, N, D = tokens_BxNxD.shape
        _as_bool(train)
        _check_mask("valid_B", valid_B, (B,))
        _check_mask("valid_BxN", valid_BxN, (B, N))
        _check_tokens(self, self.variables.get("params", {}), N, D)
        return keep_valid(tokens_BxNxD, valid_B)

    def _end(
        self, memory_BxMxD: jax.Array, written_BxMxD: jax.Array, output_BxRxD: jax.Array, valid_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Return next memory and output: what was written goes through the gate; a step may not be valid."""
        next_memory_BxMxD = written_BxMxD.astype(memory_BxMxD.dtype)
        if self.gate is not None:
            bias_D = self.param("gate", nn.initializers.constant(_GATE_BIAS), memory_BxMxD.shape[2:], self.param_dtype)
            keep_1x1xD = jax.nn.sigmoid(at_least_float32(bias_D))[None, None]
            next_memory_BxMxD += keep_1x1xD * (memory_BxMxD - next_memory_BxMxD)
        if valid_B is not None:
            next_memory_BxMxD = jnp.where(valid_B[:, None, None], next_memory_BxMxD, memory_BxMxD)
        return next_memory_BxMxD, keep_valid(output_BxRxD, valid_B)


class _UnitOptions(_Options):
    read: str = "mlp"
    write: str = "mlp"
    positions: bool = True

    def __post_init__(self) -> None:
        _check_choice("read", self.read, READS)
        _check_choice("write", self.write, WRITES)
        _check_choice("positions", self.positions, (False, True))
        if self.compat == "scenic" and (self.read, self.write) not in _SCENIC_MODES:
            modes = ", ".join(f"{read}/{write}" for read, write in _SCENIC_MODES)
            raise ValueError(f"compat='scenic' has the read/write modes {modes}; got {self.read}/{self.write}")
        super().__post_init__()


class TokenTuringMachineStep(_UnitOptions):
    """One step: read, process, write (Scenic `TokenTuringMachineUnit`).

    Takes memory [B, M, D] and tokens [B, N, D]; gives the next memory [B, M, D] and outputs [B, R, D].
    `valid_B` and `valid_BxN` are `valid_BxT` and `valid_BxTxN` of a single step. The fields and the masks are those
    of `TokenTuringMachine`.
    """

    @nn.compact
    def __call__(
        self,
        memory_BxMxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_B: jax.Array | None = None,
        valid_BxN: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        tokens_BxNxD = self._begin(tokens_BxNxD, train, valid_B, valid_BxN)
        shared = dict(
            num_heads=_SCENIC_QUERY_HEADS if self.compat == "scenic" else self.num_heads,
            positions=self.positions,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        read = Read(self.process_size, self.read, **shared, name="read")
        write = make_write(self.write, compat=self.compat, **shared, name="write")

        read_BxRxD = read(memory_BxMxD, tokens_BxNxD, train, valid_BxN)
        output_BxRxD = self._processor()(read_BxRxD.astype(_compute_dtype(self, read_BxRxD)), train)
        written_BxMxD = write(memory_BxMxD, output_BxRxD, tokens_BxNxD, train, valid_BxN)
        return self._end(memory_BxMxD, written_BxMxD, output_BxRxD, valid_B)


class SimpleTokenTuringMachineStep(_Options):
    """The simplified step: summarise the input alone to R tokens, process [memory ; input] jointly.

    What comes out in the place of the memory is the next memory; in the place of the input, the output.
    Scenic's `TokenTuringMachineSimpleUnit` exchanges these slices: under `compat="scenic"` the first R tokens
    are the output and the other M the memory.
    """

    @nn.compact
    def __call__(
        self,
        memory_BxMxD: jax.Array,
        tokens_BxNxD: jax.Array,
        train: bool = False,
        valid_B: jax.Array | None = None,
        valid_BxN: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        tokens_BxNxD = self._begin(tokens_BxNxD, train, valid_B, valid_BxN)
        summarizer = MLPSummarizer(
            self.process_size, self.dropout_rate, self.dtype, self.param_dtype, name="summarizer"
        )
        all_tokens = concat_memory_input(memory_BxMxD, summarizer(tokens_BxNxD, train, valid_BxN))
        processed = self._processor()(all_tokens.astype(_compute_dtype(self, all_tokens)), train)
        if self.compat == "scenic":
            output, memory = jnp.split(processed, [self.process_size], axis=1)
        else:
            memory, output = jnp.split(processed, [self.memory_size], axis=1)
        return self._end(memory_BxMxD, memory, output, valid_B)


class _Machine(Module):
    """The scan of a step over a sequence; `_step_class` says which step."""

    learned_memory: bool = True
    remat: bool | str = False

    def __post_init__(self) -> None:
        _check_choice("learned_memory", self.learned_memory, (False, True))
        _check_choice("remat", self.remat, (False, True, *REMAT_POLICIES))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        tokens_BxTxNxD: jax.Array,
        memory: jax.Array | None = None,
        train: bool = False,
        *,
        valid_BxT: jax.Array | None = None,
        valid_BxTxN: jax.Array | None = None,
        reset_BxT: jax.Array | None = None,
        return_memories: bool = False,
    ) -> tuple[jax.Array, ...]:
        """Run T steps; return the outputs [B, T, R, D] and the memory [B, M, D] after the last step.

        The masks are bool. What is not valid may hold anything, NaN too: neither outputs nor gradients see it.

        Args:
            tokens_BxTxNxD: the input tokens of each step. N must be the same in every call; T need not.
            memory: the memory [B, M, D] to start from, as an earlier call returned it; the initial memory
                where None.
            train: switches dropout on, which needs the "dropout" random stream.
            valid_BxT: where False, the step leaves memory as it was, and its output is zeros.
            valid_BxTxN: where False, the token counts in no summary. Memory and outputs always count.
            reset_BxT: where True, the step starts from the initial memory, be it valid or not.
            return_memories: whether to return, as a third array [B, T, M, D], the memory that each step read.

        Raises:
            ValueError: if a shape or dtype does not fit.
        """
        if not isinstance(tokens_BxTxNxD, jax.Array | np.ndarray):
            raise ValueError(f"tokens must be an array [B, T, N, D], got {type(tokens_BxTxNxD).__name__}")
        if tokens_BxTxNxD.ndim != 4:
            raise ValueError(f"tokens must be [B, T, N, D], got shape {tokens_BxTxNxD.shape}")
        train = _as_bool(train)
        B, T, N, D = tokens_BxTxNxD.shape
        if any(size < 1 for size in tokens_BxTxNxD.shape):
            raise ValueError(f"tokens must have no empty axis, got shape {tokens_BxTxNxD.shape}")
        for name, mask, shape in (
            ("valid_BxT", valid_BxT, (B, T)),
            ("valid_BxTxN", valid_BxTxN, (B, T, N)),
            ("reset_BxT", reset_BxT, (B, T)),
        ):
            _check_mask(name, mask, shape)
        _check_tokens(self, self.variables.get("params", {}).get("step", {}), N, D)

        # 1. the memory to start from  2. the step, rematerialised if asked  3. its scan over T
        initial_1xMxD = self._initial_memory(D)
        if memory is None:
            memory = broadcast_batch(initial_1xMxD, tokens_BxTxNxD)
        else:
            _check_array("memory", memory, jnp.floating, (B, self.memory_size, D))
        carried = jnp.promote_types(jnp.promote_types(memory.dtype, jnp.float32), initial_1xMxD.dtype)

        step_class = self._step_class
        if self.remat:
            policy = REMAT_POLICIES[DEFAULT_REMAT if self.remat is True else self.remat]
            step_class = nn.remat(step_class, policy=policy, prevent_cse=False, static_argnums=(3,))
        step = step_class(**{name: getattr(self, name) for name in self._step_fields()}, name="step")
        starts_BxMxD = None
        if reset_BxT is not None:
            starts_BxMxD = broadcast_batch(initial_1xMxD.astype(carried), tokens_BxTxNxD)

        def run(step: nn.Module, memory_BxMxD: jax.Array, inputs: Any, starts_BxMxD: jax.Array | None) -> Any:
            tokens_BxNxD, valid_B, valid_BxN, reset_B = inputs
            if starts_BxMxD is not None:
                memory_BxMxD = jnp.where(reset_B[:, None, None], starts_BxMxD, memory_BxMxD)
            next_memory_BxMxD, output_BxRxD = step(memory_BxMxD, tokens_BxNxD, train, valid_B, valid_BxN)
            return next_memory_BxMxD, (output_BxRxD, *([memory_BxMxD] if return_memories else []))

        scan = nn.scan(
            run,
            variable_broadcast="params",
            variable_axes={"intermediates": 0},
            split_rngs={"params": False, "dropout": True},
            in_axes=(1, nn.broadcast),
            out_axes=1,
            length=T,
        )
        inputs = tokens_BxTxNxD, valid_BxT, valid_BxTxN, reset_BxT
        memory, (outputs_BxTxRxD, *memories) = scan(step, memory.astype(carried), inputs, starts_BxMxD)
        return outputs_BxTxRxD, memory, *memories

    @nn.nowrap
    @standard_promotion()
    def initial_memory(self, variables: Any, batch: int) -> jax.Array:
        """Return the initial memory [B, M, D] of `batch` rows, from which a call without `memory` starts.

        `variables` are the machine's own. Where it is a part of a model, those are {"params": its part of the tree}.

        Raises:
            ValueError: if they are not.
        """
        path = ("params", "initial_memory") if self._learns_memory() else ("params", "step", "process", "norm", "scale")
        try:
            leaf = reduce(getitem, path, variables)
        except (KeyError, TypeError):
            leaf = None
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(f"variables must be the machine's own, with {'/'.join(path)} in them")
        learned = self._learns_memory()
        initial_1xMxD = at_least_float32(jnp.asarray(leaf)) if learned else self._zero_memory(leaf.shape[0])
        return jnp.broadcast_to(initial_1xMxD, (batch, *initial_1xMxD.shape[1:]))

    def _initial_memory(self, width: int) -> jax.Array:
        if not self._learns_memory():
            return self._zero_memory(width)
        shape = (1, self.memory_size, width)
        initial = self.param("initial_memory", nn.initializers.normal(0.01), shape, self.param_dtype)
        return at_least_float32(initial)

    def _learns_memory(self) -> bool:
        return self.learned_memory and self.compat != "scenic"

    def _zero_memory(self, width: int) -> jax.Array:
        return jnp.zeros((1, self.memory_size, width), jnp.promote_types(self.param_dtype, jnp.float32))

    def _step_fields(self) -> list[str]:
        return [name for name in self._step_class.__dataclass_fields__ if name not in ("parent", "name")]


class TokenTuringMachine(_Machine, _UnitOptions):
    """A Token Turing Machine over a sequence, as one `lax.scan`.

        ttm = TokenTuringMachine(memory_size=96, process_size=16)
        variables = ttm.init(key, tokens_BxTxNxD)
        outputs_BxTxRxD, memory_BxMxD = ttm.apply(variables, tokens_BxTxNxD)
        outputs, memory = ttm.apply(variables, next_tokens, memory=memory)     # streaming

    Attributes:
        memory_size: M, tokens in memory.
        process_size: R, tokens read and processed a step.
        read: how [memory ; input] is summarised: "mlp", "query" or "pooling".
        write: how the next memory is made. The same three summarise [memory ; output ; input]; the others are
            "erase_add", "concat" (the latest outputs, first in, first out) and "none" (memory stays as it was).
        processing: "transformer", "mixer" or "mlp".
        num_layers, mlp_dim, num_heads: of the processing unit. "query" summaries have `num_heads` too. It must
            divide the width D.
        positions: whether location embeddings are added before read and write.
        dropout_rate: of dropout where the original has it: in MLPs, in attention and after attention.
        learned_memory: whether the initial memory is a parameter; it is zeros where False.
        compat: "scenic" reproduces the original's arithmetic, faults included: write order [memory ; input ;
            output], its erase-and-add, 8 query heads, zeros to start from.
        dtype: of computation (None: that of inputs and parameters). Softmax and memory stay in float32.
        param_dtype: of parameters.
        gate: None: the next memory is what was written. "fixed": it is g memory + (1 - g) written, where g =
            sigmoid(b), and b is a parameter [D] for which g is 0.9 before training.
        remat: whether the backward pass recomputes each step, and what is kept instead: False (all is kept), "full"
            (nothing), "dots" (products with parameters; True means the same) or "deep_dots" (only those that sum
            over at least 256 numbers: the dearest for their size).

    Raises:
        ValueError: at construction, naming the field, for a value that is not allowed.
    """

    _step_class = TokenTuringMachineStep


class SimpleTokenTuringMachine(_Machine, _Options):
    """The machine made of `SimpleTokenTuringMachineStep`; fields and calls are those of `TokenTuringMachine`."""

    _step_class = SimpleTokenTuringMachineStep


def _compute_dtype(module: Any, x: jax.Array) -> Any:
    return x.dtype if module.dtype is None else module.dtype


def _check_tokens(options: Any, step_params: Any, N: int, D: int) -> None:
    """Check the number and width of tokens by the parameters that depend on them, where there are parameters yet."""
    params: dict[tuple[str, ...], Any] = flatten_dict(step_params)
    fits = {"N": N, "D": D}
    if (scale_D := params.get(("process", "norm", "scale"))) is not None:
        fits["D"] = scale_D.shape[0]
    if (embedding_1xNxD := params.get(("read", "positions", "embedding"))) is not None:
        fits["N"] = embedding_1xNxD.shape[1] - options.memory_size
    elif (kernel_NxF := params.get(("write", "erase_tokens", "hidden", "kernel"))) is not None and not options.compat:
        fits["N"] = kernel_NxF.shape[0] - options.process_size
    if fits != {"N": N, "D": D}:
        raise ValueError(f"tokens must have {fits} as the parameters have, got {dict(N=N, D=D)}")


def _as_bool(train: Any) -> bool:
    if shape := np.shape(train):
        told = f"{getattr(train, 'dtype', '')}{list(shape)}"
        raise ValueError(f"train must be True or False, got {told}; masks are passed by their names")
    return bool(train)


def _check_mask(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if value is not None:
        _check_array(name, value, np.bool_, shape)


def _check_array(name: str, value: Any, kind: Any, shape: tuple[int, ...]) -> None:
    is_array = isinstance(value, jax.Array | np.ndarray)
    if not (is_array and jnp.issubdtype(value.dtype, kind) and value.shape == shape):
        told = f"{value.dtype}{list(value.shape)}" if is_array else type(value).__name__
        raise ValueError(f"{name} must be an array {kind.__name__}{list(shape)}, got {told}")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if (type(value), value) not in [(type(choice), choice) for choice in choices]:  # 1 == True
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def _check_dtype(name: str, value: Any) -> None:
    try:
        is_float = value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise ValueError(f"{name} must be a floating-point type such as jnp.float32, got {value!r}")
