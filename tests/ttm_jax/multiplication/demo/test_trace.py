"""What a trace says is what the network did, and what schoolbook arithmetic says."""

import json
from functools import partial

import jax
import numpy as np
import pytest

import ttm_jax
from ttm_jax.multiplication.demo.trace import symbol, trace
from ttm_jax.multiplication.problems import encode_problems, place_name
from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN, TIMES_TOKEN


@pytest.fixture(scope="module")
def result(multiplier):
    return trace(multiplier, 123, 45)


def test_the_digits_are_those_of_the_network(multiplier, result):
    tokens, probabilities = multiplier.predict(encode_problems(np.array([123]), np.array([45])))
    T = len(result.tokens_T)
    assert result.tokens_T.tolist() == tokens[0, :T].tolist()
    assert result.probabilities_T.tolist() == probabilities[0, :T].tolist()
    assert (tokens[0, : T - 1] != EOS_TOKEN).all()
    assert T == 12 or tokens[0, T - 1] == EOS_TOKEN
    assert result.answer == multiplier.multiply([123], [45])[0]
    assert result.product == 5535
    assert result.correct == (result.answer == 5535)
    assert result.seconds > 0


def test_right_and_wrong(tiny_run):
    """Of the single digits a short training got some right."""
    multiplier = ttm_jax.load(tiny_run.path)
    pairs = [(a, b) for a in range(10) for b in range(10)]
    products = multiplier.multiply(*zip(*pairs, strict=True))
    right = [product == a * b for (a, b), product in zip(pairs, products, strict=True)]
    for verdict in (True, False):
        result = trace(multiplier, *pairs[right.index(verdict)])
        assert result.correct is verdict
        assert (result.answer == result.product) is verdict


def test_an_answer_without_end_is_no_number(multiplier, without_end):
    result = trace(without_end(multiplier), 11, 7)
    assert result.tokens_T.tolist() == [7] * 12
    assert (result.answer, result.correct) == (None, False)


def test_schoolbook_columns(result):
    assert [result.terms(step) for step in range(4)] == [[(3, 5)], [(3, 4), (2, 5)], [(2, 4), (1, 5)], [(1, 4)]]
    for step in result.steps:
        carry = int(result.carries_T[step])
        digit = int(result.targets_T[step]) if result.targets_T[step] < TIMES_TOKEN else 0
        assert result.column_sum(step) == 10 * carry + digit
    assert [result.column(step) for step in range(4)] == [[2, 5], [1, 2, 4, 5], [0, 1, 4, 5], [0, 4]]
    assert [result.column_sum(step) for step in range(3)] == [15, 23, 15]
    assert [result.carry_in(step) for step in range(4)] == [0, 1, 2, 1]


def test_shares_are_shares(result):
    everything = result.read_TxM.sum(axis=1) + result.read_TxS.sum(axis=1)
    np.testing.assert_allclose(everything, 1, rtol=1e-5)
    np.testing.assert_allclose(
        result.read_operands_TxN.sum(axis=1) + result.read_filler_T, result.read_TxS.sum(axis=1), rtol=1e-5
    )
    assert result.operand_tokens == ["1", "2", "3", "×", "4", "5"]
    assert ((result.kept_TxM > 0) & (result.kept_TxM < 1)).all()
    np.testing.assert_allclose(result.origin_TxW.sum(axis=1), result.read_TxM.sum(axis=1), rtol=1e-5)
    for step in result.steps:
        assert (result.origin_TxW[step, : step + 1] > 0).all()
        assert (result.origin_TxW[step, step + 1 :] == 0).all()
    assert result.carry_probabilities_TxC.shape == (len(result.tokens_T), 45)
    np.testing.assert_allclose(result.carry_probabilities_TxC.sum(axis=1), 1, rtol=1e-5)


def test_the_shares_of_a_read_make_what_was_read(multiplier, result):
    """Against the tokens that went into the read and those that came out of it."""
    inputs = encode_problems(np.array([123]), np.array([45]))
    run = partial(multiplier.model.apply, mutable=["intermediates"], capture_intermediates=True)
    _, state = jax.jit(run)(multiplier.variables, inputs)
    read = state["intermediates"]["machine"]["step"]["read"]
    (tokens_TxBxXxD,), (read_TxBxRxD,) = read["positions"]["__call__"], read["summarizer"]["__call__"]
    T = len(result.tokens_T)
    weights_TxX = np.concatenate([result.read_TxM, result.read_TxS], axis=1)
    mean_TxD = np.einsum("tx,txd->td", weights_TxX, tokens_TxBxXxD[:T, 0])
    np.testing.assert_allclose(mean_TxD, read_TxBxRxD[:T, 0].mean(axis=1), atol=1e-5)


def test_the_first_step_finds_nothing_to_wipe(multiplier, result):
    assert result.wiped_T[0] == result.tokens_T[0]
    np.testing.assert_allclose(result.wiped_probabilities_T[0], result.probabilities_T[0], rtol=1e-4)
    T = len(result.tokens_T) - 1
    assert T == 0 or not np.allclose(result.wiped_probabilities_T[1:], result.probabilities_T[1:], rtol=1e-3)


def test_modes_whose_shares_are_known(make_multiplier):
    """Pooling 4 + 12 tokens to 2; a queue of 4 that takes 2 a step."""
    queue = trace(make_multiplier(read="pooling", write="concat", memory_size=4, process_size=2), 12, 34)
    np.testing.assert_allclose(queue.read_TxM, 1 / 16)
    np.testing.assert_allclose(queue.read_TxS, 1 / 16)
    assert (queue.kept_TxM == [1, 1, 0, 0]).all()
    T = len(queue.tokens_T)
    expected = np.zeros((T, T + 1))
    expected[0, 0] = 4 / 16
    for step in range(1, T):
        expected[step, max(step - 1, 0)] = expected[step, step] = 2 / 16
    np.testing.assert_allclose(queue.origin_TxW, expected)


def test_a_place_of_several_machine_steps(make_multiplier):
    """Under the schedule "product" a queue of 4 that takes 2 a step: what a place read, wrote and kept."""
    fields = dict(read="pooling", write="concat", memory_size=4, process_size=2, schedule="product", carry_head=True)
    multiplier = make_multiplier(**fields)
    result = trace(multiplier, 47, 86)  # steps: 1, 2, 1, 1, ...
    tokens, _ = multiplier.predict(encode_problems(np.array([47]), np.array([86])))
    T = len(result.tokens_T)
    assert T > 3
    assert result.tokens_T.tolist() == tokens[0, :T].tolist()
    np.testing.assert_allclose(result.read_TxM, 1 / 16)
    assert result.kept_TxM[:4].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    expected = np.zeros((4, T + 1))
    expected[0, 0] = 4 / 16
    expected[1, [0, 1, 2]] = [1 / 16, 2 / 16, 1 / 16]  # the mean of (start 2, units 2) and (units 2, tens 2)
    expected[2, 2] = 4 / 16
    expected[3, [2, 3]] = [2 / 16, 2 / 16]
    np.testing.assert_allclose(result.origin_TxW[:4], expected)
    assert result.carry_probabilities_TxC.shape == (T, 45)
    assert result.running_sums(1) == [4, 60, 84]
    (logits, carry_logits) = multiplier.model.apply(
        multiplier.variables, encode_problems(np.array([47]), np.array([86])), method="heads"
    )
    sums = 10 * carry_logits[0].argmax(axis=-1) + logits[0, :, :10].argmax(axis=-1)
    assert result.sums[:3] == ((sums[0],), (sums[1], sums[2]), (sums[3],))
    assert result.held_sums(1) == [(sums[1], sums[1] == 60), (sums[2], sums[2] == 84)]
    step = result.to_dict()["steps"][1]
    assert (step["network_sums"], step["sums"]) == ([sums[1], sums[2]], [60, 84])


def test_a_memory_that_is_never_written(make_multiplier):
    never = trace(make_multiplier(read="query", write="none"), 12, 34)
    assert (never.kept_TxM == 1).all()
    np.testing.assert_allclose(never.origin_TxW[:, 0], never.read_TxM.sum(axis=1), rtol=1e-5)
    assert never.wiped_T.tolist() == never.tokens_T.tolist()
    np.testing.assert_allclose(never.read_TxM.sum(axis=1) + never.read_TxS.sum(axis=1), 1, rtol=1e-5)


def test_what_a_network_does_not_have(make_multiplier):
    bare = trace(make_multiplier(read="mlp", write="erase_add", carry_head=False), 12, 34)
    assert bare.carry_probabilities_TxC is None
    assert bare.kept_TxM is None
    assert bare.origin_TxW is None
    step = bare.to_dict()["steps"][0]
    assert (step["network_carry"], step["network_sums"]) == (None, None)
    assert (step["kept"], step["origin"]) == (None, None)


def test_products_without_a_carry_head(make_multiplier):
    result = trace(make_multiplier(schedule="product", carry_head=False), 12, 34)
    assert (result.schedule, result.sums, result.held_carry(0)) == ("product", None, None)
    values = result.to_dict()
    assert (values["schedule"], values["steps"][0]["network_sums"]) == ("product", None)


def test_no_carry_is_held_past_the_product(multiplier, without_end):
    result = trace(without_end(multiplier), 5, 7)
    assert [result.held_carry(step) is None for step in result.steps] == [False, False, *[True] * 10]
    assert [trace(multiplier, 0, 45).held_carry(step) is None for step in (0, 1)] == [False, True]
    held = result.carry_probabilities_TxC[1]
    assert result.held_carry(1) == (held.argmax(), held.max())
    assert [step["network_carry"] is None for step in result.to_dict()["steps"][:3]] == [False, False, True]


def test_as_plain_values(result):
    values = json.loads(json.dumps(result.to_dict()))
    assert values["problem"] == "123 × 45"
    assert (values["answer"], values["product"], values["correct"]) == (result.answer, 5535, result.correct)
    assert values["trained"] == "too long"
    assert len(values["steps"]) == len(result.tokens_T)
    first = values["steps"][0]
    assert (first["place"], first["terms"], first["carry_in"], first["sum"]) == ("units", [[3, 5]], 0, 15)
    assert (first["true_digit"], first["carry"]) == ("5", 1)
    assert first["network_carry"]["value"] == result.carry_probabilities_TxC[0].argmax()
    assert len(first["read_memory"]) == len(first["kept"]) == 6
    assert abs(sum(first["read_memory"] + first["read_operands"]) + first["read_filler"] - 1) < 1e-2


def test_names():
    assert [place_name(step) for step in (0, 3, 4, 10)] == ["units", "thousands", "10⁴", "10¹⁰"]
    assert [symbol(token) for token in (0, 9, TIMES_TOKEN, EOS_TOKEN, PAD_TOKEN)] == ["0", "9", "×", "end", "end"]
