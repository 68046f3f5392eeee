"""Files of tiny autoencoders: TAESD's own, those of ComfyUI with both networks in one, and folders of diffusers' `AutoencoderTiny`.

1.weight  3.conv.0.weight  …           one network: a decoder has no layer 0 with weights, an encoder has
taesd_encoder.0.weight  taesd_decoder.1.weight
encoder.layers.0.weight  decoder.layers.0.weight        diffusers, whose decoder counts from 0
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.tiny_autoencoder import TinyAutoencoderConfig, TinyDecoder, TinyEncoder
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.tensors.reader import TensorFile, open_tensors, weights_in
from daguerre.weights.tensors.safetensors import read_json, save_safetensors

PREVIEW_FILE = "tiny_decoder.safetensors"  # in the folder of a model: the decoder of its previews
KEY = re.compile(r"(?:(?:taesd_)?(encoder|decoder)\.)?(layers\.)?(\d+)\.((?:conv\.[024]\.)?(?:weight|bias))")


class TinyNetworks(NamedTuple):
    """What a file holds; a file of a decoder alone has no encoder."""

    decoder: TinyDecoder
    encoder: TinyEncoder | None


def is_tiny_autoencoder(path: Path) -> bool:
    """Whether a path is the file or folder of a tiny autoencoder, or of one of its two networks."""
    if path.is_dir():
        return (path / CONFIG_FILE).is_file() and read_json(path / CONFIG_FILE).get("_class_name") == "AutoencoderTiny"
    return all(map(KEY.fullmatch, open_tensors(path).shapes))


def load_tiny_autoencoder(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TinyNetworks:
    """Load the networks of a tiny autoencoder; their sizes follow from the shapes.

    Raises:
        DaguerreError: the file has only an encoder, or its tensors are not those of such a network.
    """
    if path.is_dir():
        _check_config(path / CONFIG_FILE)
    file = open_tensors(weights_in(path) if path.is_dir() else path)
    parts = _parts(file, file.to_compute_layout(device, dtype))
    if "decoder" not in parts:
        raise DaguerreError(
            f"'{path}' has only the encoder of a tiny autoencoder; give the file of its decoder, such as taesd_decoder.pth."
        )
    config = _config(parts["decoder"], path)
    with shapes_only():
        decoder, encoder = TinyDecoder(config), TinyEncoder(config) if "encoder" in parts else None
    fill(decoder, parts["decoder"], path)
    if encoder is not None:
        fill(encoder, parts["encoder"], path)
        encoder.eval()
    return TinyNetworks(decoder.eval(), encoder)


def save_tiny_decoder(
    path: Path, decoder: TinyDecoder, metadata: Mapping[str, str] | None = None, *, dtype: torch.dtype | None = None
) -> None:
    """Write a decoder under TAESD's own names; ComfyUI and others read it if it has TAESD's size. Errors as in `save_safetensors`."""
    save_safetensors(path, {name: tensor.to("cpu", dtype) for name, tensor in decoder.state_dict().items()}, metadata)


def preview_decoder_of(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> TinyDecoder | None:
    """The tiny decoder in the folder of a model, for its previews; None if there is none."""
    path = folder / PREVIEW_FILE
    return load_tiny_autoencoder(path, device=device, dtype=dtype).decoder if path.is_file() else None


def _parts(file: TensorFile, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of encoder and decoder under the names of our layers."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None:
            raise DaguerreError(f"'{file.path}' is no tiny autoencoder: it has a tensor {name!r}.")
        part = match[1] or ("encoder" if "0.weight" in file.shapes else "decoder")
        number = int(match[3]) + (match[2] is not None and part == "decoder")
        parts.setdefault(part, {})[f"{number}.{match[4]}"] = tensor
    return parts


def _config(decoder: Mapping[str, Tensor], path: Path) -> TinyAutoencoderConfig:
    """The sizes of a decoder: its levels end with convolutions without bias, and its blocks are even over the levels but for the last."""
    first = decoder.get("1.weight")
    blocks = len({name.split(".")[0] for name in decoder if ".conv." in name})
    plain = [
        name for name in decoder if name.endswith(".weight") and ".conv." not in name and name.replace("weight", "bias") not in decoder
    ]
    if first is None or first.ndim != 4 or not plain or (blocks - 1) % len(plain):
        raise DaguerreError(f"'{path}' does not have the layers of a tiny decoder; give a file such as taesd_decoder.safetensors.")
    return TinyAutoencoderConfig(first.shape[1], first.shape[0], (blocks - 1) // len(plain), len(plain))


def _check_config(path: Path) -> None:
    """Refuse the options of diffusers' `AutoencoderTiny` that change what its networks compute."""
    given = read_json(path)
    allowed = {"act_fn": ("relu",), "scaling_factor": (1.0,), "upsampling_scaling_factor": (2,), "upsample_fn": ("nearest",)}
    for name, values in allowed.items():
        if given.get(name, values[0]) not in values:
            raise DaguerreError(f"'{path}' sets {name} to {given[name]!r}; only {values[0]!r} is supported.")
