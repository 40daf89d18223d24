"""The speed comparison: what it does with workers and their times. Nothing here depends on how long anything takes."""

import sys

import numpy as np
import pytest
import torch

from parity.speed import cases as speed_cases, jax_side, torch_side
from parity.speed.cases import (
    EAGER,
    JAX,
    VARIANTS,
    Case,
    Machine,
    digest,
    write_weights,
)
from parity.speed.measure import Limits, Refused, check_agreement, measure, plan, summarize, tolerance
from parity.speed.worker import as_array
from ttm_jax.multiplication.config import ModelConfig

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
    print(json.dumps(dict(fields, peak_mb=1.0)), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if message["do"] == "describe":
        answer(device="cpu", threads=1)
        continue
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
        check_agreement({JAX: [2.0, 4.0], EAGER: [2.0, 4.0], "other": [2.3, 4.0]}, 0.05)


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


@pytest.fixture
def tiny_machine(monkeypatch):
    model = ModelConfig(width=8, memory_size=4, process_size=2, num_layers=1, mlp_dim=8, num_heads=2)
    monkeypatch.setitem(speed_cases.MACHINES, "tiny", Machine(2, 3, model))


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
    fields = {"first_call_s", "calls", "peak_mb", "ms", "ratio"}
    assert [set(cell) for cell in result["variants"].values()] == [fields, fields]
    assert said["device"] == "cpu"


@pytest.mark.slow
def test_compiled_variants_agree(tiny):
    limits = Limits(case_s=0, min_rounds=2, turn_s=0)
    for kind in ("train", "forward", "stream"):
        steps = 1 if kind == "stream" else 4
        result, _ = measure(Case(tiny, steps, "float32", kind, VARIANTS), limits=limits)
        assert all("ms" in cell for cell in result["variants"].values()), result
