"""Where the time of a compiled step goes: a profiler's trace, its events by part of the model and kind of work.

The trace names instructions of the compiled program; the program's text says what each computes (its opcode, and those
that were fused into it) and which line of the model it comes from (its `op_name`).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ttm_jax.measure.program import Program

FORWARD, RECOMPUTED, BACKWARD, UPDATE = PHASES = "forward", "recomputed", "backward", "update"
PRODUCT, SUM, ELEMENTWISE, COPY = KINDS = "products", "sums", "elementwise", "copies"

_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS, _OP_NAME = re.compile(r"calls=%?([\w.\-]+)"), re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTAINERS = {"while", "call", "conditional"}  # their events may span those of what they run
_PRODUCTS = {"dot", "convolution"}
_PRODUCT_TARGETS = re.compile("gemm|matmul|conv|dot", re.IGNORECASE)  # of libraries
_SUM = "reduce"
_SUMS = {_SUM, "reduce-window", "scatter", "all-reduce"}  # the last waits for the slower device, too
_ONE_COLUMN = re.compile(r"\w+\[\d+,1\]")  # the shape of a product with one, as of ones: LayerNorm sums up by such
_COPIES = {
    *("copy", "transpose", "bitcast", "broadcast", "reshape", "slice", "dynamic-slice", "dynamic-update-slice"),
    *("concatenate", "pad", "reverse", "gather", "iota", "parameter", "constant", "tuple", "get-tuple-element"),
    *("compare", "select", "convert"),  # of indices, where nothing is computed besides
}
_WRAPPERS = {
    *("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "step", "machine", "shard_map"),
}


class Work(NamedTuple):
    """A part of the model, what is done there, and in which pass."""

    part: str
    kind: str
    phase: str


UNNAMED = Work("unnamed", COPY, "")  # what the compiler has put in


class _Instruction(NamedTuple):
    opcode: str
    shape: str
    op_name: str
    calls: str
    target: str


def profile(function: Callable[[], Any], program: Program, folder: Path, calls: int) -> dict[str, Any]:
    """Trace `calls` calls of a program with its arguments into `folder`, and sum up their events.

    The trace is for TensorBoard's profile plugin (`folder`) and Perfetto (`perfetto_trace.json.gz` below it).

    Returns "rows" of part, kind, phase, seconds, number and share, all of one call, the costliest first. Also returns
    "seconds", their sum, which is not the time of a call where instructions run side by side or wait.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.block_until_ready(function())
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        for _ in range(calls):
            jax.block_until_ready(function())
    text = program.compiled.as_text() or ""
    module = text.partition(",")[0].removeprefix("HloModule ")
    works = instructions(text)
    seconds, counts = defaultdict[Work, float](float), defaultdict[Work, int](int)
    for name, nanoseconds in _events(folder, module):
        if (work := works.get(name, UNNAMED)) is not None:
            seconds[work] += 1e-9 * nanoseconds / calls
            counts[work] += 1
    total = sum(seconds.values())
    rows = [
        {**work._asdict(), "seconds": taken, "number": round(counts[work] / calls), "share": taken / total}
        for work, taken in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return {"seconds": total, "rows": rows}


def product_share(profiled: dict[str, Any]) -> float:
    """Return the share of matrix products in forward and backward pass, none made again and none the optimiser's."""
    return _share(profiled, {PRODUCT}, {FORWARD, BACKWARD})


def arithmetic_share(profiled: dict[str, Any]) -> float:
    """Return the share of what any form of a training step has to compute: nothing made again, and no copies.

    What the compiler gives no name is left out too: its pass is not known.
    """
    return _share(profiled, {PRODUCT, SUM, ELEMENTWISE}, {FORWARD, BACKWARD, UPDATE})


def _share(profiled: dict[str, Any], kinds: set[str], phases: set[str]) -> float:
    return sum(work["share"] for work in profiled["rows"] if work["kind"] in kinds and work["phase"] in phases)


def _events(folder: Path, module: str) -> Iterator[tuple[str, float]]:
    """Yield instruction and nanoseconds of each event of a module in the latest trace of a folder."""
    path = max(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == module and "hlo_op" in stats:
                    yield str(stats["hlo_op"]), event.duration_ns


def instructions(text: str) -> dict[str, Work | None]:
    """Say what each instruction of a compiled program does; None for those that only run others, such as loops."""
    # A program's text is a list of computations, each a list of instructions.
    computations: dict[str, dict[str, _Instruction]] = {}
    current: dict[str, _Instruction] = {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[1], {})
        elif found := _INSTRUCTION.match(line):
            name, shape, opcode = found.groups()
            matches = (pattern.search(line) for pattern in (_OP_NAME, _CALLS, _TARGET))
            current[name] = _Instruction(opcode, shape, *(match[1] if match else "" for match in matches))

    def inside(instruction: _Instruction) -> Iterator[_Instruction]:
        if not instruction.calls:
            yield instruction
        for inner in computations.get(instruction.calls, {}).values():
            yield from inside(inner)

    # A fused computation is part of the instruction that calls it.
    fused = {instruction.calls for computation in computations.values() for instruction in computation.values()}
    return {
        name: None if instruction.opcode in _CONTAINERS else _work(instruction, list(inside(instruction)))
        for computation in computations.keys() - fused
        for name, instruction in computations[computation].items()
    }


def _work(instruction: _Instruction, inside: list[_Instruction]) -> Work:
    op_name = instruction.op_name or next((i.op_name for i in reversed(inside) if i.op_name), "")
    part, phase = place(op_name)
    opcodes = {_SUM if i.opcode == "dot" and _ONE_COLUMN.match(i.shape) else i.opcode for i in inside}
    if opcodes & _PRODUCTS or any(_PRODUCT_TARGETS.search(i.target) for i in inside):
        return Work(part, PRODUCT, phase)
    if opcodes & _SUMS:
        return Work(part, SUM, phase)
    return Work(part, COPY if opcodes <= _COPIES else ELEMENTWISE, phase)


def _passes(names: list[str]) -> str | None:
    """Return the pass that JAX's transformations name."""
    if any(name.startswith("transpose(") for name in names):
        return BACKWARD
    return FORWARD if any(name.startswith("jvp(") for name in names) else None


def place(op_name: str) -> tuple[str, str]:
    """Return part of the model, and pass, of "jit(train_step)/jvp(TTMModel.heads)/machine/.../step/read/...".

    Blocks of a stack count together, and what is deeper than two names.
    """
    names = op_name.split("/")
    divided = "shard_map" in names
    if divided:
        names = names[names.index("shard_map") :]
    if "closed_call" in names and not _passes(names[: names.index("closed_call")]):
        names = names[names.index("closed_call") :]  # of the loop over micro-batches
    phase = RECOMPUTED if "rematted_computation" in names else _passes(names) or UPDATE
    if len(names) == 1:
        return UNNAMED.part, UNNAMED.phase
    scopes = [name for name in names[:-1] if re.fullmatch(r"[a-z]\w*", name) and name not in _WRAPPERS]
    scopes = [name for name in scopes if not re.fullmatch(r"block_\d+", name)]
    if scopes:
        return " ".join(scopes[:2]), phase
    if phase == UPDATE:  # what is left of the gradients, where devices divide a batch, is to add them up
        return "sum over devices" if divided else "optimiser", phase
    if "while" in names:
        return "loop over steps", phase
    return ("embedding" if "TTMModel" in op_name else "loss"), phase
