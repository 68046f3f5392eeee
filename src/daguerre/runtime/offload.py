"""Sequential offload: networks that share memory, each loaded when it runs and unloaded when another one runs.

Only large tensors are offloaded; biases and norms stay resident, so `.device` and `.dtype` keep working. Offloaded tensors are read
again from their file, so nothing may change them: such networks are for generating, not for training.

Weights that a prepacked network converts in use (see `nn.cpu.prepack`) are not copied: if the network computes in float32, they stay in
half precision in the memory map of their file.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import fits_copy_budget, upcast_on_use
from daguerre.nn.meta import fill
from daguerre.runtime.allocator import trim_heap

MAX_RESIDENT_ELEMENTS = 1 << 16  # larger tensors are offloaded


def stays_half(stored: torch.dtype, computed: torch.dtype) -> bool:
    """Whether weights keep the dtype of their file if the network converts them in use."""
    return computed == torch.float32 and stored in (torch.float16, torch.bfloat16)


def offload_dtype(weights: Iterable[Tensor], device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in memory of the large weights of an offloaded UNet that computes in `dtype`."""
    weights = list(weights)
    stored, *others = {weight.dtype for weight in weights if weight.numel() > MAX_RESIDENT_ELEMENTS} or {dtype}
    converted = device.type == "cpu" and cpu_linear.supports(dtype) and not fits_copy_budget(weights, dtype)
    return stored if converted and not others and stays_half(stored, dtype) else dtype


class SequentialOffload:
    """Keeps the large tensors of at most one of its networks in memory. The networks may belong to several models.

    keep_loaded: names of parts that always stay in memory; the others are unloaded when one of these runs.
    """

    def __init__(self, keep_loaded: Container[str] = ()) -> None:
        self.keep_loaded = keep_loaded
        self._active: tuple[_Offloaded | None, frozenset[str]] = (None, frozenset())

    def add(
        self,
        network: nn.Module,
        tensors: Mapping[str, Tensor],
        convert: Callable[[Tensor], Tensor],
        release: Callable[[Tensor], None],
        where: str | Path,
    ) -> None:
        """Fill a network built on the meta device: small tensors now, large ones whenever it or one of its children is called.

        Args:
            tensors: all tensors of the network, as memory maps of a file.
            convert: moves a tensor to the device, dtype and layout of the computation.
            release: called with each large tensor when the network is unloaded.
            where: the source, for error messages.

        Raises:
            DaguerreError: names or shapes do not fit.
        """
        large = {name: tensor for name, tensor in tensors.items() if tensor.numel() > MAX_RESIDENT_ELEMENTS}
        small = {name: convert(tensor) for name, tensor in tensors.items() if name not in large}
        dtype = next((tensor.dtype for tensor in small.values()), None)
        empty = {name: torch.empty_like(tensor, dtype=dtype, device="meta") for name, tensor in large.items()}
        fill(network, small | empty, where)
        self._register(_Offloaded(self, network, large, empty, convert, release))

    def _register(self, offloaded: "_Offloaded") -> None:
        """Load the large tensors of a network whenever it, or one of its children, is called."""
        setattr(offloaded.network, _OFFLOADED, offloaded)
        for module in (offloaded.network, *offloaded.network.children()):  # callers use an autoencoder's methods, which call its children
            module.register_forward_pre_hook(lambda called, _: self._activate(offloaded, upcast_on_use(called)))

    def register_resident(self, network: nn.Module) -> None:
        """Unload the other networks whenever this one, which stays in memory, is called."""
        network.register_forward_pre_hook(lambda *_: self._activate(None))

    def _activate(self, offloaded: "_Offloaded | None", upcast: frozenset[str] = frozenset()) -> None:
        if self._active == (offloaded, upcast):
            return
        if self._active[0] is not None:
            self._active[0].unload()
        self._active = offloaded, upcast
        if offloaded is not None:
            offloaded.load(upcast)


_OFFLOADED = "offloaded"  # attribute of an offloaded network


@contextmanager
def loaded(network: nn.Module) -> Iterator[None]:
    """Within this context all weights of a network are in memory; after it, those of an offloaded network are unloaded."""
    offloaded = getattr(network, _OFFLOADED, None)
    if not isinstance(offloaded, _Offloaded):
        yield
        return
    offloaded.offloader._activate(offloaded)
    try:
        yield
    finally:
        offloaded.offloader._activate(None)


def edit_offloaded(network: nn.Module, duplicate: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> bool:
    """Offload a copy of an offloaded network with these weights edited whenever they are loaded; False if the network is not offloaded.

    Args:
        duplicate: a copy with its own parameters and hooks.
        edits: by weight name, from the weight to the weight that replaces it; must accept the meta device.
    """
    offloaded = getattr(network, _OFFLOADED, None)
    if not isinstance(offloaded, _Offloaded):
        return False
    empty = {name: edits[name](tensor) if name in edits else tensor for name, tensor in offloaded.empty.items()}
    small = {name: edit(duplicate.get_parameter(name).detach()) for name, edit in edits.items() if name not in empty}
    for name, tensor in (empty | small).items():
        set_weight(duplicate, name, tensor)
    for module in (duplicate, *duplicate.children()):
        module._forward_pre_hooks.clear()
    large_edits = dict(offloaded.edits)
    for name in edits.keys() & empty.keys():
        large_edits[name] = _in_order(large_edits[name], edits[name]) if name in large_edits else edits[name]
    offloaded.offloader._register(replace(offloaded, network=duplicate, empty=empty, edits=large_edits))
    return True


def set_weight(network: nn.Module, name: str, weight: Tensor) -> None:
    """Replace one parameter by its name."""
    path, _, leaf = name.rpartition(".")
    network.get_submodule(path).register_parameter(leaf, nn.Parameter(weight, requires_grad=False))


def _in_order(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda weight: second(first(weight))


@dataclass(frozen=True, eq=False)
class _Offloaded:
    """A network, its large tensors in the file, and the meta tensors that replace them while it is unloaded.

    edits: of large tensors, by name, applied after each load.
    """

    offloader: SequentialOffload
    network: nn.Module
    large: Mapping[str, Tensor]
    empty: Mapping[str, Tensor]
    convert: Callable[[Tensor], Tensor]
    release: Callable[[Tensor], None]
    edits: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def load(self, upcast: Container[str]) -> None:
        """Assign the large tensors. upcast: names that the network converts in use, which may stay in half precision."""

        def stays(name: str, tensor: Tensor) -> bool:
            return name in upcast and stays_half(tensor.dtype, self.empty[name].dtype)

        def loaded(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor if stays(name, tensor) else self.convert(tensor)
            return self.edits[name](tensor) if name in self.edits else tensor

        with torch.no_grad():
            self._assign({name: loaded(name, tensor) for name, tensor in self.large.items()})
        resident = {tensor.dtype for name, tensor in self.network.named_parameters() if name not in self.large}
        if resident == {torch.float32} and not upcast:
            self.network.float()  # it overflowed in half precision (see `runtime.overflow`)

    def unload(self) -> None:
        self._assign(self.empty)
        for tensor in self.large.values():
            self.release(tensor)
        trim_heap()

    def _assign(self, tensors: Mapping[str, Tensor]) -> None:
        # strict=False because the small tensors stay; `fill` has checked these names and shapes.
        self.network.load_state_dict(dict(tensors), strict=False, assign=True)
