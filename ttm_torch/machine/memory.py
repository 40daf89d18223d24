"""Reading from memory and writing to it (paper, sections 3.2 and 3.3).

A read summarises [memory ; input] to R tokens. A write turns memory, output and input into the next memory,
of the same size. Memory is carried in float32 or wider, whatever the compute dtype. Input tokens that are not
valid have no effect, whatever they hold.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttm_torch.machine.layers import FeedForward, Positions, apply, at_least_float32, keep_valid, layer_norm
from ttm_torch.machine.summarize import BOTTLENECK_DIM, SUMMARIZERS, make_summarizer

READS = SUMMARIZERS
WRITES = (*SUMMARIZERS, "erase_add", "concat", "none")
NUM_WRITES = 8  # slots that erase-and-add selects softly a step (Scenic `TokenAddEraseWrite`)


def concat_memory_input(memory_BxMxD: Tensor, input_BxNxD: Tensor) -> Tensor:
    """Concatenate [memory ; input] along the token axis."""
    return torch.cat([memory_BxMxD, input_BxNxD], dim=1)


def concat_for_write(memory_BxMxD: Tensor, output_BxRxD: Tensor, input_BxNxD: Tensor) -> Tensor:
    """Concatenate [memory ; output ; input] along the token axis, in the paper's order (equation 4)."""
    return torch.cat([memory_BxMxD, output_BxRxD, input_BxNxD], dim=1)


def concat_write(memory_BxMxD: Tensor, new_BxRxD: Tensor) -> Tensor:
    """Keep the last M tokens of [memory ; new]: first in, first out."""
    size = memory_BxMxD.shape[1]
    return concat_memory_input(memory_BxMxD, new_BxRxD.to(memory_BxMxD.dtype))[:, -size:]


def erase_and_add(memory_BxMxD: Tensor, weights_BxWxM: Tensor, erase_BxWxD: Tensor, add_BxWxD: Tensor) -> Tensor:
    """Compute memory * prod_w (1 - weight_w erase_w) + sum_w weight_w add_w (Neural Turing Machine, section 3.2).

    `weights` and `erase` lie in [0, 1]. With zero weights, memory is returned unchanged.
    """
    keep_BxMxD = torch.prod(1 - weights_BxWxM[..., None] * erase_BxWxD[:, :, None], dim=1)
    return memory_BxMxD * keep_BxMxD + torch.einsum("bwm,bwd->bmd", weights_BxWxM, add_BxWxD)


def _among_others(valid_BxN: Tensor | None, before: int, after: int = 0) -> Tensor | None:
    """Extend the mask of the input tokens by so many tokens before and after them, which are valid."""
    return None if valid_BxN is None else F.pad(valid_BxN, (before, after), value=True)


class Read(nn.Module):
    """Summary of [memory ; input] with location embeddings: R tokens [B, R, D].

    `num_tokens` is the number of all tokens read from, M + N.
    """

    def __init__(
        self,
        process_size: int,
        kind: str = "mlp",
        num_heads: int = 8,
        positions: bool = True,
        dropout_rate: float = 0.0,
        *,
        width: int,
        num_tokens: int,
    ):
        super().__init__()
        self.positions = Positions(num_tokens, width) if positions else nn.Identity()
        self.summarizer = make_summarizer(
            kind, process_size, width=width, num_heads=num_heads, dropout_rate=dropout_rate
        )

    def forward(self, memory_BxMxD: Tensor, tokens_BxNxD: Tensor, valid_BxN: Tensor | None = None) -> Tensor:
        all_tokens = self.positions(concat_memory_input(memory_BxMxD, tokens_BxNxD))
        return self.summarizer(all_tokens, _among_others(valid_BxN, memory_BxMxD.shape[1]))


class SummaryWrite(nn.Module):
    """The next memory, as a summary of [memory ; output ; input] with location embeddings.

    `num_tokens` is the number of all those tokens, M + R + N.
    """

    def __init__(
        self,
        kind: str = "mlp",
        num_heads: int = 8,
        positions: bool = True,
        dropout_rate: float = 0.0,
        compat: str | None = None,
        *,
        memory_size: int,
        width: int,
        num_tokens: int,
    ):
        super().__init__()
        self.compat = compat
        self.positions = Positions(num_tokens, width) if positions else nn.Identity()
        self.summarizer = make_summarizer(
            kind, memory_size, width=width, num_heads=num_heads, dropout_rate=dropout_rate
        )

    def forward(
        self,
        memory_BxMxD: Tensor,
        output_BxRxD: Tensor,
        tokens_BxNxD: Tensor,
        valid_BxN: Tensor | None = None,
    ) -> Tensor:
        M, R = memory_BxMxD.shape[1], output_BxRxD.shape[1]
        if self.compat == "scenic":
            all_tokens = concat_for_write(memory_BxMxD, tokens_BxNxD, output_BxRxD)
            valid = _among_others(valid_BxN, M, R)
        else:
            all_tokens = concat_for_write(memory_BxMxD, output_BxRxD, tokens_BxNxD)
            valid = _among_others(valid_BxN, M + R)
        return self.summarizer(self.positions(all_tokens), valid)


class EraseAddWrite(nn.Module):
    """A soft selection of memory tokens to erase and to add to, as a Neural Turing Machine writes.

    The selection reads the memory. Erase and add vectors come from [output ; input]. All have location embeddings.
    `compat="scenic"` keeps the arithmetic of `TokenAddEraseWrite`: no embeddings, the input not seen, no sigmoid on
    erase, and the mean of 1 - w a added in place of the sum of w a.

    `num_tokens` is M + R + N, `process_size` R.
    """

    def __init__(
        self,
        positions: bool = True,
        dropout_rate: float = 0.0,
        compat: str | None = None,
        *,
        memory_size: int,
        process_size: int,
        width: int,
        num_tokens: int,
    ):
        super().__init__()
        self.compat = compat
        scenic = compat == "scenic"
        num_control = process_size if scenic else num_tokens - memory_size
        self.positions = Positions(num_tokens, width) if positions and not scenic else nn.Identity()
        self.select_norm = layer_norm(width)
        self.select = FeedForward(width, BOTTLENECK_DIM, NUM_WRITES, dropout_rate)
        self.erase_norm = layer_norm(width)
        self.erase_tokens = FeedForward(num_control, BOTTLENECK_DIM, NUM_WRITES, dropout_rate)
        self.erase_channels = FeedForward(width, BOTTLENECK_DIM, None, dropout_rate)
        self.add_norm = layer_norm(width)
        self.add_tokens = FeedForward(num_control, BOTTLENECK_DIM, NUM_WRITES, dropout_rate)
        self.add_channels = FeedForward(width, BOTTLENECK_DIM, None, dropout_rate)

    def forward(
        self,
        memory_BxMxD: Tensor,
        output_BxRxD: Tensor,
        tokens_BxNxD: Tensor,
        valid_BxN: Tensor | None = None,
    ) -> Tensor:
        # 1. select memory tokens  2. make erase and add vectors  3. erase and add
        selected, control, valid = memory_BxMxD, output_BxRxD, None
        if self.compat != "scenic":
            tokens_BxNxD = keep_valid(tokens_BxNxD, valid_BxN)
            all_tokens = self.positions(concat_for_write(memory_BxMxD, output_BxRxD, tokens_BxNxD))
            size = memory_BxMxD.shape[1]
            selected, control = all_tokens[:, :size], all_tokens[:, size:]
            valid = _among_others(valid_BxN, output_BxRxD.shape[1])

        logits_BxMxW = self.select(self.select_norm(selected))
        weights_BxWxM = at_least_float32(logits_BxMxW).softmax(dim=1).transpose(1, 2)
        erase_tokens_BxDxW = self.erase_tokens(keep_valid(self.erase_norm(control), valid).transpose(1, 2))
        erase_BxWxD = at_least_float32(self.erase_channels(erase_tokens_BxDxW.transpose(1, 2)))
        add_tokens_BxDxW = self.add_tokens(keep_valid(self.add_norm(control), valid).transpose(1, 2))
        add_BxWxD = at_least_float32(self.add_channels(add_tokens_BxDxW.transpose(1, 2)))
        if self.compat != "scenic":
            return erase_and_add(memory_BxMxD, weights_BxWxM, erase_BxWxD.sigmoid(), add_BxWxD)
        # sum_w (1 - w a) / W = 1 - sum_w w a / W: an erase-and-add of -a / W, plus one.
        return erase_and_add(memory_BxMxD, weights_BxWxM, erase_BxWxD, -add_BxWxD / NUM_WRITES) + 1.0


class ConcatWrite(nn.Module):
    """Memory as a queue of the latest outputs, without parameters."""

    def forward(
        self,
        memory_BxMxD: Tensor,
        output_BxRxD: Tensor,
        tokens_BxNxD: Tensor,
        valid_BxN: Tensor | None = None,
    ) -> Tensor:
        return concat_write(memory_BxMxD, output_BxRxD)


class NoWrite(nn.Module):
    """A write that leaves the memory as it is, so that every step reads the same memory; without parameters."""

    def forward(
        self,
        memory_BxMxD: Tensor,
        output_BxRxD: Tensor,
        tokens_BxNxD: Tensor,
        valid_BxN: Tensor | None = None,
    ) -> Tensor:
        return memory_BxMxD


def make_write(
    kind: str,
    *,
    num_heads: int = 8,
    positions: bool = True,
    dropout_rate: float = 0.0,
    compat: str | None = None,
    memory_size: int,
    process_size: int,
    width: int,
    num_tokens: int,
) -> nn.Module:
    """Make the write called `kind`, one of WRITES: a module of (memory, output, input) that gives the next memory.

    `num_tokens` is the number of all tokens that a write sees, M + R + N.
    """
    sizes = dict(memory_size=memory_size, width=width, num_tokens=num_tokens)
    match kind:
        case "erase_add":
            return EraseAddWrite(positions, dropout_rate, compat, process_size=process_size, **sizes)
        case "concat":
            return ConcatWrite()
        case "none":
            return NoWrite()
        case _ if kind in SUMMARIZERS:
            return SummaryWrite(kind, num_heads, positions, dropout_rate, compat, **sizes)
    raise ValueError(f"write must be one of {', '.join(WRITES)}, got {kind!r}")


# The same modules as pure functions. `params` are as of the module's `state_dict()`. Where None, they are fresh
# and follow from `seed` alone.


def add_positional_info(
    memory_BxMxD: Tensor, input_BxNxD: Tensor, params: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Tensor:
    """Add location embeddings to [memory ; input]; `params` as of `Positions`."""
    tokens = concat_memory_input(memory_BxMxD, input_BxNxD)
    return apply(lambda: Positions(*tokens.shape[1:]), params, seed, tokens)


def add_write_positional_info(
    memory_BxMxD: Tensor,
    output_BxRxD: Tensor,
    input_BxNxD: Tensor,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """Add location embeddings to [memory ; output ; input]; `params` as of `Positions`."""
    tokens = concat_for_write(memory_BxMxD, output_BxRxD, input_BxNxD)
    return apply(lambda: Positions(*tokens.shape[1:]), params, seed, tokens)


def read_operation(
    memory_BxMxD: Tensor,
    input_BxNxD: Tensor,
    r: int = 16,
    kind: str = "mlp",
    num_heads: int = 8,
    positions: bool = True,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """Read R tokens [B, R, D] from [memory ; input]; `params` as of `Read(r, kind, num_heads, positions)`."""
    sizes = dict(width=memory_BxMxD.shape[2], num_tokens=memory_BxMxD.shape[1] + input_BxNxD.shape[1])
    return apply(lambda: Read(r, kind, num_heads, positions, **sizes), params, seed, memory_BxMxD, input_BxNxD)


def write_operation(
    memory_BxMxD: Tensor,
    output_BxRxD: Tensor,
    input_BxNxD: Tensor,
    kind: str = "mlp",
    num_heads: int = 8,
    positions: bool = True,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """Compute the next memory [B, M, D]; `params` as of `make_write(kind, num_heads=..., positions=...)`."""
    inputs = (memory_BxMxD, output_BxRxD, input_BxNxD)
    sizes = dict(
        memory_size=memory_BxMxD.shape[1],
        process_size=output_BxRxD.shape[1],
        width=memory_BxMxD.shape[2],
        num_tokens=sum(x.shape[1] for x in inputs),
    )
    return apply(lambda: make_write(kind, num_heads=num_heads, positions=positions, **sizes), params, seed, *inputs)


def erase_add_write(
    memory_BxMxD: Tensor,
    output_BxRxD: Tensor,
    input_BxNxD: Tensor,
    positions: bool = True,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """Write by erase and add, see `write_operation`; `params` as of `EraseAddWrite(positions)`."""
    return write_operation(
        memory_BxMxD, output_BxRxD, input_BxNxD, kind="erase_add", positions=positions, params=params, seed=seed
    )
