"""The multiplier: place values, EOS masking, and what its forward pass depends on."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.fast_jit import fast_jit
from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.multiplication.model import (
    PAD_LOGIT,
    DirectTransformer,
    TTMModel,
    apply_digit_mask,
    apply_eos_boost,
    apply_eos_masking,
    create_eos_mask,
    create_position_indices,
    detect_eos,
    extract_eos_probs,
    make_model,
)
from ttm_jax.multiplication.problems import MAX_CARRY, encode_problems
from ttm_jax.multiplication.steps import PRODUCT_STEPS, num_machine_steps
from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN, VOCAB_SIZE
from ttm_jax.training.config import ConfigError

pytestmark = pytest.mark.usefixtures("nans_are_errors")

MODEL = TTMModel(ModelConfig(width=16, memory_size=4, process_size=2, num_layers=1, mlp_dim=16, num_heads=2))
INPUTS = encode_problems([12, 0, 99999, 7], [3, 0, 99999, 4321])


@pytest.fixture(scope="module")
def variables(random_params):
    return {"params": random_params(MODEL, INPUTS)}


@pytest.fixture(scope="module")
def raw_logits():
    """Jitted logits before masking: `raw_logits(variables, inputs)`."""
    return fast_jit(lambda variables, inputs: MODEL.apply(variables, inputs, method="raw_logits"))


@pytest.fixture(scope="module")
def default_params():
    """Shapes of the parameters of the default sizes."""
    model = TTMModel()
    return jax.eval_shape(model.init, jax.random.key(0), INPUTS)["params"]


def one_hot_logits(*rows):
    """Logits that put nearly all probability on the tokens given."""
    return 20.0 * jax.nn.one_hot(jnp.array(rows), VOCAB_SIZE)


def test_position_indices_are_place_values():
    a_times_b = jnp.asarray(encode_problems([12, 99999, 5], [3, 12345, 678]))
    assert create_position_indices(a_times_b).tolist() == [
        [1, 0, 5, 6, 11, 11, 11, 11, 11, 11, 11, 11],
        [4, 3, 2, 1, 0, 5, 10, 9, 8, 7, 6, 11],
        [0, 5, 8, 7, 6, 11, 11, 11, 11, 11, 11, 11],
    ]


def test_eos_is_detected_above_one_half():
    logits = jnp.zeros((1, 3, VOCAB_SIZE)).at[0, :, EOS_TOKEN].set(jnp.log(jnp.array([11.9, 12.1, 1.0])))
    np.testing.assert_allclose(extract_eos_probs(logits), [[11.9 / 23.9, 12.1 / 24.1, 1 / 13]], rtol=1e-5)
    assert detect_eos(logits).tolist() == [[False, True, False]]


def test_the_eos_mask_starts_after_the_first_eos():
    has_eos = jnp.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], bool)
    assert create_eos_mask(has_eos).tolist() == [
        [0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ]


def test_masking_moves_digits_down_and_eos_up_by_1000():
    logits, mask = jnp.arange(26.0).reshape(1, 2, 13), jnp.array([[0.0, 1.0]])
    wanted = np.arange(26.0).reshape(1, 2, 13)
    wanted[0, 1, :11] -= 1000
    assert np.array_equal(apply_digit_mask(logits, mask), wanted)
    wanted[0, 1, EOS_TOKEN] += 1000
    assert np.array_equal(apply_eos_boost(apply_digit_mask(logits, mask), mask), wanted)
    assert np.array_equal(apply_eos_masking(logits, jnp.array([[True, False]])), wanted)


def test_masking_makes_an_eos_of_all_that_follows_the_first():
    logits = one_hot_logits([4, 2, EOS_TOKEN, 7, EOS_TOKEN, 9], [1, 2, 3, 4, 5, 6], [EOS_TOKEN, 1, 2, 3, 4, 5])
    masked = apply_eos_masking(logits, detect_eos(logits))
    assert masked.argmax(axis=-1).tolist() == [[4, 2, 11, 11, 11, 11], [1, 2, 3, 4, 5, 6], [11] * 6]
    kept = create_eos_mask(detect_eos(logits)) == 0
    assert np.array_equal(masked[kept], logits[kept])


def test_logits(variables, raw_logits):
    logits = raw_logits(variables, INPUTS)
    assert logits.shape == (4, 12, 13)
    assert (logits[..., PAD_TOKEN] == PAD_LOGIT).all()
    assert logits[..., :PAD_TOKEN].min() > PAD_LOGIT / 2
    masked = apply_eos_masking(logits, jnp.ones((4, 12), bool))
    assert masked[..., PAD_TOKEN].max() < masked[..., :PAD_TOKEN].min() - 1000


def test_a_call_masks_and_training_does_not(variables, raw_logits):
    biased = jax.tree.map(jnp.asarray, variables)
    biased["params"]["head"]["eos_head"]["bias"] += 4.0
    raw = raw_logits(biased, INPUTS)
    masked = fast_jit(MODEL.apply)(biased, INPUTS)
    assert detect_eos(raw).any()
    np.testing.assert_allclose(masked, apply_eos_masking(raw, detect_eos(raw)), rtol=1e-5, atol=1e-5)
    assert not np.allclose(masked, raw)
    still = TTMModel(ModelConfig(**{**vars(MODEL.config), "dropout_rate": 0.0}))
    trained = fast_jit(lambda v: still.apply(v, INPUTS, train=True))(biased)
    np.testing.assert_allclose(trained, raw, rtol=1e-5, atol=1e-5)


def test_fewer_steps_give_the_first_logits(variables, raw_logits):
    few = fast_jit(lambda v: MODEL.apply(v, INPUTS, num_steps=5, method="raw_logits"))(variables)
    assert few.shape == (4, 5, 13)
    np.testing.assert_allclose(few, raw_logits(variables, INPUTS)[:, :5], rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_do_not_mix(variables, raw_logits):
    other = INPUTS.copy()
    other[1] = encode_problems(86, 42)[0]
    before, after = raw_logits(variables, INPUTS), raw_logits(variables, other)
    same = np.arange(4) != 1
    assert np.array_equal(before[same], after[same])
    assert not np.allclose(before[1], after[1])


def test_every_digit_and_every_place_matters(variables, raw_logits):
    """No two of these problems may look the same to the network."""
    problems = encode_problems([12, 21, 3, 120, 12], [3, 3, 12, 3, 30])
    logits = raw_logits(variables, problems[:4]), raw_logits(variables, np.roll(problems, 1, axis=0)[:4])
    rows = np.unique(np.concatenate(logits).reshape(8, -1).round(4), axis=0)
    assert len(rows) == 5


def test_tokens_get_the_embeddings_of_their_places(variables, raw_logits):
    """12 x 3: tens and units, the sign, units, and all the rest."""
    inputs = encode_problems([12] * 4, [3] * 4)
    before, used = raw_logits(variables, inputs), set()
    for row in range(12):
        table = {"embedding": variables["params"]["pos_embed"]["embedding"].at[row].add(1.0)}
        if not np.array_equal(before, raw_logits({"params": {**variables["params"], "pos_embed": table}}, inputs)):
            used.add(row)
    assert used == {0, 1, 5, 6, 11}


def test_steps_differ_by_the_place_asked_for(variables, raw_logits):
    """With the memory reset at each step only the place embedding is left to tell steps apart."""
    flat = jax.tree.map(jnp.zeros_like, variables["params"]["place_embed"])
    forgetful = TTMModel(ModelConfig(**{**vars(MODEL.config), "write": "none"}))
    params = {key: value for key, value in variables["params"].items() if key != "machine"}
    step = {k: v for k, v in variables["params"]["machine"]["step"].items() if k != "write"}
    params["machine"] = {**variables["params"]["machine"], "step": step}
    apply = fast_jit(lambda params: forgetful.apply({"params": params}, INPUTS, method="raw_logits"))
    assert np.ptp(apply({**params, "place_embed": flat}), axis=1).max() < 1e-5
    assert np.ptp(apply(params), axis=1).max() > 0.01


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("token_embed/embedding", (13, 128)),
        ("pos_embed/embedding", (12, 128)),
        ("place_embed/embedding", (12, 128)),
        ("machine/initial_memory", (1, 96, 128)),
        ("head/pre_output1/kernel", (128, 128)),
        ("head/pre_output2/kernel", (128, 64)),
        ("head/digit_head/kernel", (64, 11)),
        ("head/eos_head/kernel", (64, 1)),
    ],
)
def test_parameters_of_the_default_sizes(default_params, path, shape):
    leaf = default_params
    for name in path.split("/"):
        leaf = leaf[name]
    assert leaf.shape == shape


def test_initial_memory():
    model = TTMModel()
    memory = fast_jit(lambda key: model.init(key, INPUTS[:1], num_steps=1)["params"]["machine"]["initial_memory"])
    assert abs(float(jnp.abs(memory(jax.random.key(0))).mean()) - 0.008) < 0.002


def test_the_carry_head_adds_logits_and_nothing_else(variables, random_params):
    assert jax.eval_shape(lambda v: MODEL.apply(v, INPUTS, method="heads")[1], variables) is None
    model = TTMModel(ModelConfig(**{**vars(MODEL.config), "carry_head": True}))
    params = jax.eval_shape(model.init, jax.random.key(0), INPUTS)["params"]
    assert set(params) - set(variables["params"]) == {"carry_head"}
    assert params["carry_head"]["kernel"].shape == (16, 45)
    logits, carry_logits = jax.eval_shape(
        lambda p: model.apply({"params": p}, INPUTS, num_steps=5, method="heads"), params
    )
    assert logits.shape == (4, 5, 13)
    assert carry_logits.shape == (4, 5, 45)


def test_logits_are_float32_under_bfloat16():
    model = TTMModel(ModelConfig(**{**vars(MODEL.config), "dtype": "bfloat16"}))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), INPUTS)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("inputs", [INPUTS[:, :11], INPUTS[0], INPUTS[..., None]])
def test_inputs_of_another_shape_are_refused(inputs):
    with pytest.raises(ValueError, match=r"inputs must be \[B, 12\], got shape"):
        jax.eval_shape(MODEL.init, jax.random.key(0), inputs)


@pytest.mark.parametrize("num_steps", [0, 13])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match=rf"num_steps must be in 1\.\.12, got {num_steps}"):
        jax.eval_shape(lambda key: MODEL.init(key, INPUTS, num_steps=num_steps), jax.random.key(0))


@pytest.fixture(scope="module")
def baseline(random_params):
    model = make_model(dataclasses.replace(MODEL.config, kind="transformer", carry_head=True))
    return model, {"params": random_params(model, INPUTS)}


def test_the_baseline_has_no_machine(baseline):
    model, variables = baseline
    assert type(model) is DirectTransformer
    assert "machine" not in variables["params"]
    heads = fast_jit(partial(model.apply, num_steps=5, method="heads"))
    logits_BxTxV, carry_logits_BxTxC = heads(variables, INPUTS)
    assert (logits_BxTxV.shape, carry_logits_BxTxC.shape) == ((4, 5, VOCAB_SIZE), (4, 5, MAX_CARRY + 1))


def test_the_baseline_gives_the_same_places_however_many_are_asked_for(baseline):
    model, variables = baseline
    apply = fast_jit(partial(model.apply, method="raw_logits"), static_argnames="num_steps")
    few, all_ = (apply(variables, INPUTS, num_steps=steps) for steps in (3, 12))
    np.testing.assert_allclose(few, all_[:, :3], rtol=1e-5, atol=1e-5)


def test_the_baseline_tells_places_and_problems_apart(baseline):
    model, variables = baseline
    logits_BxTxV = np.asarray(model.apply(variables, INPUTS, method="raw_logits"))[..., :PAD_TOKEN]
    first, second = logits_BxTxV[0], logits_BxTxV[3]
    assert np.abs(first - second).max(axis=-1).min() > 1e-3
    assert np.abs(first[0] - first[1:]).max(axis=-1).min() > 1e-3


# The schedule "product": a machine step for each product of two digits.
PRODUCTS = TTMModel(dataclasses.replace(MODEL.config, schedule="product", carry_head=True))


@pytest.fixture(scope="module")
def product_variables(random_params):
    return {"params": random_params(PRODUCTS, INPUTS)}


@pytest.fixture(scope="module")
def apply_products():
    return fast_jit(PRODUCTS.apply, static_argnames=("num_steps", "method"))


def test_shapes_of_the_schedule_product(product_variables, apply_products):
    logits, carry_logits = apply_products(product_variables, INPUTS, num_steps=9, method="heads")
    assert (logits.shape, carry_logits.shape) == ((4, 18, VOCAB_SIZE), (4, 18, MAX_CARRY + 1))
    assert apply_products(product_variables, INPUTS[:2], num_steps=9).shape == (2, 9, VOCAB_SIZE)
    assert apply_products(product_variables, INPUTS).shape == (4, 12, VOCAB_SIZE)


def test_a_problem_is_answered_the_same_however_many_places_are_asked_for(product_variables, apply_products):
    """Of 12 x 3, of which four are enough, and beside longer problems or alone."""
    whole = apply_products(product_variables, INPUTS, method="raw_logits")
    part = apply_products(product_variables, INPUTS[:1], num_steps=4, method="raw_logits")
    np.testing.assert_allclose(part[0], whole[0, :4], atol=1e-5)


def test_what_too_few_places_leave_unanswered_is_nan(product_variables, apply_products):
    """Four of a product of 10 digits: the steps reach the tens, not another place's answer."""
    whole = apply_products(product_variables, INPUTS, method="raw_logits")
    with jax.debug_nans(False):
        part = np.asarray(apply_products(product_variables, INPUTS, num_steps=4, method="raw_logits"))
    np.testing.assert_allclose(part[0], whole[0, :4], atol=1e-5)
    np.testing.assert_allclose(part[2, :2], whole[2, :2], atol=1e-5)
    assert np.isnan(part[2, 2:]).all()


def test_products_in_bfloat16_are_close_to_float32(product_variables, apply_products):
    model = TTMModel(dataclasses.replace(PRODUCTS.config, dtype="bfloat16"))
    ours = fast_jit(partial(model.apply, method="heads"))(product_variables, INPUTS)
    for logits, exact in zip(ours, apply_products(product_variables, INPUTS, method="heads"), strict=True):
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits[..., :PAD_TOKEN], exact[..., :PAD_TOKEN], atol=0.1)


def test_a_place_is_answered_at_its_last_product(product_variables, apply_products):
    """12 x 3: products at steps 0 and 1, then the leading place and EOS; 7 x 4321 has four."""
    steps, _ = apply_products(product_variables, INPUTS, method="heads")
    answers = apply_products(product_variables, INPUTS, method="raw_logits")
    np.testing.assert_array_equal(answers[0, :4], steps[0, :4])
    np.testing.assert_array_equal(answers[3, :6], steps[3, :6])
    np.testing.assert_array_equal(answers[2, :5], steps[2, [0, 2, 5, 9, 14]])
    assert steps.shape[1] == num_machine_steps("product", 12) == 28


def test_a_step_knows_the_digits_that_it_multiplies(product_variables, apply_products):
    """The embedding of the first operand's second digit is used where that digit is multiplied, and not before."""
    changed = jax.tree.map(np.array, product_variables)
    changed["params"]["first_digit_embed"]["embedding"][1, ::2] += 1
    before, after = (apply_products(v, INPUTS, method="heads")[0] for v in (product_variables, changed))
    np.testing.assert_array_equal(before[2, :2], after[2, :2])  # 0·0, 0·1
    multiplied = PRODUCT_STEPS[4, 4, :, 1] == 1  # of 99999 x 99999
    assert (jnp.abs(before[2] - after[2]).max(axis=-1)[multiplied] > 1e-2).all()
    np.testing.assert_array_equal(before[3], after[3])  # 7 has no second digit


def test_only_a_machine_has_steps():
    with pytest.raises(ConfigError, match="model.schedule must be digit without a machine, got 'product'"):
        ModelConfig(kind="transformer", schedule="product")
