"""Training where memory runs out: micro-batches, rematerialisation, the CPU; the run goes on to the same end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttm_jax.multiplication.metrics import create_target_mask
from ttm_jax.multiplication.objective import create_state, loss_fn
from ttm_jax.train import main
from ttm_jax.training import jax_engine
from ttm_jax.training.checkpoint import load_state
from ttm_jax.training.checkpoint_files import LATEST, find_checkpoint, saved_steps
from ttm_jax.training.config import override
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.plan import OutOfMemory, StepPlan, make_plans
from ttm_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("signal_handlers")


class TestPlans:
    def test_micro_batches_then_rematerialisation(self):
        assert list(make_plans(4, remats=("dots", "full"), device="cpu")) == [
            StepPlan(1, device="cpu"),
            StepPlan(2, device="cpu"),
            StepPlan(4, device="cpu"),
            StepPlan(4, "dots", "cpu"),
            StepPlan(4, "full", "cpu"),
        ]

    @pytest.mark.parametrize(
        ("share", "first", "numbers"),
        [(48, 1, [1, 2, 4, 8, 16, 48]), (7, 1, [1, 7]), (1, 1, [1]), (48, 3, [3, 6, 12, 24, 48])],
    )
    def test_micro_batches_divide_the_share(self, share, first, numbers):
        """By two where that can be; the micro-batch is never more than half of what it was."""
        assert [plan.micro_batches for plan in make_plans(share, first)] == numbers

    def test_in_words(self):
        assert StepPlan(4).describe(64) == "4 micro-batches of 16"
        assert StepPlan(4).describe(64, 2) == "4 micro-batches of 8 on each of 2 devices"
        assert StepPlan(64, "full").describe(64) == '64 micro-batches of 1, rematerialisation "full"'
        assert StepPlan(device="cpu").describe(64) == "batches of 64, on the CPU"


# One step.


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state, state.step))]


def test_a_step_in_parts_is_the_same_step(task):
    config, batch = task
    options = {"micro_batches": 4} if config.model.schedule == "product" else {"micro_batches": 8, "remat": "full"}
    with jax.enable_x64(True):
        whole, expected = train_step(create_state(config), batch)
        parts, metrics = train_step(create_state(config), batch, **options)
    for name in ("loss", "grad_norm", "learning_rate"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-13)
    np.testing.assert_array_equal(metrics["exact_match"], expected["exact_match"])
    for ours, theirs in zip(leaves(parts), leaves(whole), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)  # Adam divides by the root of small numbers


def test_bfloat16_gradients_are_added_up_in_float32(tiny_config, batch):
    config = override(tiny_config, {"model.param_dtype": "bfloat16", "model.dropout_rate": "0.0"})
    state = jax.eval_shape(lambda: create_state(config))
    jaxpr, (after, _) = jax.make_jaxpr(lambda s: train_step(s, batch, micro_batches=8), return_shape=True)(state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after.params)} == {"bfloat16"}
    assert "f32[13,16]" in str(jaxpr)  # the sum of the gradients of the token embedding


def test_each_micro_batch_has_a_dropout_key_of_its_own(tiny_config, batch):
    """As documented: the i-th is `fold_in(key of the step, i)`."""
    state = create_state(tiny_config)
    key = jax.random.fold_in(state.key, 0)
    total = count = 0.0
    for i in range(2):
        part = {name: array[4 * i : 4 * i + 4] for name, array in batch.items()}
        keys = jax.random.fold_in(key, i)
        loss, _ = jax.jit(loss_fn, static_argnums=1)(state.params, state.objective.model, part, keys)
        tokens = create_target_mask(part["targets"]).sum()
        total, count = total + float(loss.total), count + tokens
    _, metrics = train_step(state, batch, micro_batches=2)
    assert float(metrics["loss"]) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("micro_batches", [0, 3, 16])
def test_parts_that_do_not_divide_the_batch_are_refused(tiny_config, batch, micro_batches):
    with pytest.raises(ValueError, match=f"micro_batches must divide the batch of 8, got {micro_batches}"):
        train_step(create_state(tiny_config), batch, micro_batches=micro_batches)


# A run.


def run_out_of_memory():
    """The device's own error: no address space holds a petabyte."""
    jax.block_until_ready(jax.jit(lambda: jnp.ones(2**48))())


@pytest.fixture
def memory(monkeypatch):
    """`memory(fits, first=0)`: from step `first` on, only steps that `fits` accepts have memory; the state is lost."""

    take_step = JaxEngine.step

    def limit(fits, first=0):
        def step(engine, state, arrays, plan):
            too_large = int(state.step) >= first and not fits(plan)
            after = take_step(engine, state, arrays, plan)  # which donates the state
            return run_out_of_memory() if too_large else after

        monkeypatch.setattr(JaxEngine, "step", step)

    return limit


@pytest.fixture(scope="module")
def undisturbed(exact_config, tmp_path_factory, train):
    path = tmp_path_factory.mktemp("undisturbed")
    with jax.enable_x64(True):
        train(exact_config, path)
    return path


def records(path, *kinds):
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] in kinds]


def flat(record, prefix=""):
    """Each number of a record, but for what the clock says."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif name not in ("kind", "seconds"):
            yield f"{prefix}{name}", value


def assert_same_end(path, expected, config):
    """Weights, optimiser and all that was recorded, to the rounding of float64."""
    assert saved_steps(path, LATEST) == saved_steps(expected, LATEST)
    states = (load_state(find_checkpoint(folder, (LATEST,)), create_state(config)) for folder in (path, expected))
    for ours, theirs in zip(*map(leaves, states), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-10)
    for ours, theirs in zip(*(records(folder, "train", "eval") for folder in (path, expected)), strict=True):
        assert dict(flat(ours)) == pytest.approx(dict(flat(theirs)), rel=1e-6)


@pytest.mark.slow  # a program for each plan; tests/ttm_jax/training/test_toy.py has the same of smaller ones
def test_it_goes_on_with_the_same_batches_to_the_same_end(exact_config, undisturbed, memory, tmp_path, train, display):
    """From the latest checkpoint; each fall-back is said in one line, in order, and written to the metrics."""
    memory(lambda plan: plan == StepPlan(8, "full"), first=13)
    with jax.enable_x64(True):
        assert train(exact_config, tmp_path, display=display) == "finished"
        assert_same_end(tmp_path, undisturbed, exact_config)
    assert display.messages == [
        "out of memory at step 13: going on from step 10 with 2 micro-batches of 4",
        "out of memory at step 13: going on from step 10 with 4 micro-batches of 2",
        "out of memory at step 13: going on from step 10 with 8 micro-batches of 1",
        'out of memory at step 13: going on from step 10 with 8 micro-batches of 1, rematerialisation "deep_dots"',
        'out of memory at step 13: going on from step 10 with 8 micro-batches of 1, rematerialisation "full"',
        "stage 1: operands from 0 to 99",
    ]
    (found,) = records(tmp_path, "fallback")[-1:]
    assert (found["step"], found["micro_batches"], found["remat"], found["device"]) == (10, 8, "full", None)


@pytest.mark.slow
def test_the_cpu_is_the_last_resort_and_a_resumed_run_stays_there(
    exact_config, undisturbed, monkeypatch, memory, tmp_path, train, display, run_display
):
    monkeypatch.setattr(jax_engine, "_has_cpu_besides", lambda: True)
    memory(lambda plan: plan.device == "cpu")
    resumed = run_display()
    with jax.enable_x64(True):
        assert train(exact_config, tmp_path, stop_at=13, display=display) == "interrupted"
        assert train(exact_config, tmp_path, resume=True, display=resumed) == "finished"
        assert_same_end(tmp_path, undisturbed, exact_config)
    where = "out of memory at step 0: going on from step 0 with"
    assert display.messages[-2:] == [
        f'{where} 8 micro-batches of 1, rematerialisation "full"',
        f"{where} batches of 8, on the CPU",
    ]
    assert resumed.messages[0] == "memory ran out before: going on with batches of 8, on the CPU"
    assert not any("out of memory" in message for message in resumed.messages)


def test_an_evaluation_asks_for_fewer_rows_at_a_time(tiny_config, tiny_run, monkeypatch, tmp_path, train, display):
    def few(engine, state, arrays, batch_size):
        return run_out_of_memory() if batch_size > 4 else predict(engine, state, arrays, batch_size)

    predict = JaxEngine.predict
    monkeypatch.setattr(JaxEngine, "predict", few)
    assert train(tiny_config, tmp_path, stop_at=20, display=display) == "interrupted"
    where = "out of memory in the evaluation at step 10: going on with"
    assert display.messages[:2] == [f"{where} 8 rows at a time", f"{where} 4 rows at a time"]
    scores = ([r["exact_match"] for r in records(path, "eval")] for path in (tmp_path, tiny_run.path))
    assert next(scores) == next(scores)[:2]


class TestTheEnd:
    @pytest.mark.parametrize("name", ["start", "load"])
    def test_one_line_where_the_state_alone_does_not_fit(
        self, name, tiny_config, config_file, monkeypatch, tmp_path, train, call_command
    ):
        if name == "load":
            train(tiny_config, tmp_path, stop_at=3)
        monkeypatch.setattr(JaxEngine, name, lambda *arguments: run_out_of_memory())
        resume = ["--resume"] if name == "load" else []
        code, _, err = call_command(main, "--config", config_file, "--workdir", tmp_path, *resume)
        assert code == 1
        assert "out of memory: the state alone does not fit" in err
        assert err.count("\n") == 1

    def test_one_line_where_nothing_is_left(self, config_file, monkeypatch, tmp_path, call_command):
        monkeypatch.setattr(JaxEngine, "step", lambda *arguments: run_out_of_memory())
        run = tmp_path / "run"
        flags = ["--data.batch-size", "2", "--model.remat", "deep_dots"]
        code, out, err = call_command(main, "--config", config_file, "--workdir", run, *flags)
        assert code == 1
        where = "out of memory at step 0: going on from step 0 with 2 micro-batches of 1"
        assert [line for line in out.splitlines() if "out of memory" in line] == [
            where,
            f'{where}, rematerialisation "full"',
        ]
        assert err == (
            "python -m ttm_jax.train: error: out of memory at step 0 with 2 micro-batches of 1, rematerialisation "
            '"full": nothing is left to fall back to; no checkpoint had been written yet\n'
        )

    def test_an_evaluation_of_one_row(self, tiny_config, monkeypatch, tmp_path, train):
        monkeypatch.setattr(JaxEngine, "predict", lambda *arguments: run_out_of_memory())
        with pytest.raises(OutOfMemory, match="in the evaluation at step 10, of one row at a time; no checkpoint"):
            train(tiny_config, tmp_path)

    def test_other_errors_are_not_taken_for_it(self, tiny_config, monkeypatch, tmp_path, train, display):
        def step(*arguments):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

        monkeypatch.setattr(JaxEngine, "step", step)
        with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
            train(tiny_config, tmp_path, display=display)
        assert not display.messages
