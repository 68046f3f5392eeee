"""Networks that take turns in memory: each is there while it works, and gone when another begins.

Only what is large comes and goes; biases and norms stay, so a network always tells its device and dtype. What goes is read again from its
file when it is needed, so nothing may have changed it: such networks are for making pictures, not for training.

What a packed twin converts in use (see `nn.packing`) is not even read: half precision stays in the map of its file where the network
computes in float32.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import converts, few
from daguerre.nn.meta import fill
from daguerre.runtime.allocator import give_freed_back

SMALL = 1 << 16  # elements of a tensor that stays


def kept(stored: torch.dtype, computed: torch.dtype) -> bool:
    """Whether weights stay as they are in their file where a network converts them in use."""
    return computed == torch.float32 and stored in (torch.float16, torch.bfloat16)


def dtype_in_turns(weights: Iterable[Tensor], device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the large ones of a UNet's weights in memory, where it takes turns and computes in `dtype`."""
    weights = list(weights)
    stored, *others = {weight.dtype for weight in weights if weight.numel() > SMALL} or {dtype}
    converted = device.type == "cpu" and cpu_linear.computes(dtype) and not few(weights, dtype)
    return stored if converted and not others and kept(stored, dtype) else dtype


class InOrder:
    """Holds at most one of its networks whole, be they of one model or of several that are opened with it.

    stay: the parts that take no turns; they are in memory all the time, and the others go when they begin.
    """

    def __init__(self, stay: Container[str] = ()) -> None:
        self.stay = stay
        self._here: tuple[_Lent | None, frozenset[str]] = (None, frozenset())

    def add(
        self,
        network: nn.Module,
        tensors: Mapping[str, Tensor],
        place: Callable[[Tensor], Tensor],
        release: Callable[[Tensor], None],
        where: str | Path,
    ) -> None:
        """Give a network built on the meta device its small tensors, and the others whenever it or a layer of it is called.

        Args:
            tensors: all of them, as maps of a file, not in memory.
            place: makes of a tensor what the network computes with.
            release: is told of each tensor when its network goes.
            where: they come from.

        Raises:
            DaguerreError: names or shapes do not fit.
        """
        large = {name: tensor for name, tensor in tensors.items() if tensor.numel() > SMALL}
        small = {name: place(tensor) for name, tensor in tensors.items() if name not in large}
        dtype = next((tensor.dtype for tensor in small.values()), None)
        empty = {name: torch.empty_like(tensor, dtype=dtype, device="meta") for name, tensor in large.items()}
        fill(network, small | empty, where)
        lent = _Lent(network, large, empty, place, release)
        for part in (network, *network.children()):  # an autoencoder is asked by its methods, which call its parts
            part.register_forward_pre_hook(lambda begins, _: self._begin(lent, converts(begins)))

    def alone(self, network: nn.Module) -> None:
        """Tell a network that stays, and so has its tensors, to send the others away when it is called."""
        network.register_forward_pre_hook(lambda *_: self._begin(None))

    def _begin(self, lent: "_Lent | None", converted: frozenset[str] = frozenset()) -> None:
        before, _ = here = self._here
        if here == (lent, converted):
            return
        if before is not None:
            before.drop()
        self._here = lent, converted
        if lent is not None:
            lent.bring(converted)


@dataclass(frozen=True, eq=False)
class _Lent:
    """A network, where its large tensors are, what stands for them meanwhile, and how they are laid out."""

    network: nn.Module
    large: Mapping[str, Tensor]
    empty: Mapping[str, Tensor]
    place: Callable[[Tensor], Tensor]
    release: Callable[[Tensor], None]

    def bring(self, converted: Container[str]) -> None:
        """converted: what may stay as it is in the file, if that is half precision for float32."""

        def stays(name: str, tensor: Tensor) -> bool:
            return name in converted and kept(tensor.dtype, self.empty[name].dtype)

        self._assign({name: tensor if stays(name, tensor) else self.place(tensor) for name, tensor in self.large.items()})

    def drop(self) -> None:
        self._assign(self.empty)
        for tensor in self.large.values():
            self.release(tensor)
        give_freed_back()

    def _assign(self, tensors: Mapping[str, Tensor]) -> None:
        # Not strict, for the small ones stay; that these names and shapes are the network's was seen when it was filled.
        self.network.load_state_dict(dict(tensors), strict=False, assign=True)
