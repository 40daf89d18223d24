"""The PyTorch side of the speed comparison: a case as a function that makes one call and waits for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ttm_torch
from parity.speed_cases import AUTOTUNE, COMPILE, COMPILE_STEP, Case

Call = Callable[[], Tensor]


def build(case: Case, variant: str, folder: Path) -> Call:
    """One call of the case; its result, computed when it returns, is a loss or outputs."""
    device = torch.get_default_device()
    state = load_file(folder / "torch.safetensors", device=str(device))
    batch = {name: torch.as_tensor(array, device=device) for name, array in case.batch().items()}
    if case.is_multiplier:
        model: Any = ttm_torch.TTMModel(case.config.model)
        machine, whole = model.machine, ("heads",)
    else:
        sizes = case.machine
        model = machine = ttm_torch.TokenTuringMachine(
            **sizes.options(), width=sizes.width, num_tokens=sizes.num_tokens
        )
        whole = ("forward",)
    model.load_state_dict(state)
    _compile(variant, model, whole, machine)
    if case.is_multiplier:
        call = _train_multiplier(case, model, batch) if case.kind == "train" else _multiply(case, model, batch)
    else:
        kinds = {"train": _train, "forward": _forward, "stream": _stream}
        call = kinds[case.kind](model, batch["tokens"], case.dtype)
    return _waiting(call) if device.type == "cuda" else call


def describe() -> dict[str, Any]:
    """Device and versions."""
    device = torch.get_default_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__}


def warm_up(variant: str) -> None:
    """Compiles and runs something small, so that starting the compiler is no part of a case's first call."""
    x = torch.ones(8, 8, requires_grad=True)
    function = torch.sin if variant == "torch-eager" else torch.compile(lambda x: torch.sin(x) + 1)
    function(x).sum().backward()


def _compile(variant: str, model: nn.Module, whole: tuple[str, ...], machine: nn.Module) -> None:
    """Replaces what the variant compiles: the whole forward pass, or one machine step."""
    if variant in (COMPILE, AUTOTUNE):
        mode = "max-autotune" if variant == AUTOTUNE else None
        for name in whole:
            setattr(model, name, torch.compile(getattr(model, name), mode=mode))
    elif variant == COMPILE_STEP:
        machine.step.compile()


def _waiting(call: Call) -> Call:
    def waiting() -> Tensor:
        result = call()
        torch.cuda.synchronize()
        return result

    return waiting


def _train_multiplier(case: Case, model: Any, batch: dict[str, Tensor]) -> Call:
    optimizer = ttm_torch.make_optimizer(model, case.config.optimizer)
    scheduler = ttm_torch.make_scheduler(optimizer, case.config.optimizer)
    max_norm = case.config.optimizer.max_grad_norm
    return lambda: ttm_torch.train_step(model, batch, optimizer, scheduler, max_norm)


def _multiply(case: Case, model: Any, batch: dict[str, Tensor]) -> Call:
    model.eval()

    @torch.inference_mode()
    def call() -> Tensor:
        return model.raw_logits(batch["inputs"], case.steps)

    return call


def _autocast(tokens: Tensor, dtype: str) -> torch.autocast:
    return torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _train(model: Any, tokens_BxTxNxD: Tensor, dtype: str) -> Call:
    """Adam on the mean square of the last step's outputs."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def call() -> Tensor:
        with _autocast(tokens_BxTxNxD, dtype):
            outputs_BxTxRxD, _ = model(tokens_BxTxNxD)
        loss = outputs_BxTxRxD[:, -1].float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def _forward(model: Any, tokens_BxTxNxD: Tensor, dtype: str) -> Call:
    @torch.inference_mode()
    def call() -> Tensor:
        with _autocast(tokens_BxTxNxD, dtype):
            return model(tokens_BxTxNxD)[0]

    return call


def _stream(model: Any, tokens_1x1xNxD: Tensor, dtype: str) -> Call:
    memory_1xMxD = model.broadcast_memory(1).detach().clone()

    @torch.inference_mode()
    def call() -> Tensor:
        nonlocal memory_1xMxD
        with _autocast(tokens_1x1xNxD, dtype):
            outputs, memory_1xMxD = model(tokens_1x1xNxD, memory_1xMxD)
        return outputs

    return call
