"""Initialisers under Flax's names. Each makes a function that fills a tensor in place."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import init


def normal(stddev: float = 0.01) -> Callable[[Tensor], Tensor]:
    """Make a function that draws normal numbers with mean 0."""
    return lambda tensor: init.normal_(tensor, std=stddev)


def lecun_normal() -> Callable[[Tensor], Tensor]:
    """Make a function that draws normal numbers cut off at two deviations: Flax's default for Dense.

    After the cut their variance is 1 / inputs.
    """
    cut = 0.87962566103423978  # standard deviation of a standard normal number within two of its deviations

    def fill(tensor: Tensor) -> Tensor:
        std = tensor.shape[1] ** -0.5 / cut
        return init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)

    return fill
