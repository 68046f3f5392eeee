"""Models in the field's folder layout: `model_index.json` names the parts, each part is a folder with its config and its tensors.

    model_index.json
    unet/ vae/               config.json, diffusion_pytorch_model.safetensors
    text_encoder/            config.json, model.safetensors
    tokenizer/               vocab.json, merges.txt, tokenizer_config.json
    scheduler/               scheduler_config.json

Our parameters carry the names of this layout, so tensors go straight into modules built on the meta device. The class names in the
files select from the tables below; nothing is imported by name.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from daguerre.conditioning import TextConditioner, Tokenizer
from daguerre.conditioning.class_map_image import ImageConditioner
from daguerre.diffusion.schedule import Schedule
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText, CLIPVision
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.clip import vision_config
from daguerre.weights.diffusers.configs import Json, autoencoder_config, schedule_config, text_config, unet_config
from daguerre.weights.diffusers.index import VARIATIONS, own_guidance
from daguerre.weights.tensors.reader import open_tensors, weight_files, weights_in
from daguerre.weights.tensors.safetensors import read_json, with_config_errors, write_json, write_safetensors

CONFIG, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
NETWORK_WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
PIPELINES = ("StableDiffusionPipeline", VARIATIONS)
TEXT_ENCODERS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}  # whether it has a projection

# Autoencoders saved before these layers were renamed, and text encoders that were saved with the positions 0, 1, 2, … .
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION_NAME = re.compile(rf"(.*\.attentions\.\d+\.)({'|'.join(OLD_ATTENTION)})(\.\w+)")
IGNORED_TEXT = "embeddings.position_ids"

M = TypeVar("M", bound=nn.Module)


@with_config_errors
def load_folder(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """Read a whole model; its name is the folder's.

    Raises:
        DaguerreError: a part is missing, is of a kind that there is not here, or does not fit its config.
    """
    index = read_json(folder / INDEX)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise DaguerreError(f"'{folder}' holds a {kind}; a folder that can be opened holds a {' or '.join(PIPELINES)}.")
    where = folder / "scheduler" / SCHEDULER_CONFIG
    schedule, prediction = schedule_config(read_json(where), where)
    guidance = own_guidance(index)
    unet, size = load_unet(folder / "unet", device=device, dtype=dtype)
    autoencoder = load_autoencoder(folder / "vae", device=device, dtype=dtype)
    files = weight_files(folder)
    if kind == VARIATIONS:
        conditioner = ImageConditioner(load_image_encoder(folder / "image_encoder", device=device, dtype=dtype))
        files += weight_files(folder / "image_encoder")
    else:
        encoder = load_text_encoder(folder / "text_encoder", device=device, dtype=dtype)
        conditioner = TextConditioner(Tokenizer.from_folder(folder / "tokenizer"), encoder)
    return LatentDiffusion(
        unet=unet,
        autoencoder=autoencoder,
        conditioner=conditioner.eval(),
        schedule=Schedule(schedule),
        prediction=prediction,
        name=folder.resolve().name,
        sample_size=size * autoencoder.downsample_factor,
        default_guidance=guidance,
        files=files,
    )


def check_overwrite(folder: Path, mark: str) -> None:
    """Raise DaguerreError where something stands that a saved model must not replace: anything but a model of this `mark`, a file in it, or
    an empty folder."""
    if folder.exists() and not (folder / mark).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DaguerreError(f"'{folder}' exists and is not a saved model, so it is not overwritten; name another folder.")


def write_part(folder: Path, config: Json, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write one network in place, for use inside an `atomic_path`; raises OSError where the disk is full.

    dtype: of its floating-point tensors; None keeps each as it is.
    """
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, config)
    name = NETWORK_WEIGHTS if "_class_name" in config else TEXT_WEIGHTS
    write_safetensors(folder / name, {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()})


def load_unet(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> tuple[UNet, int]:
    """The UNet of a part's folder, and the side of the latents it was trained on."""
    given = read_json(folder / CONFIG)
    size = given.get("sample_size") or 64
    unet = build(UNet, unet_config(given, folder / CONFIG), folder, read_part(folder, device=device, dtype=dtype))
    return unet, size if isinstance(size, int) else max(size)


@with_config_errors
def load_autoencoder(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The autoencoder of a part's folder, with old or new names of its attention.

    Raises:
        DaguerreError: there is none, or it does not fit its config.
    """
    tensors = read_first_stage(folder, device=device, dtype=dtype)
    return build(AutoencoderKL, autoencoder_config(read_json(folder / CONFIG), folder / CONFIG), folder, tensors)


def read_first_stage(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of an autoencoder's folder under today's names. Raises DaguerreError where a file is missing or cut short."""
    return {modernize_key(name): tensor for name, tensor in read_part(folder, device=device, dtype=dtype).items()}


@with_config_errors
def load_text_encoder(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CLIPText:
    """The text tower of a part's folder, with or without the level `text_model.` in its names.

    Raises:
        DaguerreError: there is none, or it does not fit its config.
    """
    given = read_json(folder / CONFIG)
    kind = next(iter(given.get("architectures") or ["CLIPTextModel"]))
    if kind not in TEXT_ENCODERS:
        raise DaguerreError(f"'{folder}' holds a {kind}; a text encoder that can be opened is a {' or '.join(TEXT_ENCODERS)}.")
    config = text_config(given, folder / CONFIG, projected=TEXT_ENCODERS[kind])
    tensors = {_with_level(name): t for name, t in read_part(folder, device=device, dtype=dtype).items()}
    return build(CLIPText, config, folder, {name: t for name, t in tensors.items() if not name.endswith(IGNORED_TEXT)})


def load_image_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> CLIPVision:
    """The vision tower of a part's folder, with its projection. Raises DaguerreError where there is none, or it does not fit."""
    config = vision_config(read_json(folder / CONFIG), folder / CONFIG)
    tensors = read_part(folder, device=device, dtype=dtype)
    return build(CLIPVision, config, folder, {name: t for name, t in tensors.items() if not name.endswith(IGNORED_TEXT)})


def read_part(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one part: of one file, its half-precision variant, or the shards that an index lists.

    Raises:
        DaguerreError: a file is missing or cut short, or holds numbers that are not finite.
    """
    return open_tensors(weights_in(folder)).to_compute_layout(device, dtype)


def build(network: Callable[[Any], M], config: object, folder: Path, tensors: Mapping[str, Tensor]) -> M:
    """The network of a config with these tensors, for use. Raises DaguerreError where they do not fit it."""
    with shapes_only():
        module = network(config)
    fill(module, tensors, folder)
    return module.eval()


def modernize_key(name: str) -> str:
    """Today's name of an autoencoder's tensor."""
    match = OLD_ATTENTION_NAME.fullmatch(name)
    return f"{match[1]}{OLD_ATTENTION[match[2]]}{match[3]}" if match else name


def _with_level(name: str) -> str:
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name
