"""A second network of the same weights that does something differently, so that the first stays as it is and there is nothing to undo."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def shallow_copy(network: M, forward: Callable[[nn.Module], Callable[..., Tensor] | None]) -> M:
    """A twin of a network that shares its weights, its hooks and everything else.

    forward: gives what a module of the twin shall do, None where that is what it does anyway.
    """
    second = network.__new__(type(network))
    second.__dict__ = network.__dict__.copy()
    second._modules = {name: None if child is None else shallow_copy(child, forward) for name, child in network._modules.items()}
    call = forward(second)
    if call is not None:
        second.forward = call
    return second
