"""Load models in the diffusers folder layout: `model_index.json` names the parts, each a folder with its config and its tensors.

    model_index.json
    unet/ vae/               config.json, diffusion_pytorch_model.safetensors
    text_encoder/            config.json, model.safetensors
    tokenizer/               vocab.json, merges.txt, tokenizer_config.json
    scheduler/               scheduler_config.json

Parameters have the same names here as in this layout, so tensors are assigned directly to modules built on the meta device. Class
names in the files select from tables; nothing is imported by name.
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
from daguerre.weights.diffusers.clip_config import clip_text_config, clip_vision_config
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import CONFIG_FILE, DIFFUSERS_WEIGHTS, SCHEDULER_CONFIG_FILE, TRANSFORMERS_WEIGHTS
from daguerre.weights.diffusers.index import IMAGE_VARIATION_PIPELINE, stored_guidance
from daguerre.weights.diffusers.scheduler_config import folder_sampler, schedule_config
from daguerre.weights.diffusers.unet_config import unet_config
from daguerre.weights.diffusers.vae_config import autoencoder_config
from daguerre.weights.original.key_map import OLD_ATTENTION_NAMES
from daguerre.weights.tensors.reader import open_tensors, weight_files, weights_in
from daguerre.weights.tensors.safetensors import read_json, with_config_errors, write_json, write_safetensors
from daguerre.weights.tiny_autoencoder import preview_decoder_of

LOADABLE_PIPELINES = ("StableDiffusionPipeline", IMAGE_VARIATION_PIPELINE)
TEXT_ENCODERS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}  # class → whether it has a projection
POSITION_IDS = "embeddings.position_ids"  # a constant that older versions of transformers saved

M = TypeVar("M", bound=nn.Module)


@with_config_errors
def load_folder(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """Load a complete model; it has the name of the folder.

    Raises:
        DaguerreError: a part is missing, is not supported, or does not match its config.
    """
    index = read_json(folder / INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in LOADABLE_PIPELINES:
        raise DaguerreError(f"'{folder}' holds a {pipeline}; supported here are {' and '.join(LOADABLE_PIPELINES)}.")
    where = folder / "scheduler" / SCHEDULER_CONFIG_FILE
    scheduler = read_json(where)
    schedule, prediction = schedule_config(scheduler, where)
    guidance = stored_guidance(index)
    unet, latent_size = load_unet(folder / "unet", device=device, dtype=dtype)
    autoencoder = load_autoencoder(folder / "vae", device=device, dtype=dtype)
    files = weight_files(folder)
    if pipeline == IMAGE_VARIATION_PIPELINE:
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
        sample_size=latent_size * autoencoder.downsample_factor,
        default_guidance=guidance,
        files=files,
        sampler_config=folder_sampler(scheduler),
        preview_decoder=preview_decoder_of(folder, device=device, dtype=dtype),
    )


def write_part(folder: Path, config: Json, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write one network inside an `atomic_path`; raises OSError if the disk is full.

    dtype: of the floating-point tensors; None keeps their own.
    """
    folder.mkdir(parents=True)
    write_json(folder / CONFIG_FILE, config)
    name = DIFFUSERS_WEIGHTS if "_class_name" in config else TRANSFORMERS_WEIGHTS
    write_safetensors(folder / name, {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()})


def load_unet(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> tuple[UNet, int]:
    """The UNet of a folder, and the side of the latents it was trained on."""
    given = read_json(folder / CONFIG_FILE)
    size = given.get("sample_size") or 64
    unet = build(UNet, unet_config(given, folder / CONFIG_FILE), folder, read_part(folder, device=device, dtype=dtype))
    return unet, size if isinstance(size, int) else max(size)


@with_config_errors
def load_autoencoder(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The KL autoencoder of a folder, with old or new names of its attention layers.

    Raises:
        DaguerreError: the folder has none, or it does not match its config.
    """
    tensors = read_autoencoder_tensors(folder, device=device, dtype=dtype)
    return build(AutoencoderKL, autoencoder_config(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE), folder, tensors)


def read_autoencoder_tensors(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of an autoencoder's folder under today's names. Raises DaguerreError if a file is missing or truncated."""
    return {modernize_key(name): tensor for name, tensor in read_part(folder, device=device, dtype=dtype).items()}


@with_config_errors
def load_text_encoder(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CLIPText:
    """The CLIP text encoder of a folder, with or without the prefix `text_model.` in its names.

    Raises:
        DaguerreError: the folder has none, or it does not match its config.
    """
    given = read_json(folder / CONFIG_FILE)
    kind = next(iter(given.get("architectures") or ["CLIPTextModel"]))
    if kind not in TEXT_ENCODERS:
        raise DaguerreError(f"'{folder}' holds a {kind}; supported text encoders are {' and '.join(TEXT_ENCODERS)}.")
    config = clip_text_config(given, folder / CONFIG_FILE, projected=TEXT_ENCODERS[kind])
    tensors = {_add_text_model_prefix(name): t for name, t in read_part(folder, device=device, dtype=dtype).items()}
    return build(CLIPText, config, folder, {name: t for name, t in tensors.items() if not name.endswith(POSITION_IDS)})


def load_image_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> CLIPVision:
    """The CLIP vision encoder of a folder, with its projection. Raises DaguerreError if it is missing or does not match its config."""
    config = clip_vision_config(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    tensors = read_part(folder, device=device, dtype=dtype)
    return build(CLIPVision, config, folder, {name: t for name, t in tensors.items() if not name.endswith(POSITION_IDS)})


def read_part(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one part: from one file, its half-precision variant, or the shards that an index lists.

    Raises:
        DaguerreError: a file is missing or truncated, or holds NaN or infinity.
    """
    return open_tensors(weights_in(folder)).to_compute_layout(device, dtype)


def build(network: Callable[[Any], M], config: object, folder: Path, tensors: Mapping[str, Tensor]) -> M:
    """The network of a config with these tensors, in eval mode. Raises DaguerreError if they do not match the config."""
    with shapes_only():
        module = network(config)
    fill(module, tensors, folder)
    return module.eval()


def modernize_key(name: str) -> str:
    """Today's name of an autoencoder's tensor; before 2023 its attention layers were named query, key, value and proj_attn."""
    match = re.fullmatch(rf"(.*\.attentions\.\d+\.)({'|'.join(OLD_ATTENTION_NAMES)})(\.\w+)", name)
    return f"{match[1]}{OLD_ATTENTION_NAMES[match[2]]}{match[3]}" if match else name


def _add_text_model_prefix(name: str) -> str:
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name
