"""The two pure steps on a training state."""

import jax
import numpy as np
import pytest

from ttm_jax.multiplication.losses import compute_total_loss, sum_carry_loss, sum_column_loss
from ttm_jax.multiplication.metrics import create_target_mask, position_accuracy, sequence_accuracy
from ttm_jax.multiplication.model import select_answers
from ttm_jax.multiplication.objective import create_state, eval_step
from ttm_jax.multiplication.problems import MultiplicationDataset, operand_lengths
from ttm_jax.multiplication.steps import training_arrays
from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN
from ttm_jax.training.config import override
from ttm_jax.training.step import train_step


@pytest.fixture(scope="module")
def batch():
    batch = MultiplicationDataset(8).batch(0, 0)
    return {"inputs": batch.inputs, "targets": batch.targets[:, :3], "carries": batch.carries[:, :3]}


def bits(tree):
    """All leaves as bytes; keys as their data."""
    keys_as_data = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(keys_as_data)]


def test_a_fresh_state_follows_from_the_seed(tiny_config):
    state, again = create_state(tiny_config), create_state(tiny_config)
    assert bits(state) == bits(again)
    assert state.step == 0


def test_a_step_changes_every_parameter(tiny_config, batch):
    before = jax.tree.map(np.array, create_state(tiny_config).params)
    state, metrics = train_step(create_state(tiny_config), batch)
    unchanged = jax.tree_util.tree_map_with_path(
        lambda path, a, b: jax.tree_util.keystr(path) if np.array_equal(a, b) else None, before, state.params
    )
    assert jax.tree.leaves(unchanged) == []
    assert state.step == 1
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "exact_match"}
    assert metrics["exact_match"].shape == (8,)
    assert metrics["exact_match"].dtype == bool
    assert metrics["loss"].shape == metrics["grad_norm"].shape == metrics["learning_rate"].shape == ()


def test_the_loss_of_a_fixed_batch_falls(tiny_config, batch):
    state, losses = create_state(tiny_config), []
    for _ in range(30):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert state.step == 30
    assert 3.5 < losses[0] < 5.5  # log(13) = 2.56 and half of log(45) = 3.81
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_a_step_is_a_pure_function(tiny_config, batch):
    first, second = (train_step(create_state(tiny_config), batch) for _ in range(2))
    assert bits(first) == bits(second)


def test_dropout_follows_the_step_and_the_key(tiny_config, batch):
    def loss(step, seed):
        state = create_state(tiny_config)
        state = state.replace(step=state.step + step, key=jax.random.key(seed))
        return float(train_step(state, batch)[1]["loss"])

    losses = [loss(0, 0), loss(1, 0), loss(2, 0), loss(0, 1)]
    assert len(set(losses)) == 4
    assert loss(1, 0) == losses[1]


def test_metrics_are_of_the_step(tiny_config, batch):
    """Learning rates of steps 0, 1, ... with five steps of warm-up to 0.02."""
    state, rates = create_state(tiny_config), []
    for _ in range(6):
        state, metrics = train_step(state, batch)
        rates.append(float(metrics["learning_rate"]))
    assert np.argmax(rates) == 5
    assert rates[5] == pytest.approx(0.02)
    assert rates[0] == pytest.approx(0.02 / 6)


def test_an_evaluation(tiny_config, batch):
    state = create_state(tiny_config)
    result = eval_step(state.objective.model, state.params, batch)
    assert set(result) == {"predictions", "probabilities", "loss", "position_accuracy", "sequence_accuracy"}
    predictions = np.asarray(result["predictions"])
    assert predictions.shape == result["probabilities"].shape == (8, 3)
    assert ((result["probabilities"] > 1 / 13) & (result["probabilities"] <= 1)).all()
    assert result["position_accuracy"] == pytest.approx(position_accuracy(predictions, batch["targets"]))
    assert result["sequence_accuracy"] == pytest.approx(sequence_accuracy(predictions, batch["targets"]))
    assert bits(result) == bits(eval_step(state.objective.model, state.params, batch))  # no dropout


def test_the_loss_is_of_answer_and_carries(tiny_config, batch):
    state = create_state(tiny_config)
    apply = jax.jit(lambda p: state.objective.model.apply({"params": p}, batch["inputs"], num_steps=3, method="heads"))
    logits, carry_logits = apply(state.params)
    targets = jax.numpy.asarray(batch["targets"])
    answer = compute_total_loss(logits, targets)
    carries = sum_carry_loss(carry_logits, jax.numpy.asarray(batch["carries"]), targets)
    carries /= create_target_mask(targets).sum()
    assert eval_step(state.objective.model, state.params, batch)["loss"] == pytest.approx(
        float(answer + 0.5 * carries), rel=1e-5
    )


@pytest.fixture(scope="module")
def products(tiny_config):
    """The tiny config with a machine step for each product of two digits, and a batch of it."""
    config = override(tiny_config, {"model.schedule": "product", "data.augment": "[]"})
    batch = MultiplicationDataset(8, start_stage=2).batch(0, 0)
    return config, training_arrays(batch, config.model, 5)


def test_the_loss_is_of_answer_and_running_sums(products):
    config, batch = products
    state = create_state(config)
    apply = jax.jit(lambda p: state.objective.model.apply({"params": p}, batch["inputs"], num_steps=5, method="heads"))
    logits, carry_logits = apply(state.params)
    assert logits.shape[1] == batch["sums"].shape[1] == 6
    targets = jax.numpy.asarray(batch["targets"])
    answer = compute_total_loss(select_answers(config.model, batch["inputs"], logits, 5), targets)
    sums = sum_column_loss(logits, carry_logits, jax.numpy.asarray(batch["sums"]))
    sums /= create_target_mask(targets).sum()
    result = eval_step(state.objective.model, state.params, batch)
    assert result["loss"] == pytest.approx(float(answer + 0.5 * sums), rel=1e-5)
    assert result["predictions"].shape == (8, 5)


def test_running_sums_are_not_trained_on_carries(products):
    config, batch = products
    state = create_state(config)
    without = {**batch, "carries": batch["sums"]}
    del without["sums"]
    assert np.isfinite(eval_step(state.objective.model, state.params, without)["loss"])
    with pytest.raises(ValueError, match='trained on batches with "sums"'):
        train_step(state, without)


def test_products_without_a_carry_head_are_trained_on_the_answer_alone(products):
    config, batch = products
    state = create_state(override(config, {"model.carry_head": "false", "model.dropout_rate": "0.0"}))
    logits = jax.jit(lambda p: state.objective.model.apply({"params": p}, batch["inputs"], True, num_steps=5))(
        state.params
    )
    answer = compute_total_loss(logits, jax.numpy.asarray(batch["targets"]))
    assert train_step(state, batch)[1]["loss"] == pytest.approx(float(answer), rel=1e-5)


def test_problems_that_do_not_fit_have_no_loss(products):
    """Their answers beyond the last step are no number, which is neither right nor anything to be trained by."""
    config, batch = products
    state = create_state(config)
    too_few = {"inputs": batch["inputs"], "targets": batch["targets"][:, :4]}
    result = eval_step(state.objective.model, state.params, too_few)
    assert np.isnan(result["loss"])
    unanswered = np.add(*operand_lengths(batch["inputs"])) == 4
    assert unanswered.any()
    assert (np.asarray(result["predictions"])[unanswered, 3] == PAD_TOKEN).all()


def test_an_evaluation_masks_what_follows_eos(tiny_config, batch):
    """A network that prefers EOS a little everywhere: masked, it prefers nothing else after the first."""
    state = create_state(tiny_config)
    params = jax.tree.map(np.array, state.params)
    params["head"]["eos_head"]["bias"] += 12.0
    result = eval_step(state.objective.model, params, batch)
    assert (np.asarray(result["predictions"]) == EOS_TOKEN).all()
    assert (np.asarray(result["probabilities"])[:, 1:] == 1.0).all()
    assert (np.asarray(result["probabilities"])[:, 0] < 1.0).all()


def test_a_carry_head_is_evaluated_without_carries_and_not_trained_without(tiny_config, batch):
    without = {name: array for name, array in batch.items() if name != "carries"}
    state = create_state(tiny_config)
    assert state.objective.config.carry_head
    assert np.isfinite(eval_step(state.objective.model, state.params, without)["loss"])
    with pytest.raises(ValueError, match='trained on batches with "carries"'):
        train_step(state, without)
