"""A task that the library has not: all of the trainer works with it, and nothing there knows it."""

import ast
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.toy import Config, Line, LineObjective
from ttm_jax.training.checkpoint import load_state
from ttm_jax.training.checkpoint_files import BEST, LATEST, find_checkpoint, saved_steps
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.loop import Ended, Evaluated, FellBack, Said, Started, Stepped, Trained, train
from ttm_jax.training.plan import OutOfMemory
from ttm_jax.training.precision import LossScale
from ttm_jax.training.run_folder import RunFolder
from ttm_jax.training.step import make_state, train_step

ROOT = Path(__file__).parents[3]
CONFIG = Config()


def make_engine(**options):
    return JaxEngine(LineObjective(), CONFIG.optimizer, CONFIG.train.seed, CONFIG.batch_size, **options)


def run(workdir, resume=False, stop_at=None, **options):
    """The events of a run that stops at a step."""
    events = []

    def stop():
        return stop_at is not None and any(isinstance(e, Stepped) and e.step == stop_at for e in events)

    for event in train(CONFIG, Line(CONFIG), make_engine(**options), workdir, resume, stop):
        events.append(event)
    return events


def end_of(workdir):
    """The state that a run left, as arrays by name."""
    key = jax.random.key(0)
    like = make_state(LineObjective(), CONFIG.optimizer, key, CONFIG.batch_size)
    state = load_state(find_checkpoint(workdir, (LATEST,)), like)
    state = state.replace(key=jax.random.key_data(state.key))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


def sums(steps):
    """What is carried after so many steps."""
    return sum(Line(CONFIG).batch(step).arrays["x"] for step in range(steps))


def test_it_trains_and_evaluates(tmp_path):
    events = run(tmp_path, num_devices=1)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Ended)
    assert events[-1][:3] == ("finished", 30, 480)
    trained, evaluated = ([e.record for e in events if isinstance(e, kind)] for kind in (Trained, Evaluated))
    assert [record["step"] for record in trained] == list(range(3, 31, 3))
    assert [record["step"] for record in evaluated] == [10, 20, 30]
    assert evaluated[-1]["error"] < 0.5 * evaluated[0]["error"]
    assert RunFolder(tmp_path).records() == sorted(trained + evaluated, key=lambda r: (r["step"], r["kind"] == "eval"))
    assert saved_steps(tmp_path, LATEST) == [20, 30]
    assert saved_steps(tmp_path, BEST) == [30]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert 'task = "toy"' in (tmp_path / "config.toml").read_text()


@pytest.mark.parametrize("devices", [1, 2])
def test_it_resumes_to_the_bit_with_what_is_carried(devices, tmp_path):
    for stop in (7, 12, 13):
        run(tmp_path / "parts", resume=stop > 7, stop_at=stop, num_devices=devices)
        np.testing.assert_allclose(end_of(tmp_path / "parts")[".carry"], sums(stop), rtol=1e-5, atol=1e-5)
    run(tmp_path / "parts", resume=True, num_devices=devices)
    run(tmp_path / "whole", num_devices=devices)
    parts, whole = end_of(tmp_path / "parts"), end_of(tmp_path / "whole")
    assert {name: x.tobytes() for name, x in parts.items()} == {name: x.tobytes() for name, x in whole.items()}


def test_what_is_carried_survives_a_kill(tmp_path):
    events = train(CONFIG, Line(CONFIG), make_engine(num_devices=1), tmp_path)
    for event in events:  # as far as the second step after a checkpoint, and no further
        if isinstance(event, Stepped) and event.step == 12:
            break
    del events
    assert saved_steps(tmp_path, LATEST) == [10]
    run(tmp_path, resume=True, num_devices=1)
    np.testing.assert_allclose(end_of(tmp_path)[".carry"], sums(30), rtol=1e-5, atol=1e-5)


def test_two_devices_are_one_device(tmp_path):
    run(tmp_path / "one", num_devices=1)
    run(tmp_path / "two", num_devices=2)
    one, two = end_of(tmp_path / "one"), end_of(tmp_path / "two")
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, rtol=1e-5, atol=1e-6)


def run_out_of_memory():
    """The device's own error: no address space holds a petabyte."""
    jax.block_until_ready(jax.jit(lambda: jnp.ones(2**48))())


@pytest.fixture
def memory(monkeypatch):
    """`memory(fits, first=0)`: from step `first` on, only steps that `fits` accepts have memory; the state is lost."""

    def limit(fits, first=0):
        def step(engine, state, arrays, plan):
            too_large = int(state.step) >= first and not fits(plan)
            after = take_step(engine, state, arrays, plan)  # which donates the state
            return run_out_of_memory() if too_large else after

        monkeypatch.setattr(JaxEngine, "step", step)

    take_step = JaxEngine.step
    return limit


def messages(events):
    return [event.text for event in events if isinstance(event, FellBack | Said)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that always had memory."""
    path = tmp_path_factory.mktemp("whole")
    run(path, num_devices=1)
    return path


def numbers(workdir):
    """What was recorded of steps and evaluations, but for what the clock says."""
    records = [record for record in RunFolder(workdir).records() if record["kind"] != "fallback"]
    return [{name: x for name, x in r.items() if name not in ("kind", "seconds")} for r in records]


def assert_same_end(workdir, expected):
    states = end_of(workdir), end_of(expected)
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], rtol=1e-5, atol=1e-6)
    for record, other in zip(*map(numbers, (workdir, expected)), strict=True):
        assert record == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (0, "step 0: going on from step 0"),
        (3, "step 3: going on from step 0"),  # there is no checkpoint yet
        (13, "step 13: going on from step 10"),
        (20, "step 20: going on from step 20"),
    ],
)
def test_it_falls_back_where_memory_runs_out(first, said, tmp_path, memory, whole):
    """To the latest checkpoint, and with the same batches to the same end."""
    memory(lambda plan: plan.micro_batches >= 4, first)
    events = run(tmp_path, num_devices=1)
    where = f"out of memory at {said} with"
    assert messages(events) == [f"{where} 2 micro-batches of 8", f"{where} 4 micro-batches of 4"]
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (12, "step 13: going on from step 10"),
        (13, "step 14: going on from step 10"),  # the next step has been dispatched by then
        (19, "step 20: going on from step 10"),  # at the end of an epoch
    ],
)
def test_it_falls_back_where_a_step_is_read(bad, said, tmp_path, monkeypatch, whole):
    """Then the next step has the state already."""
    take_step, read = JaxEngine.step, JaxEngine.read

    def step(engine, state, arrays, plan):
        number = int(state.step)
        state, metrics = take_step(engine, state, arrays, plan)
        return state, {**metrics, "lost": plan.micro_batches == 1 and number == bad}

    def read_unless_lost(engine, metrics):
        return run_out_of_memory() if metrics["lost"] else read(engine, metrics)

    monkeypatch.setattr(JaxEngine, "step", step)
    monkeypatch.setattr(JaxEngine, "read", read_unless_lost)
    events = run(tmp_path, num_devices=1)
    assert messages(events) == [f"out of memory at {said} with 2 micro-batches of 8"]
    assert_same_end(tmp_path, whole)


def test_a_divided_step_is_compiled_once(tmp_path):
    """And not again for a run that goes on."""
    compiled = []

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    train_step.clear_cache()
    jax.monitoring.register_event_duration_secs_listener(listen)
    run(tmp_path, stop_at=7, num_devices=2)
    run(tmp_path, resume=True, num_devices=2)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled.count("jit(train_step)") == 1


def test_shares_are_halved_and_it_ends_where_nothing_is_left(tmp_path, memory):
    memory(lambda plan: False)
    found = []
    events = train(CONFIG, Line(CONFIG), make_engine(num_devices=2), tmp_path)
    with pytest.raises(OutOfMemory, match=r"step 0 with 8 micro-batches of 1 on each of 2 devices: nothing is left to"):
        found.extend(events)
    where = "out of memory at step 0: going on from step 0 with"
    assert messages(found) == [f"{where} {n} micro-batches of {8 // n} on each of 2 devices" for n in (2, 4, 8)]


def test_a_run_that_fell_back_goes_on_with_another_number(tmp_path, memory):
    """With the same plan where the other number has it, else with its first."""
    memory(lambda plan: plan.micro_batches == 8)
    run(tmp_path, stop_at=2, num_devices=1)
    again = run(tmp_path, resume=True, stop_at=3, num_devices=2)
    assert messages(again) == ["memory ran out before: going on with 8 micro-batches of 1 on each of 2 devices"]
    memory(lambda plan: plan.micro_batches == 16)
    run(tmp_path, resume=True, stop_at=4, num_devices=1)
    memory(lambda plan: plan.micro_batches == 1)
    last = run(tmp_path, resume=True, num_devices=2)
    assert messages(last) == []
    assert last[-1].how == "finished"


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    engine = make_engine(num_devices=1)
    assert not engine.leads
    folder = RunFolder(tmp_path / "run", writes=engine.leads)
    folder.create(CONFIG, {})
    folder.append({"step": 1})
    folder.truncate(0)
    folder.draw_curves(Line.curves)
    assert not (tmp_path / "run").exists()


class TestLossScale:
    def steps(self, scale, number=4):
        state = make_state(LineObjective(), CONFIG.optimizer, jax.random.key(0), CONFIG.batch_size, scale)
        told = []
        for n in range(number):
            state, metrics = train_step(state, Line(CONFIG).batch(n).arrays)
            told.append(jax.device_get(metrics))
        return state, told

    def test_a_power_of_two_changes_nothing(self):
        plain, expected = self.steps(None)
        scaled, told = self.steps(LossScale.create(1024.0, interval=3))
        assert [m["loss"] for m in told] == [m["loss"] for m in expected]
        assert not any(m["skipped"] for m in told)
        assert np.array_equal(scaled.params["kernel"], plain.params["kernel"])
        assert scaled.scale.value == 2048  # after three good steps
        assert scaled.scale.good_steps == 1

    def test_a_step_that_overflows_is_skipped(self):
        huge = LossScale.create(1.0).replace(value=jnp.float32(3e38))
        before = make_state(LineObjective(), CONFIG.optimizer, jax.random.key(0), CONFIG.batch_size, huge)
        expected = jax.tree.map(np.array, (before.params, before.opt_state, before.carry))
        after, metrics = train_step(before, Line(CONFIG).batch(0).arrays)
        assert metrics["skipped"]
        assert after.step == 1
        assert after.scale.value < 3e38
        jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state, after.carry), expected)

    def test_gradients_in_float16_are_divided_in_float32(self):
        """The count of the items times the scale is no number in float16."""
        norms = []
        for dtype, scale in ((jnp.float32, None), (jnp.float16, LossScale.create(2.0**13))):
            state = make_state(LineObjective(), CONFIG.optimizer, jax.random.key(0), CONFIG.batch_size, scale)
            x, kernel = Line(CONFIG).batch(0).arrays["x"], jnp.array(state.params["kernel"], dtype)
            _, metrics = train_step(state.replace(params={"kernel": kernel}), {"x": x, "y": x @ kernel + 0.05})
            norms.append(float(metrics["grad_norm"]))
        assert norms[1] == pytest.approx(norms[0], rel=0.01)

    def test_at_its_floor_the_loss_itself_is_at_fault(self):
        state = make_state(
            LineObjective(), CONFIG.optimizer, jax.random.key(0), CONFIG.batch_size, LossScale.create(1.0)
        )
        arrays = Line(CONFIG).batch(0).arrays
        _, metrics = train_step(state, {**arrays, "y": arrays["y"] * np.nan})
        assert not metrics["skipped"]
        assert not np.isfinite(metrics["grad_norm"])

    def test_it_goes_through_a_run(self, tmp_path):
        run(tmp_path, stop_at=12, num_devices=1, scale=LossScale.create(2.0**100, interval=4))
        events = run(tmp_path, resume=True, num_devices=1, scale=LossScale.create())
        assert events[-1].how == "finished"
        like = make_state(LineObjective(), CONFIG.optimizer, jax.random.key(0), CONFIG.batch_size, LossScale.create())
        scale = load_state(find_checkpoint(tmp_path, (LATEST,)), like).scale
        assert 1 <= scale.value <= 2.0**24


_MESHES = """
import json, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from tests.toy import Config, Line, LineObjective
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.checkpoint_files import LATEST
config, found = Config(), {}
def engine(data, model):
    return JaxEngine(LineObjective(), config.optimizer, 0, 16, num_devices=data, num_model=model)
def steps(engine, state, n):
    for step in range(n):
        state, metrics = engine.step(state, Line(config).batch(step).arrays, engine.plans[0])
    return state, metrics
for data, model in json.loads(sys.argv[1]):
    one = engine(data, model)
    state, metrics = steps(one, one.start(one.plans[0]), 3)
    predicted = one.predict(state, Line(config).batch(9).arrays, 5)["y"]
    found[f"{data}x{model}"] = {
        "kernel": np.asarray(state.params["kernel"]).tolist(), "loss": float(metrics["loss"]),
        "carry": np.asarray(state.carry).tolist(), "predicted": predicted.tolist(),
        "shards": [list(s.data.shape) for s in state.params["kernel"].addressable_shards],
        "moments": [list(x.addressable_shards[0].data.shape) for x in jax.tree.leaves(state.opt_state) if x.ndim],
    }
saved = engine(2, 2)
state, _ = steps(saved, saved.start(saved.plans[0]), 2)
folder = saved.open_checkpoints(sys.argv[2], LATEST)
path = folder.save(state, {"config": {}})
for data, model in ((1, 1), (4, 2)):
    other = engine(data, model)
    again = other.load(path, other.plans[0])
    assert np.array_equal(again.params["kernel"], state.params["kernel"])
    assert again.params["kernel"].sharding.is_equivalent_to(other.start(other.plans[0]).params["kernel"].sharding, 2)
print(json.dumps(found))
"""


def test_meshes_are_one_device(tmp_path, environment):
    """Eight devices of the processor, in a process of their own; a state saved on one mesh is restored on others."""
    meshes = [*itertools.product((1, 2, 4), (1, 2)), (8, 1), (1, 4)]
    done = subprocess.run(
        [sys.executable, "-c", _MESHES, json.dumps(meshes), str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, result in found.items():
        data, model = map(int, name.split("x"))
        assert result["shards"] == [[4 // model, 1]] * (data * model)
        assert result["moments"] == [[4 // model, 1]] * 2
        for what in ("kernel", "loss", "carry", "predicted"):
            np.testing.assert_allclose(result[what], found["1x1"][what], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["machine", "training"])
def test_no_task_is_imported(part):
    for package in ("ttm_jax", "ttm_torch"):
        for file in (ROOT / package / part).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                aliases = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                names = aliases
                if isinstance(node, ast.ImportFrom):
                    assert node.module != "ttm_jax" or aliases == ["tasks"], file  # its names are of many packages
                    names = [node.module, *(f"{node.module}.{name}" for name in aliases)]
                assert not [name for name in names if re.match(r"ttm_\w+\.(multiplication|text|ttt)\b", name)], file


def code_of(text):
    """Its lines, without indentation and blank ones."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def test_the_walk_through_shows_this_task():
    toy = code_of((ROOT / "tests" / "toy.py").read_text())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        assert code_of(block) in toy
