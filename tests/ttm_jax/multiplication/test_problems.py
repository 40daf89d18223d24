"""The task: what batches hold, that they are pure, and that held-out pairs never get into training."""

import hashlib
import itertools

import numpy as np
import pytest

from ttm_jax.multiplication.problems import (
    AUGMENTATIONS,
    MAX_CARRY,
    STAGES,
    Length,
    MultiplicationDataset,
    augment_batch,
    count_digits,
    decode_problems,
    encode_answers,
    encode_problems,
    held_out_pairs,
    is_held_out,
    schoolbook_carries,
)
from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN, TIMES_TOKEN, number_to_tokens, tokens_to_answer

PINNED_ROWS = [
    [0, 0, 0, 9, 10, 1, 11, 12, 12, 12, 12, 12],
    [1, 3, 2, 10, 9, 11, 12, 12, 12, 12, 12, 12],
    [5, 10, 1, 3, 11, 12, 12, 12, 12, 12, 12, 12],
]
PINNED_DIGEST = "a591c7dbe10fa922f343e8bbeb1dc2552b482fbc810a5f0fb2360807dd585986"
PINNED_HELD_OUT = [(16, 7), (41, 41), (74, 74), (200, 61), (1888, 786), (81256, 74553), (99999, 99999)]
PINNED_TRAINED = [(7, 7), (10, 2), (12, 3), (99, 99), (123, 45), (4711, 815)]
# Numbers in [0, 1) for `augment_batch`: below 1/2 an augmentation is applied.
YES, NO = 0.0, 0.9


def padded(tokens, seq_len):
    return tokens + [PAD_TOKEN] * (seq_len - len(tokens))


def problem_to_tokens(a, b, seq_len):
    """One problem, number by number: what `encode_problems` does of many."""
    return padded([*number_to_tokens(a), TIMES_TOKEN, *number_to_tokens(b), EOS_TOKEN], seq_len)


def answer_to_tokens(number, seq_len):
    """One answer: what `encode_answers` does of many."""
    return padded([*reversed(number_to_tokens(number)), EOS_TOKEN], seq_len)


def dataset(**kwargs):
    return MultiplicationDataset(**{"batch_size": 64, "augment": AUGMENTATIONS, **kwargs})


def products(targets):
    return np.array([tokens_to_answer(row) for row in targets])


def all_pairs(digits_a, digits_b):
    """Every pair of operands of these lengths."""
    a, b = (np.arange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for digits in (digits_a, digits_b))
    return np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1).reshape(-1, 2)


def test_seven_stages():
    stages = MultiplicationDataset().stages
    assert stages == STAGES
    assert len(stages) == 7
    assert stages[-1] == (0, 99999)
    assert all(high < next_high for (_, high), (_, next_high) in itertools.pairwise(stages))


def test_encoding_of_the_example():
    assert encode_problems(12, 3).tolist() == [[1, 2, 10, 3, 11, 12, 12, 12, 12, 12, 12, 12]]
    assert encode_answers(36).tolist() == [[6, 3, 11, 12, 12, 12, 12, 12, 12, 12, 12, 12]]


def test_encoding_agrees_with_the_plain_one():
    operands = [0, 5, 9, 10, 99, 100, 4711, 99999]
    a, b = np.array(list(itertools.product(operands, operands))).T
    assert encode_problems(a, b).tolist() == [problem_to_tokens(x, y, 12) for x, y in zip(a, b, strict=True)]
    assert encode_answers(a * b).tolist() == [answer_to_tokens(x, 12) for x in a * b]
    assert np.array_equal(decode_problems(encode_problems(a, b)), [a, b])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode_problems(123456, 12345), "a problem of 13 tokens does not fit"),
        (lambda: encode_answers(10**11), "numbers must be in"),
        (lambda: encode_answers(1234, seq_len=4), "an answer of 5 tokens does not fit"),
        (lambda: encode_problems(-1, 2), "numbers must be in"),
    ],
)
def test_what_cannot_be_encoded_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("stage", range(7))
def test_a_batch_is_valid(stage):
    data = dataset(start_stage=stage)
    low, high = data.stages[stage]
    inputs, targets = data.generate_batch()
    for tokens in (inputs, targets):
        assert tokens.shape == (64, 12)
        assert tokens.dtype == np.int32
        assert tokens.min() >= 0
        assert tokens.max() < 13
    a, b = decode_problems(inputs)
    assert np.array_equal(products(targets), a * b)
    assert min(a.min(), b.min()) >= low
    assert max(a.max(), b.max()) <= high
    steps = data.num_steps()
    assert (targets[:, steps:] == 12).all()  # the training runs `num_steps` positions only
    assert steps == 1 + max(len(str(high)) * 2, 2)


def test_lengths_name_each_example():
    data = dataset(start_stage=4, max_digits=(3, 2), augment=())
    assert [str(length) for length in data.lengths()] == ["1x1", "2x1", "2x2", "3x1", "3x2"]
    batch = data.batch(0, 0)
    a, b = decode_problems(batch.inputs)
    wanted = np.array(data.lengths())[batch.lengths]
    assert np.array_equal(np.stack([count_digits(a), count_digits(b)], axis=1), wanted)
    assert len(set(batch.lengths.tolist())) == 5


def test_a_batch_is_a_pure_function_of_seed_and_step():
    def bits(batch):
        return [array.tobytes() for array in batch]

    first, second = dataset(start_stage=6), dataset(start_stage=6, seed=99)
    forward = [bits(first.batch(3, step)) for step in range(5)]
    second.generate_batch()
    backward = [bits(second.batch(3, step)) for step in reversed(range(5))]
    assert forward == backward[::-1]
    others = [bits(first.batch(3, 5)), bits(first.batch(4, 0))]
    assert len({b"".join(batch) for batch in [*forward, *others]}) == 7


def test_generate_batch_goes_through_the_sequence_of_its_seed():
    data = dataset(seed=5)
    for step in range(3):
        inputs, targets = data.generate_batch()
        batch = data.batch(5, step)
        assert np.array_equal(inputs, batch.inputs)
        assert np.array_equal(targets, batch.targets)


def test_batches_never_drift():
    """A change here changes every training run: saved runs would no longer resume to the same bits."""
    data = dataset(start_stage=6)
    batch = data.batch(0, 0)
    assert [tokens.tolist() for tokens in batch.inputs[:3]] == PINNED_ROWS
    digest = hashlib.sha256()
    for seed, step, mixture in [(0, 0, None), (1, 2, None), (7, 10**6, np.arange(15) + 1)]:
        batch = data.batch(seed, step, mixture)
        for array in (batch.inputs, batch.targets, batch.lengths):
            digest.update(array.astype("<i4").tobytes())
    assert digest.hexdigest() == PINNED_DIGEST


@pytest.mark.parametrize("stage", range(7))
def test_held_out_pairs_are_never_sampled(stage):
    data = dataset(start_stage=stage, batch_size=512)
    for step in range(40):
        a, b = decode_problems(data.batch(stage, step).inputs)
        assert not is_held_out(a, b).any()
        assert not is_held_out(b, a).any()


@pytest.mark.parametrize("lengths", [(2, 1), (2, 2), (3, 2)])
def test_a_tenth_is_held_out(lengths):
    """All pairs are counted, so the bounds are of the one hash there is."""
    pairs = all_pairs(*lengths)
    share = is_held_out(*pairs.T).mean()
    assert abs(share - 0.1) < 3 * (0.09 / len(pairs)) ** 0.5


def test_held_out_is_of_the_unordered_pair():
    pairs = all_pairs(2, 2)
    assert np.array_equal(is_held_out(*pairs.T), is_held_out(*pairs.T[::-1]))
    a, b = held_out_pairs((3, 2), 1)[0].tolist()
    assert is_held_out(a, b) is True
    assert is_held_out(b, a) is True


def test_the_split_never_drifts():
    """A change here leaks what saved models were tested on into training."""
    assert all(is_held_out(*pair) for pair in PINNED_HELD_OUT)
    assert not any(is_held_out(*pair) for pair in PINNED_TRAINED)


def test_no_single_digit_pair_is_held_out():
    digits = np.arange(10)
    assert not is_held_out(digits[:, None], digits).any()
    data, seen = dataset(augment=()), set()
    for step in range(40):
        seen |= set(zip(*(x.tolist() for x in decode_problems(data.batch(0, step).inputs)), strict=True))
    assert len(seen) == 100


@pytest.mark.parametrize("length", [(2, 1), (2, 2), (3, 2), (2, 3), (4, 4), (5, 5)])
def test_held_out_pairs(length):
    pairs = held_out_pairs(length, 50)
    assert pairs.shape == (50, 2)
    assert len(np.unique(pairs, axis=0)) == 50
    assert is_held_out(*pairs.T).all()
    assert (count_digits(pairs) == length).all()
    assert np.array_equal(pairs, held_out_pairs(Length(*length), 50))


def test_held_out_pairs_are_all_there_are_where_there_are_no_more():
    everything = all_pairs(2, 2)
    wanted = everything[is_held_out(*everything.T)]
    got = held_out_pairs((2, 2), 10**6)
    assert np.array_equal(np.unique(got, axis=0), wanted)
    assert len(got) == len(wanted)


def test_all_single_digit_pairs_are_tested():
    pairs = held_out_pairs((1, 1), 1000)
    assert np.array_equal(np.unique(pairs, axis=0), all_pairs(1, 1))
    assert len(pairs) == 100
    assert len(held_out_pairs((1, 1), 7)) == 7


def test_held_out_pairs_of_a_stage_stay_in_its_range():
    data = dataset(start_stage=1)
    pairs = data.held_out(Length(2, 1), 100)
    assert len(pairs) > 0
    assert pairs[:, 0].min() >= 10
    assert pairs.max() <= 19


@pytest.mark.parametrize("mixture", [None, [0.5, 0.3, 0.1, 0.05, 0.05], [0, 0, 0, 0, 1]])
def test_mixture_shares_are_respected(mixture):
    data = dataset(start_stage=4, max_digits=(3, 2), batch_size=512)
    counts = sum(np.bincount(data.batch(0, step, mixture).lengths, minlength=5) for step in range(20))
    shares = np.full(5, 0.2) if mixture is None else np.array(mixture)
    deviation = np.sqrt(shares * (1 - shares) / counts.sum())
    assert (np.abs(counts / counts.sum() - shares) <= 4 * deviation).all()


def test_operands_of_a_length_are_uniform():
    data = dataset(start_stage=2, batch_size=512, augment=())
    shares = [0.0, 0.0, 1.0]
    seen = np.concatenate([decode_problems(data.batch(0, step, shares).inputs) for step in range(20)], axis=None)
    assert set(seen.tolist()) == set(range(10, 100))
    counts = np.bincount(seen)[10:]
    expected = counts.mean()
    assert (np.abs(counts - expected) < 5 * expected**0.5).all()


def test_swapping_and_leading_zeros():
    inputs, targets = encode_problems([12, 12, 12, 12], [345] * 4), encode_answers([12 * 345] * 4)
    uniform = np.array([[NO, NO], [YES, NO], [NO, YES], [YES, YES]])
    augmented, same = augment_batch(inputs, targets, uniform)
    assert same is targets
    pad = [11, 12, 12, 12, 12, 12]
    assert augmented.tolist() == [
        [1, 2, 10, 3, 4, 5, *pad],
        [3, 4, 5, 10, 1, 2, *pad],
        [0, 1, 2, 10, 3, 4, 5, *pad[:-1]],
        [0, 3, 4, 5, 10, 1, 2, *pad[:-1]],
    ]


def test_kinds_of_augmentation_are_chosen():
    inputs, targets = encode_problems(12, 345), encode_answers(12 * 345)
    uniform = np.array([[YES, YES]])
    assert augment_batch(inputs, targets, uniform, ["swap"])[0][0, :4].tolist() == [3, 4, 5, 10]
    assert augment_batch(inputs, targets, uniform, ["leading_zeros"])[0][0, :4].tolist() == [0, 1, 2, 10]
    assert np.array_equal(augment_batch(inputs, targets, uniform, [])[0], inputs)


@pytest.mark.parametrize("stage", [0, 2, 6])
def test_augmentation_keeps_the_product_and_does_something(stage):
    inputs, targets = dataset(start_stage=stage, augment=()).generate_batch()
    uniform = np.random.default_rng(0).random((len(inputs), 2))
    augmented, same = augment_batch(inputs, targets, uniform)
    a, b = decode_problems(augmented)
    assert np.array_equal(a * b, products(targets))
    assert np.array_equal(same, targets)
    changed = (augmented != inputs).any(axis=1).mean()
    assert 0.3 < changed < 0.95
    assert (augmented[:, 0] == 0).sum() > (inputs[:, 0] == 0).sum()


def test_augmentation_draws_its_own_numbers_where_none_are_given():
    inputs, targets = dataset(start_stage=6, augment=(), batch_size=512).generate_batch()
    augmented, _ = augment_batch(inputs, targets)
    assert (augmented != inputs).any()
    assert np.array_equal(np.prod(decode_problems(augmented), axis=0), products(targets))


def test_no_zeros_where_there_is_no_room():
    inputs, targets = encode_problems([99999, 12345, 99999], [99999, 1, 1]), encode_answers([1, 1, 1])
    augmented, _ = augment_batch(inputs, targets, np.array([[NO, YES]] * 3))
    assert np.array_equal(augmented, inputs)


def test_carries_by_hand():
    """47 x 86: 7·6 = 42; 4·6 + 7·8 + 4 = 84; 4·8 + 8 = 40; 4. And 99999 squared carries the most there is."""
    assert schoolbook_carries(np.array([47]), np.array([86])).tolist() == [[4, 8, 4] + [0] * 9]
    assert schoolbook_carries(np.array([99999]), np.array([99999])).max() == MAX_CARRY == 44


def test_carries_account_for_every_digit():
    """The sum of a column and what is carried into it is its digit and ten times what is carried out."""
    a, b = np.random.default_rng(0).integers(0, 10**5, (2, 50))
    carries, product = schoolbook_carries(a, b), a * b
    carried_in = np.zeros(50, np.int64)
    for t in range(12):
        digits = [(a // 10**i % 10) * (b // 10 ** (t - i) % 10) for i in range(t + 1)]
        assert np.array_equal(sum(digits) + carried_in, product // 10**t % 10 + 10 * carries[:, t])
        carried_in = carries[:, t]


def test_a_batch_has_the_carries_of_its_problems():
    batch = dataset(start_stage=6).batch(0, 0)
    assert np.array_equal(batch.carries, schoolbook_carries(*decode_problems(batch.inputs)))
    assert batch.carries.dtype == np.int32
    assert batch.carries.shape == (64, 12)


def test_difficulty_increases_by_one_and_stops_at_the_last():
    data = MultiplicationDataset()
    seen = []
    for _ in range(8):
        seen.append(data.current_stage)
        data.increase_difficulty()
    assert seen == [0, 1, 2, 3, 4, 5, 6, 6]
    assert data.current_stage == 6


HELD_OUT_SQUARE = next(a for a in range(10, 100) if is_held_out(a, a))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"seed": -1}, "seed not negative"),
        ({"seq_len": 11}, "seq_len must hold the 12 tokens of a problem, got 11"),
        ({"stages": [(5, 4)]}, r"0 <= min <= max <= 99999, got \(5, 4\)"),
        ({"stages": [(-1, 4)]}, "0 <= min <= max"),
        ({"stages": [(0, 100000)]}, "0 <= min <= max"),
        ({"stages": []}, "start_stage"),
        ({"start_stage": 7}, r"start_stage must be in 0\.\.6, got 7"),
        ({"start_stage": -1}, "start_stage must be in"),
        ({"max_digits": (2, 3)}, "5 >= longer >= shorter >= 1"),
        ({"max_digits": (6, 1)}, "5 >= longer >= shorter >= 1"),
        ({"max_digits": (1, 0)}, "5 >= longer >= shorter >= 1"),
        ({"max_digits": (2, 2), "stages": [(100, 999)]}, "no operands within max_digits"),
        ({"augment": ["mirror"]}, r"augment must be among .*'mirror'"),
        ({"stages": [(HELD_OUT_SQUARE, HELD_OUT_SQUARE)]}, "held out: widen the stage"),
    ],
)
def test_what_cannot_be_is_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiplicationDataset(**arguments)
