"""Functions compiled by TorchScript: they are what they were, in every mode, and nobody is warned of them."""

import inspect
import subprocess
import sys

import pytest
import torch

import ttm_torch

SCRIPTED = {
    "normalize_weights": lambda: (torch.randn(2, 3, 5),),
    "weighted_sum": lambda: (torch.randn(2, 5, 4), torch.rand(2, 3, 5)),
    "create_eos_mask": lambda: (torch.rand(2, 6) > 0.7,),
}


def same(a, b):
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture(params=SCRIPTED)
def case(request):
    """A scripted function, the Python function that it was made of, and inputs."""
    function = getattr(ttm_torch, request.param)
    return function, function.__wrapped__, SCRIPTED[request.param]()


def test_it_is_scripted_and_says_what_it_is(case):
    function, plain, _ = case
    assert isinstance(function, torch.jit.ScriptFunction)
    assert getattr(ttm_torch, function.__name__) is function
    assert inspect.getdoc(function)
    assert inspect.signature(function) == inspect.signature(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_are_the_same(dtype, case):
    """Five calls: TorchScript optimises after the first two."""
    function, plain, inputs = case
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    for _ in range(5):
        same(function(*inputs), plain(*inputs))


def test_results_are_the_same_under_autocast(case):
    function, plain, inputs = case
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            same(function(*inputs), plain(*inputs))


@pytest.mark.parametrize("name", ["normalize_weights", "weighted_sum"])
def test_gradients_are_the_same(name):
    function = getattr(ttm_torch, name)
    inputs = [x.requires_grad_() for x in SCRIPTED[name]()]
    for _ in range(5):
        ours, plain = (torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (function, function.__wrapped__))
        torch.testing.assert_close(ours, plain)


def test_the_model_compiles_whole_and_exports():
    """Dynamo traces through the scripted functions: no break in the graph."""
    torch.manual_seed(0)
    config = ttm_torch.ModelConfig(width=16, memory_size=4, process_size=2, num_layers=1, mlp_dim=8, num_heads=2)
    model = ttm_torch.TTMModel(config).eval()
    inputs = torch.as_tensor(ttm_torch.MultiplicationDataset(batch_size=3).generate_batch()[0])
    expected = model(inputs)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(inputs), expected)
    torch.testing.assert_close(torch.export.export(model, (inputs,)).module()(inputs), expected)


def test_importing_warns_of_nothing(environment):
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", "import ttm_torch"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
