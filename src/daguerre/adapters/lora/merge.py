"""Merge LoRAs into a checkpoint's file, and extract a LoRA from the difference of two checkpoints. No network is built with values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from daguerre.adapters.attach import weight_edits
from daguerre.adapters.lora.lora import Lora, LoraLayer
from daguerre.adapters.lora.module_names import LayerName, NetworkRole
from daguerre.adapters.lora.write import factorize
from daguerre.adapters.record import AdapterRecord
from daguerre.errors import DaguerreError
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import DetectedModel, detect
from daguerre.weights.tensors.reader import TensorFile, open_tensors

ROLE_OF_PART: Mapping[str, NetworkRole] = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}


def merge_loras(file: TensorFile, loras: Sequence[Lora]) -> TensorFile:
    """An opened checkpoint whose tensors include LoRAs: computed in float32 and rounded once to the dtype of the file.

    Raises:
        DaguerreError: a LoRA does not fit, or bundles embeddings, which a checkpoint cannot hold.
    """
    for lora in loras:
        if lora.embeddings:
            raise DaguerreError(
                f"The LoRA {lora.record.name!r} bundles the word {lora.embeddings[0].word!r}, which a checkpoint cannot hold; use --lora "
                "when you generate instead."
            )
    detected = detect(file)
    networks = adapted_parts(detected)
    parts = split_components(file.read(name for name in file.shapes if name not in detected.contents.ignored)).parts
    changed: dict[str, Tensor] = {}
    for role, edits in weight_edits(loras, networks, file.path.stem).items():
        part = parts[next(name for name, its_role in ROLE_OF_PART.items() if its_role == role)]
        tensors = detected.canonical(part)
        edited = tensors | {name: edit(tensors[name]) for name, edit in edits.items()}
        table = part.table(detected.unet.heads if detected.unet and role == "unet" else None)
        changed |= {part.prefix + name: tensor for name, tensor in table.to_original(edited)[0].items()}
    return replace(file, tensor=lambda name: changed[name] if name in changed else file.tensor(name))


def extract_lora(tuned: str | Path, base: str | Path, rank: int) -> tuple[Lora, Mapping[NetworkRole, nn.Module]]:
    """The LoRA of a rank that is closest to the difference of two checkpoints of one family, and the networks that name its layers.

    Layers that do not differ are left out; differences of biases and norms are not part of a LoRA.

    Raises:
        DaguerreError: the files are of different families, or do not differ.
    """
    if rank < 1:
        raise DaguerreError(f"The rank is {rank}; it is 1 or more, such as 32.")
    files = [open_tensors(path) for path in (tuned, base)]
    models = [detect(file) for file in files]
    networks, other = (adapted_parts(model) for model in models)
    if not networks or {role: _shapes(network) for role, network in networks.items()} != {role: _shapes(n) for role, n in other.items()}:
        raise DaguerreError(f"'{tuned}' and '{base}' are not of one family, or no models with a UNet; their networks differ in shape.")
    layers: dict[LayerName, LoraLayer] = {}
    for part, role in ROLE_OF_PART.items():
        if role not in networks:
            continue
        values = [_canonical(model, part) for model in models]
        for name in (each for each in values[0] if each.endswith(".weight") and values[0][each].ndim in (2, 4)):
            if "embedding.weight" in name:
                continue
            difference = values[0][name].float() - values[1][name].float()
            if difference.any():
                path = name.removesuffix(".weight").replace(".", "_")
                layers[LayerName(role, path)] = LoraLayer(factorize(difference.flatten(1), rank, tuple(difference.shape[2:])))
    if not layers:
        raise DaguerreError(f"'{tuned}' and '{base}' have the same weights, so there is nothing to extract.")
    return Lora(layers, AdapterRecord("lora", f"{Path(tuned).stem}-lora")), networks


def adapted_parts(detected: DetectedModel) -> dict[NetworkRole, nn.Module]:
    """The networks of a detected model that LoRAs change, on the meta device."""
    return {ROLE_OF_PART[part]: network for part, network in detected.networks.items() if part in ROLE_OF_PART}


def _canonical(model: DetectedModel, part: str) -> dict[str, Tensor]:
    component = model.contents.parts[part]
    read = model.file.read(component.prefix + name for name in component.original)
    return model.canonical(split_components(read).parts[part])


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.named_parameters()}
