"""The measurements at tiny sizes, the command, and the page against the committed results."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ttm_jax import TokenTuringMachine, measure_flops
from ttm_jax.cli import Progress, show_progress
from ttm_jax.files import FileError
from ttm_jax.measure import (
    batch_sizes,
    benchmark,
    history,
    operations,
    page,
    program,
    remat,
    results,
    text,
    unrolled,
)
from ttm_jax.measure.ceilings import CeilingSizes
from ttm_jax.measure.report import Table, digits, quartiles, scaled
from ttm_jax.measure.results import SECTIONS, describe, load_results, result_path, section_of
from ttm_jax.multiplication.model import TTMModel
from ttm_jax.tasks import config_from_dict, make_objective

ROOT = Path(__file__).parents[3]
PAGE, RESULTS = ROOT / "hardware_choice.md", ROOT / "results/hardware"
of_a_machine = pytest.mark.skipif(not RESULTS.exists(), reason="no machine has been measured yet")
CEILING = CeilingSizes(16, 4096)
CHEAP = dict(memory_size=6, process_size=2, num_layers=1, mlp_dim=8, processing="mlp")
SOME_SCANS = {name: unrolled.SCANS[name] for name in ("scan", "scan, full", "scan, divided")}
SCENIC = TokenTuringMachine(**CHEAP, compat="scenic")


@pytest.fixture(scope="module")
def config(tiny_config):
    """Cheaper still to compile: no dropout, no carry head, nothing recomputed."""
    model = dataclasses.replace(tiny_config.model, dropout_rate=0.0, carry_head=False, remat="none")
    return dataclasses.replace(tiny_config, model=model)


def measured(module, **sizes):
    """A section, and the progress that was told; the fewest calls that are made."""
    progress = Progress()
    device = jax.devices()[0]
    section = section_of(device, True, module.measure(device, progress, **sizes, budget_s=0.0))
    assert progress.begun == progress.planned > 0 or module is batch_sizes
    return json.loads(json.dumps(section))


TEXT = """
task = "text"
[model]
width = 8
segment = 4
lower_layers = 1
upper_layers = 1
mlp_dim = 8
num_heads = 2
memory_size = 3
process_size = 2
[data]
batch_size = 2
segments = 2
"""


@pytest.fixture(scope="module")
def sections(config, tmp_path_factory):
    tiny = tmp_path_factory.mktemp("text") / "tiny.toml"
    tiny.write_text(TEXT)
    sizes = operations.Sizes(product=8, sequences=3, batch_size=2, num_tokens=5, num_steps=2)
    return {
        "operations": measured(operations, sizes=sizes, config=config, ceiling=CEILING),
        # test_benchmark_training.py measures it
        "training": next(result["training"] for result in load_results(RESULTS) if "training" in result),
        "batch_sizes": measured(batch_sizes, config=config, batch_sizes=(2,), ceiling=CEILING),
        "history": measured(history, sizes=history.Sizes(2, 3, config.model), lengths=(4, 2)),
        "unrolled": measured(unrolled, cases=[unrolled.Case(2, 4, 16)], machine=SCENIC, width=16, scans=SOME_SCANS),
        "remat": measured(
            remat, shapes=[(2, 3, 4, 16)], machine=TokenTuringMachine(**CHEAP, read="pooling", write="concat")
        ),
        "text": measured(text, configs=[str(tiny)], contexts=(4, 70), largest=2**17, ceiling=CEILING),
    }


@pytest.fixture(scope="module")
def result(sections):
    """All of a device, with a second batch size."""
    copied = json.loads(json.dumps(sections))
    row = copied["batch_sizes"]["rows"][0]
    copied["batch_sizes"] |= {"rows": [row, {**row, "batch_size": 4, "examples_per_s": 2 * row["examples_per_s"]}]}
    copied["batch_sizes"]["best"] = 4
    return {**describe(jax.devices()[0]), **copied}


def by_name(section):
    return {row["name"]: row for row in section["rows"]}


def test_every_operation_is_measured(sections):
    assert list(by_name(sections["operations"])) == [
        *("empty call", "matrix product", "token embedding", "Transformer forward"),
        *("read", "process", "write", "whole step", "train step", "multiplier", "multiplier train"),
    ]
    for row in sections["operations"]["rows"]:
        assert 0 < row["quartile_1_s"] <= row["median_s"] <= row["quartile_3_s"]
        assert row["calls"] >= 5
        assert row["compile_s"] > 0
        assert row["memory"]["peak"] > 0


def test_rates_are_closed_forms_over_medians(sections, config):
    section, rows = sections["operations"], by_name(sections["operations"])
    ceilings = section["ceilings"]
    assert ceilings["flops_per_s"] == pytest.approx(2 * 16**3 / ceilings["product"]["median_s"])
    assert ceilings["bytes_per_s"] == pytest.approx(2 * 4096 / ceilings["copy"]["median_s"])
    assert rows["matrix product"]["flops"] == 2 * 8**3
    assert rows["matrix product"]["bytes"] == 3 * 4 * 8**2
    assert rows["token embedding"]["bytes"] == 4 * (3 * 12 + 13 * 16 + 3 * 12 * 16)
    parts = sum(rows[name]["flops"] for name in ("read", "process", "write"))
    assert rows["whole step"]["flops"] == parts > 0
    assert rows["train step"]["flops"] == 3 * 2 * rows["whole step"]["flops"]
    assert rows["multiplier"]["flops"] == measure_flops(TTMModel(config.model), (2, 12))
    places = 5  # of a product of two digits by two, EOS included
    assert rows["multiplier train"]["flops"] == 3 * rows["multiplier"]["flops"] * places // 12
    for row in rows.values():
        assert row["flops_per_s"] == pytest.approx(row["flops"] / row["median_s"])
        assert row["flops_fraction"] == pytest.approx(row["flops_per_s"] / ceilings["flops_per_s"])
        assert row["bytes_fraction"] == pytest.approx(row["bytes"] / row["median_s"] / ceilings["bytes_per_s"])


def test_the_first_three_have_a_thousand_calls(sections):
    calls = {row["name"]: row["calls"] for row in sections["operations"]["rows"]}
    for name in ("matrix product", "token embedding", "Transformer forward"):
        assert calls.pop(name) == 1000
    assert set(calls.values()) == {5}, "the fewest, of those that have a budget of no time"


def test_throughput_by_batch_size(sections):
    section = sections["batch_sizes"]
    (row,) = section["rows"]
    assert row["examples_per_s"] == pytest.approx(2 / row["median_s"])
    assert (section["best"], section["memory_size"]) == (2, 4)
    assert section["num_steps"] == 5


@pytest.mark.parametrize(("rates", "best"), [([10, 20, 20.5], 20), ([10, 20, 30], 30), ([30, 20, 10], 10)])
def test_the_best_batch_is_the_smallest_near_the_highest_throughput(rates, best):
    rows = [{"batch_size": size, "examples_per_s": rate} for size, rate in zip((10, 20, 30), rates, strict=True)]
    assert batch_sizes.best_batch(rows) == best


def test_no_batch_may_fit(config, monkeypatch, result):
    monkeypatch.setattr(program, "too_large", too_large_after(0))
    section = measured(batch_sizes, config=config, batch_sizes=(2,), ceiling=CEILING)
    assert (section["best"], section["rows"]) == (None, [])
    (row,) = page.devices([{**result, "batch_sizes": section}], Path("r")).splitlines()[2:]
    assert row.split(" | ")[3] == "not measured"


def test_both_models_at_each_length_in_order(sections):
    section = sections["history"]
    for form in ("streaming", "whole"):
        assert [row["steps"] for row in section[form]] == [2, 4]
    machine, transformer = ([row[name] for row in section["streaming"]] for name in ("machine", "transformer"))
    assert machine[0]["memory"] == machine[1]["memory"]
    assert machine[0]["flops"] == machine[1]["flops"]
    assert transformer[1]["flops"] > transformer[0]["flops"]
    grown = transformer[1]["memory"]["arguments"] - transformer[0]["memory"]["arguments"]
    assert grown == 2 * 3 * 2 * 1 * 2 * 16 * 4  # steps x tokens x batch x layers x keys and values x width x bytes
    whole = section["whole"]
    assert whole[1]["machine"]["flops"] == 2 * whole[0]["machine"]["flops"] == 4 * machine[0]["flops"]


def test_the_machine_has_made_the_steps(config):
    """The memory that is timed after n steps is that of n steps, not of fewer."""
    models = history.Models(history.Sizes(2, 3, config.model))
    first = models.memory_BxMxD
    models.advance(5)
    five = models.memory_BxMxD
    models.memory_BxMxD, models.steps = first, 1
    models.advance(3)
    three = models.memory_BxMxD
    models.advance(5)
    np.testing.assert_allclose(models.memory_BxMxD, five, rtol=1e-5)
    assert np.abs(three - five).max() > 1e-3


def rows_of(*costs):
    return [
        {
            "steps": 10**i,
            **{
                name: {"skipped": "no"} if cost is None else {"median_s": cost}
                for name, cost in zip(("machine", "transformer"), pair, strict=True)
            },
        }
        for i, pair in enumerate(costs)
    ]


@pytest.mark.parametrize(
    ("costs", "first"),
    [
        ([(2, 1), (2, 3), (2, 9)], 10),
        ([(2, 3), (2, 1), (2, 9)], 100),
        ([(2, 3), (2, 3)], 1),
        ([(2, 1), (2, 1)], None),
        ([(2, 2)], None),
        ([(2, 3), (2, None), (None, 1)], 1),
    ],
)
def test_the_machine_wins_from_where_it_wins_for_good(costs, first):
    assert history.wins_from(rows_of(*costs), lambda cost: cost["median_s"]) == first


def test_what_would_take_too_long_is_not_run():
    shorter = [{"transformer": {"median_s": 2.0, "flops": 10}}]
    assert history.too_long("transformer", 100, [], 1.0) is None
    assert history.too_long("transformer", 100, shorter, 20.0) is None
    reason = history.too_long("transformer", 100, shorter, 19.0)
    assert reason == "would take about 20 s"
    skipped = {"transformer": {"skipped": reason}}
    assert history.too_long("transformer", 1000, [*shorter, skipped], 19.0) == "would take about 200 s"
    assert history.too_long("transformer", 1000, [skipped], 19.0) is None


def test_what_does_not_fit_is_not_run(monkeypatch):
    monkeypatch.setattr(program, "free_memory", lambda device: 1000)
    compiled = SimpleNamespace(memory={"peak": 900})
    assert program.too_large(compiled, None) is None
    compiled.memory["peak"] = 901
    assert program.too_large(compiled, None) == "takes 901 B, 1 kB are free"
    assert program.too_large(SimpleNamespace(memory=None), None) is None


def test_what_was_not_run_is_said(sections):
    section = json.loads(json.dumps(sections["history"]))
    section["streaming"][1]["transformer"] = {"skipped": "takes 9 GB, 1 GB are free"}
    row = history.tables(section)[0].rows[1]
    assert row[2:4] == ["not run: takes 9 GB, 1 GB are free", "-"]


def too_large_after(fitting):
    """In place of `program.too_large`: so many programs fit, all later ones do not."""
    answers = iter([None] * fitting)
    return lambda program, device: next(answers, "takes 9 GB, 1 GB are free")


def test_operations_that_do_not_fit_are_not_run(config, monkeypatch, result):
    monkeypatch.setattr(program, "too_large", too_large_after(2))
    sizes = operations.Sizes(product=8, sequences=3, batch_size=2, num_tokens=5, num_steps=2)
    section = measured(operations, sizes=sizes, config=config, ceiling=CEILING)
    assert ["median_s" in row for row in section["rows"]] == [True, True, *[False] * 9]
    _, calls, rates = operations.tables(section)
    assert calls.rows[2][:3] == ["token embedding, 3 x 12", "not run: takes 9 GB, 1 GB are free", "-"]
    assert [row[0] for row in rates.rows] == ["matrix product, 8 x 8"]
    assert "| token embedding, 3 x 12 | not run: " in page.render_device({**result, "operations": section})


def test_policies_that_do_not_fit_are_not_run(monkeypatch):
    machine = TokenTuringMachine(**CHEAP, read="pooling", write="concat")
    monkeypatch.setattr(program, "too_large", too_large_after(1))
    section = measured(remat, shapes=[(2, 3, 4, 16), (2, 3, 4, 16)], machine=machine)
    one, none = remat.tables(section)
    assert [row[2].startswith("not run: ") for row in one.rows] == [False, True, True, True]
    assert [row[3] for row in none.rows] == ["-"] * 4


@pytest.mark.parametrize("compat", [None, "scenic"])
def test_unrolled_is_the_same_arithmetic(random_params, normal, compat):
    machine = SCENIC.clone(compat=compat)
    tokens_BxTxNxD = normal(0, 2, 3, 4, 16)
    variables = {"params": random_params(machine, tokens_BxTxNxD)}
    scanned = jax.jit(machine.apply)(variables, tokens_BxTxNxD)
    unrolled_ = jax.jit(unrolled.Unrolled(machine).apply)(variables, tokens_BxTxNxD)
    for ours, theirs in zip(scanned, unrolled_, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_ratios_are_unrolled_over_scan(sections):
    (row,) = sections["unrolled"]["rows"]
    assert unrolled.scans_of(row) == list(SOME_SCANS)
    other = row["unrolled"]
    for name in unrolled.scans_of(row):
        scan, found = row[name], unrolled.ratios(row[name], other)
        assert found["compile"] == pytest.approx(other["compile_s"] / scan["compile_s"])
        assert found["step"] == pytest.approx(other["median_s"] / scan["median_s"])
        assert found["temporary"] == pytest.approx(other["memory"]["temporary"] / scan["memory"]["temporary"])
        assert scan["calls"] == other["calls"]
    assert row["scan, full"]["memory"]["temporary"] < row["scan"]["memory"]["temporary"]


def test_how_much_more_the_unrolled_steps_take_is_shown(sections):
    section = json.loads(json.dumps(sections["unrolled"]))
    (row,) = section["rows"]
    row["unrolled"] |= {"compile_s": 24.0, "median_s": 1.2}
    row["scan"] |= {"compile_s": 2.0, "median_s": 1.0, "memory": None}
    _, compared = unrolled.tables(section)
    assert compared.rows[0][2:] == ["12x", "1.2x", "not measured"]


def test_a_result_without_other_policies_is_shown(sections):
    """As files of earlier versions have it."""
    section = json.loads(json.dumps(sections["unrolled"]))
    (row,) = section["rows"]
    row.update(steps=32, num_tokens=16)
    for name in unrolled.scans_of(row)[1:]:
        del row[name]
    shown, compared = unrolled.tables(section)
    assert [cells[1] for cells in shown.rows] == ["scan", "unrolled"]
    assert [cells[1] for cells in compared.rows] == ["scan"]


@pytest.mark.parametrize("steps", [[7], [7, 2]])
def test_the_numbers_of_steps_can_be_chosen(steps, monkeypatch, capsys, tmp_path):
    asked = []

    def measure(device, progress, cases):
        asked.extend(cases)
        raise FileError("enough")

    monkeypatch.setattr(unrolled, "measure", measure)
    assert benchmark.main(["--against-unrolled", "--out", str(tmp_path), "--steps", *map(str, steps)]) == 2
    assert [(case.steps, case.num_tokens) for case in asked] == [(T, N) for T in steps for N in (16, 3136)]
    assert "enough" in capsys.readouterr().err


def test_every_policy_is_measured(sections):
    (measured,) = sections["remat"]["shapes"]
    assert [row["policy"] for row in measured["rows"]] == ["none", "full", "dots", "deep_dots"]
    assert [row[0] for row in remat.tables(sections["remat"])[0].rows] == [
        "none",
        "full",
        "dots (default)",
        "deep_dots",
    ]


def test_both_kinds_of_a_text_config(sections):
    """Figures are in proportion: what is known in closed form, over what was timed."""
    section = sections["text"]
    tokens = {"training": 2 * 2 * 4, "reading": text.WINDOW * 4, "writing": 4}
    assert [row["kind"] for row in section["rows"]] == ["transformer", "ttm"]
    for row in section["rows"]:
        for form, number in tokens.items():
            assert row[form]["tokens_per_s"] == pytest.approx(number / row[form]["median_s"])
            assert row[form]["predicted_tokens_per_s"] > 0
        fraction = row["training_flops"] * row["training"]["tokens_per_s"] / section["ceiling_flops_per_s"]
        assert row["training"]["flops_fraction"] == pytest.approx(fraction)
    first, last = (row["models"] for row in section["contexts"]["rows"])
    for kind in text.KINDS:
        assert first[kind]["state_bytes"] == last[kind]["state_bytes"]
    assert last[text.FULL]["state_bytes"] - first[text.FULL]["state_bytes"] == (70 - 4) * 3 * 2 * 8 * 4


def test_a_call_of_writing_has_one_step_of_the_machine():
    objective = make_objective(config_from_dict(tomllib.loads(TEXT)))
    variables = text._variables(objective)
    place = text._place_after(objective, variables, 12)
    assert int(place.tokens) == 2
    assert bool(place.state.began.all())
    _, _, after = text._writing(objective, variables, place)()
    assert int(after.tokens) == 2
    assert not np.array_equal(after.state.memory, place.state.memory)


def test_bandwidth_is_that_of_the_sizes_next_to_it():
    ladder = [{"bytes": 100, "bytes_per_s": 8.0}, {"bytes": 10_000, "bytes_per_s": 2.0}]
    rates = [text.bandwidth(ladder, size) for size in (10, 100, 1000, 10_000, 10**6)]
    assert rates == pytest.approx([8, 8, 4, 2, 2])


def test_the_first_cache_that_holds_it():
    caches = [
        {"level": 1, "kind": "instruction", "bytes": 900},
        {"level": 3, "kind": "unified", "bytes": 500},
        {"level": 1, "kind": "data", "bytes": 10},
    ]
    assert [text.fits(caches, size) for size in (10, 11, 501)] == ["L1", "L3", "none"]


def test_text_takes_language_models_alone(capsys):
    assert benchmark.main(["--text", "default"]) == 2
    assert "config default: no language model" in capsys.readouterr().err


def test_a_backend_that_plans_no_memory_is_shown_as_not_measured(sections):
    section = json.loads(json.dumps(sections))
    for row in [
        *section["remat"]["shapes"][0]["rows"],
        *section["operations"]["rows"],
        *section["batch_sizes"]["rows"],
    ]:
        row["memory"] = None
    for key in ("remat", "operations", "batch_sizes"):
        shown = "\n".join(table.to_markdown() for table in SECTIONS[key].tables(section[key]))
        assert "not measured" in shown


def test_a_figure_of_what_there_is(sections, tmp_path):
    section = json.loads(json.dumps(sections["history"]))
    for row in section["whole"]:
        row["transformer"] = {"skipped": "takes too much"}
        row["machine"]["memory"] = None
    history.draw(section, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_where_a_section_comes_from(sections):
    for section in (section for key, section in sections.items() if key != "training"):
        origin = section["provenance"]
        assert {"commit", "jax", "python", "machine", "date", "command", "device"} <= origin.keys()
        assert section["quick"] is True


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.2345e-3, "s", "1.23 ms"),
        (9.999e-4, "s", "1 ms"),
        (4e-10, "s", "0.4 ns"),
        (0.0, "s", "0 ns"),
        (71.84, "s", "71.8 s"),
        (1530.0, "s", "1,530 s"),
        (263.27e9, "FLOP/s", "263 GFLOP/s"),
        (999.7e6, "B", "1 GB"),
        (12.0, "B", "12 B"),
        (0.5, "B", "0.5 B"),
        (None, "B", "not measured"),
    ],
)
def test_quantities(value, unit, text):
    assert scaled(value, unit) == text


def test_numbers_have_three_digits_and_no_powers():
    assert [digits(x) for x in (0, 1234.5, 99.96, 0.0000123, 0.5)] == ["0", "1,234", "100", "0.0000123", "0.5"]


def test_quartiles_share_their_unit():
    assert quartiles({"quartile_1_s": 1e-3, "quartile_3_s": 2e-3}) == "1 - 2 ms"
    assert quartiles({"quartile_1_s": 9e-4, "quartile_3_s": 2e-3}) == "900 µs - 2 ms"


def test_a_table_as_markdown():
    assert Table("t", ["a", "b"], [["1", "2"]]).to_markdown().splitlines() == [
        *("**t**", "", "| a | b |", "|---|---:|", "| 1 | 2 |")
    ]


# The command. What it measures is put in the place of the measurements.


@pytest.fixture
def run(sections, capsys, monkeypatch, tmp_path):
    """`run(*arguments)`: exit code, stdout, stderr; in an empty folder, with measurements that are done already."""

    def fake(key):
        def measure(device, progress, **options):
            return {name: value for name, value in sections[key].items() if name not in ("quick", "provenance")}

        module = SECTIONS[key]
        return SimpleNamespace(**vars(module) | {"measure": measure, "QUICK": {}})

    for module in (results, page):
        monkeypatch.setattr(module, "SECTIONS", {key: fake(key) for key in SECTIONS})
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        try:
            code = benchmark.main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return call


def test_a_run_writes_the_file_of_its_device(run, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    (path,) = (tmp_path / "results/hardware").iterdir()
    written = json.loads(path.read_text())
    assert written["operations"]["quick"] is False
    assert "caches" in out
    assert "Transformer forward" in out
    assert f"written: results/hardware/{path.name}" in out


def test_sections_are_added_to_the_file_in_order(run, tmp_path):
    for flag in ("--text", "--remat", "--history", "--training", "--batch-sizes", "--against-unrolled"):
        assert run(flag, "--out", "r")[0] == 0
    assert run("--out", "r")[0] == 0
    (path,) = (tmp_path / "r").glob("*.json")
    assert [key for key in json.loads(path.read_text()) if key in SECTIONS] == list(SECTIONS)
    assert [p.name for p in (tmp_path / "r").glob("*.png")] == [f"{path.stem}-history.png"]
    assert not list((tmp_path / "r").glob("*.tmp"))


def test_a_quick_run_writes_nothing_unless_told_where(run, tmp_path):
    assert run("--quick")[0] == 0
    assert not list(tmp_path.iterdir())
    assert run("--quick", "--out", "r")[0] == 0
    (path,) = (tmp_path / "r").iterdir()
    assert json.loads(path.read_text())["operations"]["quick"] is True


def test_results_of_another_machine_are_not_mixed(run, tmp_path):
    """Processors of several generations have one name."""
    run("--remat", "--out", "r")
    (path,) = (tmp_path / "r").glob("*.json")
    result = json.loads(path.read_text())
    result["machine"]["instruction_sets"] = ["other"]
    path.write_text(json.dumps(result))
    code, out, err = run("--remat", "--out", "r")
    assert (code, out) == (2, "")
    assert f"{Path('r') / path.name}: of another machine, which differs in instruction_sets; name another folder" in err
    assert json.loads(path.read_text()) == result


def test_a_device_of_which_little_was_measured_comes_last(result, tmp_path):
    little = {name: value for name, value in result.items() if name not in SECTIONS or name == "remat"}
    for device in (result | {"name": "b"}, little | {"name": "a"}):
        result_path(tmp_path, device["name"]).write_text(json.dumps(device))
    both = load_results(tmp_path)
    assert [device["name"] for device in both] == ["b", "a"]
    text = page.devices(both, Path("r"))
    assert "| [a](r/a.md) | not measured | not measured | not measured | not measured |" in text


def test_json_is_one_object(run):
    code, out, _ = run("--quick", "--remat", "--json")
    (shown,) = json.loads(out).values()
    assert code == 0
    assert shown["remat"]["shapes"][0]["rows"][0]["policy"] == "none"
    assert shown["machine"]["processor"]


def test_the_page_is_written_between_its_markers(run, tmp_path):
    (tmp_path / "hardware_choice.md").write_text("before\n<!-- devices -->\nold\n<!-- /devices -->\nafter\n")
    for flag in ("--batch-sizes", "--history"):
        run(flag)
    code, out, _ = run("--page")
    (result,) = (tmp_path / "results/hardware").glob("*.json")
    device = result.relative_to(tmp_path).with_suffix(".md")
    assert (code, out) == (0, f"written: hardware_choice.md\nwritten: {device}\n")
    text = (tmp_path / "hardware_choice.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"]({device})" in text
    assert "Not measured; `python -m ttm_jax.benchmark --remat` does." in (tmp_path / device).read_text()
    assert run("--page")[:2] == (0, "unchanged: hardware_choice.md\n")


def spoil(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--histroy"], "unknown argument --histroy; did you mean --history?"),
        (["remat"], "unknown argument remat"),
        (["--remat", "--history"], "not allowed with argument"),
        (["--out", "file"], "--out file: File exists"),
        (["--out", "file/folder"], "--out file/folder: Not a directory"),
        (["--page"], "results/hardware: no results there; python -m ttm_jax.benchmark writes them"),
        (["--page", "--out", "cut"], "cut/a.json: not JSON"),
        (["--page", "--out", "other"], "no result of this command"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    spoil(tmp_path / "file", "")
    spoil(tmp_path / "cut/a.json", '{"name": ')
    spoil(tmp_path / "other/a.json", "[]")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("no marks", "it needs the line"),
        ("<!-- /devices --><!-- devices -->", "it needs"),
    ],
)
def test_a_page_without_markers_is_left_alone(run, tmp_path, text, message):
    run("--remat")
    if text is not None:
        (tmp_path / "p.md").write_text(text)
    code, _, err = run("--page", "p.md")
    assert code == 2
    assert message in err
    assert text is None or (tmp_path / "p.md").read_text() == text


def test_a_spoilt_file_is_found_before_anything_is_measured(run, tmp_path, monkeypatch):
    run("--remat", "--out", "r")
    (path,) = (tmp_path / "r").iterdir()
    path.write_text("{")
    monkeypatch.setattr(results.SECTIONS["remat"], "measure", lambda *a: pytest.fail("measured"))
    code, _, err = run("--remat", "--out", "r")
    assert code == 2
    assert f"r/{path.name}: not JSON" in err


def test_an_interrupt_ends_it_at_once(tmp_path):
    """While the main thread compiles, and so does not hear of it."""
    command = [sys.executable, "-m", "ttm_jax.benchmark", "--quick", "--against-unrolled", "--out", str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert first.startswith("1/9  ")
    assert rest == ""
    assert process.returncode == -signal.SIGINT
    assert not list(tmp_path.iterdir())


def test_progress_is_told_on_stderr_where_it_is_no_terminal(capsys):
    with show_progress() as progress:
        progress.plan(2)
        progress.step("compiling")
        progress.step("timing")  # less than ten seconds later
    assert capsys.readouterr() == ("", "1/2  compiling\n")


def test_two_devices_side_by_side(result):
    gpu = json.loads(json.dumps(result))
    gpu |= {"name": "NVIDIA X", "device": {**result["device"], "kind": "NVIDIA X", "platform": "gpu"}}
    for row in gpu["batch_sizes"]["rows"]:
        row["examples_per_s"] *= 5
    text = page.devices([result, gpu], Path("r"))
    rates = re.findall(r"^\| \[.*\]\(r/.*\.md\) \| .* \| .* \| \d+: ([\d,]+) examples/s \|", text, re.MULTILINE)
    slow, fast = (int(rate.replace(",", "")) for rate in rates)
    assert fast == pytest.approx(5 * slow, abs=3)


# The committed page and results.


def page_of(result):
    """What is written of a device."""
    return page.device_page(RESULTS, result).read_text(encoding="utf-8")


@of_a_machine
def test_the_page_and_the_results_agree(tmp_path):
    """To mend it: python -m ttm_jax.benchmark --page"""
    shutil.copytree(RESULTS, tmp_path / "results/hardware")
    copy = tmp_path / "hardware_choice.md"
    shutil.copy(PAGE, copy)
    assert page.regenerate(copy, tmp_path / "results/hardware", load_results(RESULTS)) == []
    copy.write_text(copy.read_text(encoding="utf-8").replace(" examples/s |", " |"), encoding="utf-8")
    assert page.regenerate(copy, tmp_path / "results/hardware", load_results(RESULTS)) == [copy]
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


@of_a_machine
def test_the_chosen_device_is_that_of_the_highest_throughput():
    """In places a second: results may be of examples of different length."""

    def throughput(result):
        section = result["batch_sizes"]
        (best,) = (row for row in section["rows"] if row["batch_size"] == section["best"])
        return best["examples_per_s"] * section["num_steps"]

    chosen = max((result for result in load_results(RESULTS) if "batch_sizes" in result), key=throughput)
    assert f"Train on **{chosen['name']}**." in PAGE.read_text(encoding="utf-8")


@of_a_machine
def test_the_numbers_of_the_page_are_those_of_the_results():
    """Read off the pages without the code that wrote them: the median and the rate of every operation."""
    prefixes = {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

    def number(cell):
        found = re.fullmatch(r"([\d.,]+) ([nµmkMGT]?)(s|FLOP/s)", cell)
        return float(found[1].replace(",", "")) * prefixes[found[2]]

    for result in load_results(RESULTS):
        part = page_of(result)
        for row in result.get("operations", {"rows": []})["rows"]:
            label = ", ".join(filter(None, (row["name"], row["size"])))
            lines = [line.split(" | ") for line in part.splitlines() if line.startswith(f"| {label} |")]
            assert number(lines[0][1]) == pytest.approx(row["median_s"], rel=0.006)
            if row["flops"]:
                assert number(lines[1][1]) == pytest.approx(row["flops_per_s"], rel=0.006)


@of_a_machine
def test_committed_results_say_where_they_come_from_and_the_page_what_is_missing():
    for result in load_results(RESULTS):
        part = page_of(result)
        for key, module in SECTIONS.items():
            title = f"## {module.TITLE}\n\n"
            assert (f"{title}Not measured; `python -m ttm_jax.benchmark" in part) == (key not in result)
            if key in result:
                assert not result[key]["quick"]
                assert result[key]["provenance"]["command"].startswith("python -m ttm_jax.benchmark")
        assert page.figure_path(RESULTS, result["name"]).exists() == ("history" in result)
