"""Training where memory runs out: micro-batches, rematerialisation, the CPU; the run goes on to the same end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ttm_jax.train
from ttm_jax.multiplication.metrics import create_target_mask
from ttm_jax.multiplication.objective import create_state, loss_fn
from ttm_jax.train import Trainer, main
from ttm_jax.training.checkpoint import LATEST, find_checkpoint, load_state, saved_steps
from ttm_jax.training.config import override
from ttm_jax.training.plan import OutOfMemory, StepPlan
from ttm_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("signal_handlers")


def plans(plan, *arguments):
    while plan is not None:
        yield plan
        plan = plan.next(*arguments)


class TestPlans:
    def test_micro_batches_then_rematerialisation_then_the_cpu(self):
        assert list(plans(StepPlan(), 4, ("dots", "full"), True)) == [
            StepPlan(1),
            StepPlan(2),
            StepPlan(4),
            StepPlan(4, "dots"),
            StepPlan(4, "full"),
            StepPlan(1, device="cpu"),
            StepPlan(2, device="cpu"),
            StepPlan(4, device="cpu"),
            StepPlan(4, "dots", "cpu"),
            StepPlan(4, "full", "cpu"),
        ]

    def test_micro_batches_divide_the_batch(self):
        """By two where that can be; the micro-batch is never more than half of what it was."""
        assert [plan.micro_batches for plan in plans(StepPlan(), 48)] == [1, 2, 4, 8, 16, 48]
        assert [plan.micro_batches for plan in plans(StepPlan(), 7)] == [1, 7]
        assert [plan.micro_batches for plan in plans(StepPlan(), 1)] == [1]

    def test_in_words(self):
        assert StepPlan(4).describe(64) == "4 micro-batches of 16"
        assert StepPlan(4).describe(64, 2) == "4 micro-batches of 8 on each of 2 devices"
        assert StepPlan(64, "full").describe(64) == '64 micro-batches of 1, rematerialisation "full"'
        assert StepPlan(device="cpu").describe(64) == "batches of 64, on the CPU"


# One step.


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state, state.step))]


@pytest.mark.parametrize("options", [{"micro_batches": 4}, {"micro_batches": 8, "remat": "full"}])
def test_a_step_in_parts_is_the_same_step(task, options):
    config, batch = task
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
        loss, _ = jax.jit(loss_fn, static_argnums=1)(state.params, state.model, part, jax.random.fold_in(key, i))
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
    """`memory(fits, first=0, takes_state=False)`: from step `first` on, only steps that `fits` accepts have memory."""

    def limit(fits, first=0, takes_state=False):
        def step(state, batch, micro_batches, remat, mesh):
            device = "cpu" if batch["inputs"].committed else None
            if int(state.step) >= first and not fits(StepPlan(micro_batches, remat, device)):
                if takes_state:
                    train_step(state, batch, micro_batches=micro_batches, remat=remat, mesh=mesh)  # donated
                run_out_of_memory()
            return train_step(state, batch, micro_batches=micro_batches, remat=remat, mesh=mesh)

        monkeypatch.setattr(ttm_jax.train, "train_step", step)

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
    states = (load_state(find_checkpoint(folder, (LATEST,)), config) for folder in (path, expected))
    for ours, theirs in zip(*map(leaves, states), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-10)
    for ours, theirs in zip(*(records(folder, "train", "eval") for folder in (path, expected)), strict=True):
        assert dict(flat(ours)) == pytest.approx(dict(flat(theirs)), rel=1e-6)


def test_it_goes_on_with_the_same_batches_to_the_same_end(exact_config, undisturbed, memory, tmp_path, train, display):
    """Each fall-back is said in one line, in order, and written to the metrics."""
    memory(lambda plan: plan == StepPlan(8, "full"), first=13)
    with jax.enable_x64(True):
        assert train(exact_config, tmp_path, display=display) == "finished"
        assert_same_end(tmp_path, undisturbed, exact_config)
    assert display.messages == [
        "out of memory at step 13: going on with 2 micro-batches of 4",
        "out of memory at step 13: going on with 4 micro-batches of 2",
        "out of memory at step 13: going on with 8 micro-batches of 1",
        'out of memory at step 13: going on with 8 micro-batches of 1, rematerialisation "deep_dots"',
        'out of memory at step 13: going on with 8 micro-batches of 1, rematerialisation "full"',
        "stage 1: operands from 0 to 99",
    ]
    found = records(tmp_path, "fallback")
    assert [(r["step"], r["micro_batches"], r["remat"], r["device"]) for r in found] == [
        (13, 2, None, None),
        (13, 4, None, None),
        (13, 8, None, None),
        (13, 8, "deep_dots", None),
        (13, 8, "full", None),
    ]


@pytest.mark.parametrize(
    ("first", "takes_state", "said"),
    [
        (0, True, "step 0: going on"),
        (20, True, "step 20: going on"),  # the first of a stage, which is compiled anew and may need more
        (13, False, "step 13: going on"),
        (13, True, "step 13, whose state is lost: going on from step 10"),
        (3, True, "step 3, whose state is lost: going on from step 0"),
    ],
)
def test_from_the_last_step_where_its_state_is_there(
    exact_config, undisturbed, memory, tmp_path, train, display, first, takes_state, said
):
    memory(lambda plan: plan.micro_batches == 2, first, takes_state)
    with jax.enable_x64(True):
        assert train(exact_config, tmp_path, display=display) == "finished"
        assert_same_end(tmp_path, undisturbed, exact_config)
    assert f"out of memory at {said} with 2 micro-batches of 4" in display.messages
    assert len(display.messages) == 2


@pytest.mark.parametrize(
    ("bad", "times", "said"),
    [
        (12, 9, "step 13, whose state is lost: going on from step 10"),
        (14, 9, "step 15, whose state is lost: going on from step 10"),
        (19, 9, "step 20, whose state is lost: going on from step 10"),
        (13, 1, "step 14, whose state is lost: going on from step 10"),  # it is that of step 15
        (14, 1, "step 15: going on"),
        (19, 1, "step 20: going on"),  # to the evaluation that is due
    ],
)
def test_an_error_that_shows_when_the_step_is_read(
    exact_config, undisturbed, monkeypatch, tmp_path, train, display, bad, times, said
):
    """Within a window, where the next step has the state by then, at its end, and at the end of an epoch."""
    remaining = times

    class Failed:
        def __init__(self, loss):
            self.loss = loss

        def __array__(self):
            nonlocal remaining
            remaining -= 1
            if remaining >= 0:
                run_out_of_memory()
            return np.asarray(self.loss)

    def step(state, batch, micro_batches, remat, mesh):
        number = int(state.step)
        state, metrics = train_step(state, batch, micro_batches=micro_batches, remat=remat, mesh=mesh)
        if micro_batches == 1 and number == bad:
            metrics = {**metrics, "loss": Failed(metrics["loss"])}
        return state, metrics

    monkeypatch.setattr(ttm_jax.train, "train_step", step)
    with jax.enable_x64(True):
        assert train(exact_config, tmp_path, display=display) == "finished"
        assert_same_end(tmp_path, undisturbed, exact_config)
    assert display.messages[0] == f"out of memory at {said} with 2 micro-batches of 4"


@pytest.mark.slow
def test_the_cpu_is_the_last_resort_and_a_resumed_run_stays_there(
    exact_config, undisturbed, monkeypatch, memory, tmp_path, train, display, run_display
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    memory(lambda plan: plan.device == "cpu")
    resumed = run_display()
    with jax.enable_x64(True):
        assert train(exact_config, tmp_path, stop_at=13, display=display) == "interrupted"
        assert train(exact_config, tmp_path, resume=True, display=resumed) == "finished"
        assert_same_end(tmp_path, undisturbed, exact_config)
    assert display.messages[-2:] == [
        'out of memory at step 0: going on with 8 micro-batches of 1, rematerialisation "full"',
        "out of memory at step 0: going on with batches of 8, on the CPU",
    ]
    assert resumed.messages[0] == "memory ran out before: going on with batches of 8, on the CPU"
    assert not any("out of memory" in message for message in resumed.messages)


@pytest.mark.slow
def test_an_evaluation_asks_for_fewer_pairs_at_a_time(tiny_config, tiny_run, monkeypatch, tmp_path, train, display):
    def answer(multiplier, pairs, num_steps, batch_size):
        if batch_size > 4:
            run_out_of_memory()
        return answer_pairs(multiplier, pairs, num_steps, batch_size)

    answer_pairs = ttm_jax.train.answer_pairs
    monkeypatch.setattr(ttm_jax.train, "answer_pairs", answer)
    assert train(tiny_config, tmp_path, display=display) == "finished"
    where = "out of memory in the evaluation at step 10: going on with"
    assert display.messages[:2] == [f"{where} 8 pairs at a time", f"{where} 4 pairs at a time"]
    scores = ([r["exact_match"] for r in records(path, "eval")] for path in (tmp_path, tiny_run.path))
    assert [*next(scores)] == [*next(scores)]


class TestTheEnd:
    def test_one_line_where_nothing_is_left(self, config_file, memory, tmp_path, call_command):
        memory(lambda plan: False, first=12)
        run = tmp_path / "run"
        code, out, err = call_command(main, "--config", config_file, "--workdir", run)
        assert code == 1
        assert sum("out of memory at step 12: going on with" in line for line in out.splitlines()) == 5
        assert err == (
            "python -m ttm_jax.train: error: out of memory at step 12 with 8 micro-batches of 1, rematerialisation "
            f'"full": nothing is left to fall back to; the last good checkpoint is {run / LATEST / "10"}\n'
        )

    def test_an_evaluation_of_one_pair(self, tiny_config, monkeypatch, tmp_path, train):
        monkeypatch.setattr(ttm_jax.train, "answer_pairs", lambda *arguments: run_out_of_memory())
        with pytest.raises(OutOfMemory, match="in the evaluation at step 10, of one pair at a time; no checkpoint"):
            train(tiny_config, tmp_path)

    def test_other_errors_are_not_taken_for_it(self, tiny_config, monkeypatch, tmp_path, train, display):
        def step(*arguments, **options):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

        monkeypatch.setattr(ttm_jax.train, "train_step", step)
        with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
            train(tiny_config, tmp_path, display=display)
        assert not display.messages


def test_a_run_saved_before_there_were_fall_backs_goes_on(tiny_config, tmp_path):
    trainer = Trainer(tiny_config, tmp_path)
    saved = trainer.progress.to_dict()
    assert saved.pop("plan") == dataclasses.asdict(StepPlan())
    assert type(trainer.progress).from_dict(saved) == trainer.progress
