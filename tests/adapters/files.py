"""Adapter files in memory and on disk, and manifests of the names that other programs write."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from daguerre.adapters.lora.lora import Lora
from daguerre.adapters.lora.peft_config import PeftConfig
from daguerre.adapters.lora.read import read_lora
from daguerre.adapters.record import AdapterRecord
from daguerre.weights.tensors.reader import TensorFile

FIXTURES = Path(__file__).parent.parent / "fixtures" / "adapters"
RECORD = AdapterRecord("lora", "test")


def in_memory(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> TensorFile:
    """An opened file that holds these tensors."""
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return TensorFile(Path("test.safetensors"), "safetensors", shapes, metadata or {}, tensors.__getitem__)


def lora_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, **configs: PeftConfig) -> Lora:
    """The LoRA in these tensors; configs: PEFT's settings, `folder` for a PEFT folder."""
    return read_lora(in_memory(tensors, metadata), RECORD, {"" if name == "folder" else name: each for name, each in configs.items()})


def manifest(name: str) -> dict[str, Any]:
    """Names, dtypes and shapes of a file of another program."""
    return json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))


def golden() -> dict[str, dict[str, Tensor]]:
    """The tiny cases: by name, the base layer, the file's tensors under `file/` and the weights that result."""
    cases: dict[str, dict[str, Tensor]] = {}
    with safe_open(FIXTURES / "adapters_tiny.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            case, _, name = key.partition("/")
            cases.setdefault(case, {})[name] = file.get_tensor(key)
    return cases
