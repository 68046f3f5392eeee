"""Prepack a network for many calls on a CPU without gradients: the fastest algorithms, and weights reordered once.

Matrix products: see `nn.cpu.linear`.
Convolutions: large 3×3 ones in float32 take half the time with `nn.cpu.winograd`, and those after an upsampling two thirds or less with
`nn.cpu.upsample_conv`. All others use oneDNN.
Weights: oneDNN reads them in blocks. Reordering them at every call takes a sixth of the time on small feature maps.
Half-precision weights of a network that computes in float32: each layer converts its own into memory that all layers share. That takes a
twentieth of a call and half the memory, and saves the time to convert the whole network.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from daguerre.nn import torch_private
from daguerre.nn.attention import GEGLU, FeedForward
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu import upsample_conv, winograd
from daguerre.nn.resample import Upsample, is_exact_2x

MAX_COPY_BYTES = 1 << 28  # of weights that are reordered once: that takes a second copy, and gains little in larger networks
HIDDEN_PER_CHUNK = 1 << 21  # hidden activations of a feed-forward block computed at a time
MIN_ROWS_PER_CHUNK = 512  # below, reading the weights once more costs more than it gains
M = TypeVar("M", bound=nn.Module)


def prepack(network: M, *, copies: bool = True) -> M:
    """A copy of a network that shares its weights and gives the same results up to rounding; the network itself if nothing is faster.

    Use it for one run: reordered weights are those of the first call.

    copies: reorder the weights of a small network once; otherwise they are read as they are.
    """
    weights = list(network.parameters())
    dtypes = {weight.dtype for weight in weights}
    dtype = torch.float32 if torch.float32 in dtypes else next(iter(dtypes), torch.float32)
    if not all(weight.device.type in ("cpu", "meta") for weight in weights) or not cpu_linear.supports(dtype):
        return network  # weights on the meta device are offloaded, and loaded when the network is called
    packing = _Prepacking(network, copies and fits_copy_budget(weights, dtype))
    packed = shallow_copy(network, packing.forward)
    for module in packed.modules():
        setattr(module, _PREPACKING, packing)
    return packed


def fits_copy_budget(weights: Iterable[Tensor], dtype: torch.dtype) -> bool:
    """True if a network is so small that its weights are reordered once for a run."""
    return sum(weight.numel() for weight in weights) * dtype.itemsize <= MAX_COPY_BYTES


def upcast_on_use(module: nn.Module) -> frozenset[str]:
    """Weight names, in the whole network, that may be half precision while it computes in float32; empty if it is not prepacked.

    module: a prepacked network, or any part of one.
    """
    packing = getattr(module, _PREPACKING, None)
    return packing.upcast if isinstance(packing, _Prepacking) else frozenset()


def shallow_copy(network: M, forward: Callable[[nn.Module], Callable[..., Tensor] | None]) -> M:
    """A copy of a network that shares its weights and hooks, so that the original stays as it is.

    Weights assigned to the original later appear in the copy, too.

    forward: returns another `forward` for a module of the copy, whose children are not copied yet, or None to keep its own.
    """
    duplicate = copy.copy(network)  # shares the dictionaries of parameters and hooks
    replacement = forward(duplicate)
    duplicate._modules = {name: None if child is None else shallow_copy(child, forward) for name, child in network._modules.items()}
    if replacement is not None:
        duplicate.forward = replacement
    return duplicate


_PREPACKING = "prepacking"  # attribute of every module of a prepacked network


class _Prepacking:
    """How one prepacked network computes its layers: its settings, its reordered weights and the memory that its layers share.

    upcast: names of the weights that may be half precision while the network computes in float32.
    """

    def __init__(self, network: nn.Module, copies: bool) -> None:
        self.copies = copies
        self.upcast = frozenset(f"{name}.weight" for name, module in network.named_modules() if not copies and _is_plain_layer(module))
        self._reordered: dict[nn.Module, tuple[torch.dtype, Sequence[Tensor]]] = {}
        self._memory = torch.empty(0)

    def forward(self, module: nn.Module) -> Callable[..., Tensor] | None:
        """The fast `forward` of a module, or None if there is none."""
        if type(module) is FeedForward:
            return partial(self._feed_forward, module)
        if type(module) is GEGLU and _is_plain_layer(module.proj):
            return partial(self._geglu, module.proj)
        if type(module) is Upsample and _is_plain_layer(module.conv):
            return partial(self._upsample, module, module.forward)
        if not _is_plain_layer(module):
            return None
        return partial(self._conv2d, module) if isinstance(module, nn.Conv2d) else partial(self._linear, cast("nn.Linear", module))

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        (weight,) = self._linear_weights(layer, x, 1)
        return cpu_linear.linear(x, weight, layer.bias)

    def _geglu(self, layer: nn.Linear, x: Tensor) -> Tensor:
        value, gate = self._linear_weights(layer, x, 2)
        value_bias, gate_bias = (None, None) if layer.bias is None else layer.bias.chunk(2)
        return cpu_linear.geglu(x, value, gate, value_bias, gate_bias)

    def _linear_weights(self, layer: nn.Linear, x: Tensor, parts: int) -> Sequence[Tensor]:
        weights = layer.weight.chunk(parts)
        if self.copies:
            return self._reorder_once(layer, x, lambda: [cpu_linear.reorder_weight(weight, x) for weight in weights])
        return self._upcast(weights, x.dtype)

    def _feed_forward(self, block: FeedForward, x: Tensor) -> Tensor:
        """Some positions at a time, so that the hidden activations, four times as wide, stay in the cache."""
        step, rows = max(MIN_ROWS_PER_CHUNK, HIDDEN_PER_CHUNK // block.inner), x.flatten(0, -2)
        if len(rows) <= step:
            return block.net(x)
        y = torch.empty_like(rows)
        for part, out in zip(rows.split(step), y.split(step), strict=True):
            out.copy_(block.net(part))
        return y.view(x.shape)

    def _upsample(self, upsample: Upsample, plain: Callable[..., Tensor], x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        if not is_exact_2x(x, size) or not upsample_conv.upsample_conv_is_faster(x, upsample.conv.weight):
            return plain(x, size)
        (weight,) = self._upcast([upsample.conv.weight], x.dtype)
        return upsample_conv.upsample_conv2d(x, weight, upsample.conv.bias)

    def _conv2d(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = cast("tuple[int, int]", conv.padding), conv.stride, conv.dilation, conv.groups
        (weight,) = self._upcast([conv.weight], x.dtype)
        if (dilation, groups) == ((1, 1), 1):
            if not self.copies and cpu_linear.im2col_is_faster(x, weight, stride):
                return cpu_linear.im2col_conv2d(x, weight, conv.bias, stride, padding)
            if (conv.kernel_size, padding, stride) == ((3, 3), (1, 1), (1, 1)) and winograd.winograd_is_faster(x, weight):
                return winograd.winograd_conv2d(x, weight, conv.bias)
        options = stride, padding, dilation, groups
        if self.copies:
            (weight,) = self._reorder_once(conv, x, lambda: [torch_private.reorder_conv2d_weight(conv.weight, x.shape, *options)])
        return torch_private.onednn_conv2d(x, weight, conv.bias, *options)

    def _reorder_once(self, layer: nn.Module, x: Tensor, reorder: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """The reordered weights of a layer, kept while the dtype stays the same; it changes if half precision overflows."""
        dtype, weights = self._reordered.get(layer, (None, ()))
        if dtype != x.dtype:
            weights = reorder()
            self._reordered[layer] = x.dtype, weights
        return weights

    def _upcast(self, weights: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
        """The weights themselves if they have this dtype, else copies, kernels channels last, that are valid until the next call."""
        if all(weight.dtype == dtype for weight in weights):
            return weights
        sizes = [weight.numel() for weight in weights]
        if self._memory.dtype != dtype or len(self._memory) < sum(sizes):
            self._memory = torch.empty(sum(sizes), dtype=dtype)
        parts = self._memory[: sum(sizes)].split(sizes)
        return [_view_channels_last(part, weight.shape).copy_(weight) for part, weight in zip(parts, weights, strict=True)]


def _view_channels_last(memory: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return memory.view(shape)
    N, C, H, W = shape
    return memory.view(N, H, W, C).permute(0, 3, 1, 2)


def _is_plain_layer(module: nn.Module) -> bool:
    """True for a convolution or linear layer of PyTorch, unless an instance has another `forward` (circular padding)."""
    return type(module) in (nn.Conv2d, nn.Linear) and "forward" not in vars(module)
