"""Which device to train on, and the reasons: all of it follows from the results."""

from typing import Any, get_args

from ttm_jax.measure import batch_sizes, history
from ttm_jax.measure.report import NOT_MEASURED, peak, percent, times
from ttm_jax.multiplication.config import RematName

REMAT_NAMES = get_args(RematName)  # the one that takes the least memory last
PLATFORMS = {"cpu": "A processor", "gpu": "A GPU", "tpu": "A TPU"}


def choice(results: list[dict[str, Any]]) -> str:
    """The device with the highest training throughput; speed, memory, batch, history, fall-backs."""
    measured = [result for result in results if result.get("batch_sizes", {}).get("best")]
    if measured:
        best = max(measured, key=_throughput)
        chosen = "Train on" if len(measured) > 1 else "The only device whose training throughput was measured so far:"
        lines = [
            f"{chosen} **{best['name']}**.",
            "",
            f"- **Speed.** {_speed(best, measured)}",
            f"- **Memory and batch.** {' '.join(batch_sizes.notes(best['batch_sizes']))}",
            f"- **Long histories.** {_history(best, results)}",
            f"- **Fall-backs**, where memory is short. {_fall_backs(best, measured)}",
        ]
    else:
        lines = [f"Training: {NOT_MEASURED} on any device.", ""]
    present = {result["device"]["platform"] for result in measured}
    missing = [name for platform, name in PLATFORMS.items() if platform not in present]
    return "\n".join([*lines, *(f"- **{name}**: {NOT_MEASURED}." for name in missing)])


def _throughput(result: dict[str, Any]) -> float:
    """In machine steps a second: results may be of examples of different length."""
    return _best_row(result)["examples_per_s"] * result["batch_sizes"]["num_steps"]


def _best_row(result: dict[str, Any]) -> dict[str, Any]:
    section = result["batch_sizes"]
    return next(row for row in section["rows"] if row["batch_size"] == section["best"])


def _speed(best: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    row, section = _best_row(best), best["batch_sizes"]
    text = (
        f"It trains the multiplier (M={section['memory_size']}) on {row['examples_per_s']:,.0f} examples/s of "
        f"{section['num_steps']} places each, at "
        f"{percent(row['flops_fraction'])} of the FLOP/s of a large product."
    )
    others = [
        f"{times(_throughput(best) / _throughput(other))} as many places as {other['name']}"
        for other in measured
        if other is not best
    ]
    return f"{text} That is {', '.join(others)}." if others else text


def _history(best: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """On the best device, or else on another, which is named."""
    found = next((result for result in (best, *results) if "history" in result), None)
    if found is None:
        return f"{NOT_MEASURED.capitalize()}."
    where = "" if found is best else f"On {found['name']}: "
    return where + " ".join(history.notes(found["history"])[:2])


def _fall_backs(best: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    """What to give up first where memory is short, with what it costs."""
    others = [other for other in measured if other is not best]
    parts = [_smaller_batch(best), _less_kept(best)]  # in the order in which training takes them
    if others:
        other = max(others, key=_throughput)
        parts.append(f"{other['name']}: {times(_throughput(other) / _throughput(best))} the throughput.")
    else:
        parts.append(f"Another device: {NOT_MEASURED}.")
    return " ".join(filter(None, parts))


def _smaller_batch(best: dict[str, Any]) -> str | None:
    row = _best_row(best)
    if row.get("num_devices", 1) > 1:
        return None  # devices take their shares in parts: a smaller batch saves no memory
    smaller = [other for other in best["batch_sizes"]["rows"] if other["batch_size"] < row["batch_size"]]
    if not smaller:
        return None
    other = smaller[-1]
    share = percent(other["examples_per_s"] / row["examples_per_s"])
    return f"A batch of {other['batch_size']}: {share} of the throughput, {peak(other['memory'])}."


def _less_kept(best: dict[str, Any]) -> str | None:
    """What each policy that keeps less than the default saves and costs, at the width nearest to the multiplier's."""
    if "remat" not in best:
        return f"Stronger rematerialisation: {NOT_MEASURED}."
    measured = min(best["remat"]["shapes"], key=lambda measured: measured["shape"][-1])
    rows = {row["policy"]: row for row in measured["rows"]}
    default = rows[best["remat"]["default"]]
    stronger = REMAT_NAMES[REMAT_NAMES.index(default["policy"]) + 1 :]
    run = [rows[name] for name in stronger if "skipped" not in rows[name] and "skipped" not in default]
    parts = [f'`remat="{row["policy"]}"` {_less(row, default)}' for row in run]
    _, steps, _, width = measured["shape"]
    return f"Stronger rematerialisation, at width {width} over {steps} steps: {'; '.join(parts)}." if parts else None


def _less(row: dict[str, Any], default: dict[str, Any]) -> str:
    memory = None
    if default["memory"] and row["memory"]:
        memory = row["memory"]["temporary"] / default["memory"]["temporary"]
    return f"{times(memory)} the temporary memory, {times(row['median_s'] / default['median_s'])} the time"
