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
from daguerre.nn.cpu.prepack import fits_copy_budget, upcast_on_use
from daguerre.nn.meta import fill
from daguerre.runtime.allocator import trim_heap

SMALL = 1 << 16  # elements of a tensor that stays


def stays_half(stored: torch.dtype, computed: torch.dtype) -> bool:
    """Whether weights stay as they are in their file where a network converts them in use."""
    return computed == torch.float32 and stored in (torch.float16, torch.bfloat16)


def offload_dtype(weights: Iterable[Tensor], device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the large ones of a UNet's weights in memory, where it takes turns and computes in `dtype`."""
    weights = list(weights)
    stored, *others = {weight.dtype for weight in weights if weight.numel() > SMALL} or {dtype}
    converted = device.type == "cpu" and cpu_linear.supports(dtype) and not fits_copy_budget(weights, dtype)
    return stored if converted and not others and stays_half(stored, dtype) else dtype


class SequentialOffload:
    """Holds at most one of its networks whole, be they of one model or of several that are opened with it.

    stay: the parts that take no turns; they are in memory all the time, and the others go when they begin.
    """

    def __init__(self, stay: Container[str] = ()) -> None:
        self.keep_loaded = stay
        self._resident: tuple[_Offloaded | None, frozenset[str]] = (None, frozenset())

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
        lent = _Offloaded(network, large, empty, place, release)
        for part in (network, *network.children()):  # an autoencoder is asked by its methods, which call its parts
            part.register_forward_pre_hook(lambda begins, _: self._activate(lent, upcast_on_use(begins)))

    def register_resident(self, network: nn.Module) -> None:
        """Tell a network that stays, and so has its tensors, to send the others away when it is called."""
        network.register_forward_pre_hook(lambda *_: self._activate(None))

    def _activate(self, lent: "_Offloaded | None", converted: frozenset[str] = frozenset()) -> None:
        before, _ = here = self._resident
        if here == (lent, converted):
            return
        if before is not None:
            before.unload()
        self._resident = lent, converted
        if lent is not None:
            lent.load(converted)


@dataclass(frozen=True, eq=False)
class _Offloaded:
    """A network, where its large tensors are, what stands for them meanwhile, and how they are laid out."""

    network: nn.Module
    large: Mapping[str, Tensor]
    empty: Mapping[str, Tensor]
    place: Callable[[Tensor], Tensor]
    release: Callable[[Tensor], None]

    def load(self, converted: Container[str]) -> None:
        """converted: what may stay as it is in the file, if that is half precision for float32."""

        def stays(name: str, tensor: Tensor) -> bool:
            return name in converted and stays_half(tensor.dtype, self.empty[name].dtype)

        self._assign({name: tensor if stays(name, tensor) else self.place(tensor) for name, tensor in self.large.items()})

    def unload(self) -> None:
        self._assign(self.empty)
        for tensor in self.large.values():
            self.release(tensor)
        trim_heap()

    def _assign(self, tensors: Mapping[str, Tensor]) -> None:
        # Not strict, for the small ones stay; that these names and shapes are the network's was seen when it was filled.
        self.network.load_state_dict(dict(tensors), strict=False, assign=True)
