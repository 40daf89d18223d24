"""Checkpoints: to the bit, complete or absent, and one clear error for everything else."""

import errno
import json
import os
import shutil
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import toy
from ttm_jax.multiplication.objective import create_state, make_objective
from ttm_jax.tasks import config_from_dict
from ttm_jax.training.checkpoint import CheckpointFolder, load_meta, load_params, load_state, save_params
from ttm_jax.training.checkpoint_files import BEST, LATEST, CheckpointError, find_checkpoint, saved_steps
from ttm_jax.training.config import config_to_dict, override
from ttm_jax.training.step import make_state


@pytest.fixture
def state(tiny_config):
    """A state whose every number is another."""
    generator = np.random.default_rng(0)

    def draw(leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return jax.numpy.full_like(leaf, 7)
        return jax.numpy.asarray(generator.normal(size=leaf.shape), leaf.dtype)

    fresh = create_state(tiny_config)
    opt_state = jax.tree.map(draw, fresh.opt_state)
    return fresh.replace(step=jax.numpy.int32(12), params=jax.tree.map(draw, fresh.params), opt_state=opt_state)


@pytest.fixture
def save(tiny_config, tmp_path):
    """`save(state, kind, **meta)` gives the checkpoint's path."""

    def write(state, kind=LATEST, **meta):
        return CheckpointFolder(tmp_path, kind).save(state, {"config": config_to_dict(tiny_config), **meta})

    return write


@pytest.fixture
def checkpoint(tiny_run, tmp_path):
    """A copy of a checkpoint of the tiny run, to be damaged."""
    source = find_checkpoint(tiny_run.path, (LATEST,))
    return shutil.copytree(source, tmp_path / source.name)


def bits(tree):
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def test_everything_comes_back_to_the_bit(state, save, tiny_config):
    meta = {"progress": {"seconds": 0.1, "shares": [1 / 3, 2 / 3], "none": None}}
    path = save(state, **meta)
    restored = load_state(path, create_state(tiny_config))
    for name in ("step", "params", "opt_state"):
        assert bits(getattr(restored, name)) == bits(getattr(state, name))
        assert jax.tree.structure(getattr(restored, name)) == jax.tree.structure(getattr(state, name))
    assert bits(load_params(path, make_objective(tiny_config))) == bits(state.params)
    assert np.array_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))
    config, loaded = load_meta(path)
    assert config == tiny_config
    assert loaded["progress"] == meta["progress"]


def test_a_state_saved_without_its_key_has_that_of_the_fresh_one(state, save, tiny_config):
    """As checkpoints were until version 0.1."""
    folder = save(state) / "training"
    shutil.rmtree(folder)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        item = {"step": state.step, "opt_state": state.opt_state}
        checkpointer.save(folder, args=ocp.args.StandardSave(item))
    (folder.parent / "checksums.json").unlink()
    restored = load_state(folder.parent, create_state(tiny_config))
    assert bits((restored.step, restored.opt_state)) == bits((state.step, state.opt_state))
    assert np.array_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))


def test_only_the_latest_can_be_gone_on_from(state, save, tiny_config):
    best = save(state, BEST)
    assert bits(load_params(best, make_objective(tiny_config))) == bits(state.params)
    with pytest.raises(CheckpointError, match="has no training/ to go on from"):
        load_state(best, create_state(tiny_config))


def test_the_latest_two_and_the_best_one_are_kept(state, tmp_path, tiny_config):
    for kind, kept in ((LATEST, [2, 3]), (BEST, [3])):
        folder = CheckpointFolder(tmp_path, kind)
        for step in (1, 2, 3):
            folder.save(state.replace(step=jax.numpy.int32(step)), {"config": config_to_dict(tiny_config)})
        assert saved_steps(tmp_path, kind) == kept


def test_a_step_that_is_there_is_not_written_again(state, save):
    path = save(state, note="first")
    assert save(state, note="second") == path
    assert load_meta(path)[1]["note"] == "first"


def test_which_checkpoint_a_path_stands_for(tiny_run, tmp_path):
    latest, best = (find_checkpoint(tiny_run.path, (kind,)) for kind in (LATEST, BEST))
    assert latest == tiny_run.path / "checkpoints" / "40"
    improved = [record["step"] for record, _ in tiny_run.display.evaluations if record["best"]]
    assert best == tiny_run.path / "best" / str(improved[-1])
    assert find_checkpoint(tiny_run.path) == best
    assert find_checkpoint(str(latest)) == latest
    shutil.copytree(latest, tmp_path / LATEST / "9")
    shutil.copytree(latest, tmp_path / LATEST / "10")
    assert find_checkpoint(tmp_path) == tmp_path / LATEST / "10"  # no best; ten is after nine


def test_paths_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing: no such file or folder$"):
        find_checkpoint(tmp_path / "missing")
    (tmp_path / "file").write_text("not a checkpoint")
    (tmp_path / LATEST / "folder").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="neither a checkpoint .* nor a run folder with one$"):
            find_checkpoint(path)


def test_what_a_killed_save_left_is_passed_over_and_removed(checkpoint, tmp_path, state, save):
    run = tmp_path / LATEST
    left = run / "11.orbax-checkpoint-tmp"
    shutil.copytree(checkpoint, run / "9")
    shutil.copytree(checkpoint, left)
    shutil.rmtree(left / "params")
    assert find_checkpoint(tmp_path, (LATEST,)) == run / "9"
    save(state)
    assert sorted(path.name for path in run.iterdir()) == ["12", "9"]


# What orbax looks for as a pattern, tensorstore takes for a separator or a protocol, and no one can read as text.
@pytest.mark.parametrize("name", ["[0,9]", "a*b?", "win\\run", "gs:", "a\n{é}~#%41", os.fsdecode(b"\xff")])
def test_any_path_that_the_file_system_takes(name, tmp_path):
    config = toy.Config()

    def fresh(seed):
        return make_state(toy.LineObjective(), config.optimizer, jax.random.key(seed), config.batch_size)

    path = CheckpointFolder(tmp_path / name, LATEST).save(fresh(1), {"config": {}})
    assert bits(load_state(path, fresh(2)).params) == bits(fresh(1).params)
    assert saved_steps(tmp_path / name, LATEST) == [0]
    save_params(tmp_path / "to" / name, fresh(3).params, {"config": {}})
    assert bits(load_params(tmp_path / "to" / name, toy.LineObjective())) == bits(fresh(3).params)


def test_a_path_that_nothing_can_be_saved_to_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "[a]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[a]"))
    with pytest.raises(CheckpointError, match=r"\[0\].*TMPDIR"):
        CheckpointFolder(tmp_path / "[0]", LATEST)


def test_a_save_that_fails_leaves_what_there_was(state, save, tmp_path, small_files):
    first = save(state)
    state = state.replace(carry=jax.numpy.arange(1 << 19))
    with (
        small_files(1 << 20),
        pytest.raises(CheckpointError, match="checkpoints/13: cannot be written: File too large$"),
    ):
        save(state.replace(step=jax.numpy.int32(13)))
    assert [path.name for path in (tmp_path / LATEST).iterdir()] == [first.name]


def files_of(checkpoint):
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


def outcome(load, checkpoint, tiny_config):
    """What loading gives, as bits, or the message of its CheckpointError."""
    try:
        loaded = load(checkpoint, tiny_config)
    except CheckpointError as error:
        return str(error)
    return bits(loaded)


def all_arrays(checkpoint, config):
    state = load_state(checkpoint, create_state(config))
    return state.params, state.opt_state, state.step


def metadata(checkpoint, config):
    return np.frombuffer(json.dumps(load_meta(checkpoint)[1]).encode(), np.uint8)


@pytest.mark.parametrize("kept", [None, 0.0, 0.5, 0.97], ids=["removed", "empty", "half", "nearly"])
def test_a_truncated_file_gives_an_error_or_nothing_wrong(checkpoint, tiny_config, kept):
    loads = (all_arrays, metadata)
    whole, refused = [outcome(load, checkpoint, tiny_config) for load in loads], set()
    for name in files_of(checkpoint):
        path = checkpoint / name
        content = path.read_bytes()
        if kept is None:
            path.unlink()
        else:
            path.write_bytes(content[: int(kept * len(content))])
        for got, expected in zip([outcome(load, checkpoint, tiny_config) for load in loads], whole, strict=True):
            if isinstance(got, str):
                refused.add(name.parts[0])
                assert got.startswith(f"checkpoint {checkpoint}: ")
                assert "\n" not in got
            else:
                assert got == expected, name
        path.write_bytes(content)
    assert refused >= {"params", "training", "meta"}


@pytest.mark.parametrize("item", ["params", "training", "meta"])
def test_a_missing_part_is_an_error(checkpoint, tiny_config, item):
    shutil.rmtree(checkpoint / item)
    with pytest.raises(CheckpointError, match=str(checkpoint)):
        load_state(checkpoint, create_state(load_meta(checkpoint)[0]))


def edit_meta(checkpoint, edit):
    """As another version of this project would have written it."""
    (checkpoint / "checksums.json").unlink(missing_ok=True)
    path = checkpoint / "meta" / "metadata"
    meta = json.loads(path.read_text())
    edit(meta)
    path.write_text(json.dumps(meta))


def test_a_changed_byte_is_an_error(checkpoint, tiny_config):
    """Of the largest file, where the numbers are."""
    path = max((checkpoint / "params").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged: its checksum differs$"):
        load_params(checkpoint, make_objective(tiny_config))


def test_a_save_killed_before_its_checksums_is_complete(checkpoint, tiny_config):
    (checkpoint / "checksums.json").unlink()
    assert load_state(checkpoint, create_state(load_meta(checkpoint)[0])).step == 40
    (checkpoint / "params" / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match="params/ is missing or damaged$"):
        load_params(checkpoint, make_objective(tiny_config))


def test_a_damaged_checkpoint_names_one_that_is_whole(tiny_run, tmp_path, tiny_config):
    """The next to be taken, of the latest and, where the best is damaged, of what is there besides."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    for kind, other in ((BEST, "checkpoints/40"), (LATEST, "checkpoints/30")):
        damaged = find_checkpoint(run, (kind,))
        (damaged / "meta" / "metadata").write_text("{")
        with pytest.raises(CheckpointError, match=f"differs; {run / other} is whole, .* {damaged} is deleted$"):
            load_meta(damaged)
    (run / "checkpoints" / "30" / "meta" / "metadata").unlink()
    with pytest.raises(CheckpointError, match="its checksum differs$"):
        load_meta(damaged)
    shutil.rmtree(damaged)
    assert find_checkpoint(run, (LATEST,)).name == "30"


@pytest.mark.parametrize(
    ("error", "raised"), [(MemoryError(), MemoryError), (OSError("too many open files"), CheckpointError)]
)
def test_a_whole_checkpoint_is_not_called_damaged(error, raised, checkpoint, tiny_config, monkeypatch):
    """Where it cannot be restored for another reason, as when memory runs out; then none should be deleted."""

    def restore(*arguments, **options):
        raise error

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.restore", restore)
    with pytest.raises(raised) as found:
        load_params(checkpoint, make_objective(tiny_config))
    assert "damaged" not in str(found.value)
    assert "deleted" not in str(found.value)


def test_what_the_system_does_not_let_be_read_is_not_called_damaged(checkpoint, tiny_config, no_more_files):
    for load in (load_meta, find_checkpoint, lambda path: load_params(path, make_objective(tiny_config))):
        with no_more_files(), pytest.raises(CheckpointError) as found:
            load(checkpoint)
        assert os.strerror(errno.EMFILE) in str(found.value)
        assert "damaged" not in str(found.value)
        assert "deleted" not in str(found.value)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '{"config": {}}', "\ud800"])
def test_foreign_metadata(checkpoint, text):
    (checkpoint / "checksums.json").unlink()
    (checkpoint / "meta" / "metadata").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"meta/ is missing or damaged|not of this library \(format"):
        load_meta(checkpoint)


def test_a_config_that_this_version_does_not_know(checkpoint):
    edit_meta(checkpoint, lambda meta: meta["config"]["model"].update(depth=3))
    with pytest.raises(CheckpointError, match=r"does not fit this version: unknown key model\.depth"):
        load_meta(checkpoint)
    edit_meta(checkpoint, lambda meta: meta.update(config=3))
    with pytest.raises(CheckpointError, match="does not fit this version"):
        load_meta(checkpoint)
    edit_meta(checkpoint, lambda meta: meta.pop("config"))
    with pytest.raises(CheckpointError, match="does not fit this version"):
        load_meta(checkpoint)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.memory_size", "5", r"machine/initial_memory is float32\[1, 4, 16\], float32\[1, 5, 16\] wanted"),
        ("model.num_layers", "2", r"machine/step/process/\S+ is not there, float32\[\d+\] wanted"),
        ("model.learned_memory", "false", r"initial_memory is float32\[1, 4, 16\], nothing wanted"),
        ("model.param_dtype", "bfloat16", r"\S+ is float32\[\d+\], bfloat16\[\d+\] wanted"),
    ],
)
def test_parameters_of_another_config_are_refused(checkpoint, tiny_config, key, value, message):
    other = override(tiny_config, {key: value})
    like = jax.eval_shape(lambda: create_state(other)).replace(key=create_state(tiny_config).key)
    for load in (lambda: load_params(checkpoint, make_objective(other)), lambda: load_state(checkpoint, like)):
        with pytest.raises(CheckpointError, match=f"/ is of another model: .*{message}(;|$)"):
            load()


def test_a_checkpoint_carries_its_config(checkpoint, tiny_config):
    config, meta = load_meta(checkpoint)
    assert config == tiny_config == config_from_dict(meta["config"])
    assert meta["examples"] == 40 * 8
    assert meta["progress"]["step"] == 40
    assert {"jax", "flax", "commit", "machine", "date", "command"} <= set(meta["provenance"])
