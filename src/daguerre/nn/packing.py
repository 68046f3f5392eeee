"""A twin of a small network for many calls on a CPU without gradients: what is the same in every call is done once.

Weights: oneDNN reads them in blocks, and PyTorch lays them out anew at every call, which on maps of few places takes a sixth of the time.
Keys and values of the text: they depend on the context alone, which stays the same from step to step.
Besides, oneDNN's products end in the GELU and the product of a GEGLU, which alone take PyTorch a fifteenth of the time.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from daguerre.nn.attention import GEGLU, TransformerBlock
from daguerre.nn.twin import M, twin
from daguerre.nn.watching import crossing

MOST_BYTES = 1 << 28  # of weights: the twin keeps a second copy, and on the maps of larger networks packing gains little
NOTHING = torch.empty(0, dtype=torch.int8)


def packed(network: M) -> M:
    """A twin of a network whose answers differ by rounding alone; the network itself where it is large, or oneDNN does not compute it.

    It is made for one run: the weights are those of its first call.
    """
    weights = list(network.parameters())
    if not all(_computed(weight) for weight in weights) or sum(weight.nbytes for weight in weights) > MOST_BYTES:
        return network
    second = twin(network, _forward)
    for block in second.modules():
        for attention in crossing(block) if isinstance(block, TransformerBlock) else ():
            for layer in (attention.get_submodule("to_k"), attention.get_submodule("to_v")):
                layer.forward = remembering(layer.forward)
    return second


def remembering(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
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


def _computed(weight: Tensor) -> bool:
    """Whether oneDNN computes with such weights on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _forward(module: nn.Module) -> Callable[..., Tensor] | None:
    if "forward" in module.__dict__:  # it does something of its own already
        return None
    if type(module) is nn.Conv2d:
        return _convolution(module)
    if type(module) is GEGLU and type(module.proj) is nn.Linear:
        return _geglu(module.proj)
    return _linear(module) if type(module) is nn.Linear else None


def _convolution(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    shape, weight = (conv.padding, conv.stride, conv.dilation, conv.groups), NOTHING

    def forward(x: Tensor) -> Tensor:
        nonlocal weight
        if weight.dtype != x.dtype:  # at the first call, and where half precision overflowed
            weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *shape, x.shape)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, conv.bias, *shape, "none", [], "")

    return forward


def _linear(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = NOTHING

    def forward(x: Tensor) -> Tensor:
        nonlocal weight
        if weight.dtype != x.dtype:
            weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight, x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, weight, linear.bias, "none", [], "")

    return forward


def _geglu(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    value = gate = NOTHING

    def forward(x: Tensor) -> Tensor:
        nonlocal value, gate
        if gate.dtype != x.dtype:
            rows = x.numel() // x.shape[-1]
            value, gate = (torch.ops.mkldnn._reorder_linear_weight(half.contiguous(), rows) for half in linear.weight.chunk(2))
        value_bias, gate_bias = (None, None) if linear.bias is None else linear.bias.chunk(2)
        gates = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(x, gates, value, value_bias, "mul")

    return forward
