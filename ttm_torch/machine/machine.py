"""The Token Turing Machine: one step, and the loop of that step over a sequence (arXiv 2211.09119).

tokens_BxTxNxD ──> step 1 ──> step 2 ──> ... ──> outputs_BxTxRxD
memory_BxMxD ────────^──────────^───────────────> memory_BxMxD
"""

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ttm_torch.machine.layers import at_least_float32, keep_valid, no_wider
from ttm_torch.machine.memory import READS, WRITES, Read, concat_memory_input, make_write
from ttm_torch.machine.processing import PROCESSING_UNITS, make_processor
from ttm_torch.machine.summarize import MLPSummarizer

COMPATS = (None, "scenic")
GATES = (None, "fixed")
_GATE_BIAS = math.log(0.9 / 0.1)  # a gate keeps 0.9 of memory before training
_SCENIC_MODES = (("mlp", "mlp"), ("query", "query"), ("mlp", "erase_add"))
_SCENIC_QUERY_HEADS = 8  # the original's TokenLearnerMHA takes no number of heads


class _Step(nn.Module):
    """What both steps have in common. `num_tokens` is None where no parameter depends on the number of tokens."""

    def __init__(self, width: int, num_tokens: int | None, gate: str | None, compat: str | None):
        super().__init__()
        _check_choice("gate", gate, (None,) if compat == "scenic" else GATES)
        self._num_tokens, self._width = num_tokens, width
        self.gate = None if gate is None else nn.Parameter(torch.full((width,), _GATE_BIAS))

    def _begin(self, tokens_BxNxD: Tensor, valid_B: Tensor | None, valid_BxN: Tensor | None) -> Tensor:
        """Check the inputs of a step; return the tokens, of steps that are not valid zeros."""
        B, N, D = tokens_BxNxD.shape
        _check_mask("valid_B", valid_B, (B,))
        _check_mask("valid_BxN", valid_BxN, (B, N))
        fits = {"N": self._num_tokens or N, "D": self._width}
        if fits != {"N": N, "D": D}:
            raise ValueError(f"tokens must have {fits} as the parameters have, got {dict(N=N, D=D)}")
        return keep_valid(tokens_BxNxD, valid_B)

    def _end(
        self, memory_BxMxD: Tensor, written_BxMxD: Tensor, output_BxRxD: Tensor, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return next memory and output: what was written goes through the gate; a step may not be valid."""
        next_memory_BxMxD = written_BxMxD.to(memory_BxMxD.dtype)
        if self.gate is not None:
            keep_D = at_least_float32(self.gate).sigmoid()
            next_memory_BxMxD = next_memory_BxMxD + keep_D * (memory_BxMxD - next_memory_BxMxD)
        if valid_B is not None:
            next_memory_BxMxD = torch.where(valid_B[:, None, None], next_memory_BxMxD, memory_BxMxD)
        return next_memory_BxMxD, keep_valid(output_BxRxD, valid_B)


class TokenTuringMachineStep(_Step):
    """One step: read, process, write (Scenic `TokenTuringMachineUnit`).

    Takes memory [B, M, D] and tokens [B, N, D]; gives the next memory [B, M, D] and outputs [B, R, D].
    `valid_B` and `valid_BxN` are `valid_BxT` and `valid_BxTxN` of a single step. The arguments and the masks are
    those of `TokenTuringMachine`.
    """

    def __init__(
        self,
        *,
        width: int,
        num_tokens: int,
        memory_size: int = 96,
        process_size: int = 16,
        read: str = "mlp",
        write: str = "mlp",
        processing: str = "transformer",
        num_layers: int = 4,
        mlp_dim: int = 512,
        num_heads: int = 4,
        positions: bool = True,
        dropout_rate: float = 0.0,
        compat: str | None = None,
        gate: str | None = None,
    ):
        _check_options(
            processing, dropout_rate, compat,
            width=width, num_tokens=num_tokens, memory_size=memory_size, process_size=process_size,
            num_layers=num_layers, mlp_dim=mlp_dim, num_heads=num_heads,
        )  # fmt: skip
        _check_choice("read", read, READS)
        _check_choice("write", write, WRITES)
        _check_choice("positions", positions, (False, True))
        if compat == "scenic" and (read, write) not in _SCENIC_MODES:
            modes = ", ".join(f"{read}/{write}" for read, write in _SCENIC_MODES)
            raise ValueError(f"compat='scenic' has the read/write modes {modes}; got {read}/{write}")
        depends_on_number = positions or (write == "erase_add" and compat is None)
        super().__init__(width, num_tokens if depends_on_number else None, gate, compat)
        shared = dict(
            num_heads=_SCENIC_QUERY_HEADS if compat == "scenic" else num_heads,
            positions=positions,
            dropout_rate=dropout_rate,
            width=width,
        )
        self.read = Read(process_size, read, num_tokens=memory_size + num_tokens, **shared)
        self.process = make_processor(
            processing,
            num_layers=num_layers,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            dropout_rate=dropout_rate,
            width=width,
            num_tokens=process_size,
        )
        self.write = make_write(
            write,
            compat=compat,
            memory_size=memory_size,
            process_size=process_size,
            num_tokens=memory_size + process_size + num_tokens,
            **shared,
        )

    def forward(
        self,
        memory_BxMxD: Tensor,
        tokens_BxNxD: Tensor,
        valid_B: Tensor | None = None,
        valid_BxN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        tokens_BxNxD = self._begin(tokens_BxNxD, valid_B, valid_BxN)
        read_BxRxD = self.read(memory_BxMxD, tokens_BxNxD, valid_BxN)
        output_BxRxD = self.process(no_wider(read_BxRxD, self.process.get_parameter("norm.weight")))
        written_BxMxD = self.write(memory_BxMxD, output_BxRxD, tokens_BxNxD, valid_BxN)
        return self._end(memory_BxMxD, written_BxMxD, output_BxRxD, valid_B)


class SimpleTokenTuringMachineStep(_Step):
    """The simplified step: summarise the input alone to R tokens, process [memory ; input] jointly.

    What comes out in the place of the memory is the next memory; in the place of the input, the output.
    Scenic's `TokenTuringMachineSimpleUnit` exchanges these slices: under `compat="scenic"` the first R tokens
    are the output and the other M the memory.
    """

    def __init__(
        self,
        *,
        width: int,
        num_tokens: int,
        memory_size: int = 96,
        process_size: int = 16,
        processing: str = "transformer",
        num_layers: int = 4,
        mlp_dim: int = 512,
        num_heads: int = 4,
        dropout_rate: float = 0.0,
        compat: str | None = None,
        gate: str | None = None,
    ):
        _check_options(
            processing, dropout_rate, compat,
            width=width, num_tokens=num_tokens, memory_size=memory_size, process_size=process_size,
            num_layers=num_layers, mlp_dim=mlp_dim, num_heads=num_heads,
        )  # fmt: skip
        super().__init__(width, None, gate, compat)
        self.memory_size, self.process_size, self.compat = memory_size, process_size, compat
        self.summarizer = MLPSummarizer(process_size, width, dropout_rate)
        self.process = make_processor(
            processing,
            num_layers=num_layers,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            dropout_rate=dropout_rate,
            width=width,
            num_tokens=memory_size + process_size,
        )

    def forward(
        self,
        memory_BxMxD: Tensor,
        tokens_BxNxD: Tensor,
        valid_B: Tensor | None = None,
        valid_BxN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        tokens_BxNxD = self._begin(tokens_BxNxD, valid_B, valid_BxN)
        all_tokens = concat_memory_input(memory_BxMxD, self.summarizer(tokens_BxNxD, valid_BxN))
        processed = self.process(no_wider(all_tokens, self.process.get_parameter("norm.weight")))
        if self.compat == "scenic":
            output, memory = processed.split([self.process_size, self.memory_size], dim=1)
        else:
            memory, output = processed.split([self.memory_size, self.process_size], dim=1)
        return self._end(memory_BxMxD, memory, output, valid_B)


class _Machine(nn.Module):
    """The loop of a step over a sequence; `_step_class` says which step."""

    _step_class: type[nn.Module]

    def __init__(
        self,
        *,
        width: int,
        num_tokens: int,
        memory_size: int = 96,
        compat: str | None = None,
        learned_memory: bool = True,
        **options: Any,
    ):
        super().__init__()
        self.step = self._step_class(
            width=width, num_tokens=num_tokens, memory_size=memory_size, compat=compat, **options
        )
        _check_choice("learned_memory", learned_memory, (False, True))
        initial_1xMxD = torch.zeros(1, memory_size, width)
        if learned_memory and compat != "scenic":
            self.initial_memory = nn.Parameter(nn.init.normal_(initial_1xMxD, std=0.01))
        else:
            self.register_buffer("initial_memory", initial_1xMxD, persistent=False)

    def broadcast_memory(self, batch_size: int) -> Tensor:
        """Return the initial memory [B, M, D] of a batch."""
        return at_least_float32(self.initial_memory).expand(batch_size, -1, -1)

    def forward(
        self,
        tokens_BxTxNxD: Tensor,
        memory: Tensor | None = None,
        *,
        valid_BxT: Tensor | None = None,
        valid_BxTxN: Tensor | None = None,
        reset_BxT: Tensor | None = None,
        return_memories: bool = False,
    ) -> tuple[Tensor, ...]:
        """Run T steps; return the outputs [B, T, R, D] and the memory [B, M, D] after the last step.

        The masks are bool. What is not valid may hold anything, NaN too: neither outputs nor gradients see it.

        Args:
            tokens_BxTxNxD: the input tokens of each step. T need not be the same in every call.
            memory: the memory [B, M, D] to start from, as an earlier call returned it; the initial memory
                where None.
            valid_BxT: where False, the step leaves memory as it was, and its output is zeros.
            valid_BxTxN: where False, the token counts in no summary. Memory and outputs always count.
            reset_BxT: where True, the step starts from the initial memory, be it valid or not.
            return_memories: whether to return, as a third tensor [B, T, M, D], the memory that each step read.

        Raises:
            ValueError: if a shape or dtype does not fit.
        """
        if not isinstance(tokens_BxTxNxD, Tensor):
            raise ValueError(f"tokens must be a tensor [B, T, N, D], got {type(tokens_BxTxNxD).__name__}")
        if tokens_BxTxNxD.ndim != 4:
            raise ValueError(f"tokens must be [B, T, N, D], got shape {tuple(tokens_BxTxNxD.shape)}")
        B, T, N, _ = tokens_BxTxNxD.shape
        if any(size < 1 for size in tokens_BxTxNxD.shape):
            raise ValueError(f"tokens must have no empty axis, got shape {tuple(tokens_BxTxNxD.shape)}")
        for name, mask, shape in (
            ("valid_BxT", valid_BxT, (B, T)),
            ("valid_BxTxN", valid_BxTxN, (B, T, N)),
            ("reset_BxT", reset_BxT, (B, T)),
        ):
            _check_mask(name, mask, shape)
        initial_BxMxD = self.broadcast_memory(B)
        if memory is None:
            memory = initial_BxMxD
        else:
            _check_tensor("memory", memory, "floating", tuple(initial_BxMxD.shape))
        memory = memory.to(torch.promote_types(memory.dtype, initial_BxMxD.dtype))

        outputs, memories = [], []
        for t in range(T):
            if reset_BxT is not None:
                memory = torch.where(reset_BxT[:, t, None, None], initial_BxMxD, memory)
            memories.append(memory)
            valid_B, valid_BxN = (None if mask is None else mask[:, t] for mask in (valid_BxT, valid_BxTxN))
            memory, output_BxRxD = self.step(memory, tokens_BxTxNxD[:, t], valid_B, valid_BxN)
            outputs.append(output_BxRxD)
        return torch.stack(outputs, dim=1), memory, *([torch.stack(memories, dim=1)] if return_memories else [])


class TokenTuringMachine(_Machine):
    """A Token Turing Machine over a sequence.

        ttm = TokenTuringMachine(width=128, num_tokens=16, memory_size=96, process_size=16)
        outputs_BxTxRxD, memory_BxMxD = ttm(tokens_BxTxNxD)
        outputs, memory = ttm(next_tokens, memory=memory)     # streaming

    Args:
        width: D, of all tokens.
        num_tokens: N, input tokens a step. Where no parameter depends on it, a call may have any other number:
            without positions, but for erase-and-add, and in `SimpleTokenTuringMachine`.
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
        gate: None: the next memory is what was written. "fixed": it is g memory + (1 - g) written, where g =
            sigmoid(b), and b is a parameter [D] for which g is 0.9 before training.

    After `.bfloat16()` or `.half()` it computes in that dtype; softmax and memory stay in float32.

    Raises:
        ValueError: at construction, naming the argument, for a value that is not allowed.
    """

    _step_class = TokenTuringMachineStep


class SimpleTokenTuringMachine(_Machine):
    """The machine made of `SimpleTokenTuringMachineStep`; arguments and calls are those of `TokenTuringMachine`."""

    _step_class = SimpleTokenTuringMachineStep


def _check_options(processing: str, dropout_rate: float, compat: str | None, **sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
    if not isinstance(dropout_rate, int | float) or not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate must be in [0, 1), got {dropout_rate!r}")
    _check_choice("processing", processing, PROCESSING_UNITS)
    _check_choice("compat", compat, COMPATS)


def _check_mask(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if value is not None:
        _check_tensor(name, value, "bool", shape)


def _check_tensor(name: str, value: Any, kind: str, shape: tuple[int, ...]) -> None:
    is_tensor = isinstance(value, Tensor)
    is_kind = is_tensor and (value.is_floating_point() if kind == "floating" else value.dtype == torch.bool)
    if not (is_kind and value.shape == shape):
        told = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" if is_tensor else type(value).__name__
        raise ValueError(f"{name} must be a tensor {kind}{list(shape)}, got {told}")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if (type(value), value) not in [(type(choice), choice) for choice in choices]:  # 1 == True
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
