"""`.ci/gpu`: how it ends, what it leaves, and that no part stops another."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/gpu"


@pytest.fixture(scope="module")
def gpu():
    """The script as a module."""
    loader = importlib.machinery.SourceFileLoader("ci_gpu", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module  # where its dataclass looks
    loader.exec_module(module)
    yield module
    del sys.modules[loader.name]


@pytest.fixture
def folders(tmp_path):
    """OUT and the scratch folder."""
    folders = tmp_path / "out", tmp_path / "scratch"
    for folder in folders:
        folder.mkdir()
    return folders


def contents(out):
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def summary(out):
    return json.loads((out / "summary.json").read_text())["parts"]


def write(scratch, name, text="x", then=""):
    """Arguments of Python that write a file."""
    path = f"import pathlib, sys; p = pathlib.Path({str(scratch / name)!r}); p.parent.mkdir(exist_ok=True)"
    return ["-c", f"{path}; p.write_text({text!r}); {then}"]


def test_a_part_that_fails_stops_no_other(gpu, folders):
    out, scratch = folders
    parts = [
        gpu.Part("bad", write(scratch, "a/bad.json", then="sys.exit('it broke')"), 60, {"a/": "a/*.json"}),
        gpu.Part("unfit", [], 60, needs=["json", "no_such_module"]),
        gpu.Part("good", write(scratch, "b/good.json", then="print('well')"), 60, {"good.json": "b/*"}, stdout="c.txt"),
    ]
    assert gpu.run_parts(parts, out, scratch, 100.0) == ["bad"]
    bad, unfit, good = summary(out)
    assert (bad["name"], bad["exit_code"], bad["files"]) == ("bad", 1, ["a/bad.json"])
    assert bad["output"] == "it broke\n"
    assert unfit["left_out"] == "not installed: no_such_module"
    assert (good["exit_code"], good["files"], "output" in good) == (0, ["good.json"], False)
    assert (scratch / "c.txt").read_text() == "well\n"
    assert contents(out) == {"summary.json", "a/bad.json", "good.json"}


def test_a_part_whose_time_is_over_is_stopped_and_what_it_has_is_kept(gpu, folders):
    out, scratch = folders
    saving = "\ntry: print('begun', flush=True), time.sleep(99)\nexcept KeyboardInterrupt: p.write_text('saved')"
    deaf = (
        "import pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']);"
        f"pathlib.Path({str(scratch / 'child')!r}).write_text(str(child.pid)); time.sleep(99)"
    )
    parts = [
        gpu.Part("saving", write(scratch, "a.json", then="import time" + saving), 8, {"a.json": "a.json"}),
        gpu.Part("deaf", ["-c", deaf], 4),
        gpu.Part("after", write(scratch, "b.json"), 60, {"b.json": "b.json"}),
        gpu.Part("late", write(scratch, "c.json"), 60, {"c.json": "c.json"}),
    ]
    assert gpu.run_parts(parts[:3], out, scratch, 100.0) == ["saving", "deaf"]
    saving, deaf, after = summary(out)
    assert (saving["exit_code"], saving["output"]) == (None, "begun\n")
    assert (out / "a.json").read_text() == "saved"
    assert deaf["exit_code"] is None
    assert deaf["seconds"] < 20
    child = Path("/proc", (scratch / "child").read_text(), "stat")
    assert not child.exists() or child.read_text().split()[2] == "Z", "what it started has ended with it"
    assert (after["exit_code"], after["files"]) == (0, ["b.json"])

    assert gpu.run_parts(parts[3:], out, scratch, 1.0) == []
    assert summary(out)[0]["left_out"] == "no time was left"


def test_bundles_are_small_and_have_all_files(gpu, folders, monkeypatch):
    out, scratch = folders
    for name in ("run/a.json", "run/b.png", "run/checkpoint/c"):
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_text(name)
    assert gpu.keep(scratch, "nothing/*", out, "nothing.tar.gz") == []
    assert gpu.keep(scratch, "run/*.*", out, "run.tar.gz") == ["run.tar.gz"]
    with tarfile.open(out / "run.tar.gz") as bundle:
        assert bundle.getnames() == ["run/a.json", "run/b.png"]
        assert bundle.extractfile("run/b.png").read() == b"run/b.png"
    monkeypatch.setattr(gpu, "MOST_BYTES", 5)
    assert gpu.keep(scratch, "run/*.json", out, "large.json") == ["large.json left out: 10 bytes"]
    assert contents(out) == {"run.tar.gz"}


def test_the_parts_name_few_files_and_fit_the_time(gpu, tmp_path):
    for rehearse in (False, True):
        parts = gpu.parts_of(tmp_path, rehearse)
        names = {name for part in parts for name in part.files}
        assert len(names | {"summary.json"}) <= 8
        assert all(name.rstrip("/").count("/") == 0 for name in names)
        assert sum(part.limit_s or 0 for part in parts) <= gpu.SECONDS
        assert all(part.platforms.startswith("cuda") for part in parts)
    (tests,) = (part for part in parts if part.name == "tests")
    assert str(Path(__file__).parent / "parity/test_gpu.py") in tests.arguments


def test_the_last_parts_share_the_time_that_is_left(gpu, folders, monkeypatch):
    limits = []
    monkeypatch.setattr(gpu, "run_part", lambda part, limit_s, *_: limits.append(limit_s) or {"exit_code": 0})
    assert gpu.run_parts([gpu.Part("first", [], 60), *[gpu.Part("shared", [], None)] * 2], *folders, 100.0) == []
    assert limits[0] == 60
    assert limits[1] <= 50 < limits[2], "what one leaves is the other's"


def test_the_commands_take_their_arguments(gpu, tmp_path):
    """All but what runs them: a renamed flag is seen here, not on the GPU."""
    from parity.speed.command import _parser as speed_parser
    from ttm_jax.measure.benchmark import make_parser as benchmark_parser
    from ttm_jax.multiplication.grid import make_evaluation_parser
    from ttm_jax.training.command import resolve
    from ttm_jax.training.jax_command import make_parser as training_parser

    parsers = {
        "ttm_jax.benchmark": benchmark_parser(),
        "ttm_jax.train": training_parser(),
        "ttm_jax.evaluate": make_evaluation_parser("ttm_jax", "run"),
        "parity.speed": speed_parser(),
    }
    for rehearse in (False, True):
        for part in gpu.parts_of(tmp_path, rehearse):
            if part.name != "tests":
                args = parsers[part.arguments[1]].parse_args(part.arguments[2:])
            if part.name == "training":
                resolve(args)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("module", "lacks no_such_module"),
        ("full", "is not empty"),
        ("file", "File exists"),
        ("GPU", "JAX has no GPU"),
    ],
)
def test_what_forbids_to_run_is_a_line(case, message, gpu, tmp_path, monkeypatch, capsys):
    if case == "module":
        monkeypatch.setattr(gpu, "NEEDED", (*gpu.NEEDED, "no_such_module"))
    elif case == "full":
        (tmp_path / "file").touch()
    elif case == "GPU":
        monkeypatch.setattr(gpu, "DEVICE", "raise SystemExit('RuntimeError: no cuda')")
    out = tmp_path
    if case == "file":
        out = tmp_path / "file"
        out.touch()
    monkeypatch.setattr(gpu, "run_parts", lambda *_: pytest.fail("nothing is to be run"))
    assert gpu.main([str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(".ci/gpu: error: ")
    assert printed.count("\n") == 1
    assert message in printed


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--rehears"]])
def test_wrong_arguments(arguments, gpu, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(arguments)
    assert stop.value.code == 2
    assert ".ci/gpu: error: " in capsys.readouterr().err


@pytest.mark.slow  # minutes: every part, if small
def test_a_rehearsal(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, SCRIPT, out, "--rehearse"], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(part["exit_code"] == 0 for part in summary(out))
    (device,) = (out / "hardware").glob("*.json")
    assert {"operations", "training", "batch_sizes", "history"} < json.loads(device.read_text()).keys()
    names = {"summary.json", "training.tar.gz", "speed.tar.gz", "tests.txt", "profile.tar.gz"}
    assert contents(out) == {*names, f"hardware/{device.name}"}
    with tarfile.open(out / "training.tar.gz") as bundle:
        files = {Path(name).name for name in bundle.getnames()}
    assert files == {"metrics.jsonl", "versions.json", "config.toml", "curves.png", "evaluation.json"}
