"""Networks without values: build on the meta device, then assign tensors with every name and shape accounted for."""

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
    """Modules built in this block have shapes and names but no values and no memory, until `fill` gives them tensors."""
    with torch.device("meta"), _NoInit():
        yield


class _NoInit(TorchFunctionMode):
    """Leaves out `torch.nn.init`, whose `normal_` on the meta device imports the compiler: more than a second for no value at all."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Give a module built on the meta device its tensors, none copied, every name and shape accounted for.

    Raises:
        DaguerreError: a name is missing, unknown, or of another shape; lists all of them, and the module is left as it was.
    """
    wanted = module.state_dict()
    faults = _faults(wanted, tensors)
    if faults:
        raise DaguerreError(f"'{where}' does not fit a {type(module).__name__} of this configuration: {'; '.join(faults)}.")
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def _faults(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {list(given[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    found = {"missing": wanted.keys() - given.keys(), "unknown": given.keys() - wanted.keys(), "of another shape": shapes}
    return [f"{len(names)} {kind} ({join_names(names)})" for kind, names in found.items() if names]
