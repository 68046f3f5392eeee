"""Adapters: files that change a model without touching it: LoRA and its family, textual-inversion embeddings, ControlNets, T2I-Adapters
and IP-Adapters.

    styled = with_adapters(model, [load_lora("ink.safetensors")])

Modules are imported on first use, so that a request with adapters imports no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daguerre.adapters.attach import with_adapters as with_adapters
    from daguerre.adapters.controlnet import ControlNet as ControlNet
    from daguerre.adapters.controlnet import load_controlnet as load_controlnet
    from daguerre.adapters.embedding import Embedding as Embedding
    from daguerre.adapters.embedding import load_embedding as load_embedding
    from daguerre.adapters.ip_adapter import IPAdapter as IPAdapter
    from daguerre.adapters.ip_adapter import load_ip_adapter as load_ip_adapter
    from daguerre.adapters.lora.lora import Lora as Lora
    from daguerre.adapters.lora.read import load_lora as load_lora
    from daguerre.adapters.t2i_adapter import T2IAdapter as T2IAdapter
    from daguerre.adapters.t2i_adapter import load_t2i_adapter as load_t2i_adapter

__all__ = [
    "ControlNet",
    "Embedding",
    "IPAdapter",
    "Lora",
    "T2IAdapter",
    "load_controlnet",
    "load_embedding",
    "load_ip_adapter",
    "load_lora",
    "load_t2i_adapter",
    "with_adapters",
]

MODULES = {
    "with_adapters": "attach",
    "ControlNet": "controlnet",
    "load_controlnet": "controlnet",
    "Embedding": "embedding",
    "load_embedding": "embedding",
    "IPAdapter": "ip_adapter",
    "load_ip_adapter": "ip_adapter",
    "T2IAdapter": "t2i_adapter",
    "load_t2i_adapter": "t2i_adapter",
    "Lora": "lora.lora",
    "load_lora": "lora.read",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'daguerre.adapters' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"daguerre.adapters.{MODULES[name]}"), name)
