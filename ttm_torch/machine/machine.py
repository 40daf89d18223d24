"""The Token Turing Machine: one step, and the loop of that step over a sequence (arXiv 2211.09119).

tokens_BxTxNxD ──> step 1 ──> step 2 ──> ... ──> outputs_BxTxRxD
memory_BxMxD ────────^──────────^───────────────> memory_BxMxD
"""

from typing import Any

import torch
from torch import Tensor, nn

from ttm_torch.machine.layers import at_least_float32
from ttm_torch.machine.memory import READS, WRITES, Read, concat_memory_input, make_write
from ttm_torch.machine.processing import PROCESSING_UNITS, make_processor
from ttm_torch.machine.summarize import MLPSummarizer

COMPATS = (None, "scenic")
_SCENIC_MODES = (("mlp", "mlp"), ("query", "query"), ("mlp", "erase_add"))
_SCENIC_QUERY_HEADS = 8  # the original's TokenLearnerMHA takes no number of heads


class TokenTuringMachineStep(nn.Module):
    """One step: read, process, write (Scenic `TokenTuringMachineUnit`).

    Takes memory [B, M, D] and tokens [B, N, D]; gives the next memory [B, M, D] and outputs [B, R, D].
    The arguments are those of `TokenTuringMachine`.
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
    ):
        super().__init__()
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

    def forward(self, memory_BxMxD: Tensor, tokens_BxNxD: Tensor) -> tuple[Tensor, Tensor]:
        read_BxRxD = self.read(memory_BxMxD, tokens_BxNxD)
        output_BxRxD = self.process(read_BxRxD)
        next_memory_BxMxD = self.write(memory_BxMxD, output_BxRxD, tokens_BxNxD)
        return next_memory_BxMxD.to(memory_BxMxD.dtype), output_BxRxD


class SimpleTokenTuringMachineStep(nn.Module):
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
    ):
        super().__init__()
        _check_options(
            processing, dropout_rate, compat,
            width=width, num_tokens=num_tokens, memory_size=memory_size, process_size=process_size,
            num_layers=num_layers, mlp_dim=mlp_dim, num_heads=num_heads,
        )  # fmt: skip
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

    def forward(self, memory_BxMxD: Tensor, tokens_BxNxD: Tensor) -> tuple[Tensor, Tensor]:
        processed = self.process(concat_memory_input(memory_BxMxD, self.summarizer(tokens_BxNxD)))
        if self.compat == "scenic":
            output, memory = processed.split([self.process_size, self.memory_size], dim=1)
        else:
            memory, output = processed.split([self.memory_size, self.process_size], dim=1)
        return memory.to(memory_BxMxD.dtype), output


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
        self._token_shape = num_tokens, width
        initial_1xMxD = torch.zeros(1, memory_size, width)
        if learned_memory and compat != "scenic":
            self.initial_memory = nn.Parameter(nn.init.normal_(initial_1xMxD, std=0.01))
        else:
            self.register_buffer("initial_memory", initial_1xMxD, persistent=False)

    def broadcast_memory(self, batch_size: int) -> Tensor:
        """Return the initial memory [B, M, D] of a batch."""
        return at_least_float32(self.initial_memory).expand(batch_size, -1, -1)

    def forward(self, tokens_BxTxNxD: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run T steps; return the outputs [B, T, R, D] and the memory [B, M, D] after the last step.

        Args:
            tokens_BxTxNxD: the input tokens of each step. T need not be the same in every call.
            memory: the memory [B, M, D] to start from, as an earlier call returned it; the initial memory
                where None.

        Raises:
            ValueError: if a shape does not fit.
        """
        if tokens_BxTxNxD.ndim != 4:
            raise ValueError(f"tokens must be [B, T, N, D], got shape {tuple(tokens_BxTxNxD.shape)}")
        if min(tokens_BxTxNxD.shape) < 1:
            raise ValueError(f"tokens must have no empty axis, got shape {tuple(tokens_BxTxNxD.shape)}")
        if tokens_BxTxNxD.shape[2:] != self._token_shape:
            N, D = self._token_shape
            raise ValueError(f"tokens must be [B, T, {N}, {D}], got shape {tuple(tokens_BxTxNxD.shape)}")
        initial_BxMxD = self.broadcast_memory(len(tokens_BxTxNxD))
        if memory is None:
            memory = initial_BxMxD
        elif memory.shape != initial_BxMxD.shape:
            raise ValueError(f"memory must be {tuple(initial_BxMxD.shape)}, got {tuple(memory.shape)}")
        memory = memory.to(torch.promote_types(memory.dtype, initial_BxMxD.dtype))

        outputs = []
        for tokens_BxNxD in tokens_BxTxNxD.unbind(dim=1):
            memory, output_BxRxD = self.step(memory, tokens_BxNxD)
            outputs.append(output_BxRxD)
        return torch.stack(outputs, dim=1), memory


class TokenTuringMachine(_Machine):
    """A Token Turing Machine over a sequence.

        ttm = TokenTuringMachine(width=128, num_tokens=16, memory_size=96, process_size=16)
        outputs_BxTxRxD, memory_BxMxD = ttm(tokens_BxTxNxD)
        outputs, memory = ttm(next_tokens, memory=memory)     # streaming

    Args:
        width: D, of all tokens.
        num_tokens: N, input tokens a step.
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

    Raises:
        ValueError: at construction, naming the argument, for a value that is not allowed.
    """

    _step_class = TokenTuringMachineStep


class SimpleTokenTuringMachine(_Machine):
    """The machine made of `SimpleTokenTuringMachineStep`; arguments and calls are those of `TokenTuringMachine`."""

    _step_class = SimpleTokenTuringMachineStep


def _check_options(processing: str, dropout_rate: float, compat: str | None, **sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
    if not isinstance(dropout_rate, int | float) or not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate must be in [0, 1), got {dropout_rate!r}")
    _check_choice("processing", processing, PROCESSING_UNITS)
    _check_choice("compat", compat, COMPATS)


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if (type(value), value) not in [(type(choice), choice) for choice in choices]:  # 1 == True
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
