"""The original's 24 reference cases, and what the command says of damaged ones."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from parity.compare import largest_difference
from parity.fast_jit import fast_jit
from parity.scenic import GRADIENT_BOUND, OUTPUT_BOUND, build_machine, check_case, from_scenic, load_case, to_scenic
from parity.scenic.__main__ import main

DATA = Path(__file__).parents[1] / "data" / "scenic"
CASES = sorted(DATA.glob("*.npz"))
SMALL = DATA / "simple_mlp.npz"

load = cache(load_case)


@pytest.fixture
def altered(tmp_path):
    """`altered(change, source)`: a copy of a case whose arrays went through `change`."""

    def write(change, source=SMALL):
        with np.load(source) as archive:
            arrays = dict(archive)
        change(arrays)
        np.savez(tmp_path / "case.npz", **arrays)
        return str(tmp_path / "case.npz")

    return write


def set_meta(**changes):
    def change(arrays):
        meta = json.loads(str(arrays["meta"])) | changes
        arrays["meta"] = np.array(json.dumps({name: value for name, value in meta.items() if value is not None}))

    return change


def put(name, array):
    return lambda arrays: arrays.update({name: np.asarray(array)})


def drop(name):
    return lambda arrays: arrays.pop(name)


def test_all_reference_cases_are_here():
    assert len(CASES) == 24


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_names_go_both_ways(path):
    case = load(path)
    ours = from_scenic(case.params, case.meta)
    assert jax.tree.structure(ours) == jax.tree.structure(
        from_scenic(unflatten_dict(dict(case.params), sep="/"), case.meta)
    )
    again = to_scenic(ours, case.meta)
    assert again.keys() == case.params.keys()
    for name, array in again.items():
        unused = name.startswith("write_pos_embed") and case.meta["memory_mode"] == "TL-AddErase"
        np.testing.assert_array_equal(array, 0 * case.params[name] if unused else case.params[name])


def test_a_leaf_without_a_partner_is_named():
    case = load(SMALL)
    ours = flatten_dict(from_scenic(case.params, case.meta), sep="/")
    with pytest.raises(ValueError, match="parameter process/extra has no counterpart in TokenTuringMachineSimple"):
        to_scenic(unflatten_dict(ours | {"process/extra": jnp.zeros(1)}, sep="/"), case.meta)
    del ours["process/norm/scale"]
    with pytest.raises(ValueError, match="parameter process/norm/scale is missing; it is LayerNorm_2/scale of"):
        to_scenic(unflatten_dict(ours, sep="/"), case.meta)


def test_an_error_in_any_array_is_seen():
    grads = load_case(DATA / "unit_TL-AddErase_transformer_pos.npz").grads
    largest = max(float(np.abs(array).max()) for array in grads.values())
    rounding = 0
    for name, array in grads.items():
        scale = float(np.abs(array).max())
        # The gradients of five biases to which softmax is invariant, and of what has no effect.
        if scale < 1e-6 * largest:
            rounding, scale = rounding + 1, largest
        bound = GRADIENT_BOUND * scale
        for error, seen in ((1.5 * bound, True), (0.5 * bound, False), (np.nan, True)):
            wrong = array.copy()
            wrong.flat[-1] += error
            assert (largest_difference({**grads, name: wrong}, grads).value > GRADIENT_BOUND) == seen
    assert rounding == 5


@pytest.mark.parametrize(
    "name", ["params/TokenLearnerModuleV11_0/LayerNorm_0/scale", "grads/MlpBlock_1/Dense_0/kernel"]
)
def test_a_changed_number_is_out_of_bounds(name, altered, capsys):
    path = altered(lambda arrays: arrays[name].__setitem__((0,) * arrays[name].ndim, 1.5))
    assert main([path]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].endswith("NO")
    assert out.splitlines()[-1] == "0 of 1 cases within 1e-05 in outputs, 2e-05 in gradients of the original"
    assert err == ""


def test_the_parameter_without_effect_must_have_no_gradient(altered, capsys):
    name = "grads/write_pos_embed/pos_embedding"
    path = altered(lambda arrays: arrays[name].__setitem__((0, 0, 0), 0.01), DATA / "unit_TL-AddErase_mlp_pos.npz")
    assert main([path]) == 1


def test_table_and_json(altered, capsys):
    wrong = altered(lambda arrays: arrays["out/memory"].__setitem__((0, 0, 0), 9.0))
    assert main([str(SMALL), wrong]) == 1
    header, good, bad, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["case", "outputs", "gradients", "ok"]
    assert (good.split()[0], good.split()[-1]) == ("simple_mlp", "yes")
    assert (bad.split()[0], bad.split()[-1]) == ("case", "NO")
    assert len({len(header), len(good), len(bad)}) <= 2  # "ok", "yes" and "NO" end the rows
    assert summary == "1 of 2 cases within 1e-05 in outputs, 2e-05 in gradients of the original"

    assert main(["--json", str(SMALL)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    (case,) = report["cases"]
    assert case["case"] == "simple_mlp"
    assert case["ok"] is True
    assert 0 < case["outputs"] < case["output_bound"] == OUTPUT_BOUND == 1e-5
    assert 0 < case["gradients"] < case["gradient_bound"] == GRADIENT_BOUND == 2e-5


def own_case(path, meta, batch, num_tokens, width):
    """A case of any size, computed with this library."""
    machine = build_machine(meta)
    generator = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    encoder = meta["cls"] == "TokenTuringMachineEncoder"
    memory, tokens = draw(*batch, machine.memory_size, width), draw(*batch, num_tokens, width)
    inputs = (tokens,) if encoder else (memory, tokens)
    shapes = jax.eval_shape(machine.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda leaf: 0.3 * draw(*leaf.shape), shapes)

    def run(params):
        out = machine.apply({"params": params}, *inputs)
        return {"output": out[0]} if encoder else {"memory": out[0], "output": out[1]}

    @fast_jit
    def run_and_pull_back(params, cotangents):
        outputs, pull_back = jax.vjp(run, params)
        return outputs, *pull_back(cotangents)

    cotangents = {name: draw(*array.shape) for name, array in jax.eval_shape(run, params).items()}
    outputs, grads = run_and_pull_back(params, cotangents)
    arrays = {f"params/{name}": array for name, array in to_scenic(params, meta).items()}
    arrays |= {f"grads/{name}": array for name, array in to_scenic(grads, meta).items()}
    arrays |= {f"out/{name}": array for name, array in outputs.items()}
    arrays |= {f"in/cot_{name}": array for name, array in cotangents.items()}
    arrays |= {"in/tokens": tokens} | ({} if encoder else {"in/memory": memory})
    np.savez(path, meta=json.dumps(meta), **arrays)


@pytest.mark.parametrize(
    ("meta", "batch", "num_tokens", "width"),
    [
        (dict(cls="TokenTuringMachineEncoder", processing_unit="mixer", num_layers=1), (2, 3), 1, 10),
        (
            dict(cls="TokenTuringMachineSimpleUnit", processing_unit="mixer", mlp_dim=7, dropout_rate=0),
            (2,),
            4,
            5,
        ),
    ],
)
def test_other_sizes_and_default_arguments(meta, batch, num_tokens, width, tmp_path):
    own_case(tmp_path / "own.npz", meta, batch, num_tokens, width)
    assert check_case(tmp_path / "own.npz").ok


def check_refused(argv, capsys, message):
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("python -m parity.scenic: error: ")
    assert err.count("\n") == 1
    assert message in err


MLP = "params/LayerNorm_0/scale"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("meta"), "array meta is missing"),
        (put("meta", "{"), "meta must be a JSON object"),
        (put("meta", "3"), "meta must be a JSON object"),
        (set_meta(cls="Encoder"), "cls must be one of TokenTuringMachineUnit, "),
        (set_meta(cls=None), "cls must be one of"),
        (set_meta(cls=[1]), "cls must be one of"),
        (set_meta(memory_mode="TL"), "TokenTuringMachineSimpleUnit has no argument 'memory_mode'"),
        (set_meta(num_layers="2"), "num_layers must be of type int, got '2'"),
        (set_meta(num_layers=0), "num_layers must be a positive int, got 0"),
        (
            set_meta(processing_unit="rnn"),
            "processing_unit must be one of transformer, mixer, mlp; got 'rnn'",
        ),
        (set_meta(num_layers=3), "is missing; it must have shape"),
        (
            set_meta(num_layers=1),
            "is unknown; TokenTuringMachineSimpleUnit(processing_unit=mlp, num_layers=1)",
        ),
        (set_meta(memory_size=7), "array in/memory must have shape (2, 7, 24), got (2, 6, 24)"),
        (drop(MLP), f"array {MLP} is missing; it must have shape (24,)"),
        (drop("grads/LayerNorm_0/scale"), "array grads/LayerNorm_0/scale is missing"),
        (drop("in/tokens"), "array in/tokens is missing; it must be [B, N, D]"),
        (drop("in/cot_output"), "array in/cot_output is missing; it must have shape (2, 4, 24)"),
        (drop("out/memory"), "array out/memory is missing"),
        (put(MLP, np.ones(23, np.float32)), f"array {MLP} must have shape (24,), got (23,)"),
        (put(MLP, np.ones(24)), f"array {MLP} must be finite float32 numbers, got float64"),
        (put(MLP, np.full(24, np.nan, np.float32)), f"array {MLP} must be finite float32 numbers"),
        (
            put("in/tokens", np.zeros((2, 5), np.float32)),
            "array in/tokens must be [B, N, D], got shape (2, 5)",
        ),
        (put("params/Dense_7/bias", np.ones(1, np.float32)), "array params/Dense_7/bias is unknown"),
        (put(MLP, np.array([None] * 24)), "damaged, or not an .npz file"),
    ],
)
def test_a_wrong_array_is_named(change, message, altered, capsys):
    check_refused([altered(change)], capsys, message)


@pytest.mark.parametrize("mode", ["TL-MLP", "", "tl"])
def test_an_unknown_memory_mode_is_refused(mode, altered, capsys):
    path = altered(set_meta(memory_mode=mode), DATA / "unit_TL_mlp_pos.npz")
    check_refused([path], capsys, f"memory_mode must be one of TL, TL-MHA, TL-AddErase; got {mode!r}")


def test_heads_must_divide_the_width(altered, capsys):
    path = altered(set_meta(num_heads=5), DATA / "unit_TL_transformer_nopos.npz")
    check_refused([path], capsys, "num_heads must divide the width, got 5 heads for width 24")


def damaged(path, how):
    content = SMALL.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:2000] + bytes(200) + content[2200:])
    elif how == "flipped in a compressed array":
        np.savez_compressed(path, meta=np.zeros(999))
        content = path.read_bytes()
        path.write_bytes(content[:70] + b"\xff" * 30 + content[100:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("case,outputs\n")
    elif how == "single array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "how", ["truncated", "flipped", "flipped in a compressed array", "empty", "text", "single array"]
)
def test_a_damaged_file_gets_one_line(how, tmp_path, capsys):
    path = tmp_path / "bad.npz"
    damaged(path, how)
    check_refused([str(SMALL), str(path)], capsys, f"{path}: damaged, or not an .npz file; give a case as")


def test_a_foreign_archive_gets_one_line(tmp_path, capsys):
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    check_refused([str(tmp_path / "foreign.npz")], capsys, "array meta is missing")


def test_files_are_asked_for(tmp_path, capsys):
    check_refused([], capsys, "FILE")
    check_refused(["--csv", str(SMALL)], capsys, "--csv")
    check_refused([str(tmp_path)], capsys, "not a file; give the .npz files in it one by one")


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "example: python -m parity.scenic tests/data/scenic/*.npz" in capsys.readouterr().out


def test_the_command_itself(tmp_path):
    missing = str(tmp_path / "missing.npz")
    done = subprocess.run(
        [sys.executable, "-m", "parity.scenic", missing],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    expected = f"python -m parity.scenic: error: {missing}: no such file; give an .npz file of a case\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
