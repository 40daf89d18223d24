"""What this machine is: processor, caches, instruction sets, memory, accelerators.

Linux says all of it in /proc and /sys. What a machine does not say is None here, and "unknown" where it is printed.
"""

import contextlib
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

ROOT = Path("/")
UNKNOWN = "unknown"
# The vector and matrix instructions that kernels are chosen by, of x86-64 and of 64-bit Arm.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2", "sme"),
)


@dataclass(frozen=True)
class Cache:
    """One kind of cache: `instances` of `bytes` each; `kind` is "data", "instruction" or "unified"."""

    level: int
    kind: str
    bytes: int
    instances: int


@dataclass(frozen=True)
class Machine:
    """The host.

    Attributes:
        processor, architecture: names; "unknown" where the machine gives none.
        cores: physical cores.
        cpus: hardware threads.
        usable_cpus: hardware threads that this process may use, by its affinity and its control group.
        caches: by level.
        instruction_sets: those of INSTRUCTION_SETS that the processor has.
        memory_bytes: main memory, or the control group's limit where that is lower.
    """

    processor: str
    architecture: str
    cores: int | None
    cpus: int | None
    usable_cpus: int | None
    caches: tuple[Cache, ...]
    instruction_sets: tuple[str, ...]
    memory_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in a result file."""
        return asdict(self) | {"caches": [asdict(cache) for cache in self.caches]}


def detect_machine(root: Path = ROOT) -> Machine:
    """Describe the machine of the file system at `root`; guess nothing."""
    return Machine(
        processor=processor_name(root),
        architecture=platform.machine() or UNKNOWN,
        cores=_cores(root),
        cpus=len(_cpu_folders(root)) or os.cpu_count(),
        usable_cpus=usable_cpus(root),
        caches=_caches(root),
        instruction_sets=_instruction_sets(root),
        memory_bytes=_memory_bytes(root),
    )


def processor_name(root: Path = ROOT) -> str:
    """Read the processor's name from /proc/cpuinfo, or ask `lscpu` where that has none (Arm).

    Family and model are added where there are any (x86): virtual machines call several generations "AMD EPYC".
    """
    name = _cpuinfo(root, "model name") or _lscpu("Model name") or platform.processor() or UNKNOWN
    family, model = _cpuinfo(root, "cpu family"), _cpuinfo(root, "model")
    return name if family is None or model is None else f"{name} (family {family}, model {model})"


def usable_cores(root: Path = ROOT) -> int | None:
    """Count the physical cores, or the hardware threads that this process may use where those are fewer."""
    return min((n for n in (_cores(root), usable_cpus(root)) if n is not None), default=None)


def usable_cpus(root: Path = ROOT) -> int | None:
    """Count the hardware threads that this process may use, by its affinity and its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = (_read(root / "sys/fs/cgroup/cpu.max") or "").partition(" ")
    if not quota.isdecimal() or not period.isdecimal():
        return affinity
    share = max(1, math.ceil(int(quota) / int(period)))
    return share if affinity is None else min(affinity, share)


def describe_device(device: "jax.Device") -> dict[str, Any]:
    """Describe an accelerator, or the processor as JAX sees it, in plain values; None for what it does not say."""
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "count": _count(device),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "compute_capability": getattr(device, "compute_capability", None),
        "core_count": getattr(device, "core_count", None),
    }


def devices_present() -> list["jax.Device"]:
    """List one device of each kind that JAX sees, the processor first."""
    import jax  # here alone: the PyTorch twin uses the rest of this module without JAX

    devices = list(jax.devices())
    if devices[0].platform != "cpu":
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS may leave the processor out
            devices = [*jax.devices("cpu"), *devices]
    return list({(device.platform, device.device_kind): device for device in reversed(devices)}.values())[::-1]


def _count(device: "jax.Device") -> int:
    """Count the devices of this kind; the processor is one, however many devices JAX makes of it."""
    return 1 if device.platform == "cpu" else sum(d.device_kind == device.device_kind for d in device.client.devices())


def total_memory(device: "jax.Device") -> int | None:
    """Return the bytes that arrays on the device may take: what JAX's allocator has, or the machine's memory."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return _memory_bytes(ROOT) if limit is None and device.platform == "cpu" else limit


def free_memory(device: "jax.Device") -> int | None:
    """Return the bytes that arrays on the device may still take; None where that is unknown."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    available, limit = _meminfo(ROOT, "MemAvailable"), _control_group_memory(ROOT)
    if limit is not None and (used := _read_int(ROOT / "sys/fs/cgroup/memory.current")) is not None:
        limit -= used
    return min((n for n in (available, limit) if n is not None), default=None)


def _cpuinfo(root: Path, key: str) -> str | None:
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key and value.strip():
            return value.strip()
    return None


def _lscpu(key: str) -> str | None:
    try:
        shown = subprocess.run(["lscpu"], capture_output=True, text=True, timeout=10, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.SubprocessError):
        return None
    fields = dict(line.split(":", 1) for line in shown.stdout.splitlines() if ":" in line)
    value = fields.get(key, "").strip()
    return None if value in ("", "-") else value


def _cpu_folders(root: Path) -> list[Path]:
    return sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))


def _cores(root: Path) -> int | None:
    cores = {
        (_read(cpu / "topology/physical_package_id"), _read(cpu / "topology/core_id")) for cpu in _cpu_folders(root)
    }
    return len(cores) if cores and (None, None) not in cores else None


def _caches(root: Path) -> tuple[Cache, ...]:
    instances: dict[tuple[int, str, int], set[str]] = {}
    for folder in (folder for cpu in _cpu_folders(root) for folder in (cpu / "cache").glob("index*")):
        level, kind, size, shared = (_read(folder / name) for name in ("level", "type", "size", "shared_cpu_list"))
        if level is None or kind is None or size is None or not size.removesuffix("K").isdecimal():
            continue
        key = (int(level), kind.lower(), 1024 * int(size.removesuffix("K")))
        instances.setdefault(key, set()).add(shared or str(folder))
    return tuple(Cache(*key, len(shared)) for key, shared in sorted(instances.items()))


def _instruction_sets(root: Path) -> tuple[str, ...]:
    flags = set((_cpuinfo(root, "flags") or _cpuinfo(root, "Features") or "").split())
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def _memory_bytes(root: Path) -> int | None:
    return min((n for n in (_meminfo(root, "MemTotal"), _control_group_memory(root)) if n is not None), default=None)


def _meminfo(root: Path, key: str) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    return None


def _control_group_memory(root: Path) -> int | None:
    return _read_int(root / "sys/fs/cgroup/memory.max")


def _read_int(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.isdecimal() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
