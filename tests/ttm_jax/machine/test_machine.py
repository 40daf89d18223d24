"""The machine: no leaks across batch or time, memory that is used, streaming, one scan, dtypes, refusals."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from parity.fast_jit import fast_jit
from ttm_jax.machine.machine import (
    SimpleTokenTuringMachine,
    SimpleTokenTuringMachineStep,
    TokenTuringMachine,
    TokenTuringMachineStep,
)
from ttm_jax.machine.memory import READS, WRITES, read_operation, write_operation
from ttm_jax.machine.processing import PROCESSING_UNITS, process
from ttm_jax.machine.summarize import token_summarize

pytestmark = pytest.mark.usefixtures("nans_are_errors")

# The programs run for milliseconds: what counts is how long they take to compile.

B, T, N, D, M, R, HEADS, F = 3, 6, 5, 12, 6, 4, 3, 16
SIZES = dict(memory_size=M, process_size=R, num_layers=1, mlp_dim=F, num_heads=HEADS)
# Every read, write and processing unit at least once.
CASES = {
    "mlp-mlp-transformer": TokenTuringMachine(**SIZES),
    "query-query-mixer": TokenTuringMachine(read="query", write="query", processing="mixer", **SIZES),
    "pooling-pooling-mlp": TokenTuringMachine(read="pooling", write="pooling", processing="mlp", **SIZES),
    "mlp-erase_add-mixer": TokenTuringMachine(write="erase_add", processing="mixer", **SIZES),
    "query-concat-mlp": TokenTuringMachine(read="query", write="concat", processing="mlp", **SIZES),
    "mlp-none-mlp": TokenTuringMachine(write="none", processing="mlp", **SIZES),
    "simple-transformer": SimpleTokenTuringMachine(**SIZES),
}
WRITES_NOTHING = "mlp-none-mlp"
# Gradients that are zero but for rounding. A softmax over tokens is invariant to the first three, the LayerNorms
# after token mixing to the last, which adds one number to a whole token.
INVARIANT = ("summarizer/mlp/out/bias", "key/bias", "select/out/bias", "token_mixing_0/out/bias")


@pytest.fixture(scope="module")
def tokens(normal):
    return normal(0, B, T, N, D)


@pytest.fixture(scope="module")
def runner(tokens, random_params):
    """By case: variables, and the jitted machine as a function of (tokens, memory)."""

    @cache
    def make(case):
        machine = CASES[case]
        variables = {"params": random_params(machine, tokens)}
        return variables, fast_jit(lambda x, memory=None: machine.apply(variables, x, memory))

    return make


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


def one(params):
    """Parameters as the tree of a single step."""
    return {"params": params["step"]}


def loss(machine, params, tokens, **options):
    outputs, memory = machine.apply({"params": params}, tokens, **options)
    return jnp.sum(jnp.sin(outputs)) + jnp.sum(jnp.cos(memory))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("unit", PROCESSING_UNITS)
def test_every_combination_of_modes(read, write, unit, tokens):
    machine = TokenTuringMachine(read=read, write=write, processing=unit, **SIZES)
    (outputs, memory), _ = jax.eval_shape(machine.init_with_output, jax.random.key(0), tokens)
    assert outputs.shape == (B, T, R, D)
    assert memory.shape == (B, M, D)


def test_rows_of_a_batch_do_not_mix(case, runner, tokens, normal):
    _, run = runner(case)
    before, after = run(tokens), run(tokens.at[1].add(100 * normal(1, T, N, D)))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x[::2], y[::2])
    assert not np.array_equal(before[0][1], after[0][1])


@pytest.mark.parametrize("step", [1, T - 1])
def test_no_step_sees_a_later_input(case, step, runner, tokens, normal):
    _, run = runner(case)
    before = run(tokens)
    after = run(tokens.at[:, step].add(100 * normal(2, B, N, D)))
    np.testing.assert_array_equal(before[0][:, :step], after[0][:, :step])
    assert not np.array_equal(before[0][:, step], after[0][:, step])


def test_gradients(case, runner, tokens):
    """Every parameter counts, and so do earlier inputs for later outputs, unless nothing is written."""
    machine = CASES[case]
    variables, _ = runner(case)

    @fast_jit
    def gradients(params, x, weights_of_steps):
        def weighted(params, x):
            outputs, memory = machine.apply({"params": params}, x)
            return jnp.sum(jnp.sin(outputs) * weights_of_steps) + jnp.sum(jnp.cos(memory)) * weights_of_steps.min()

        return jax.grad(weighted, argnums=(0, 1))(params, x)

    x, all_steps = tokens[:, :3], jnp.ones((1, 3, 1, 1))
    of_params, _ = gradients(variables["params"], x, all_steps)
    _, of_last = gradients(variables["params"], x, all_steps.at[:, :-1].set(0))
    sizes = {name: float(jnp.abs(leaf).max()) for name, leaf in flatten_dict(of_params, sep="/").items()}
    zero = {name for name, size in sizes.items() if size < 1e-5 * max(sizes.values())}
    assert zero == {name for name in sizes if name.endswith(INVARIANT)}

    by_step = np.abs(of_last).max(axis=(0, 2, 3))
    assert by_step[-1] > 1e-3
    if case == WRITES_NOTHING:
        assert (by_step[:-1] == 0).all()
    else:
        assert (by_step[:-1] > 1e-6).all()


def stream(runner, case, tokens, pieces):
    variables, run = runner(case)
    memory, outputs = jnp.broadcast_to(variables["params"]["initial_memory"], (B, M, D)), []
    for piece in jnp.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        output, memory = run(piece, memory)
        outputs.append(output)
    whole, last = run(tokens)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(memory, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pieces", [(1,) * 6, (2, 2, 2), (1, 2, 2, 1)], ids=str)
def test_streaming_in_pieces_is_the_whole(case, pieces, runner, tokens):
    stream(runner, case, tokens, pieces)


@pytest.mark.parametrize("pieces", [(3, 3), (1, 3, 2), (2, 3, 1)], ids=str)
def test_streaming_in_longer_pieces_is_the_whole(pieces, runner, tokens):
    stream(runner, "mlp-erase_add-mixer", tokens, pieces)


def test_without_writing_every_step_is_the_first(runner, tokens):
    variables, run = runner(WRITES_NOTHING)
    outputs, memory = run(tokens)
    initial = variables["params"]["initial_memory"]
    np.testing.assert_array_equal(memory, jnp.broadcast_to(initial, memory.shape))
    np.testing.assert_allclose(run(tokens[:, 3:4])[0], outputs[:, 3:4], rtol=1e-5, atol=1e-5)


def test_the_machine_is_made_of_the_pure_functions(runner, tokens):
    variables, run = runner("mlp-mlp-transformer")
    outputs, last = run(tokens)
    params = variables["params"]["step"]
    memory = jnp.broadcast_to(variables["params"]["initial_memory"], (B, M, D))
    for t in range(T):
        read = read_operation(params["read"], memory, tokens[:, t], r=R)
        output = process(params["process"], read, num_layers=1, mlp_dim=F, num_heads=HEADS)
        memory = write_operation(params["write"], memory, output, tokens[:, t])
        np.testing.assert_allclose(outputs[:, t], output, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, memory, rtol=1e-4, atol=1e-5)


def test_a_machine_of_one_step_is_the_step(runner, tokens):
    variables, run = runner("mlp-mlp-transformer")
    memory = tokens[:, 1, :1].repeat(M, axis=1)
    step = TokenTuringMachineStep(**SIZES)
    next_memory, output = fast_jit(step.apply)(one(variables["params"]), memory, tokens[:, 0])
    outputs, last = run(tokens[:, :1], memory)
    np.testing.assert_allclose(outputs[:, 0], output, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, next_memory, rtol=1e-5, atol=1e-5)


def test_parameters_are_those_of_init_for_any_number_of_steps(case, tokens):
    machine = CASES[case]
    first, other = (jax.eval_shape(machine.init, jax.random.key(0), x) for x in (tokens, tokens[:, :1]))
    assert first == other

    def apply(x):
        return machine.apply(jax.tree.map(lambda leaf: jnp.ones(leaf.shape), first), x, mutable=True)[1]

    assert jax.eval_shape(apply, tokens[:, :2]).get("params") == first["params"]


def test_initialisation_follows_its_key(tokens):
    init = fast_jit(CASES["pooling-pooling-mlp"].init)
    first, again, other = (init(jax.random.key(seed), tokens) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = ("params", "step", "process", "mlp_0", "hidden", "kernel")
    assert not np.array_equal(flatten_dict(first)[kernel], flatten_dict(other)[kernel])


def test_memory_starts_learned_or_at_zero(runner, tokens):
    variables, run = runner("mlp-mlp-transformer")
    initial = variables["params"]["initial_memory"]
    np.testing.assert_array_equal(run(tokens)[0], run(tokens, jnp.broadcast_to(initial, (B, M, D)))[0])
    for zeros in (
        TokenTuringMachine(learned_memory=False, **SIZES),
        TokenTuringMachine(compat="scenic", **SIZES),
    ):
        assert "initial_memory" not in jax.eval_shape(zeros.init, jax.random.key(0), tokens)["params"]
    zeros = TokenTuringMachine(learned_memory=False, **SIZES)
    outputs, _ = fast_jit(zeros.apply)({"params": {"step": variables["params"]["step"]}}, tokens)
    np.testing.assert_allclose(outputs, run(tokens, jnp.zeros((B, M, D)))[0], rtol=1e-5, atol=1e-6)


def test_the_program_does_not_grow_with_the_steps(normal, equations):
    machine = CASES["mlp-mlp-transformer"]

    def size(steps):
        x = normal(0, 1, steps, N, D)
        params = jax.eval_shape(machine.init, jax.random.key(0), x)["params"]
        gradient = jax.grad(lambda p, x: loss(machine, p, x))
        program = jax.jit(gradient).lower(params, x).as_text()
        return len(list(equations(jax.make_jaxpr(gradient)(params, x).jaxpr))), program.count("\n")

    assert size(4) == size(64)


def test_rematerialised_steps_give_the_same(random_params, tokens, equations):
    modes, x = dict(read="pooling", write="pooling"), tokens[:, :3]
    params = random_params(TokenTuringMachine(**modes, **SIZES), x)

    def gradient(remat):
        machine = TokenTuringMachine(remat=remat, **modes, **SIZES)
        return jax.value_and_grad(lambda p: loss(machine, p, x))

    plain = fast_jit(gradient(False))(params)
    products = {}
    for remat in (False, True, "dots", "deep_dots", "full"):
        names = [e.primitive.name for e in equations(jax.make_jaxpr(gradient(remat))(params).jaxpr)]
        assert any(name in ("checkpoint", "remat", "remat2") for name in names) == bool(remat)
        products[remat] = names.count("dot_general")
    assert products["dots"] == products[True] < products["deep_dots"] == products["full"]  # no product is deep here
    for remat in ("dots", "full"):
        again = fast_jit(gradient(remat))(params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), plain, again)


def test_only_products_over_256_numbers_are_deep(random_params, normal, equations):
    x = normal(0, 1, 2, 3, 4)
    products = {}
    for mlp_dim in (255, 256):
        for remat in ("full", "deep_dots", "dots"):
            sizes = dict(memory_size=2, process_size=2, num_layers=1, num_heads=1, mlp_dim=mlp_dim)
            machine = TokenTuringMachine(**sizes, read="pooling", write="concat", processing="mlp", remat=remat)
            params = random_params(machine, x)
            jaxpr = jax.make_jaxpr(jax.grad(lambda p, machine=machine: loss(machine, p, x)))(params).jaxpr
            products[mlp_dim, remat] = sum(e.primitive.name == "dot_general" for e in equations(jaxpr))
    assert products[255, "full"] == products[255, "deep_dots"] == products[256, "full"]
    assert products[256, "dots"] < products[256, "deep_dots"] < products[256, "full"]


def test_under_bfloat16_memory_and_softmax_stay_in_float32(case, tokens):
    machine = CASES[case].clone(dtype=jnp.bfloat16)
    variables = jax.eval_shape(machine.init, jax.random.key(0), tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    (outputs, memory), sown = jax.eval_shape(
        lambda v, x: machine.apply(v, x, mutable=["intermediates"]), variables, tokens.astype(jnp.bfloat16)
    )
    assert outputs.dtype == jnp.bfloat16
    assert memory.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(sown)} <= {jnp.dtype(jnp.float32)}
    assert bool(jax.tree.leaves(sown)) == (case != "pooling-pooling-mlp")


def test_bfloat16_is_close_to_float32(runner, tokens):
    variables, run = runner("mlp-mlp-transformer")
    machine = CASES["mlp-mlp-transformer"].clone(dtype=jnp.bfloat16)
    outputs, memory = fast_jit(machine.apply)(variables, tokens.astype(jnp.bfloat16))
    for found, expected in zip((outputs, memory), run(tokens), strict=True):
        np.testing.assert_allclose(np.float32(found), expected, atol=0.1 * float(jnp.abs(expected).max()))


def test_param_dtype(case, tokens):
    machine = CASES[case].clone(param_dtype=jnp.bfloat16)
    (_, memory), variables = jax.eval_shape(machine.init_with_output, jax.random.key(0), tokens.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
    assert memory.dtype == jnp.float32


def test_dropout_in_training_only_and_by_its_key(runner, tokens):
    variables, run = runner(WRITES_NOTHING)
    machine = CASES[WRITES_NOTHING].clone(dropout_rate=0.5)
    apply = fast_jit(machine.apply, static_argnames="train")
    same = jnp.repeat(tokens[:, :1], T, axis=1)
    rngs = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    first, again, other = (apply(variables, same, train=True, rngs=rng)[0] for rng in rngs)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first[:, 0], first[:, 1])  # each step draws its own
    still = apply(variables, same, train=False, rngs=rngs[0])[0]
    np.testing.assert_allclose(still, run(same)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(still, apply(variables, same)[0])
    assert not np.allclose(first, still)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("compat", [None, "scenic"])
def test_simple_machine_keeps_outputs_and_memory_apart(compat, runner, normal):
    """With a processing unit that only normalises, memory comes back as memory; the original exchanges slots."""
    params = runner("simple-transformer")[0]["params"]["step"]
    process = jax.tree.map(jnp.zeros_like, params["process"])
    process["norm"]["scale"] += 1
    params = params | {"process": process}
    memory, x = normal(3, B, M, D), normal(4, B, N, D)
    step = SimpleTokenTuringMachineStep(compat=compat, **SIZES)
    next_memory, output = fast_jit(step.apply)({"params": params}, memory, x)
    normalised = layer_norm(np.concatenate([memory, token_summarize(params["summarizer"], x, R)], axis=1))
    if compat == "scenic":
        expected_output, expected_memory = np.split(normalised, [R], axis=1)
    else:
        expected_memory, expected_output = np.split(normalised, [M], axis=1)
    np.testing.assert_allclose(next_memory, expected_memory, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output, expected_output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("machine", [TokenTuringMachine, TokenTuringMachineStep, SimpleTokenTuringMachine])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_size", 0),
        ("memory_size", True),
        ("process_size", -1),
        ("process_size", 1.5),
        ("num_layers", 0),
        ("mlp_dim", "512"),
        ("num_heads", 0),
        ("dropout_rate", 1.0),
        ("dropout_rate", -0.1),
        ("dropout_rate", float("nan")),
        ("dropout_rate", "0.1"),
        ("dtype", "float7"),
        ("dtype", jnp.int32),
        ("param_dtype", None),
        ("processing", "rnn"),
        ("compat", "Scenic"),
    ],
)
def test_impossible_values_are_refused_at_construction(machine, field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        machine(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(read="mean"), "read must be one of 'mlp', 'query', 'pooling'; got 'mean'"),
        (dict(write="erase"), "write must be one of .*; got 'erase'"),
        (dict(read="TL"), "read must be one of"),
        (dict(remat="some"), "remat must be one of False, True, 'full', 'dots', 'deep_dots'; got 'some'"),
        (dict(remat=1), "remat must be one of"),
        (dict(positions="no"), "positions must be one of False, True; got 'no'"),
        (dict(learned_memory=0), "learned_memory must be one of False, True; got 0"),
        (
            dict(compat="scenic", write="concat"),
            "compat='scenic' has the read/write modes .*; got mlp/concat",
        ),
        (dict(compat="scenic", read="query"), "compat='scenic' has the read/write modes .*; got query/mlp"),
    ],
)
def test_unknown_modes_are_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenTuringMachine(**fields)


@pytest.mark.parametrize(
    ("fields", "shape", "memory", "message"),
    [
        ({}, (B, N, D), None, r"tokens must be \[B, T, N, D\], got shape \(3, 5, 12\)"),
        ({}, (B, 0, N, D), None, r"no empty axis, got shape \(3, 0, 5, 12\)"),
        ({}, (B, T, N, D), (B, M + 1, D), r"memory must be .*\[3, 6, 12\], got float32\[3, 7, 12\]"),
        (dict(num_heads=5), (B, T, N, D), None, "num_heads must divide the width, got 5 heads for width 12"),
        (
            dict(compat="scenic", read="query", write="query"),
            (B, T, N, D),
            None,
            "num_heads must divide the width, got 8 heads for width 12",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields, shape, memory, message):
    machine = TokenTuringMachine(**(SIZES | fields))
    memory = None if memory is None else jnp.zeros(memory)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(machine.init, jax.random.key(0), jnp.zeros(shape), memory)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[[[1.0]]]],), "tokens must be an array .*, got list"),
        ((np.ones((B, T, N, D), np.float32), True), r"memory must be .*\[3, 6, 12\], got bool"),
        ((np.ones((B, T, N, D), np.float32), np.ones((B, M, D), bool)), r"memory must be .*, got bool\[3, 6, 12\]"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenTuringMachine(**SIZES).init(jax.random.key(0), *arguments)


# Where a parameter depends on the number of tokens: positions, and what erase-and-add mixes over tokens.
ANY_NUMBER = [
    (TokenTuringMachine(**SIZES), False),
    (TokenTuringMachine(write="erase_add", positions=False, **SIZES), False),
    (TokenTuringMachine(write="erase_add", compat="scenic", positions=False, **SIZES), True),
    (TokenTuringMachine(read="pooling", write="query", positions=False, **SIZES), True),
    (SimpleTokenTuringMachine(**SIZES), True),
]


@pytest.mark.parametrize(("machine", "any_number"), ANY_NUMBER)
def test_tokens_of_another_number_or_width_than_the_parameters_are_named(machine, any_number, tokens):
    params = jax.eval_shape(machine.init, jax.random.key(0), tokens)["params"]
    step_class = SimpleTokenTuringMachineStep if "Simple" in type(machine).__name__ else TokenTuringMachineStep
    step = step_class(**{name: getattr(machine, name) for name in step_class.__dataclass_fields__ if name != "parent"})

    def calls(x):
        yield lambda p: machine.apply({"params": p}, x)
        yield lambda p: step.apply({"params": p["step"]}, jnp.zeros((B, M, x.shape[-1])), x[:, 0])

    for call in calls(tokens[..., :-1]):
        with pytest.raises(ValueError, match="tokens must have .*'D': 12.*, got .*'D': 11"):
            jax.eval_shape(call, params)
    for call in calls(tokens[:, :, :-1]):
        if any_number:
            jax.eval_shape(call, params)
        else:
            with pytest.raises(ValueError, match="tokens must have .*'N': 5.*, got .*'N': 4"):
                jax.eval_shape(call, params)


@pytest.mark.parametrize("case", ["mlp-mlp-transformer", "simple-transformer"])
def test_a_mask_in_the_place_of_train_is_named(case, tokens):
    mask = np.ones((B, T), bool)
    with pytest.raises(ValueError, match=r"train must be True or False, got bool\[3, 6\]"):
        CASES[case].init(jax.random.key(0), tokens, None, mask)
    step = (SimpleTokenTuringMachineStep if case.startswith("simple") else TokenTuringMachineStep)(**SIZES)
    with pytest.raises(ValueError, match=r"train must be True or False, got bool\[3\]"):
        step.init(jax.random.key(0), jnp.zeros((B, M, D)), tokens[:, 0], mask[:, 0])


@pytest.mark.parametrize("train", [0, 1, np.bool_(True), np.array(False)])
def test_what_is_as_good_as_a_bool_may_be_train(train, tokens):
    machine = CASES["simple-transformer"].clone(dropout_rate=0.5)
    streams = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    jaxpr = jax.make_jaxpr(lambda tokens: machine.init_with_output(streams, tokens, train=train)[0])
    as_bool = jax.make_jaxpr(lambda tokens: machine.init_with_output(streams, tokens, train=bool(train))[0])
    assert str(jaxpr(tokens)) == str(as_bool(tokens))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"params": {}},
        {"params": {"machine": {"initial_memory": 0}}},
        {"params": {"initial_memory": None, "step": {"process": {"norm": {"scale": [1.0]}}}}},
        None,
    ],
)
@pytest.mark.parametrize("learned", [True, False])
def test_the_initial_memory_of_other_variables_is_refused(variables, learned):
    with pytest.raises(ValueError, match=f"params/{'initial_memory' if learned else 'step'}"):
        TokenTuringMachine(learned_memory=learned, **SIZES).initial_memory(variables, 3)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("mlp-erase_add-mixer", None),
        ("query-query-mixer", jnp.bfloat16),
        ("pooling-pooling-mlp", jnp.bfloat16),
        ("simple-transformer", None),
    ],
)
def test_strict_promotion_of_the_user_changes_nothing(case, dtype, tokens):
    """Where tokens or computation are narrower than memory."""
    machine = CASES[case].clone(dtype=dtype, gate="fixed")
    masks = dict(valid_BxT=np.ones((B, T), bool), valid_BxTxN=np.ones((B, T, N), bool), reset_BxT=np.ones((B, T), bool))

    def loss(variables, tokens):
        outputs, memory = machine.apply(variables, tokens, **masks)
        return outputs.astype(jnp.float32).sum() + memory.sum() + machine.initial_memory(variables, B).sum()

    tokens = tokens if dtype else tokens.astype(jnp.bfloat16)
    variables = {"params": jax.eval_shape(machine.init, jax.random.key(0), tokens)["params"]}
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(jax.grad(loss), variables, tokens) == variables


def test_sizes_may_be_integers_of_numpy(tokens):
    machine = TokenTuringMachine(**{name: np.int64(size) for name, size in SIZES.items()})
    assert machine == TokenTuringMachine(**SIZES)
    assert type(machine.memory_size) is int
