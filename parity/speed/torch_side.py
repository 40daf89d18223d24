"""The PyTorch side of the speed comparison: a case as a function that makes one call and waits for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import ttm_torch
from parity.speed.cases import COMPILE, COMPILE_STEP, EAGER, Case

Call = Callable[[], Tensor]


def describe() -> dict[str, Any]:
    """Say what the device is."""
    device = torch.get_default_device().type
    return {"device": torch.cuda.get_device_name() if device == "cuda" else device}


def warm_up(variant: str) -> None:
    """Compile and run something small, so that starting the compiler is no part of a case's first call."""
    function = torch.sin if variant == EAGER else torch.compile(torch.sin)
    function(torch.ones(8, 8, requires_grad=True)).sum().backward()


def build(case: Case, variant: str, folder: Path) -> Call:
    """Make a function that makes one call of the case, and returns its loss or outputs once they are computed."""
    device = torch.get_default_device()
    batch = {name: torch.as_tensor(array, device=device) for name, array in case.batch().items()}
    model = _model(case, variant)
    model.load_state_dict(load_file(folder / "torch.safetensors", device=str(device)))
    if case.is_multiplier:
        call = _train_multiplier(case, model, batch) if case.kind == "train" else _multiply(case, model, batch)
    else:
        kinds = {"train": _train, "forward": _forward, "stream": _stream}
        call = kinds[case.kind](model, batch["tokens"], case.dtype)
    return call if device.type == "cpu" else _waiting(call)


def _model(case: Case, variant: str) -> Any:
    """Make the model, and compile what the variant compiles: the whole pass of all steps, or one machine step."""
    if case.is_multiplier:
        model: Any = ttm_torch.TTMModel(case.config.model)
        machine, whole = model.machine, "heads"
    else:
        sizes = case.machine
        N, D = sizes.num_tokens, sizes.model.width
        model = ttm_torch.TokenTuringMachine(width=D, num_tokens=N, **sizes.options())
        machine, whole = model, "forward"
    if variant == COMPILE:
        setattr(model, whole, torch.compile(getattr(model, whole)))
    elif variant == COMPILE_STEP:
        machine.step.compile()
    return model


def _waiting(call: Call) -> Call:
    def waiting() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        result = call()
        torch.cuda.synchronize()
        return result

    return waiting


def _train_multiplier(case: Case, model: Any, batch: dict[str, Tensor]) -> Call:
    config = case.config.optimizer
    optimizer = ttm_torch.make_optimizer(model, config)
    scheduler = ttm_torch.make_scheduler(optimizer, config)
    return lambda: ttm_torch.train_step(model, batch, optimizer, scheduler, config.max_grad_norm)


def _multiply(case: Case, model: Any, batch: dict[str, Tensor]) -> Call:
    model.eval()

    @torch.inference_mode()
    def call() -> Tensor:
        return model.raw_logits(batch["inputs"], case.steps)[..., : ttm_torch.PAD_TOKEN]

    return call


def _autocast(tokens: Tensor, dtype: str) -> torch.autocast:
    """Compute in bfloat16 where that is wanted, with parameters in float32, as the twin's multiplier does."""
    return torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _train(model: Any, tokens_BxTxNxD: Tensor, dtype: str) -> Call:
    """Make a step of Adam on the mean square of outputs and memory."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def call() -> Tensor:
        with _autocast(tokens_BxTxNxD, dtype):
            outputs_BxTxRxD, memory_BxMxD = model(tokens_BxTxNxD)
        loss = outputs_BxTxRxD.float().square().mean() + memory_BxMxD.square().mean()
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
            outputs_1x1xRxD, memory_1xMxD = model(tokens_1x1xNxD, memory_1xMxD)
        return outputs_1x1xRxD

    return call
