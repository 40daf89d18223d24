"""The result file of a device: what it is, and a section for each thing that was measured on it."""

import json
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from ttm_jax.files import FileError, read_json, write_json
from ttm_jax.hardware.detect import describe_device, detect_machine
from ttm_jax.measure import batch_sizes, history, operations, remat, text, training, unrolled
from ttm_jax.training.run_folder import provenance

MODULES = operations, training, batch_sizes, history, unrolled, remat, text  # in the order of the page
SECTIONS: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in MODULES}
FACTS = ("processor", "cores", "usable_cpus", "caches", "instruction_sets")  # by which machines are told apart


def describe(device: jax.Device) -> dict[str, Any]:
    """Return the head of a device's result: its name, itself and its host."""
    machine = detect_machine()
    name = device.device_kind
    if device.platform == "cpu":
        cores = machine.usable_cpus or machine.cpus
        name = machine.processor + ("" if cores is None else f", {cores} core{'s' * (cores > 1)}")
    return {"name": name, "device": describe_device(device), "machine": machine.to_dict()}


def section_of(device: jax.Device, quick: bool, measured: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured, with where it comes from."""
    where = {**provenance(), "device": device.device_kind, "backend": device.platform}
    return {"quick": quick, "provenance": where, **measured}


def result_path(folder: Path, name: str) -> Path:
    """Return the file of the device of that name: "amd-epyc-2-cores.json"."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def load_result(path: Path) -> dict[str, Any]:
    """Read one result file, or raise FileError where it is none."""
    result = read_json(path)
    if not isinstance(result, dict) or not {"name", "device", "machine"} <= result.keys():
        raise FileError(f"{path}: no result of this command: it names no device; move it away")
    return result


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Read all results of a folder: processors first, and of those the one of which most was measured."""
    results = [load_result(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise FileError(f"{folder}: no results there; python -m ttm_jax.benchmark writes them")

    def order(result: dict[str, Any]) -> tuple[bool, int, str]:
        return result["device"]["platform"] != "cpu", -len(SECTIONS.keys() & result.keys()), result["name"]

    return sorted(results, key=order)


def save_section(folder: Path, head: dict[str, Any], key: str, section: dict[str, Any]) -> Path:
    """Put a section into the file of its device, the other sections kept."""
    path = result_path(folder, head["name"])
    sections = {**(load_result(path) if path.exists() else {}), key: section}
    write_json(path, {**head, **{name: sections[name] for name in SECTIONS if name in sections}})
    return path


def check_folder(flag: str, folder: Path) -> None:
    """Make the folder that a flag names, and see that files can be written there, or raise FileError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(f"{flag} {folder}: {error.strerror}") from None


def check_result(folder: Path, head: dict[str, Any]) -> None:
    """See that what there is of a device is readable, and of this very machine, or raise FileError."""
    path = result_path(folder, head["name"])
    if not path.exists():
        return
    earlier, machine = load_result(path)["machine"], json.loads(json.dumps(head["machine"]))
    if changed := [fact for fact in FACTS if earlier.get(fact) != machine[fact]]:
        differing = ", ".join(changed)
        raise FileError(f"{path}: of another machine, which differs in {differing}; name another folder with --out")
