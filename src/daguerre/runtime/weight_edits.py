"""Copies of a network with some weights changed, which share all other weights; also of networks under sequential offload.

with_edited_weights(unet, {"conv_in.weight": lambda weight: 2 * weight})
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from daguerre.runtime.offload import edit_offloaded, set_weight

WeightEdit = Callable[[Tensor], Tensor]  # a weight to the weight that replaces it, of the same dtype; must accept the meta device
M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def with_edited_weights(network: M, edits: Mapping[str, WeightEdit]) -> M:
    """A copy of a network with these weights replaced, by name. The network stays as it is; later changes of one do not change the other.

    An offloaded network gives an offloaded copy: its large weights are edited whenever they are loaded.
    """
    duplicate = _copy_with_own_parameters(network)
    if edit_offloaded(network, duplicate, edits):
        return duplicate
    for name, edit in edits.items():
        set_weight(duplicate, name, edit(duplicate.get_parameter(name)))
    return duplicate


def _copy_with_own_parameters(network: M) -> M:
    """A copy whose parameters are its own objects on the same memory, so that a change of dtype in one does not reach the other."""
    duplicate = copy.copy(network)
    duplicate._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach(), requires_grad=False)
        for name, parameter in network._parameters.items()
    }
    duplicate._modules = {name: None if child is None else _copy_with_own_parameters(child) for name, child in network._modules.items()}
    duplicate._forward_pre_hooks = OrderedDict(network._forward_pre_hooks)
    return duplicate
