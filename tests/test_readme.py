"""The README says what is so: its table is that of the results, its code runs, its commands exist."""

import importlib
import importlib.util
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

from parity.speed.cases import OTHER_FORMS
from parity.speed.report import best_torch
from ttm_jax import ablations
from ttm_jax.benchmarks import training, unrolled
from ttm_jax.benchmarks.report import median, peak, percent, scaled, times

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = README.split("## Benchmarks")[1]
BENCHMARKS_WORDS = " ".join(BENCHMARKS.split())
# Files of results/hardware.
XEON, EPYC = "intel-r-xeon-r-processor-family-6-model-207-2-cores", "amd-epyc-family-25-model-1-2-cores"
EPYC_512 = "amd-epyc-2-cores"
PAGES = [
    ROOT / "README.md",
    ROOT / "hardware_choice.md",
    ROOT / "docs/training.md",
    *sorted(ROOT.glob("configs/*.toml")),
]


def test_the_table_is_that_of_the_results():
    names = ("quick", "multiplication", "five_digits")
    results = [json.loads((ROOT / f"results/{name}/evaluation.json").read_text()) for name in names]
    rows = [line.strip("| ").split(" | ") for line in re.findall(r"^\| \d x \d \|.*$", README, re.MULTILINE)]
    assert len(rows) == 13
    for digits, pairs, *cells in rows:
        length = digits.replace(" ", "")
        for result, found in zip(results, cells, strict=True):
            counts, interval = result["exact_match"][length], result["interval_95"][length]
            share = f"{100 * counts['correct'] / counts['total']:.1f} %"
            assert found == f"{share} ({' - '.join(f'{100 * bound:.1f}' for bound in interval)})"
            assert pairs == f"{counts['total']:,}"


def test_the_marks_are_met_by_the_results():
    result = json.loads((ROOT / "results/quick/evaluation.json").read_text())
    for length, mark in {"1x1": 0.95, "2x1": 0.90, "2x2": 0.85, "3x2": 0.80}.items():
        counts = result["exact_match"][length]
        assert counts["correct"] / counts["total"] > mark


def test_the_run_in_pytorch_is_that_of_the_results():
    result = json.loads((ROOT / "results/quick-torch/evaluation.json").read_text())
    shares = [
        f"{100 * counts['correct'] / counts['total']:.1f} %"
        for counts in map(result["exact_match"].get, ("2x2", "3x2"))
    ]
    assert f"reaches {shares[0]} on 2 x 2 and {shares[1]} on 3 x 2" in README
    assert result["provenance"]["commit"][:7] in README


def test_the_parity_table_is_that_of_the_results():
    result = json.loads((ROOT / "results/parity.json").read_text())
    found = {(row["case"], row["what"]): row for row in result["comparisons"]}
    blocks = re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if block.startswith("case "))
    _, *rows, dots, summary = block.splitlines()
    assert (dots, summary) == ("...", result["summary"])
    for line in rows:
        case, what, difference, bound, ok = re.split(r"\s{2,}", line)
        row = found[case, what]
        sign, _, limit = bound.rpartition(" ")
        assert difference == f"{row['difference']:.1e}", line
        assert (sign, float(limit)) == (
            ">" if row["must_be"] == "above" else "<=" if row["bound"] else "",
            row["bound"],
        )
        assert ok == ("yes" if row["ok"] else "NO")


def test_the_training_step_is_that_of_the_results():
    """Both devices' cells, worked out from the files that hardware_choice.md is written from."""
    columns = []
    for result in (hardware(XEON), hardware(EPYC)):
        rows, batches = result["training"]["rows"], result["batch_sizes"]
        assert [row["config"] for row in rows] == ["quick", "three_digits"]
        best = next(row for row in batches["rows"] if row["batch_size"] == batches["best"])
        notes = training.notes(result["training"])
        limits = [re.search(r"it would be at (.*); were .* at (.*)\.$", note).groups() for note in notes]
        cells = [
            [percent(row["flops_fraction"]) for row in rows],
            [times(row["alone"]["median_s"] / row["undivided"]["median_s"]) for row in rows],
            *zip(*limits, strict=True),
            [str(best["batch_size"]), f"{best['examples_per_s']:.0f} examples/s", peak(best["memory"])],
        ]
        columns.append([", ".join(cell) for cell in cells])
        assert result["training"]["provenance"]["commit"][:7] in BENCHMARKS
        assert result["batch_sizes"]["provenance"]["commit"] == result["training"]["provenance"]["commit"]
    assert "| | Intel Xeon | AMD EPYC |" in BENCHMARKS
    epyc = hardware(EPYC)
    measured = (epyc["batch_sizes"], epyc["training"]["rows"][-1])
    slow, fast = (scaled(found["ceiling_flops_per_s"], "FLOP/s") for found in measured)
    assert f"it reached {slow} in the large product, and {fast} beside the training step" in BENCHMARKS
    found = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \|$", BENCHMARKS, re.MULTILINE)
    assert found == list(zip(*columns, strict=True))
    at_most = sorted(re.findall(r"[\d.]+", " ".join(column[2] for column in columns)), key=float)
    assert f"a step would be at {at_most[0]} to {at_most[-1]} %." in BENCHMARKS_WORDS


def test_long_histories_are_those_of_the_results():
    history, many = hardware(EPYC)["history"], hardware(EPYC_512)["unrolled"]
    first, last, wins = history["streaming"][0], history["streaming"][-1], history["wins"]
    compiling, step, memory = (times(ratio) for ratio in against_scan(EPYC_512, 128, 16).values())
    assert against_scan(EPYC_512, 32, 16)["step"] > 1, "there the scan was the faster over 32 steps, too"
    assert (first["steps"], last["steps"]) == (10, 100_000)
    cells = [
        f"{median(first['machine'])} and {median(last['machine'])}",
        f"{median(first['transformer'])} and {median(last['transformer'])}",
        f"{peak(last['machine']['memory'])} and {peak(last['transformer']['memory'])}",
        f"from {wins['streaming_time']} steps on streaming, "
        f"from {wins['whole_time']} (of those measured) on over whole sequences",
        f"{compiling} the time to compile, {step} a training step, {memory} the temporary memory",
    ]
    assert re.findall(r"^\| [^|]+ \| ([^|]+) \|$", BENCHMARKS, re.MULTILINE) == cells
    for section in (history, many):
        assert section["provenance"]["commit"][:7] in BENCHMARKS


def test_the_policies_beside_unrolled_steps_are_those_of_the_results():
    both = [hardware(name)["unrolled"] for name in (XEON, EPYC)]
    assert both[0]["provenance"]["commit"][:7] in BENCHMARKS
    row = unrolled_row(XEON, 32, 16)
    pattern = r'^\| `remat="(\w+)"`.*?(, divided)? \| (.*) \| (.*) \| (.*) \|$'
    rows = {(policy, bool(divided)): cells for policy, divided, *cells in re.findall(pattern, README, re.M)}
    assert len(rows) == len(unrolled.SCANS)
    for scan, policy in unrolled.SCANS.items():
        found = unrolled.ratios(row[scan], row["unrolled"])
        assert rows[policy, scan in unrolled.DIVIDED] == [times(found[of]) for of in unrolled.LABELS]
    limits = r"compute is (.*) of the operations.* would be (.*)\. The products.*does, (.*)\.$"
    xeon, epyc = (re.search(limits, note).groups() for section in both for note in unrolled.notes(section))
    assert f"what any form has to compute is {xeon[0]} of what the scan does on the Xeon" in BENCHMARKS_WORDS
    assert (
        f"nothing copied, its step would be {xeon[1]}; were the products of both passes all that it does, {xeon[2]}."
        in BENCHMARKS_WORDS
    )
    limits_there = f"On the EPYC these are {epyc[0]}, {epyc[1]} and {epyc[2]}: there 1.5x is more than the products"
    assert limits_there in BENCHMARKS_WORDS
    assert float(epyc[2].rstrip("x")) < 1.5
    few, many = ([against_scan(name, 32, tokens)["step"] for name in (XEON, EPYC)] for tokens in (16, 3136))
    assert max(few) < 1, "the unrolled steps are the faster with 16 tokens"
    faster = f"with 3136 the scan is, {times(many[0])} as fast on the Xeon and {times(many[1])} on the EPYC."
    assert faster in BENCHMARKS_WORDS


def test_the_ratios_before_steps_were_divided_are_those_of_the_results():
    result = json.loads((ROOT / "results/speed/amd-epyc-family-25-model-1/cpu.json").read_text())
    cases = {case["name"]: case["variants"][best_torch(case)] for case in result["cases"]}
    first, second = (cases[f"{name}/float32/train"]["ratio"]["median"] for name in ("quick/6", "three_digits/7"))
    assert f"their ratios were {first:.2f} and {second:.2f} ([commit `{result['commit'][:7]}`]" in " ".join(
        README.split()
    )


def test_the_ratios_on_the_other_processor_are_those_of_its_results():
    result = json.loads((ROOT / "results/speed/avx-512/cpu.json").read_text())
    cases = {case["name"]: case["variants"] for case in result["cases"]}
    best = {case["name"]: case["variants"][best_torch(case)] for case in result["cases"]}
    names = (
        *("quick/6/float32/train", "three_digits/11/float32/train", "paper-16/64/float32/train"),
        *("three_digits/11/float32/forward", "three_digits/1/float32/stream"),
    )
    words = re.search("<!-- speed with AVX-512 -->(.*)<!-- /speed with AVX-512 -->", README, re.DOTALL)[1]
    assert re.findall(r"\d\.\d\d", words) == [f"{best[name]['ratio']['median']:.2f}" for name in names]
    small = cases["small-16/64/float32/train"]
    assert f"took {small['jax']['first_call_s']:.1f} s to the end of the first call" in README
    assert {small[form]["failed"] for form in OTHER_FORMS[1:]} == {"first calls: did not end in 100 s"}
    assert result["commit"][:7] in README


def hardware(name):
    return json.loads((ROOT / f"results/hardware/{name}.json").read_text())


def unrolled_row(name, steps, num_tokens):
    """Of a file of results/hardware, the scans and the unrolled form of one size."""
    rows = hardware(name)["unrolled"]["rows"]
    (row,) = (row for row in rows if (row["steps"], row["num_tokens"]) == (steps, num_tokens))
    return row


def against_scan(name, steps, num_tokens):
    row = unrolled_row(name, steps, num_tokens)
    return unrolled.ratios(row["scan"], row["unrolled"])


@pytest.mark.parametrize("name", ["Classifier", "TorchClassifier"])
def test_the_model_of_ones_own_runs(name):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = (block for block in blocks if f"class {name}(" in block)
    names = {}
    exec(code, names)  # our own README
    assert names["logits"].shape == (2, 8, 10)
    assert names["memory"].shape == (2, 96, 128)


def documented_flags():
    """Of each command that is written in a page or a config: every flag that is shown with it."""
    flags = {}
    for path in PAGES:
        text = path.read_text(encoding="utf-8").replace("\n#", "\n")
        for module, arguments in re.findall(r"python -m ((?:ttm_jax|ttm_torch|parity)[\w.]*)([^`\n]*)", text):
            flags.setdefault(module, set()).update(re.findall(r"(?<!\S)--[\w.-]*\w", arguments.partition("#")[0]))
    return flags


@pytest.mark.parametrize("module", documented_flags())
def test_commands_have_the_flags_that_are_shown(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    command = importlib.import_module(module)
    if hasattr(command, "__path__"):
        command = importlib.import_module(f"{module}.__main__")
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 0
    assert documented_flags()[module] <= set(re.findall(r"--[\w.-]*\w", capsys.readouterr().out))


def test_the_other_commands_exist():
    for module in set(re.findall(r"python -m (\w+)", README)):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_ablations_are_those_of_the_results():
    results = ablations.Results(ROOT / "results")
    results.load()
    section = README.split("## What each part is worth")[1].split("\n## ")[0]
    rows = {
        name: cells for name, *cells in re.findall(r"^\| (.*) \| ([\d,]+) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    }
    assert list(rows) == list(results.rows())
    for name, runs in results.rows().items():
        parameters, *cells = rows[name]
        assert len(runs) == 3
        assert parameters == f"{runs[0]['parameters']:,}"
        for length, cell in zip(("2x2", "3x2"), cells, strict=True):
            found = ablations.shares(runs, length)
            assert cell == f"{statistics.mean(found):.1f} ({min(found):.1f} - {max(found):.1f})", name
    assert (ROOT / "results/ablations.md").read_text() == ablations.markdown(results.rows())
