"""The trainer in PyTorch: what it has of its own beside the loop that `tests/ttm_jax/test_train.py` tests."""

import json
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import ttm_torch
from ttm_jax.cli import this_python
from ttm_jax.multiplication.steps import training_arrays
from ttm_jax.tasks import load_config, make_task
from ttm_jax.training.checkpoint_files import BEST, LATEST, find_checkpoint, saved_steps
from ttm_jax.training.command import resolve
from ttm_jax.training.config import ConfigError, config_to_toml, override
from ttm_jax.training.loop import NonFiniteLoss
from ttm_jax.training.run_folder import RunFolder
from ttm_torch.multiplication.objective import create_model, create_state, loss_fn, train_step_with_metrics
from ttm_torch.train import main
from ttm_torch.training.checkpoint import load_meta, load_state
from ttm_torch.training.command import make_parser, start
from ttm_torch.training.step import random_seed
from ttm_torch.training.torch_engine import TorchEngine

pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest.fixture
def command(call_command):
    """`command(*arguments)` gives exit code, stdout and stderr."""
    return partial(call_command, main)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestResume:
    """All that a stopped run leaves behind equals, to the bit, what one that never stopped left."""

    @pytest.mark.parametrize("optimizer", ["adam", "muon"])
    def test_interruptions(self, optimizer, tiny_config, tmp_path, train, snapshot):
        """At an evaluation; in the middle of an epoch and of a window; past the stage; after a single step."""
        config = override(tiny_config, {"optimizer.name": optimizer})
        for stop in (10, 13, 23, 24):
            assert train(config, tmp_path / "parts", resume=stop > 10, stop_at=stop) == "interrupted"
            torch.manual_seed(stop)  # another process would have other random numbers
            assert saved_steps(tmp_path / "parts", LATEST)[-1] == stop
        assert train(config, tmp_path / "parts", resume=True) == "finished"
        assert train(config, tmp_path / "whole") == "finished"
        assert snapshot(tmp_path / "parts", config) == snapshot(tmp_path / "whole", config)

    def test_a_finished_run_stays_finished(self, tiny_config, tmp_path, train, snapshot):
        train(tiny_config, tmp_path)
        before = snapshot(tmp_path, tiny_config)
        assert train(tiny_config, tmp_path, resume=True) == "finished"
        assert snapshot(tmp_path, tiny_config) == before

    def test_a_run_killed_before_its_first_checkpoint_begins_anew(
        self, tiny_run, tiny_config, tmp_path, train, snapshot
    ):
        next(start(tiny_config, make_task(tiny_config), tmp_path, device="cpu"))
        assert not saved_steps(tmp_path, LATEST)
        assert train(tiny_config, tmp_path, resume=True) == "finished"
        assert snapshot(tmp_path, tiny_config) == snapshot(tiny_run.path, tiny_config)


def test_a_second_run_in_the_folder_is_refused(tiny_config, tmp_path):
    first = start(tiny_config, make_task(tiny_config), tmp_path, device="cpu")
    next(first)
    for resume in (False, True):
        with pytest.raises(ConfigError, match="another run"):
            next(start(tiny_config, make_task(tiny_config), tmp_path, resume, device="cpu"))


def test_kill_during_a_save(tiny_run, tiny_config, config_file, tmp_path, kill, train, snapshot):
    run = tmp_path / "run"
    arguments = ["--config", config_file, "--workdir", run, "--device", "cpu"]
    for events, left in [
        ("open /checkpoints/10.tmp/meta/metadata", []),  # the weights are written, the rest is not
        ("os.rename /checkpoints/20.tmp'", [10]),  # everything is written, but under another name
        ("shutil.rmtree /checkpoints/10.tmp';os.rmdir ", [20, 30]),  # half removed, but under another name
    ]:
        kill("ttm_torch.train", events, *arguments)
        assert saved_steps(run, LATEST) == left
        assert len(list((run / LATEST).glob("*.tmp"))) == 1
        arguments = ["--workdir", run, "--resume", "--device", "cpu"]
    assert train(tiny_config, run, resume=True) == "finished"
    assert snapshot(run, tiny_config) == snapshot(tiny_run.path, tiny_config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number, tiny_config, tmp_path, environment):
    config_file, run = tmp_path / "endless.toml", tmp_path / "run with space"
    config_file.write_text(config_to_toml(override(tiny_config, {"train.max_epochs": "1000000"})))
    arguments = ["--config", config_file, "--workdir", run, "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "ttm_torch.train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = []
        while not lines or not lines[-1].startswith("evaluation at step"):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.strip() == "stopping: the step is finished and saved first (Ctrl-C again: at once)"
    assert "interrupted: " in out

    go_on = shlex.split(next(line for line in out.splitlines() if line.startswith("go on:"))[6:])
    assert go_on == [this_python(), "-m", "ttm_torch.train", "--workdir", str(run), "--resume", "--device", "cpu"]
    args = make_parser(go_on[3:]).parse_args(go_on[3:])
    assert resolve(args) == (load_config(config_file), run)
    checkpoint = find_checkpoint(run, (LATEST,))
    step = load_state(checkpoint, create_state(load_config(config_file))).step
    assert load_meta(checkpoint)[1]["progress"]["step"] == step == saved_steps(run, LATEST)[-1] >= 10
    assert ttm_torch.load(run).multiply([2], [3])


class TestOneRun:
    """What `tiny_run` told and wrote."""

    def test_folder(self, tiny_run):
        names = {path.name for path in tiny_run.path.iterdir()}
        assert names == {"config.toml", "versions.json", "metrics.jsonl", "curves.png", "lock", LATEST, BEST}
        assert load_config(tiny_run.path / "config.toml") == tiny_run.config
        versions = json.loads((tiny_run.path / "versions.json").read_text())
        assert (versions["torch"], versions["device"], versions["backend"]) == (torch.__version__, "cpu", "cpu")
        assert (tiny_run.path / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_records(self, tiny_run):
        records = RunFolder(tiny_run.path).records()
        train = [record for record in records if record["kind"] == "train"]
        evals = [record for record in records if record["kind"] == "eval"]
        assert train == tiny_run.display.records
        assert evals == [record for record, _ in tiny_run.display.evaluations]
        assert [record["step"] for record in train] == [3, 6, 9, 12, 15, 18, 23, 26, 29, 32, 35, 38]
        assert [record["step"] for record in evals] == [10, 20, 30, 40]
        assert [list(record["exact_match"]) for record in evals] == [["1x1"]] * 2 + [["1x1", "2x1", "2x2"]] * 2
        assert train[-1]["loss"] < train[0]["loss"]
        rates = [ttm_torch.learning_rate(tiny_run.config.optimizer, record["step"] - 1) for record in train]
        assert [record["learning_rate"] for record in train] == rates
        assert min(len(examples) for _, examples in tiny_run.display.evaluations) >= 3

    def test_checkpoints(self, tiny_run):
        assert saved_steps(tiny_run.path, LATEST) == [30, 40]
        best = [record["step"] for record, _ in tiny_run.display.evaluations if record["best"]]
        assert saved_steps(tiny_run.path, BEST) == best[-1:]
        assert not (find_checkpoint(tiny_run.path) / "training").exists()

    def test_the_best_checkpoint_answers_as_its_evaluation_said(self, tiny_run):
        record = [record for record, _ in tiny_run.display.evaluations if record["best"]][-1]
        multiplier = ttm_torch.load(tiny_run.path)
        for name, counts in record["exact_match"].items():
            length = tuple(map(int, name.split("x")))
            a, b = ttm_torch.held_out_pairs(length, 16, tiny_run.config.data.stages[record["stage"]]).T
            products = multiplier.multiply(a, b)
            assert sum(p == x * y for p, x, y in zip(products, a, b, strict=True)) == counts["correct"]


def test_training_follows_from_the_seed_alone(tiny_config):
    first, again = create_state(tiny_config), create_state(tiny_config)
    other = create_state(override(tiny_config, {"train.seed": "8"}))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert not torch.equal(first.model.memory_init, other.model.memory_init)
    seeds = {random_seed(seed, step) % 2**32 for seed in range(3) for step in range(-1, 9)}
    assert len(seeds) == 30


def test_gradients_are_clipped_before_the_step_and_the_rate_is_set_after_it(tiny_config, monkeypatch):
    def clip(parameters, max_norm):
        calls.append(f"clip to {max_norm}")
        return clip_grad_norm_(parameters, max_norm)

    calls, state, clip_grad_norm_ = [], create_state(tiny_config), torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    state.optimizer.register_step_post_hook(lambda *_: calls.append(f"step {state.scheduler.last_epoch}"))
    batch = ttm_torch.MultiplicationDataset(8).batch(0, 0)[:3]
    for _ in range(2):
        ttm_torch.train_step(state.model, batch, state.optimizer, state.scheduler)
    assert calls == ["clip to 1.0", "step 0", "clip to 1.0", "step 1"]
    assert state.optimizer.param_groups[0]["lr"] == ttm_torch.learning_rate(tiny_config.optimizer, 2)


def test_a_carry_head_is_evaluated_without_carries_and_not_trained_without(tiny_config):
    state, batch = create_state(tiny_config), ttm_torch.MultiplicationDataset(8).generate_batch()
    model = state.model
    assert model.config.carry_head
    assert ttm_torch.eval_step(model, batch)["loss"].isfinite()
    with pytest.raises(ValueError, match='trained on batches with "carries"'):
        ttm_torch.train_step(model, batch, state.optimizer)


def test_running_sums_are_not_trained_on_carries(tiny_config):
    config = override(tiny_config, {"model.schedule": "product", "data.augment": "[]"})
    state, batch = create_state(config), ttm_torch.MultiplicationDataset(4).batch(0, 0)
    arrays = {"inputs": batch.inputs, "targets": batch.targets, "carries": batch.carries}
    assert ttm_torch.eval_step(state.model, arrays)["loss"].isfinite()
    with pytest.raises(ValueError, match='trained on batches with "sums"'):
        ttm_torch.train_step(state.model, arrays, state.optimizer)
    arrays = training_arrays(batch, config.model, 3)
    with_names, in_order = (ttm_torch.eval_step(state.model, x) for x in (arrays, tuple(arrays.values())))
    assert with_names["loss"] == in_order["loss"]


def test_the_weights_of_a_seed_do_not_depend_on_the_default_device(tiny_config):
    before = create_model(tiny_config).state_dict()
    torch.set_default_device("meta")  # on which there are no numbers
    try:
        model = create_model(tiny_config)
    finally:
        torch.set_default_device(None)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("max_grad_norm", [1e-3, None])
def test_the_norm_told_is_that_before_clipping(max_grad_norm, tiny_config):
    state = create_state(override(tiny_config, {"model.dropout_rate": "0.0"}))
    inputs, targets, carries, _ = ttm_torch.MultiplicationDataset(4).batch(0, 0)
    batch = {name: torch.as_tensor(x) for name, x in dict(inputs=inputs, targets=targets, carries=carries).items()}
    loss, _ = loss_fn(state.model, batch)
    gradients = torch.autograd.grad(loss.mean, list(state.model.parameters()))
    metrics = train_step_with_metrics(state.model, batch, state.optimizer, max_grad_norm=max_grad_norm)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert metrics["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-5)
    left = torch.cat([parameter.grad.flatten() for parameter in state.model.parameters()]).norm().item()
    assert left == pytest.approx(max_grad_norm or norm.item(), rel=1e-2)


class TestNonFiniteLoss:
    def test_the_command_names_step_seed_and_checkpoint(self, tiny_config, tmp_path, train, command, monkeypatch):
        """Parameters that overflowed: the loss of the next step is really not a number."""

        def overflowed(*arguments):
            state = load(*arguments)
            with torch.no_grad():
                for parameter in state.model.parameters():
                    parameter.fill_(torch.inf)
            return state

        train(tiny_config, tmp_path, stop_at=10)
        load = TorchEngine.load
        monkeypatch.setattr(TorchEngine, "load", overflowed)
        before = files(tmp_path)
        code, _, err = command("--workdir", tmp_path, "--resume", "--device", "cpu")
        assert code == 1
        assert files(tmp_path) == before
        assert "loss nan" in err
        assert "at step 10 (batch: seed 7, step 10); nothing was overwritten" in err
        assert err.endswith(f"the last good checkpoint is {tmp_path / LATEST / '10'}\n")
        assert err.count("\n") == 1

    @pytest.mark.parametrize("name", ["loss", "grad_norm"])
    def test_nothing_is_saved(self, name, tiny_config, tmp_path, train, monkeypatch):
        def step(engine, state, arrays, plan):
            number = state.step
            state, metrics = take_step(engine, state, arrays, plan)
            return state, {**metrics, name: torch.tensor(torch.inf)} if number == 19 else metrics

        take_step = TorchEngine.step
        monkeypatch.setattr(TorchEngine, "step", step)
        with pytest.raises(NonFiniteLoss, match=r"at step 19 \(batch: seed 7, step 19\).*/checkpoints/10$"):
            train(tiny_config, tmp_path)
        assert saved_steps(tmp_path, LATEST) == [10]


class TestBfloat16:
    @pytest.mark.parametrize(
        ("processing", "write"), [("transformer", "mlp"), ("mixer", "erase_add"), ("mlp", "concat"), ("mlp", "query")]
    )
    def test_only_the_linear_layers_compute_in_it(self, processing, write, tiny_config):
        """Memory, parameters, logits and loss stay in float32."""
        changes = {"model.dtype": "bfloat16", "model.processing": processing, "model.write": write}
        state, linear, memory = create_state(override(tiny_config, changes)), set(), set()
        for module in state.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: linear.add(output.dtype))
        state.model.machine.step.register_forward_hook(
            lambda module, inputs, outputs: memory.update([inputs[0].dtype, outputs[0].dtype])
        )
        batch = ttm_torch.MultiplicationDataset(4).batch(0, 0)[:3]
        loss = ttm_torch.train_step(state.model, batch, state.optimizer, state.scheduler)
        assert (linear, memory, loss.dtype) == ({torch.bfloat16}, {torch.float32}, torch.float32)
        assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
        assert state.model(torch.as_tensor(batch[0])).dtype == torch.float32

    def test_a_run_learns_and_goes_on_to_the_bit(self, tiny_config, tmp_path, train, snapshot):
        config = override(tiny_config, {"model.dtype": "bfloat16"})
        train(config, tmp_path / "parts", stop_at=13)
        train(config, tmp_path / "parts", resume=True)
        train(config, tmp_path / "whole")
        assert snapshot(tmp_path / "parts", config) == snapshot(tmp_path / "whole", config)
        losses = [record["loss"] for record in RunFolder(tmp_path / "whole").records() if record["kind"] == "train"]
        assert losses[-1] < losses[0]

    @pytest.mark.parametrize(
        "dtypes", [("bfloat16", "bfloat16"), ("float64", "float32"), ("float32", "float64"), ("bfloat16", "float64")]
    )
    def test_types_that_the_twin_does_not_have_are_refused(self, dtypes, tiny_config, tmp_path):
        changes = dict(zip(("model.dtype", "model.param_dtype"), dtypes, strict=True))
        config = override(tiny_config, changes)
        run = start(config, make_task(config), tmp_path / "run")
        for make in (lambda: ttm_torch.TTMModel(config.model), lambda: next(run)):
            with pytest.raises(ConfigError, match=f"must in PyTorch be both .*; got {dtypes[0]} and {dtypes[1]}"):
                make()
        assert not (tmp_path / "run").exists()

    def test_the_baseline_is_refused(self, tiny_config):
        config = override(tiny_config, {"model.kind": "transformer"})
        with pytest.raises(ConfigError, match="model.kind must in PyTorch be machine, got transformer"):
            ttm_torch.TTMModel(config.model)


class TestCommand:
    def test_a_whole_run(self, config_file, tiny_run, tiny_config, tmp_path, command, snapshot):
        code, out, err = command("--config", config_file, "--workdir", tmp_path / "run", "--device", "cpu")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        parameters = sum(x.numel() for x in ttm_torch.load(tiny_run.path).model.parameters())
        assert lines[0] == f"{parameters:,} parameters on cpu; run folder {tmp_path / 'run'}"
        assert sum(line.startswith("evaluation at step ") for line in lines) == 4
        assert re.fullmatch(r"finished: 40 steps, 320 examples, \d+ s", lines[-3])
        assert lines[-2] == f"curves: {tmp_path / 'run' / 'curves.png'}"
        assert lines[-1] == f"measure: {this_python()} -m ttm_torch.evaluate {tmp_path / 'run'}"
        assert snapshot(tmp_path / "run", tiny_config) == snapshot(tiny_run.path, tiny_config)

    def test_help_has_an_example(self, command):
        code, out, _ = command("--help")
        assert code == 0
        assert "example: python -m ttm_torch.train --config" in out
        assert re.search(r"--model.memory-size VALUE\s+an integer \(4\)", out)
        assert "--device {cpu,cuda}" in out

    def test_the_run_folder_is_not_that_of_jax(self, config_file):
        args = make_parser().parse_args(["--config", str(config_file)])
        assert resolve(args)[1] == Path("runs/tiny-torch")
        assert resolve(make_parser().parse_args([]))[1] == Path("runs/default-torch")

    def test_a_run_is_not_overwritten(self, tiny_run, config_file, command):
        before = files(tiny_run.path)
        code, out, err = command("--config", config_file, "--workdir", tiny_run.path)
        assert (code, out) == (2, "")
        assert err.startswith(f"python -m ttm_torch.train: error: {tiny_run.path} has a run already; --resume goes on")
        assert files(tiny_run.path) == before

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_a_device_that_is_not_there(self, config_file, tmp_path, command):
        code, out, err = command("--config", config_file, "--workdir", tmp_path / "run", "--device", "cuda")
        assert (code, out) == (2, "")
        assert err == (
            "python -m ttm_torch.train: error: --device cuda: PyTorch finds no CUDA device here; "
            "--device cpu computes without one\n"
        )
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--wrokdir", "x"], "unknown argument --wrokdir; did you mean --workdir?; --help lists"),
            (["--model.memory-siez=3"], "unknown argument --model.memory-siez; did you mean --model.memory-size?"),
            (["--device", "gpu"], "argument --device: invalid choice: 'gpu' (choose from "),
            (["--workdir", "{tmp}/x", "--model.dtype", "float64"], "model.dtype and model.param_dtype must in PyTorch"),
            (["--workdir", "{tmp}/none", "--resume"], "--resume: {tmp}/none is no run folder: it has no config"),
            (["--config", "{tmp}/tiny.toml", "--workdir", "{tmp}/tiny.toml/x"], "{tmp}/tiny.toml/x: Not a directory"),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, message, config_file, tmp_path, command):
        code, out, err = command(*(argument.format(tmp=tmp_path) for argument in arguments))
        assert (code, out) == (2, "")
        assert err.startswith(f"python -m ttm_torch.train: error: {message.format(tmp=tmp_path)}")
        assert err.count("\n") == 1


def test_progress_is_json(tiny_run):
    meta = load_meta(find_checkpoint(tiny_run.path, (LATEST,)))[1]
    assert meta["progress"]["step"] == 40
    assert meta["provenance"]["torch"] == torch.__version__


class TestInit:
    def test_parameters_are_those_and_all_else_is_fresh(self, tiny_run, tiny_config, tmp_path):
        """After one step of a rate of almost nothing."""
        config = override(tiny_config, {"train.seed": "8", "optimizer.learning_rate": "1e-9"})
        for event in start(config, make_task(config), tmp_path, stop=lambda: True, init=tiny_run.path, device="cpu"):
            assert getattr(event, "step", 0) <= 1
        theirs, ours = ttm_torch.load(tiny_run.path).model, load_state(tmp_path / LATEST / "1", create_state(config))
        for (name, wanted), found in zip(theirs.state_dict().items(), ours.model.state_dict().values(), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0, msg=name)
        assert ours.step == 1
        assert {entry["step"].item() for entry in ours.optimizer.state_dict()["state"].values()} == {1}
        said = json.loads((tmp_path / "versions.json").read_text())["init"]
        assert said == str(find_checkpoint(tiny_run.path))

    def test_a_checkpoint_of_jax_is_to_be_converted_first(self, config_file, tmp_path, command):
        code, out, err = command("--config", config_file, "--workdir", tmp_path / "run", "--init", "five_digits")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "python -m parity.convert" in err
        assert not (tmp_path / "run").exists()
