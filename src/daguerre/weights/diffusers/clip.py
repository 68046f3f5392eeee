"""A whole CLIP, both towers with their tokenizer, in the folder layout of transformers' `CLIPModel`.

config.json  model.safetensors  vocab.json  merges.txt  tokenizer_config.json
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from daguerre.atomic_io import atomic_path
from daguerre.conditioning import Tokenizer
from daguerre.models.clip import CLIP, CLIPConfig, CLIPVisionConfig
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.diffusers.configs import ACTIVATIONS, Json, choose_class, text_config, text_json
from daguerre.weights.tensors.safetensors import read_json, read_safetensors, write_json, write_safetensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Of the pictures that CLIP was trained on, red, green and blue.
IMAGE_MEAN = 0.48145466, 0.4578275, 0.40821073
IMAGE_STD = 0.26862954, 0.26130258, 0.27577711


def save_clip(clip: CLIP, tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write both towers and the tokenizer so that transformers' `CLIPModel` opens them too, whole or not at all.

    Raises:
        DaguerreError: the place cannot be written.
    """
    text, vision = clip.config.text, clip.config.vision
    config: Json = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection,
        "text_config": text_json(text, bos=tokenizer.bos, pad=tokenizer.pad),
        "vision_config": vision_json(vision),
    }
    with atomic_path(folder) as beside:
        beside.mkdir()
        write_json(beside / CONFIG, config)
        write_safetensors(beside / WEIGHTS, clip.state_dict())
        tokenizer.save(beside)
    return Path(folder)


def load_clip(folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[CLIP, Tokenizer]:
    """Read both towers and the tokenizer.

    Raises:
        DaguerreError: a file is missing, is cut short, or does not fit the config.
    """
    folder = Path(folder)
    given, where = read_json(folder / CONFIG), folder / CONFIG
    projection = given.get("projection_dim", 512)
    text = text_config({**given.get("text_config", {}), "projection_dim": projection}, where, projected=True)
    with shapes_only():
        clip = CLIP(CLIPConfig(text, vision_config({**given.get("vision_config", {}), "projection_dim": projection}, where)))
    tensors = read_safetensors(folder / WEIGHTS, device=device, dtype=dtype)
    fill(clip, {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}, folder)
    return clip.eval(), Tokenizer.from_folder(folder)


def vision_config(given: Mapping[str, Any], where: object) -> CLIPVisionConfig:
    """Read the config of a vision tower with its projection.

    Raises:
        DaguerreError: an activation that our vision tower does not have.
    """
    return CLIPVisionConfig(
        size=given.get("image_size", 224),
        patch=given.get("patch_size", 32),
        channels=given.get("num_channels", 3),
        width=given.get("hidden_size", 768),
        layers=given.get("num_hidden_layers", 12),
        heads=given.get("num_attention_heads", 12),
        mlp_width=given.get("intermediate_size", 3072),
        activation=choose_class(given.get("hidden_act", "quick_gelu"), ACTIVATIONS, "activation", where),
        projection=given.get("projection_dim", 512),
        eps=given.get("layer_norm_eps", 1e-5),
    )


def vision_json(config: CLIPVisionConfig) -> Json:
    """The config of a vision tower."""
    return {
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "image_size": config.size,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.eps,
        "model_type": "clip_vision_model",
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch,
        "projection_dim": config.projection,
    }


def preprocessor_json(config: CLIPVisionConfig) -> Json:
    """How a vision tower wants its pictures: the config of a `CLIPImageProcessor`."""
    side = config.size
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(IMAGE_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }
