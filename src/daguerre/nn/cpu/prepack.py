"""A twin of a network for many calls on a CPU without gradients, that computes in the quickest ways and does once what is always the same.

Products: see `nn.products`.
Convolutions: oneDNN multiplies directly; in float32, large 3×3 ones take half the time by Winograd's way (`nn.winograd`), and those behind
an enlargement two thirds or less by nine products (`nn.doubling`).
Weights: oneDNN reads them in blocks, and lays them out anew at every call, which on maps of few places takes a sixth of the time.
Weights in half precision, while the network computes in float32: they stay as they are and are converted where they are used, in memory
that all layers share. That takes a twentieth of a call, half the memory, and none of the time in which a network becomes float32.
Keys and values of the text: they depend on the context alone, which stays the same from step to step.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from daguerre.nn.attention import GEGLU, FeedForward, TransformerBlock
from daguerre.nn.attention_hooks import cross_attentions
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu import upsample_conv, winograd
from daguerre.nn.cpu.module_view import M, shallow_copy
from daguerre.nn.resample import Upsample, is_exact_2x

MOST_BYTES = 1 << 28  # of weights that are laid out once: that takes a second copy, and on the maps of larger networks gains little
CONVERT_ELEMENTS = 1 << 21  # numbers inside of a feed-forward block that are worked on at a time
FEW_ROWS = 512  # for fewer, reading the weights once more takes longer than it gains
NOTHING = torch.empty(0)
W = TypeVar("W")


def prepack(network: M, *, copies: bool = True) -> M:
    """A twin of a network whose answers differ by rounding alone; the network itself where no quicker way is known.

    It is made for one run: the weights may be those of its first call.

    copies: lay the weights out once where they are few; otherwise they are read as they are.
    """
    weights = list(network.parameters())
    dtypes = {weight.dtype for weight in weights}
    computed = torch.float32 if torch.float32 in dtypes else next(iter(dtypes), torch.float32)
    if not all(weight.device.type in ("cpu", "meta") for weight in weights) or not cpu_linear.supports(computed):
        return network  # on the meta device are those that are read when the network begins
    copies = copies and fits_copy_budget(weights, computed)
    scratch = _Scratch()
    second = shallow_copy(network, lambda module: _forward(module, scratch, copies))
    names = frozenset(f"{name}.weight" for name, module in network.named_modules() if not copies and _is_plain_layer(module))
    for block in second.modules():
        block.__dict__["converts"] = names
        for attention in cross_attentions(block) if isinstance(block, TransformerBlock) else ():
            for layer in (attention.get_submodule("to_k"), attention.get_submodule("to_v")):
                layer.forward = memoize_last_input(layer.forward)
    return second


def fits_copy_budget(weights: Iterable[Tensor], dtype: torch.dtype) -> bool:
    """Whether a network's weights are so few that they are laid out once for a run."""
    return sum(weight.numel() for weight in weights) * dtype.itemsize <= MOST_BYTES


def upcast_on_use(module: nn.Module) -> frozenset[str]:
    """The weights of a network that this twin of it, or of a part of it, takes in half precision, too, where it computes in float32."""
    return module.__dict__.get("converts", frozenset())


class _Scratch:
    """Memory in which weights become what a layer computes with, one after the other."""

    def __init__(self) -> None:
        self.memory = NOTHING

    def wide(self, weights: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
        """The weights themselves where they are of this dtype, else copies, kernels channels last, that last until the next ones."""
        if all(weight.dtype == dtype for weight in weights):
            return weights
        size = sum(weight.numel() for weight in weights)
        if self.memory.dtype != dtype or len(self.memory) < size:
            self.memory = torch.empty(size, dtype=dtype)
        places = self.memory[:size].split([weight.numel() for weight in weights])
        return [_view_channels_last(place, weight.shape).copy_(weight) for place, weight in zip(places, weights, strict=True)]


def _view_channels_last(memory: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != 4:
        return memory.view(shape)
    N, C, H, W = shape
    return memory.view(N, H, W, C).permute(0, 3, 1, 2)


def memoize_last_input(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A call that answers from memory while it is asked the very same tensor, unchanged; of inference tensors nothing tells that."""
    asked, version, answer = NOTHING, 0, NOTHING

    def remembered(x: Tensor) -> Tensor:
        nonlocal asked, version, answer
        if x.is_inference():
            return call(x)
        if x is not asked or x._version != version:
            asked, version, answer = x, x._version, call(x)
        return answer

    return remembered


def _is_plain_layer(module: nn.Module) -> bool:
    """Whether a module is a plain layer, that does nothing of its own already."""
    return type(module) in (nn.Conv2d, nn.Linear) and "forward" not in module.__dict__


def _forward(module: nn.Module, scratch: _Scratch, copies: bool) -> Callable[..., Tensor] | None:
    if type(module) is FeedForward:
        return _chunked_feed_forward(module)
    if type(module) is GEGLU and "forward" not in module.__dict__ and type(module.proj) is nn.Linear:
        return _product(module.proj, 2, scratch, copies)
    if type(module) is Upsample and "forward" not in module.__dict__ and type(module.conv) is nn.Conv2d:
        return _enlargement(module, scratch)
    if not _is_plain_layer(module):
        return None
    if isinstance(module, nn.Conv2d):
        return _convolution(module, scratch, copies)
    assert isinstance(module, nn.Linear)
    return _product(module, 1, scratch, copies)


def _convolution(conv: nn.Conv2d, scratch: _Scratch, copies: bool) -> Callable[[Tensor], Tensor]:
    padding, stride = conv.padding, conv.stride
    assert not isinstance(padding, str)
    shape = padding, stride, conv.dilation, conv.groups
    plain = (conv.dilation, conv.groups) == ((1, 1), 1)
    small = plain and (conv.kernel_size, padding, stride) == ((3, 3), (1, 1), (1, 1))
    laid_out = _cache_per_dtype(lambda x: torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *shape, x.shape))

    def forward(x: Tensor) -> Tensor:
        (weight,) = scratch.wide([conv.weight], x.dtype)
        if plain and not copies and cpu_linear.im2col_is_faster(x, weight, stride):
            return cpu_linear.im2col_conv2d(x, weight, conv.bias, stride, padding)
        if small and winograd.winograd_is_faster(x, weight):
            return winograd.winograd_conv2d(x, weight, conv.bias)
        return torch.ops.mkldnn._convolution_pointwise(x, laid_out(x) if copies else weight, conv.bias, *shape, "none", [], "")

    return forward


def _enlargement(upsample: Upsample, scratch: _Scratch) -> Callable[..., Tensor]:
    otherwise, conv = upsample.forward, upsample.conv

    def forward(x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        if is_exact_2x(x, size) and upsample_conv.upsample_is_faster(x, conv.weight):
            (weight,) = scratch.wide([conv.weight], x.dtype)
            return upsample_conv.upsample_conv2d(x, weight, conv.bias)
        return otherwise(x, size)

    return forward


def _product(linear: nn.Linear, shares: int, scratch: _Scratch, copies: bool) -> Callable[[Tensor], Tensor]:
    """shares: in which the weight lies; 1 for a linear layer, 2 for the values and gates of a GEGLU."""
    product = cpu_linear.linear if shares == 1 else cpu_linear.geglu
    laid_out = _cache_per_dtype(lambda x: [cpu_linear.reorder_weight(share, x) for share in linear.weight.chunk(shares)])

    def forward(x: Tensor) -> Tensor:
        weights = laid_out(x) if copies else scratch.wide(linear.weight.chunk(shares), x.dtype)
        biases = [None] * shares if linear.bias is None else linear.bias.chunk(shares)
        return product(x, *weights, *biases)

    return forward


def _chunked_feed_forward(block: FeedForward) -> Callable[[Tensor], Tensor]:
    """Some places at a time, so that what is four times as wide stays in the cache and is never there as a whole."""
    most = max(FEW_ROWS, CONVERT_ELEMENTS // block.inner)

    def forward(x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if len(rows) <= most:
            return block.net(x)
        y = torch.empty_like(rows)
        for part, answer in zip(rows.split(most), y.split(most), strict=True):
            answer.copy_(block.net(part))
        return y.view(x.shape)

    return forward


def _cache_per_dtype(make: Callable[[Tensor], W]) -> Callable[[Tensor], W]:
    """What `make` makes for the first x of a dtype; it is another at the first call, and where half precision overflowed."""
    dtype, made = None, None

    def kept(x: Tensor) -> W:
        nonlocal dtype, made
        if made is None or dtype != x.dtype:
            dtype, made = x.dtype, make(x)
        return made

    return kept
