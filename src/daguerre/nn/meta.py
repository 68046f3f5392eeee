"""Build networks on the meta device, then assign their tensors after checking every name and shape."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from daguerre.errors import DaguerreError, join_names


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built in this context have names and shapes but no values, and use no memory until `fill` assigns tensors."""
    with torch.device("meta"), _NoInit():
        yield


class _NoInit(TorchFunctionMode):
    """Skips `torch.nn.init`, whose `normal_` on the meta device imports the compiler, which takes more than a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Assign tensors to a module built on the meta device, without copying them.

    Raises:
        DaguerreError: names are missing or unknown, or shapes differ; the message lists them and the module is unchanged.
    """
    expected = module.state_dict()
    errors = _errors(expected, tensors)
    if errors:
        raise DaguerreError(f"'{where}' does not fit a {type(module).__name__} of this configuration: {'; '.join(errors)}.")
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _errors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {list(given[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    found = {"missing": expected.keys() - given.keys(), "unknown": given.keys() - expected.keys(), "of another shape": shapes}
    return [f"{len(names)} {kind} ({join_names(names)})" for kind, names in found.items() if names]
