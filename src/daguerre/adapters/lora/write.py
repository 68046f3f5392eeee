"""Write LoRAs in kohya's or PEFT's naming, and change their rank.

kohya's names are what web UIs and ComfyUI read: `lora_unet_` or `lora_te_` and the path with underscores; for SDXL the paths of the
original code. PEFT's names are what diffusers writes: `unet.` or `text_encoder.` and the path with dots. These have no alpha; the scale is
part of B.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from daguerre.adapters.attach import matched_layers
from daguerre.adapters.lora.lora import Lora, LoraLayer
from daguerre.adapters.lora.module_names import NetworkRole, layer_table
from daguerre.adapters.lora.weight_delta import (
    ChannelScale,
    Difference,
    DoRA,
    Generalized,
    Hadamard,
    Kronecker,
    LowRank,
    MatrixDelta,
    Orthogonal,
    WeightDelta,
    scale_of,
)
from daguerre.errors import DaguerreError
from daguerre.models.unet import UNet
from daguerre.weights.tensors.safetensors import save_safetensors

Naming = Literal["kohya", "peft"]
PEFT_ROLES: Mapping[NetworkRole, str] = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
HEADER_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
EXACT_SVD_SIDE = 512  # larger matrices are factorized by a randomized algorithm, which is many times faster
POWER_ITERATIONS = 6  # of it: more follow the exact factors more closely


def save_lora(
    lora: Lora, path: str | Path, networks: Mapping[NetworkRole, nn.Module], *, naming: Naming = "kohya", dtype: torch.dtype | None = None
) -> Path:
    """Write a LoRA as a .safetensors file.

    Args:
        networks: of the model it is for, which give the layers their names; they may be on the meta device.
        dtype: of the tensors. Default: unchanged.

    Raises:
        DaguerreError: a layer is not in the networks, the naming has no names for its kind, or the file cannot be written.
    """
    matched = matched_layers(lora, networks)
    if missing := [name.path for name in lora.layers if name not in matched]:
        raise DaguerreError(f"{len(missing)} layers of the LoRA {lora.record.name!r} are in no model of its family, such as {missing[0]}.")
    tensors: dict[str, Tensor] = {}
    names = {role: _layer_names(role, network, networks, naming) for role, network in networks.items()}
    for name, (role, targets) in matched.items():
        layer = lora.layers[name]
        target, *others = targets
        if others:
            raise DaguerreError(f"{name.path} is a fused projection, which {naming} has no name for; change the rank (--rank) to split it.")
        parts = kohya_parts(layer) if naming == "kohya" else peft_parts(layer, name.path)
        tensors |= {f"{names[role][target.path]}.{suffix}": tensor for suffix, tensor in parts.items()}
    tensors = {key: tensor.detach().cpu().to(dtype if tensor.numel() > 1 else None).contiguous() for key, tensor in tensors.items()}
    # safetensors orders the tensors by type and name, so the bytes after the header do not depend on the header.
    content = save(tensors)
    body = memoryview(content)[8 + int.from_bytes(content[:8], "little") :]
    save_safetensors(path, tensors, _metadata(lora, naming) | {"sshs_model_hash": hashlib.sha256(body).hexdigest()})
    return Path(path)


def kohya_parts(layer: LoraLayer) -> dict[str, Tensor]:
    """The tensors of a layer by kohya's and LyCORIS' suffixes."""
    parts = {} if layer.weight is None else _kohya_parts(layer.weight)
    if isinstance(layer.bias, Difference):
        parts["diff_b"] = layer.bias.diff
    elif layer.bias is not None:
        raise DaguerreError("An IA3 that changes biases has no names in kohya's naming.")
    return parts


def _kohya_parts(delta: WeightDelta) -> dict[str, Tensor]:
    match delta:
        case DoRA(inner, magnitude):
            return {**_kohya_parts(inner), "dora_scale": magnitude}
        case LowRank(down, up, alpha, mid):
            named: Mapping[str, Tensor | None] = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}
        case Hadamard(w1_a, w1_b, w2_a, w2_b, alpha, t1, t2):
            named = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b, "hada_t1": t1, "hada_t2": t2}
        case Kronecker():
            alpha = None if delta.rank is None else scale_of(delta.alpha, delta.rank) * delta.rank
            named = {f"lokr_{name}": getattr(delta, name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
            if delta.w1 is not None and delta.w2 is not None and alpha is not None:  # kohya does not scale whole factors
                named, alpha = {**named, "lokr_w1": delta.w1 * scale_of(delta.alpha, delta.rank or 1)}, None
        case Generalized(a1, a2, b1, b2, alpha):
            named = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
        case Orthogonal(blocks, alpha, rescale):
            named = {"oft_blocks": blocks, "rescale": rescale}
        case Difference(diff):
            named, alpha = {"diff": diff}, None
        case ChannelScale(scale, on_input):
            named, alpha = {"weight": scale, "on_input": torch.tensor(on_input)}, None
        case _:
            raise DaguerreError(f"A {type(delta).__name__} has no names in kohya's naming.")
    if alpha is None and isinstance(delta, LowRank | Hadamard | Generalized):
        alpha = float(delta.rank)  # some programs need one
    parts = {name: tensor for name, tensor in named.items() if tensor is not None}
    return parts if alpha is None else {**parts, "alpha": torch.tensor(float(alpha))}


def peft_parts(layer: LoraLayer, path: str) -> dict[str, Tensor]:
    """The tensors of a layer by the suffixes of PEFT, with the scale in B. Raises DaguerreError for anything but LoRA and DoRA."""
    delta = layer.weight
    inner = delta.inner if isinstance(delta, DoRA) else delta
    per_output = not isinstance(delta, DoRA) or delta.magnitude.shape[0] != 1
    if layer.bias is not None or not isinstance(inner, LowRank) or inner.mid is not None or not per_output:
        raise DaguerreError(
            f"{path} is no plain LoRA, and only these have names in PEFT's naming; write kohya's naming, or give a rank (--rank), which "
            "turns additive kinds into LoRA."
        )
    parts = {"lora_A.weight": inner.down, "lora_B.weight": inner.up * scale_of(inner.alpha, inner.rank)}
    return {**parts, "lora_magnitude_vector": delta.magnitude.flatten()} if isinstance(delta, DoRA) else parts


def resize_lora(lora: Lora, rank: int) -> Lora:
    """The LoRA with every additive layer approximated by one of this rank (singular value decomposition), whatever its kind.

    Raises:
        DaguerreError: a layer's change depends on the weight, such as DoRA's.
    """
    layers = {}
    for name, layer in lora.layers.items():
        delta = layer.weight
        if delta is not None and not isinstance(delta, MatrixDelta):
            raise DaguerreError(
                f"The change of {name.path} depends on the model's weight ({type(delta).__name__}); merge it into a model, then extract "
                "a LoRA."
            )
        if isinstance(delta, MatrixDelta) and not (isinstance(delta, Difference) and delta.diff.ndim == 1):
            delta = factorize(delta.matrix(), rank, _kernel_of(delta))
        layers[name] = replace(layer, weight=delta)
    return replace(lora, layers=layers)


def factorize(matrix: Tensor, rank: int, kernel: tuple[int, ...] = ()) -> LowRank:
    """The best LoRA of a rank for a change (out, in · k · k): up · down with the singular values split between both.

    kernel: (k, k) of a convolution, which gives down the shape (r, in, k, k).
    """
    rank = min(rank, *matrix.shape)
    if max(matrix.shape) <= EXACT_SVD_SIDE:
        left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
        right = right.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(matrix.float(), q=min(2 * rank + 8, *matrix.shape), niter=POWER_ITERATIONS)
    root = values[:rank].sqrt()
    up, down = left[:, :rank] * root, (right[:, :rank] * root).T
    if kernel:
        return LowRank(down.reshape(rank, -1, *kernel).contiguous(), up[:, :, None, None].contiguous(), float(rank))
    return LowRank(down.contiguous(), up.contiguous(), float(rank))


def _kernel_of(delta: MatrixDelta) -> tuple[int, ...]:
    """The kernel of the convolution that a change is for, as far as its tensors say; () for a linear layer."""
    match delta:
        case LowRank(down, _, _, mid):
            tensor = mid if mid is not None else down
        case Hadamard():
            tensor = delta.t1 if delta.t1 is not None else None
        case Kronecker():
            tensor = next((each for each in (delta.t2, delta.w2, delta.w2_b) if each is not None and each.ndim == 4), None)
        case Difference(diff):
            tensor = diff
        case _:
            tensor = None
    return tuple(tensor.shape[2:]) if tensor is not None and tensor.ndim == 4 else ()


def _layer_names(role: NetworkRole, network: nn.Module, networks: Mapping[NetworkRole, nn.Module], naming: Naming) -> dict[str, str]:
    """The name of each layer of a network, by its path."""
    paths = [name.removesuffix(".weight") for name, _ in network.named_parameters() if name.endswith(".weight")]
    if naming == "peft":
        return {path: f"{PEFT_ROLES[role]}.{path}" for path in paths}
    prefix = f"lora_{role}" if "te2" in networks or role == "unet" else "lora_te"
    names = {path: path.replace(".", "_") for path in paths}
    if isinstance(network, UNet) and network.config.vector_width:  # SDXL: kohya uses the paths of the original code
        for name, targets in layer_table(network).items():
            if name.startswith(("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_")):
                names[targets[0].path] = name
    return {path: f"{prefix}_{name}" for path, name in names.items()}


def _metadata(lora: Lora, naming: Naming) -> dict[str, str]:
    """The header that other tools read."""
    kept = {name: value for name, value in lora.metadata.items() if name not in ("sshs_model_hash", "lora_adapter_metadata")}
    if naming == "peft":
        return {**kept, "format": "pt"}
    ranks, family = lora.ranks, lora.family
    known = {"ss_network_module": "networks.lora", "ss_output_name": lora.record.name}
    if family in HEADER_VERSIONS:
        known |= {"ss_base_model_version": HEADER_VERSIONS[family], "ss_v2": str(family == "sd2")}
    if ranks:
        known |= {"ss_network_dim": str(ranks[-1]), "ss_network_alpha": str(float(ranks[-1]))}
    return {**known, **kept}
