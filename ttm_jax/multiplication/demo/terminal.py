"""A trace for the terminal: the digits one by one, where each step looked, and the memory over the steps."""

from collections.abc import Iterable

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ttm_jax.multiplication.demo.trace import Trace, symbol
from ttm_jax.multiplication.problems import place_name

TRAINED = {
    "held out": "held out: never in training",
    "possible": "may have been in training",
    "too long": "beyond anything in training",
}
_SHADES = "·░▒▓█"
_STRIP_CELLS = 32  # two of them and a label fit 80 columns
_READ, _NEW = (0, 90, 181), (220, 90, 0)  # blue and orange: told apart by all eyes


def answer_line(trace: Trace) -> Text:
    """Write "123 × 45 = 5535  ✓ right", what training saw of it, and the time it took."""
    answer = "no number" if trace.answer is None else str(trace.answer)
    verdict = ("✓ right", "bold green") if trace.correct else (f"✗ wrong, it is {trace.product}", "bold red")
    return Text.assemble(
        (f"{trace.a} × {trace.b} = {answer}", "bold"),
        "  ",
        verdict,
        (f"  {TRAINED[trace.trained]}  {1000 * trace.seconds:.1f} ms", "dim"),
    )


def render(trace: Trace) -> Group:
    """Make all that is shown of a product below its answer: tables with a line for each step."""
    return Group(*_digits(trace), *_sums(trace), *_where_it_looked(trace), *_memory(trace))


def column_text(trace: Trace, step: int) -> str:
    """Write a column by hand: "2·5+3·4+1 = 23", the last term being the carry; nothing past the last column."""
    carry = trace.carry_in(step)
    terms = [f"{x}·{y}" for x, y in trace.terms(step)] + ([str(carry)] if carry else [])
    return f"{'+'.join(terms)} = {trace.column_sum(step)}" if terms else ""


def _digits(trace: Trace) -> Iterable[RenderableType]:
    table = _table("step", "digit", "sure", "column by hand", "carry")
    if trace.carry_probabilities_TxC is not None:
        table.add_column("it holds", justify="right")
    table.add_column("wiped", justify="right")
    for step in trace.steps:
        by_hand = column_text(trace, step)
        cells = [
            f"{step + 1:>2} {place_name(step)}",
            _checked(trace.tokens_T[step], trace.targets_T[step], "bold"),
            f"{100 * trace.probabilities_T[step]:.1f} %",
            by_hand,
            str(trace.carries_T[step]) if by_hand else "",
        ]
        if trace.carry_probabilities_TxC is not None:
            cells.append(_held_carry(trace, step))
        table.add_row(*cells, _checked(trace.wiped_T[step], trace.targets_T[step], ""))
    held = "" if trace.carry_probabilities_TxC is None else ", and the carry that it holds for the next step"
    yield Text(f"\nThe answer, units first{held}", "bold")
    yield table
    yield Text("wiped: the digit with memory reset before each machine step", "dim")


def _held_carry(trace: Trace, step: int) -> Text:
    held = trace.held_carry(step)
    if held is None:
        return Text()
    carry, probability = held
    return Text(f"{carry} at {100 * probability:.0f} %", "" if carry == trace.carries_T[step] else "red")


def _sums(trace: Trace) -> Iterable[RenderableType]:
    """Show the sums after each product, where a step is a machine step for each."""
    if trace.sums is None:
        return
    table = _table("")
    table.add_column("true carry + product = the sum that it held")
    for step in trace.steps:
        cell = Text(str(trace.carry_in(step)) if trace.carry_in(step) else "")
        for (x, y), (held, right) in zip(trace.terms(step), trace.held_sums(step), strict=True):
            cell.append(f" +{x}·{y} = ")
            cell.append(f"{held}" if right else f"{held} ✗", "bold" if right else "red")
        table.add_row(f"{step + 1:>2} ", cell)
    yield Text("\nEach column, a machine step for each product of two digits", "bold")
    yield table


def _where_it_looked(trace: Trace) -> Iterable[RenderableType]:
    columns = [*trace.operand_tokens, " rest"]
    memory = trace.read_TxM.sum(axis=1, keepdims=True)
    if trace.read_written_TxW is None:
        columns.append(" memory")
    else:
        memory = trace.read_written_TxW
        columns += [" start", *map(str, range(1, memory.shape[1]))]
    shares = np.concatenate([trace.read_operands_TxN, trace.read_filler_T[:, None], memory], axis=1)
    table = _table("", *(name.rjust(3) for name in columns), padding=0)  # 5 x 5 digits fit 80 columns
    for step in trace.steps:
        table.add_row(f"{step + 1:>2} ", *(_percent(share) for share in shares[step]))
    yield Text("\nWhere each step looked, % of its read", "bold")
    yield table
    if trace.schedule == "product":
        yield Text("a line is the mean over the machine steps of its column, one for each product", "dim")
    by_step = "" if trace.origin_TxW is None else ", by the step that wrote it"
    yield Text(f"rest: end mark and padding; to its right: memory{by_step}", "dim")


def _memory(trace: Trace) -> Iterable[RenderableType]:
    M = trace.read_TxM.shape[1]
    group = -(-M // _STRIP_CELLS)
    reads = _grouped(trace.read_TxM, group)
    brightest = max(float(reads.max()), 1e-9)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("read")
    if trace.kept_TxM is not None:
        table.add_column("new after the step")
    for step in trace.steps:
        cells = [f"{step + 1:>2}", _strip(reads[step] / brightest, _READ)]
        if trace.kept_TxM is not None:
            cells.append(_strip(_grouped(1 - trace.kept_TxM, group)[step], _NEW))
        table.add_row(*cells)
    yield Text(f"\nThe memory over the steps, {M} tokens", "bold")
    yield table
    cell = f"{group} tokens" if group > 1 else "a token"
    new = "" if trace.kept_TxM is None else "; new: to 100 %, the rest is kept"
    yield Text(f"a cell is {cell}; read: {_SHADES[0]} nothing to {_SHADES[-1]} {100 * brightest:.1f} %{new}", "dim")


def _table(*columns: str, padding: int = 1) -> Table:
    """Make a table without lines, its numbers to the right."""
    table = Table(box=None, padding=(0, padding, 0, 0), pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table


def _checked(token: int, target: int, style: str) -> Text:
    """Write a digit, marked where it is wrong."""
    # After EOS the target is padding, which reads "end" as EOS does.
    right = symbol(token) == symbol(target)
    return Text(symbol(token), style) if right else Text(f"{symbol(token)} ✗", "red")


def _percent(share: float) -> Text:
    """Write a share in %, on blue that grows with its square root, so that small ones show."""
    if share < 0.005:
        return Text("·", "dim")
    strength = float(share) ** 0.5
    red, green, blue = (round(255 + strength * (channel - 255)) for channel in _READ)
    return Text(f"{100 * share:3.0f}", f"{'white' if strength > 0.7 else 'black'} on rgb({red},{green},{blue})")


def _grouped(values_TxM: np.ndarray, group: int) -> np.ndarray:
    """Take the means of `group` neighbours."""
    starts = np.arange(0, values_TxM.shape[1], group)
    sizes = np.diff([*starts, values_TxM.shape[1]])
    return np.add.reduceat(values_TxM, starts, axis=1) / sizes


def _strip(shares: np.ndarray, colour: tuple[int, int, int]) -> Text:
    indices = np.clip(np.ceil(np.asarray(shares) * (len(_SHADES) - 1) - 0.5), 0, len(_SHADES) - 1).astype(int)
    return Text("".join(_SHADES[i] for i in indices), f"rgb({colour[0]},{colour[1]},{colour[2]})")
