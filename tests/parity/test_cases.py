"""All that `python -m parity` compares, case by case, and that it leaves nothing out."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import ttm_jax
from parity.cases import CASES, MUTATIONS, data, machine, multiplier, training
from parity.twins import as_arrays
from ttm_jax.machine.memory import READS, WRITES
from ttm_jax.machine.processing import PROCESSING_UNITS

ROOT = Path(__file__).parents[2]
SCENIC = ROOT / "tests" / "data" / "scenic"
# Each read, write and processing unit, and each compat, once; the others with -m slow.
FAST_TRAININGS = {
    f"training/{mode}"
    for mode in (
        "mlp-mlp-transformer",
        "query-query-mixer",
        "pooling-pooling-mlp",
        "query-erase_add-transformer",
        "mlp-concat-mlp",
        "pooling-none-mixer",
        "mlp-erase_add-mlp-scenic",
        "simple-mixer",
        "schedule-product",
    )
}


def parameter(case):
    slow = case.name.startswith("training/") and case.name not in FAST_TRAININGS
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_the_twins_agree(case):
    for row in case.rows("cpu"):
        assert row.ok, f"{row}: of {case.name}; see python -m parity --only {case.name}"


@pytest.mark.parametrize("case", [parameter(case) for case in MUTATIONS])
def test_a_mutation_is_caught(case):
    for row in case.rows("cpu"):
        assert row.ok, row


def legal_machines():
    for *modes, compat in product(READS, WRITES, PROCESSING_UNITS, (None, "scenic")):
        try:
            options = dict(zip(("read", "write", "processing"), modes, strict=True))
            yield ttm_jax.TokenTuringMachine(compat=compat, **options)
        except ValueError:
            assert compat == "scenic"
    for unit, compat in product(PROCESSING_UNITS, (None, "scenic")):
        yield ttm_jax.SimpleTokenTuringMachine(processing=unit, compat=compat)


def test_nothing_is_left_out():
    names = [case.name for case in (*CASES, *MUTATIONS)]
    assert len(names) == len(set(names))
    modes = {machine.name_of(legal) for legal in legal_machines()}
    assert len(modes) == 3 * 6 * 3 + 3 * 3 + 3 * 2
    for group, others in {"machine": set(), "training": {"schedule-product"}}.items():
        assert {name.removeprefix(f"{group}/") for name in names if name.startswith(f"{group}/")} == modes | others
    assert set(names) >= {*FAST_TRAININGS, "optimizer/adam", "optimizer/adamw", "optimizer/muon", "optimizer/default"}
    assert {f"scenic/{path.stem}" for path in SCENIC.glob("*.npz")} <= set(names)


def test_the_results_are_of_all_cases():
    result = json.loads((ROOT / "results" / "parity.json").read_text())
    assert {row["case"] for row in result["comparisons"]} == {case.name for case in (*CASES, *MUTATIONS)}


def test_the_trainings_train():
    for case in training.CASES:
        if case.name in FAST_TRAININGS:
            task, trained = training.train_jax(case)
            before = as_arrays(task.params)
            unmoved = [name for name in before if np.abs(trained.weights[name] - before[name]).max() < 1e-3]
            assert not unmoved, (case.name, unmoved)
            assert len(set(trained.losses[""])) == training.STEPS


def test_a_change_of_the_data_is_seen_in_each_array():
    arrays = data.CASES[0].make(ttm_jax)
    for name in list(arrays)[:4]:
        changed = arrays[name].copy()
        changed.flat[-1] += 1
        assert data.checksum({**arrays, name: changed}) != data.CASES[0].checksum
    assert data.checksum(dict(reversed(arrays.items()))) != data.CASES[0].checksum


def test_bfloat16_is_computed_in_bfloat16():
    cases = [case for case in multiplier.CASES if case.name.endswith("-bfloat16")]
    assert len(cases) == 2
    for case in cases:
        rows = case.rows("cpu")
        assert len(rows) == 3
        assert all(row.difference > 1e-3 for row in rows), rows
