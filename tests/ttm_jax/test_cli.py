"""What the commands share."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console

import ttm_jax
from ttm_jax import diagnose
from ttm_jax.cli import Parser, command, this_python
from ttm_jax.multiplication import diagnose as diagnosis

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A virtual environment's interpreter in the working folder."""
    executable = tmp_path / ".venv/bin/python"
    executable.parent.mkdir(parents=True)
    executable.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(executable))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return executable


def test_a_python_that_is_not_activated_has_its_path(environment):
    assert this_python() == str(Path(".venv/bin/python"))
    assert subprocess.run([this_python(), "-c", ""], check=True).returncode == 0


def test_elsewhere_the_path_is_whole(environment, monkeypatch):
    (environment.parent / "elsewhere").mkdir()
    monkeypatch.chdir(environment.parent / "elsewhere")
    assert this_python() == str(environment)


def test_an_activated_one_has_its_name(environment, monkeypatch):
    monkeypatch.setenv("PATH", str(environment.parent))
    assert this_python() == "python"


class Output(io.BytesIO):
    """A file in memory that can still be read when it is closed."""

    def close(self):
        pass


class TestCommand:
    def run(self, act):
        @command
        def main():
            act()
            return 0

        return main()

    def test_characters_that_the_encoding_lacks_are_replaced(self, monkeypatch):
        file = Output()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, "ascii"))
        assert self.run(lambda: print("3 × 4 ✓")) == 0
        assert file.getvalue() == b"3 ? 4 ?\n"

    def test_a_line_reaches_a_pipe_at_once(self, monkeypatch):
        file, seen = Output(), []
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(file), "utf-8"))
        self.run(lambda: (print("first"), seen.append(file.getvalue())))
        assert seen == [b"first\n"]

    @pytest.mark.parametrize("write", [print, lambda text: Console().print(text)])
    @pytest.mark.parametrize("lines", [1, 10_000])
    def test_it_ends_in_silence_where_no_one_reads(self, lines, write, unread, capsys):
        with unread("stdout"):
            assert self.run(lambda: write("line\n" * lines)) == 141
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("stdout", [None, io.StringIO()])
    @pytest.mark.parametrize("interrupted", [False, True])
    def test_it_ends_in_silence_where_no_one_reads_its_errors(self, interrupted, stdout, unread, monkeypatch):
        def act():
            if interrupted:
                raise KeyboardInterrupt
            print("line", file=sys.stderr, flush=True)

        monkeypatch.setattr(sys, "stdout", stdout)
        with unread("stderr"):
            assert self.run(act) == 141

    def test_ctrl_c_is_one_line(self, capsys):
        def interrupted():
            raise KeyboardInterrupt

        assert self.run(interrupted) == 130
        assert capsys.readouterr().err.count("\n") == 1

    def test_ctrl_c_in_a_command(self, monkeypatch, capsys):
        def interrupted(path):
            raise KeyboardInterrupt

        monkeypatch.setattr(diagnosis, "load_machine", interrupted)
        assert diagnose.main(["checkpoint"]) == 130
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
    def test_what_the_machine_is_short_of_is_one_line(self, number, capsys):
        def short():
            raise OSError(number, os.strerror(number), "results.json")

        assert self.run(short) == 1
        err = capsys.readouterr().err
        assert f"results.json: {os.strerror(number)}" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "ours"), RuntimeError("ours"), AssertionError()])
    def test_a_fault_of_ours_has_its_traceback(self, error):
        def fault():
            raise error

        with pytest.raises(type(error)):
            self.run(fault)

    @pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend"), AssertionError()])
    def test_a_platform_that_is_not_there_is_one_line(self, error, monkeypatch, capsys):
        """As JAX 0.10 has it of "tpu" and "cuda"."""

        def missing():
            raise error

        monkeypatch.setattr(jax, "devices", missing)
        assert self.run(missing) == 1
        err = capsys.readouterr().err
        assert f"JAX_PLATFORMS={jax.config.jax_platforms}" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("read", [True, False])
def test_ctrl_c_during_an_import_that_loses_it_is_one_line(read, tmp_path):
    """As of the packages in C, some of which turn it into an error of their own."""
    (tmp_path / "losing.py").write_text(
        "import contextlib, signal\n"
        "with contextlib.suppress(BaseException):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "def main(argv): return 0\n"
    )
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from ttm_jax.cli import door; sys.exit(door('losing')())"
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        if not read:
            pipe.close()
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=writing)
        os.close(writing)
        assert (ended.returncode, ended.stdout) == (130, b"")
        assert not read or pipe.read().count(b"\n") == 1


def test_commands_import_what_takes_long_when_they_have_begun():
    files = [file for package in ("ttm_jax", "ttm_torch", "parity") for file in (ROOT / package).rglob("*.py")]
    doors = [file for file in files if "sys.exit(main())" in file.read_text(encoding="utf-8")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in doors]
    assert {"ttm_jax.train", "ttm_torch.evaluate", "parity.scenic.__main__"} < set(names)
    code = f"import sys, {', '.join(names)}; print(*sorted({{'numpy', 'jax', 'torch', 'rich'}} & {{*sys.modules}}))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "\n"), ended.stderr


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        Parser(prog="any").parse_args(["--version"])
    assert ttm_jax.__version__ in capsys.readouterr().out
