"""What a machine says of itself, by the files of machines made up here; the real one in the end."""

import dataclasses
import os
import subprocess

import jax
import pytest

from ttm_jax.hardware import detect as hardware
from ttm_jax.hardware.detect import (
    Cache,
    describe_device,
    detect_machine,
    devices_present,
    free_memory,
    processor_name,
    total_memory,
)


@pytest.fixture
def make_machine(tmp_path):
    """Writes files, named by their paths, and gives the root."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def cpu(number, core, shared, size="2048K"):
    folder = f"sys/devices/system/cpu/cpu{number}"
    return {
        f"{folder}/topology/physical_package_id": "0\n",
        f"{folder}/topology/core_id": f"{core}\n",
        f"{folder}/cache/index0/level": "1\n",
        f"{folder}/cache/index0/type": "Data\n",
        f"{folder}/cache/index0/size": "48K\n",
        f"{folder}/cache/index0/shared_cpu_list": f"{shared}\n",
        f"{folder}/cache/index2/level": "2\n",
        f"{folder}/cache/index2/type": "Unified\n",
        f"{folder}/cache/index2/size": f"{size}\n",
        f"{folder}/cache/index2/shared_cpu_list": "0-3\n",
    }


INTEL = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon 9\nflags\t\t: fpu sse4_2 avx2 fma amx_tile avx512f\n",
    "proc/meminfo": "MemTotal:       1000 kB\nMemAvailable:    600 kB\n",
    "sys/devices/system/cpu/cpufreq/boost": "1",
    **cpu(0, 0, "0-1"),
    **cpu(1, 0, "0-1"),
    **cpu(2, 1, "2-3"),
    **cpu(3, 1, "2-3"),
}


def test_two_cores_of_two_threads(make_machine):
    found = detect_machine(make_machine(INTEL))
    assert (found.processor, found.cores, found.cpus) == ("Xeon 9", 2, 4)
    assert found.caches == (Cache(1, "data", 48 * 1024, 2), Cache(2, "unified", 2 * 2**20, 1))
    assert found.instruction_sets == ("sse4_2", "fma", "avx2", "avx512f", "amx_tile")
    assert found.memory_bytes == 1000 * 1024


def test_generations_of_one_name_differ(make_machine):
    """What a virtual machine's processor says of itself: the name is that of every other generation."""
    cpuinfo = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    assert processor_name(make_machine({"proc/cpuinfo": cpuinfo})) == "AMD EPYC (family 25, model 17)"


def test_a_control_group_takes_away(make_machine):
    limits = {"sys/fs/cgroup/memory.max": "512000\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    found = detect_machine(make_machine(INTEL | limits))
    assert (found.memory_bytes, found.usable_cpus) == (512000, 1)


def test_a_control_group_without_limits(make_machine):
    limits = {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
    with_limits, without = detect_machine(make_machine(INTEL | limits)), detect_machine()
    assert with_limits.memory_bytes == 1000 * 1024
    assert with_limits.usable_cpus == without.usable_cpus


def test_arm_has_no_model_name_and_other_flags(make_machine, monkeypatch):
    root = make_machine({"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd bf16 sve\n"})
    shown = "Architecture:  aarch64\nModel name:    Neoverse-V1\nCaches (sum of all):\n"
    monkeypatch.setattr(hardware.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, shown))
    found = detect_machine(root)
    assert found.processor == "Neoverse-V1"
    assert found.instruction_sets == ("asimd", "bf16", "sve")


def test_a_machine_that_says_nothing(tmp_path, monkeypatch):
    def no_lscpu(*args, **kwargs):
        raise FileNotFoundError("lscpu")

    monkeypatch.setattr(hardware.subprocess, "run", no_lscpu)
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    found = detect_machine(tmp_path)
    assert found.processor == "unknown"
    assert (found.cores, found.caches, found.instruction_sets, found.memory_bytes) == (None, (), (), None)
    assert found.cpus == os.cpu_count()


def test_half_told_caches_are_left_out(make_machine):
    files = cpu(0, 0, "0", size="unknown")
    del files["sys/devices/system/cpu/cpu0/cache/index0/level"]
    assert detect_machine(make_machine(files)).caches == ()


def test_the_real_machine():
    found = detect_machine()
    assert found.processor == processor_name()
    assert found.usable_cpus is None or 1 <= found.usable_cpus <= found.cpus
    assert all(cache.bytes > 0 and cache.instances > 0 for cache in found.caches)
    plain = found.to_dict()
    assert plain["caches"] == [dataclasses.asdict(cache) for cache in found.caches]
    assert type(plain["caches"]) is list


class FakeDevice:
    def __init__(self, kind, platform, stats=None):
        self.device_kind, self.platform, self._stats = kind, platform, stats

    def memory_stats(self):
        return self._stats


def test_one_device_of_each_kind_the_processor_first(monkeypatch):
    gpus = [FakeDevice("H200", "gpu"), FakeDevice("H200", "gpu"), FakeDevice("A100", "gpu")]
    processor = FakeDevice("cpu", "cpu")
    monkeypatch.setattr(jax, "devices", lambda platform=None: [processor] if platform == "cpu" else gpus)
    assert devices_present() == [processor, gpus[0], gpus[2]]


def test_no_processor_where_jax_has_none(monkeypatch):
    gpu = FakeDevice("H200", "gpu")

    def devices(platform=None):
        if platform == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return [gpu]

    monkeypatch.setattr(jax, "devices", devices)
    assert devices_present() == [gpu]


def test_memory_of_an_accelerator_is_what_its_allocator_has():
    device = FakeDevice("H200", "gpu", {"bytes_limit": 1000, "bytes_in_use": 300})
    assert (total_memory(device), free_memory(device)) == (1000, 700)
    assert (total_memory(FakeDevice("odd", "odd")), free_memory(FakeDevice("odd", "odd"))) == (None, None)


def test_memory_of_the_processor_is_the_machines():
    (device,) = devices_present()
    assert device == jax.devices()[0]
    total, free = total_memory(device), free_memory(device)
    assert total == detect_machine().memory_bytes
    assert (total is None) == (free is None)
    if total is not None:
        assert 0 < free < total
    assert describe_device(device) == {
        **{"kind": "cpu", "platform": "cpu", "count": 1},
        **{"memory_bytes": None, "compute_capability": None, "core_count": None},
    }
