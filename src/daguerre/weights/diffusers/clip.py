"""A complete CLIP, both towers with their tokenizer, in the folder layout of transformers' `CLIPModel`.

config.json  model.safetensors  vocab.json  merges.txt  tokenizer_config.json
"""

from pathlib import Path

import torch

from daguerre.atomic_io import atomic_path
from daguerre.conditioning import Tokenizer
from daguerre.models.clip import CLIP, CLIPConfig
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.diffusers.clip_config import clip_text_config, clip_text_json, clip_vision_config, clip_vision_json
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import CONFIG_FILE, TRANSFORMERS_WEIGHTS
from daguerre.weights.tensors.safetensors import read_json, read_safetensors, write_json, write_safetensors


def save_clip(clip: CLIP, tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write both towers and the tokenizer atomically, in a folder that transformers' `CLIPModel` can also open.

    Raises:
        DaguerreError: the folder cannot be written.
    """
    text, vision = clip.config.text, clip.config.vision
    config: Json = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection,
        "text_config": clip_text_json(text, bos=tokenizer.bos, pad=tokenizer.pad),
        "vision_config": clip_vision_json(vision),
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / CONFIG_FILE, config)
        write_safetensors(temporary / TRANSFORMERS_WEIGHTS, clip.state_dict())
        tokenizer.save(temporary)
    return Path(folder)


def load_clip(folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[CLIP, Tokenizer]:
    """Read both towers and the tokenizer.

    Raises:
        DaguerreError: a file is missing, truncated, or does not match the config.
    """
    folder = Path(folder)
    given, where = read_json(folder / CONFIG_FILE), folder / CONFIG_FILE
    projection = given.get("projection_dim", 512)
    text = clip_text_config({**given.get("text_config", {}), "projection_dim": projection}, where, projected=True)
    vision = clip_vision_config({**given.get("vision_config", {}), "projection_dim": projection}, where)
    with shapes_only():
        clip = CLIP(CLIPConfig(text, vision))
    tensors = read_safetensors(folder / TRANSFORMERS_WEIGHTS, device=device, dtype=dtype)
    fill(clip, {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}, folder)
    return clip.eval(), Tokenizer.from_folder(folder)
