"""The speed comparison: what it does with workers and their times. Nothing here depends on how long anything takes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from parity.speed import __main__ as command
from parity.speed import cases as speed_cases
from parity.speed import jax_side, torch_side
from parity.speed.cases import (
    EAGER,
    JAX,
    OTHER_FORMS,
    UNROLLED,
    VARIANTS,
    Case,
    Machine,
    all_cases,
    digest,
    write_weights,
)
from parity.speed.measure import Limits, Refused, check_agreement, measure, not_tried, plan, summarize, tolerance
from parity.speed.report import README_ROWS, markdown, put_in_readme, readme_table
from parity.speed.worker import as_array

ROOT = Path(__file__).parents[2]
TINY = """
[model]
width = 8
memory_size = 4
process_size = 2
read = "pooling"
write = "concat"
processing = "mlp"
num_layers = 1
mlp_dim = 8
num_heads = 2
dropout_rate = 0.0
carry_head = true
[data]
stages = [[0, 9], [0, 99]]
max_digits = [2, 1]
[curriculum]
last_stage = 1
"""
# Answers as a worker does, after writing to a log what it was asked; `behaviour` is a variant's own.
FAKE = """
import json, sys
variant, log, behaviour = sys.argv[1:]
def answer(**fields):
    print(json.dumps(dict(fields, peak_mb=1.0, idle_s=1.0, idle_cpu_s=0.01)), flush=True)
answer(device="cpu", threads=1)
for line in sys.stdin:
    message = json.loads(line)
    with open(log, "a") as file:
        print(variant, message["do"], file=file)
    if behaviour == "dies" and message["do"] == "time_calls":
        sys.exit("Traceback\\nMemoryError: no more")
    if message["do"] == "prepare":
        if behaviour == "hangs":
            sys.stdin.read()
        value = 1.5 if behaviour == "differs" else float("nan") if behaviour == "nan" else 1.0
        answer(first_call_s=2.0, call_s=10.0, values=[1.0, value])
    else:
        seconds = [0.3 if variant == "jax" else 0.6] * message["count"]
        answer(seconds=seconds, finite=behaviour != "overflows")
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def measure_fakes(tiny, tmp_path):
    """`measure_fakes(jax="", ...)` gives the result of workers that behave so, and the log of what they were asked."""

    def run(limits=None, **behaviours):
        log = tmp_path / "log"
        variants = {"jax": JAX, "eager": EAGER, "compiled": "torch-compile"}
        by_variant = {variants[name]: behaviour for name, behaviour in behaviours.items()}
        case = Case(tiny, 4, "float32", "train", tuple(by_variant))
        result, said = measure(
            case,
            limits=limits or Limits(),
            command=lambda variant, _: [sys.executable, "-c", FAKE, variant, str(log), by_variant[variant]],
        )
        assert said == {"device": "cpu", "threads": 1}
        return result, log.read_text().splitlines()

    return run


def test_workers_take_turns(measure_fakes):
    result, log = measure_fakes(jax="", eager="", compiled="")
    assert log[:3] == ["jax prepare", "torch-eager prepare", "torch-compile prepare"]
    turn = ["jax time_calls", "torch-eager time_calls", "torch-compile time_calls"]
    assert log[3:] == turn * result["rounds"]
    assert result["rounds"] == Limits.min_rounds  # calls of ten seconds
    assert result["variants"][EAGER]["ratio"] == {"median": 2.0, "quartile_1": 2.0, "quartile_3": 2.0}
    assert result["variants"][EAGER]["ms"]["median"] == 600.0


def test_a_worker_that_dies_is_told_and_the_others_go_on(measure_fakes):
    result, log = measure_fakes(jax="", eager="dies")
    assert result["variants"][EAGER] == {
        "failed": "time calls: died with exit code 1: MemoryError: no more",
        "timeout": False,
    }
    assert "ms" in result["variants"][JAX]
    assert log.count("torch-eager time_calls") == 1


def test_a_first_call_that_does_not_end_is_told(measure_fakes):
    result, _ = measure_fakes(Limits(first_call_s=2.0), jax="", eager="hangs")
    assert result["variants"][EAGER] == {"failed": "first calls: did not end in 2 s", "timeout": True}
    assert "ms" in result["variants"][JAX]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("differs", "torch-eager differs from jax by 5.0e-01 of its results; allowed 0.001"),
        ("nan", "torch-eager differs from jax by nan of its results; allowed 0.001"),
        ("overflows", "torch-eager computes numbers that are not finite in round 1"),
    ],
)
def test_times_of_other_arithmetic_are_refused(measure_fakes, behaviour, message):
    result, _ = measure_fakes(jax="", eager=behaviour)
    assert result["refused"] == message
    assert result["variants"] == {}


def test_a_worker_that_does_not_start_is_told(tiny):
    case = Case(tiny, 4, "float32", "train", (JAX,))
    result, _ = measure(case, command=lambda *_: [sys.executable, "-c", "import nothing_of_the_kind"])
    failed = result["variants"][JAX]["failed"]
    assert failed == "start: died with exit code 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"


def test_agreement():
    assert check_agreement({JAX: [2.0, 4.0], EAGER: [2.0, 4.1]}, 0.05) == pytest.approx(0.025)
    assert check_agreement({JAX: [1.0]}, 0.05) == 0.0
    with pytest.raises(Refused):
        check_agreement({JAX: [2.0, 4.0], EAGER: [2.0, 4.0], UNROLLED: [2.3, 4.0]}, 0.05)


def test_statistics():
    turns_s = {JAX: [[1.0, 2.0, 9.0], [4.0], [1.0]], EAGER: [[3.0], [4.0], [8.0]]}
    figures = summarize(turns_s)
    assert figures[JAX]["ms"] == {"median": 2000.0, "quartile_1": 1500.0, "quartile_3": 3000.0}
    assert figures[EAGER]["ratio"] == {"median": 1.5, "quartile_1": 1.25, "quartile_3": 4.75}
    assert "ratio" not in summarize({EAGER: [[1.0]]})[EAGER]


def test_short_calls_are_repeated_and_long_ones_bounded():
    limits = Limits(case_s=10, turn_s=1, max_calls=100, min_rounds=3, max_rounds=7)
    assert plan({JAX: 0.25, EAGER: 1e-6}, limits) == (7, {JAX: 4, EAGER: 100})
    assert plan({JAX: 1.0, EAGER: 1.5}, limits) == (4, {JAX: 1, EAGER: 1})
    assert plan({JAX: 60.0}, limits) == (3, {JAX: 1})


def test_hopeless_compilations_are_not_tried():
    case = Case("paper-16", 64, "float32", "train")

    def measured(steps, cell, dtype="float32"):
        return {"size": "paper-16", "dtype": dtype, "kind": "train", "steps": steps, "variants": {EAGER: cell}}

    earlier = [measured(1, {"first_call_s": 1.0}), measured(8, {"first_call_s": 50.0})]
    assert not_tried(case, EAGER, earlier, 300) == (
        "not tried: the first call took 50 s with 8 steps, so that 400 s are to be expected, above the limit of 300 s"
    )
    assert not_tried(case, EAGER, earlier, 500) is None
    assert not_tried(case, JAX, earlier, 300) is None
    assert not_tried(case, EAGER, [measured(8, {"first_call_s": 50.0}, "bfloat16")], 300) is None
    gave_up = measured(8, {"failed": "did not end", "timeout": True})
    assert not_tried(case, EAGER, [*earlier[:1], gave_up], 300) == "not tried: 8 steps were too many already"
    died = measured(8, {"failed": "died", "timeout": False})
    assert not_tried(case, EAGER, [*earlier[:1], died], 300) is None


@pytest.fixture
def tiny_machine(monkeypatch):
    sizes = Machine(2, 8, 3, 8, 2, memory_size=4, process_size=2, num_layers=1)
    monkeypatch.setitem(speed_cases.MACHINES, "tiny", sizes)


def three_calls(call):
    """The digests of the results of the first calls."""
    results = [call() for _ in range(3)]
    return [x for result in results for x in digest(as_array(result))]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("train", "float32"), ("forward", "float32"), ("forward", "bfloat16"), ("stream", "bfloat16")],
)
def test_both_frameworks_compute_the_same(kind, dtype, tiny_machine, tmp_path):
    case = Case("tiny", 1 if kind == "stream" else 2, dtype, kind)
    write_weights(case, tmp_path)
    values = {
        JAX: three_calls(jax_side.build(case, JAX, tmp_path)),
        EAGER: three_calls(torch_side.build(case, EAGER, tmp_path)),
    }
    check_agreement(values, 1e-5 if dtype == "float32" else 5e-2)
    first, *_, last = np.split(np.array(values[JAX]), 3)
    assert kind == "forward" or np.abs(last - first).max() > 1e-5  # it learns, or remembers


@pytest.mark.parametrize("kind", ["forward", "train"])
def test_all_forms_of_the_machine_are_the_same(tiny_machine, tmp_path, kind):
    case = Case("tiny", 3, "float32", kind)
    write_weights(case, tmp_path)
    values = {name: three_calls(jax_side.build(case, name, tmp_path)) for name in (JAX, *OTHER_FORMS)}
    check_agreement(values, 1e-6)


def test_a_wrong_rate_is_noticed(tiny_machine, tmp_path, monkeypatch):
    case = Case("tiny", 2, "float32", "train")
    write_weights(case, tmp_path)
    right = three_calls(torch_side.build(case, EAGER, tmp_path))
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, fused: adam(parameters, lr=2 * lr, fused=fused))
    wrong = three_calls(torch_side.build(case, EAGER, tmp_path))
    with pytest.raises(Refused):
        check_agreement({JAX: right, EAGER: wrong}, tolerance("float32", "cpu"))


def test_processes_of_both_frameworks_agree(tiny):
    limits = Limits(case_s=0, min_rounds=2, turn_s=0)
    result, said = measure(Case(tiny, 4, "float32", "train", (JAX, EAGER)), limits=limits)
    assert result["difference"] < 1e-4
    fields = {"first_call_s", "calls", "peak_mb", "ms", "ratio", "idle_cpu"}
    assert [set(cell) for cell in result["variants"].values()] == [fields, fields]
    assert said["device"] == "cpu"


@pytest.mark.slow
def test_compiled_variants_agree(tiny):
    limits = Limits(case_s=0, min_rounds=2, turn_s=0)
    for kind in ("train", "forward", "stream"):
        steps = 1 if kind == "stream" else 4
        result, _ = measure(Case(tiny, steps, "float32", kind, VARIANTS), limits=limits)
        assert all("ms" in cell for cell in result["variants"].values()), result


def cell(ms, ratio=1.0, **fields):
    def spread(x):
        return {"median": x, "quartile_1": 0.9 * x, "quartile_3": 1.1 * x}

    return {"first_call_s": 2.0, "ms": spread(ms), "ratio": spread(ratio), "peak_mb": 1234.0, "idle_cpu": 0.01} | fields


@pytest.fixture
def result():
    def case(name, size, steps, kind, variants):
        fields = dict(size=size, steps=steps, dtype="float32", kind=kind, batch_size=64, optimizer=None)
        return {"name": name, **fields, "difference": 0.0, "rounds": 5, "variants": variants}

    did_not_end = {"failed": "first calls: did not end in 300 s", "timeout": True}
    return {
        "jax": "0.10.2",
        "torch": "2.13.0",
        "commit": "0123456789abcdef+changes",
        "machine": "a CPU, 2 CPU cores",
        "device": "cpu",
        "backend": "cpu",
        "date": "2026-11-20T12:00:00+00:00",
        "command": "python -m parity.speed",
        "threads": 2,
        "load_at_start": 0.1,
        "cases": [
            case(
                "quick/6/float32/train",
                "quick",
                6,
                "train",
                {JAX: cell(50), EAGER: cell(75, 1.5), "torch-compile": cell(60, 1.2)},
            ),
            case("quick/6/float32/forward", "quick", 6, "forward", {JAX: cell(20), EAGER: cell(10, 0.5)}),
            case(
                "small-16/64/float32/train",
                "small-16",
                64,
                "train",
                {JAX: cell(500), "torch-compile": did_not_end, UNROLLED: cell(600, 1.2, first_call_s=80.0)},
            ),
            {"name": "paper-16/1/float32/train", "refused": "they differ", "variants": {}, "kind": "train"},
        ],
    }


def test_the_page(result):
    page = markdown(result)
    lines = page.splitlines()
    (row,) = (line for line in lines if line.startswith("| quick | 6 | float32 | 64 | 50.0"))
    assert row.endswith("| 50.0 (45.0 - 55.0) | 75.0 (67.5 - 82.5) | 60.0 (54.0 - 66.0) | **1.20** (1.08 - 1.32) |")
    assert "| small-16 | 64 | float32 | 64 | 500 (450 - 550) | - | [1] | - |" in lines
    assert "1. small-16/64/float32/train, compile: first calls: did not end in 300 s" in lines
    assert "| JAX unrolled, no remat | 80.0 | 600 (540 - 660) | **1.20** (1.08 - 1.32) | 1,234 |" in lines
    assert "- Inference, quick, 6 steps, float32: **0.50** (0.45 - 0.55) against eager" in lines
    assert "- paper-16/1/float32/train: they differ" in lines
    assert page.count("not the faster") == 1
    assert markdown(json.loads(json.dumps(result))) == page


def test_the_short_table(result):
    table = readme_table(result)
    assert "| training step, default config, batch 64 | 50.0 ms | 60.0 ms (compile) | **1.20** (1.08 - 1.32) |" in table
    assert table.count("not measured") == len(README_ROWS) - 1
    assert "commit `0123456+changes`, 2026-11-20." in table
    scan, unrolled = "2.0 s to the end of the first call, 500 ms a training step", "80.0 s and 600 ms"
    sentence = f"64 steps of small-16 as one scan: {scan}; unrolled in Python, the faster of both ways: {unrolled}."
    assert sentence in table
    text = put_in_readme("a\n<!-- speed -->\nold\n<!-- /speed -->\nb\n", result)
    assert text == f"a\n<!-- speed -->\n{table}\n<!-- /speed -->\nb\n"
    assert put_in_readme(text, result) == text
    with pytest.raises(ValueError, match="has no <!-- speed -->"):
        put_in_readme("a", result)


def test_the_short_table_shows_cases_that_there_are():
    assert set(README_ROWS) <= {case.name for case in all_cases()}


def test_the_readme_has_the_table_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "results/speed/cpu.json").read_text(encoding="utf-8"))
    assert put_in_readme(readme, found) == readme, (
        "python -m parity.speed --report --out results/speed --readme README.md"
    )
    assert (ROOT / "results/speed/cpu.md").read_text(encoding="utf-8") == markdown(found)


@pytest.fixture
def fake_measure(monkeypatch, result):
    """In place of measuring: gives two cases, then is interrupted, or dies."""
    asked = []

    def fake(case, *_):
        asked.append(case.name)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return {**result["cases"][0], "name": case.name}, {"device": "cpu", "threads": 2}

    monkeypatch.setattr(command, "measure", fake)
    return asked


def test_an_interruption_keeps_what_is_measured_and_can_be_resumed(fake_measure, tmp_path, capsys):
    names = [case.name for case in all_cases()]
    assert command.main(["--out", str(tmp_path)]) == 130
    *_, last = capsys.readouterr().err.splitlines()
    assert last == (
        f"python -m parity.speed: error: interrupted; 2 cases measured; --resume goes on from {tmp_path / 'cpu.json'}"
    )
    assert [case["name"] for case in json.loads((tmp_path / "cpu.json").read_text())["cases"]] == names[:2]
    assert {path.name for path in tmp_path.iterdir()} == {"cpu.json", "cpu.md", "cpu.png"}
    del fake_measure[:]
    assert command.main(["--out", str(tmp_path), "--resume"]) == 130
    assert fake_measure[0] == names[2]
    assert len(json.loads((tmp_path / "cpu.json").read_text())["cases"]) == 4


def test_other_versions_are_not_resumed(fake_measure, tmp_path, capsys):
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    path = tmp_path / "cpu.json"
    path.write_text(path.read_text().replace('"torch": "', '"torch": "1'))
    capsys.readouterr()
    assert command.main(["--quick", "--out", str(tmp_path), "--resume"]) == 2
    assert "cpu.json cannot be resumed: its torch is '1" in capsys.readouterr().err


def test_the_json_is_printed(fake_measure, tmp_path, capsys):
    assert command.main(["--quick", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "cpu.json").read_text())
    assert printed["load_at_start"] >= 0


def test_a_failure_is_in_the_exit_status(monkeypatch, result, tmp_path, capsys):
    result["cases"][0]["variants"][EAGER] = {"failed": "died", "timeout": False}
    monkeypatch.setattr(command, "measure", lambda *_: (result["cases"][0], {"threads": 2}))
    assert command.main(["--quick", "--only", "quick", "--out", str(tmp_path)]) == 1
    assert "1 measurements failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--only nothing", "--only nothing fits no case; names are such as quick/"),
        ("--quik", "unknown argument --quik; did you mean --quick?"),
        ("--variants jaxx", "invalid choice: 'jaxx'"),
        ("--first-call 0", "must be a positive integer, got '0'"),
        ("--report --out {folder}/none", "cpu.json: No such file or directory"),
        ("--report --out {folder}", "cpu.json: damaged, or not a result of this command"),
        ("--resume --out {folder}", "cpu.json: damaged, or not a result of this command"),
        ("--quick --out {folder}/cpu.json", "cpu.json: File exists"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, fake_measure, tmp_path, capsys):
    (tmp_path / "cpu.json").write_text('{"cases": [{}]}')
    try:
        code = command.main(arguments.format(folder=tmp_path).split())
    except SystemExit as error:
        code = error.code
    *_, last = capsys.readouterr().err.splitlines()
    assert code == 2
    assert re.match(rf"python -m parity.speed: error: .*{re.escape(message)}", last), last


def test_names_are_listed(capsys):
    assert command.main(["--list", "--only", "small"]) == 0
    assert capsys.readouterr().out == "small-16/64/float32/train\n"
