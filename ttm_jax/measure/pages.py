"""The figures of README.md, docs/ and results/*.md, written from results/ between the marks of each block."""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ttm_jax.cli import Parser, fail
from ttm_jax.files import FileError, read_json
from ttm_jax.measure import compare, studies, text as text_models, training, unrolled
from ttm_jax.measure.report import (
    NOT_MEASURED,
    markdown_table,
    mean_and_range,
    median,
    percent,
    planned_memory,
    put_block,
    ratio,
    scaled,
    times,
    write_changed,
)
from ttm_jax.multiplication.diagnose import CAUSES
from ttm_jax.multiplication.problems import MAX_DIGITS, place_name, place_power
from ttm_jax.statistics import wilson_interval
from ttm_jax.tasks import config_from_dict

CHECKPOINTS = ("multiplication", "five_digits")
TRIED = ("quick", "three_digits", "five_digits", "multiplication")
LENGTHS = ("1x1", "2x2", "3x2", "3x3", "4x4", "5x5")
SEEDS = range(5)
# Of results/default: what the files of each row are called, and how many seeds it has.
MEMORY_ROWS = {
    "the default run": "seed",
    "the same networks, memory wiped before each step": "wiped",
    "trained without memory": "no-memory",
    "a plain Transformer, no steps": "transformer",
}
MEMORY_SEEDS = range(3)
MEMORY_LENGTHS = ("1x1", "2x2", "3x2", "3x3")
LONGER = ("1x4", "4x2", "4x4")
DIGIT_LENGTHS = ("3x3", "4x4", "5x5")
EARLY = ("25", "50", "75", "100")  # steps of two runs of the same seed
# Of results/parity.json: a row of each kind of case.
PARITY_ROWS = (
    ("scenic/simple_mlp", "ttm_torch: gradients"),
    ("weights/bfloat16", "JAX to PyTorch to JAX, to the bit"),
    ("layers/attention", "float64: outputs, gradients, input gradients"),
    ("machine/mlp-erase_add-mixer", "float32: whole sequence, outputs"),
    ("training/mlp-erase_add-mixer", "float64: outputs, gradients, losses of 20 steps, weights after them"),
    ("mutation/gelu", "exact GELU for its tanh form"),
)


class Results:
    """The files of results/, each read once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._read = cache(read_json)

    def __call__(self, name: str) -> Any:
        """Return the values of a file, by its path without ".json"."""
        return self._read(self._folder / f"{name}.json")

    def evaluations(self, run: str) -> list[dict[str, Any]]:
        """Return the evaluations of a training, from its metrics."""
        lines = (self._folder / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == "eval"]

    def devices(self, section: str) -> list[dict[str, Any]]:
        """Return the files of results/hardware that have a section, in the order of their names."""
        names = sorted(path.stem for path in (self._folder / "hardware").glob("*.json"))
        return [found for name in names if section in (found := self(f"hardware/{name}"))]


def why(results: Results) -> str:
    """Write what the library is for, a figure each."""
    first, *_, last = results.devices("history")[0]["history"]["streaming"]
    rows = [row for device in results.devices("unrolled") for row in device["unrolled"]["rows"]]
    row = next(row for row in rows if (row["steps"], row["num_tokens"]) == (128, 16))
    compiles = times(unrolled.ratios(row[unrolled.SCAN], row[unrolled.UNROLLED])["compile"])
    counts = [results(f"{name}/evaluation")["exact_match"]["5x5"] for name in CHECKPOINTS]
    share = max(map(_share, counts))
    compared, _ = results("parity")["summary"].split(", ")
    early, late = (f"{median(row['machine'])} after {row['steps']:,}" for row in (first, last))
    return f"""- **Constant cost.** A streaming step takes {early} steps and {late}.
- **One scan.** 128 steps are one `lax.scan`, which compiles {compiles} as fast as unrolled.
- **Trained.** A shipped checkpoint multiplies five digits by five: {share:.1f} % of held-out pairs.
- **Checked** against a PyTorch twin and the authors' code: {compared}."""


def accuracy(results: Results) -> str:
    """Write exact match of the default run, mean and range of its seeds, and of the shipped checkpoints."""
    runs = seeds_of(results, "seed", SEEDS)
    shipped = [results(f"{name}/evaluation") for name in CHECKPOINTS]
    headings = ["digits", "held-out pairs", f"default run, {len(runs)} seeds", *(f"`{name}`" for name in CHECKPOINTS)]
    rows = []
    for length in LENGTHS:
        cells = [_mean(runs, length), *(_mean([found], length) for found in shipped)]
        rows.append([_name(length), f"{shipped[0]['exact_match'][length]['total']:,}", *cells])
    longer = {length: max(studies.shares(runs, length)) for length in LONGER}
    found = ", ".join(f"{_name(length)} {share:.1f} %" for length, share in longer.items())
    note = f"Of longer operands the default run has few right, at best: {found}."
    return f"{markdown_table(headings, rows)}\n\n{note}"


def memory(results: Results) -> str:
    """Write what memory is worth: exact match of the default config with it, wiped, without it, without the machine."""
    rows = []
    for label, name in MEMORY_ROWS.items():
        runs = seeds_of(results, name, MEMORY_SEEDS)
        rows.append([label, *(_mean(runs, length) for length in MEMORY_LENGTHS)])
    return markdown_table([f"{len(MEMORY_SEEDS)} seeds each", *map(_name, MEMORY_LENGTHS)], rows)


def seeds_of(results: Results, name: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Read the evaluations of a row of results/default, which have to be of these seeds, one commit and one config."""
    runs = [results(f"default/{name}-{seed}") for seed in seeds]
    origins = []
    for seed, run in zip(seeds, runs, strict=True):
        config, commit = run["training"]["config"], run["training"]["provenance"]["commit"]
        if config["train"]["seed"] != seed or run["memory_wiped"] != (name == "wiped"):
            raise FileError(f"results/default/{name}-{seed}.json: of another seed, or of another row of the table")
        origins.append((commit, {**config, "train": {**config["train"], "seed": None}}))
    if any(origin != origins[0] for origin in origins):
        raise FileError(f"results/default/{name}-*.json: of different commits or configs")
    return runs


def runs(results: Results) -> str:
    """Write the runs of the default config beside each other: time, when the marks were met, the last evaluation."""
    return compare.markdown(results("default/runs"))


def candidates(results: Results) -> str:
    """Write what was tried for the default config: difference to the first, time of a step, last evaluation."""
    lengths = ("2x2", "3x2", "3x3")
    rows = []
    for run in results("default/tried"):
        changed = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in run["changed"].items())
        shares = [run["exact_match"].get(length) for length in lengths]
        cells = ["" if counts is None else f"{_share(counts):.1f}" for counts in shares]
        step = "" if run["step_ms"] is None else f"{run['step_ms']:.0f} ms"
        rows.append([changed or "-", step, f"{run['examples']:,}", *cells])
    return markdown_table(["changed", "a step", "examples", *map(_name, lengths)], rows)


def two_commits(results: Results) -> str:
    """Write, of each seed, how far the losses of two commits come apart, and what both reach on 3 x 2."""
    found = results("quick/two_commits")
    rows = []
    for row in found["seeds"]:
        early, late = max(abs(row["relative"][step]) for step in EARLY), abs(row["relative"]["200"])
        ends = ["" if end is None else f"{_share(end):.1f}" for end in row["3x2"]]
        rows.append([str(row["seed"]), f"{early:.0e}", f"{late:.0e}", *ends])
    ends = [f"3 x 2 at `{commit[:7]}`, %" for commit in found["commits"]]
    relative = found["from_trained"]["relative"]
    note = f"From the weights of a finished run, the losses of {len(relative)} steps are apart by at most"
    table = markdown_table(["seed", "losses apart by step 100", "at step 200", *ends], rows)
    return f"{table}\n\n{note} {max(map(abs, relative)):.0e}."


def tried(results: Results) -> str:
    """Write what was trained, and what it reached, of either kind of machine step; nothing where it was not trained."""
    lengths = LENGTHS[1:]
    headings = ["", "a machine step is", "memory", "blocks", "examples", *map(_name, lengths)]
    rows = []
    for name in TRIED:
        found = results(f"{name}/evaluation")
        training = found["training"]
        model = config_from_dict(training["config"]).model
        step = {"digit": "a digit of the product", "product": "a product of two digits"}[model.schedule]
        cells = [step, str(model.memory_size), str(model.num_layers), f"{training['examples']:,}"]
        rows.append([f"[`{name}`]({name})", *cells, *(_mean([found], length) for length in lengths)])
    return markdown_table(headings, rows)


def grid(results: Results) -> str:
    """Write exact match of each shipped checkpoint on every pair of lengths, with intervals."""
    tables = []
    for name in CHECKPOINTS:
        found, sizes = results(f"{name}/evaluation"), range(1, MAX_DIGITS + 1)
        counts = {n: [found["exact_match"][f"{n}x{m}"] for m in sizes] for n in sizes}
        rows = [[str(n), *(f"{_interval(**c)} of {c['total']:,}" for c in counts[n])] for n in sizes]
        tables.append(markdown_table([f"`{name}`", *(f"x {m}" for m in sizes)], rows))
    return "\n\n".join(tables)


def digits(results: Results) -> str:
    """Write the share of the digits of products that is right, by length and place."""
    headings = ["", "digits", *(place_power(place) for place in range(2 * MAX_DIGITS))]
    rows = []
    for name, length in _looked_into(results):
        found = results(f"{name}/evaluation")["digits"][length]
        cells = [_interval(*counts) for counts in zip(found["correct"], found["total"], strict=True)]
        rows.append([f"`{name}`", _name(length), *cells, *[""] * (2 * MAX_DIGITS - len(cells))])
    return markdown_table(headings, rows)


def causes(results: Results) -> str:
    """Write wrong answers by their first wrong digit, and by whether the carry into it was right."""
    headings = ["", "digits", "wrong", "first wrong digit", *CAUSES, "carries right"]
    rows = []
    for name, length in _looked_into(results):
        row = results(f"{name}/diagnosis")["lengths"][length]
        places = [f"{place_name(place)} {count}" for place, count in enumerate(row["first_wrong_place"]) if count]
        carries = 100 * sum(row["carries"]["correct"]) / sum(row["carries"]["total"])
        cells = [f"{row['wrong']:,} of {row['pairs']:,}", ", ".join(places)]
        cells += [str(row["causes"][cause]) for cause in CAUSES]
        rows.append([f"[`{name}`]({name}/diagnosis.json)", _name(length), *cells, f"{carries:.1f} %"])
    return markdown_table(headings, rows)


def _looked_into(results: Results) -> list[tuple[str, str]]:
    """List the networks that were looked into, each with those of DIGIT_LENGTHS that it was trained on."""
    trained = {name: trained_lengths(results(f"{name}/evaluation")) for name in ("three_digits", *CHECKPOINTS)}
    return [(name, length) for name in trained for length in DIGIT_LENGTHS if length in trained[name]]


def parity(results: Results) -> str:
    """Write some rows of what `python -m parity` prints, and its last line."""
    found = results("parity")
    by_name = {(row["case"], row["what"]): row for row in found["comparisons"]}
    rows = []
    for key in PARITY_ROWS:
        row = by_name[key]
        bound = f"{'>' if row['must_be'] == 'above' else '<='} {row['bound']:.0e}" if row["bound"] else "0"
        rows.append([f"`{key[0]}`", key[1], f"{row['difference']:.1e}", bound])
    return markdown_table(["case", "compared", "difference", "bound"], rows) + f"\n\n{found['summary']}."


def training_step(results: Results) -> str:
    """Write the training step of each device: what it reaches, and what limits it."""
    rows = []
    for device in results.devices("training"):
        for row in device["training"]["rows"]:
            cells = 4 * [NOT_MEASURED]
            if "skipped" not in row:
                divided = ratio(row["alone"]["median_s"], row.get("undivided", {}).get("median_s"))
                cells = [*map(percent, [row["flops_fraction"], *training.limits(row)]), times(divided)]
            rows.append([device["name"], f"`{row['config']}`", *cells])
    headings = ["", "config", "FLOP/s, of a large product's", "nothing made again or copied", "products alone"]
    return markdown_table([*headings, "time, divided / on one device"], rows)


def batch_size(results: Results) -> str:
    """Write the best batch of each device, its throughput and memory."""
    rows = []
    for device in results.devices("batch_sizes"):
        section = device["batch_sizes"]
        config = f"`{section['config']}`, {section['num_steps']} places"
        for row in section["rows"]:
            if row["batch_size"] == section["best"]:
                cells = [str(row["batch_size"]), f"{row['examples_per_s']:.0f} examples/s", planned_memory(row)]
                rows.append([device["name"], config, *cells])
    return markdown_table(["", "config", "best batch", "throughput", "planned memory"], rows)


def unrolled_steps(results: Results) -> str:
    """Write how many times as much steps unrolled in Python take as one scan, of 16 tokens each."""
    rows = []
    for device in results.devices("unrolled"):
        for row in device["unrolled"]["rows"]:
            if row["steps"] < 32 or row["num_tokens"] != 16:
                continue
            for scan in unrolled.scans_of(row):
                found = unrolled.ratios(row[scan], row[unrolled.UNROLLED])
                policy = f'`remat="{unrolled.SCANS[scan]}"`' + (", divided" if scan in unrolled.DIVIDED else "")
                rows.append([device["name"], f"{row['steps']}", policy, *(times(found[of]) for of in unrolled.LABELS)])
    return markdown_table(["unrolled / scan", "steps", "scan", *unrolled.LABELS.values()], rows)


def history(results: Results) -> str:
    """Write a streaming step after a short and a long history, beside a causal Transformer with a key-value cache."""
    rows = []
    for device in results.devices("history"):
        found = device["history"]
        for row in (found["streaming"][0], found["streaming"][-1]):
            models = row["machine"], row["transformer"]
            cells = [cell for model in models for cell in (median(model), planned_memory(model))]
            rows.append([device["name"], f"{row['steps']:,}", *cells])
        streaming, whole = found["wins"]["streaming_time"], found["wins"]["whole_time"]
        from_steps = [f"from {streaming} steps on, streaming", "", f"from {whole} on, whole sequences", ""]
        rows.append([device["name"], "the machine takes less time", *from_steps])
    headings = ["", "after so many steps", "machine", "its memory", "Transformer", "its memory"]
    return markdown_table(headings, rows)


def text(results: Results) -> str:
    """Write what the shipped text checkpoints reach, in a sentence each."""
    found, recall = results("text/evaluation")["carried"], results("text/recall")["recall"]
    distances = ", ".join(f"{_share(counts):.0f} % over {n} segments" for n, counts in recall.items())
    return f"""The checkpoint `text` needs {found["bits_per_byte"]:.2f} bits per byte of held-out sources of Python.
`text_recall` recalls a fact of the first segment: {distances}."""


def bits_per_byte(results: Results) -> str:
    """Write bits per byte of the shipped text checkpoint on whole held-out documents."""
    found = results("text/evaluation")

    def row(name: str, value: dict[str, Any], form: str = ".3f") -> list[str]:
        low, high = value["interval_95"]
        return [name, f"{value['bits_per_byte']:{form}} ({low:{form}} to {high:{form}})"]

    rows = [row("history carried", found["carried"]), row("reset at each segment", found["reset"])]
    rows += [[name, f"{bits:.3f}"] for name, bits in found["compressors"].items()]
    rows += [row(f"lost where history is cut to {n} segments", cut, "+.3f") for n, cut in found["reach"].items()]
    for name, value in found["repeats"].items():
        what = "words that come again from beyond the windows" if name == "repeats" else "all other bytes"
        rows += [row(f"{what}: history carried", value["carried"]), row(f"{what}: cut to the windows", value["window"])]
        rows.append(row(f"{what}: what memory is worth", value["worth"], "+.3f"))
    table = markdown_table(["", "bits per byte (95 % interval)"], rows)
    return f"{table}\n\n{found['documents']} held-out files, {found['bytes']:,} bytes, of {found['corpus']}."


def configurations(results: Results) -> str:
    """Write what the text configs cost, and how many tokens a second each device trains, reads and writes."""
    rows = []
    for device in results.devices("text"):
        for row in device["text"]["rows"]:
            name = f"`{Path(row['config']).stem}`, {text_models.LABELS[row['kind']]}"
            costs = [f"{row['parameters'] / 1e6:.1f} M", scaled(row["decoding_bytes"], "B")]
            speeds = [_speed(row[form]) for form in ("training", "reading", "writing")]
            of_product = percent(row["training"].get("flops_fraction"))
            rows.append([device["name"], name, *costs, *speeds, of_product])
    headings = ["", "", "parameters", "read for a token", "trained", "read", "written", "of a large product"]
    return markdown_table(headings, rows) if rows else f"{NOT_MEASURED.capitalize()} yet."


def contexts(results: Results) -> str:
    """Write tokens a second after short and long contexts, beside a Transformer that attends to all of them."""
    rows = []
    for device in results.devices("text"):
        for row in device["text"]["contexts"]["rows"]:
            found = [row["models"][kind] for kind in text_models.LABELS]
            cells = [cell for model in found for cell in (_speed(model), scaled(model["state_bytes"], "B"))]
            rows.append([device["name"], f"{row['context']:,}", *cells])
    labels = text_models.LABELS.values()
    headings = ["", "after tokens", *(cell for label in labels for cell in (f"{label}: tokens/s", "state"))]
    return markdown_table(headings, rows) if rows else f"{NOT_MEASURED.capitalize()} yet."


def _speed(found: dict[str, Any]) -> str:
    """Write tokens a second, and of training and reading what was predicted over it."""
    if "tokens_per_s" not in found:
        return NOT_MEASURED
    speed, predicted = found["tokens_per_s"], found.get("predicted_tokens_per_s")
    return f"{speed:,.0f}" + ("" if predicted is None else f" ({times(predicted / speed)})")


def recall(results: Results) -> str:
    """Write what the shipped recall checkpoint recalls, by distance, and with its memory wiped."""
    found = results("text/recall")
    rows = [[f"{distance} segments", _interval(**counts)] for distance, counts in found["recall"].items()]
    rows.append([f"{found['segments']} segments, memory wiped", _interval(**found["wiped"])])
    return markdown_table([f"{found['facts']} fact", "recalled, % (95 % interval)"], rows)


# By page: its blocks, each between <!-- name --> and <!-- /name -->.
PAGES: dict[str, tuple[Callable[[Results], str], ...]] = {
    "README.md": (why, accuracy, text),
    "docs/parity.md": (parity,),
    "docs/training.md": (memory,),
    "docs/performance.md": (training_step, batch_size, unrolled_steps, history),
    "docs/text.md": (bits_per_byte, recall, configurations, contexts),
    "results/default/README.md": (runs, candidates),
    "results/quick_variants.md": (two_commits,),
    "results/larger_operands.md": (tried, grid, digits, causes),
}


def render(text: str, blocks: Iterable[Callable[[Results], str]], results: Results) -> str:
    """Return a page's text with its blocks as the results have them; ValueError where marks or a result are missing."""
    for block in blocks:
        try:
            text = put_block(text, block.__name__, block(results))
        except (LookupError, TypeError, StopIteration) as error:
            raise FileError(f"{block.__name__}: a file in results/ is not as it should be: {error!r}") from None
    return text


def trained_lengths(evaluation: dict[str, Any]) -> list[str]:
    """List the operand lengths that the network of an evaluation was trained on, longer operand first."""
    return studies.trained_lengths(config_from_dict(evaluation["training"]["config"]))


def _mean(runs: list[dict[str, Any]], length: str) -> str:
    """Write mean and range over runs, of one run the interval; nothing of a length that they were not trained on."""
    if length not in trained_lengths(runs[0]):
        return ""
    if len(runs) > 1:
        return mean_and_range(studies.shares(runs, length))
    return _interval(**runs[0]["exact_match"][length])


def _share(counts: dict[str, int]) -> float:
    """Return the share in percent."""
    return 100 * counts["correct"] / counts["total"]


def _interval(correct: int, total: int) -> str:
    low, high = wilson_interval(correct, total)
    return f"{100 * correct / total:.1f} ({100 * low:.1f} - {100 * high:.1f})"


def _name(length: str) -> str:
    return length.replace("x", " x ")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m ttm_jax.pages",
        description="Writes the figures of README.md, docs/ and results/ from the files in results/.",
        epilog="example: python -m ttm_jax.pages --check\n\n"
        "exit status: 0 done, 1 a table is not what results/ say, 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (the current folder)")
    parser.add_argument("--check", action="store_true", help="write nothing; name the pages that are not up to date")
    args = parser.parse_args(argv)
    results, new = Results(args.root / "results"), {}
    for name, blocks in PAGES.items():
        page = args.root / name
        try:
            new[page] = render(page.read_text(encoding="utf-8"), blocks, results)
        except OSError as error:
            return fail(parser, f"{page}: {error.strerror}; --root names the checkout")
        except ValueError as error:
            return fail(parser, f"{page}: {error}")
    changed = write_changed(new, args.check)
    for page in changed:
        print(f"{'not up to date' if args.check else 'written'}: {page.relative_to(args.root)}")
    return 1 if args.check and changed else 0
