"""Load a complete model from one file, its shards, or a folder of parts.

Every name and shape of every part is checked before the first weight is read, so nothing is ever loaded partially.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from daguerre.conditioning import LDMTextConditioner, SDXLConditioner, TextConditioner, Tokenizer, WordPiece
from daguerre.conditioning.class_map_image import ClassConditioner, LayoutConditioner, MapConditioner
from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import Schedule
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.spatial_rescaler import SpatialRescaler
from daguerre.models.tiny_autoencoder import TinyAutoencoder
from daguerre.models.unet import UNet
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.nn.meta import fill, shapes_only
from daguerre.runtime.allocator import release_pages
from daguerre.runtime.offload import SequentialOffload, offload_dtype
from daguerre.weights.diffusers.index import stored_guidance
from daguerre.weights.diffusers.pixel import plain_conditioner, stored_class_names
from daguerre.weights.diffusers.scheduler_config import folder_sampler, schedule_config
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import DetectedModel, attachment_kind, detect, unrounded, with_file_schedule
from daguerre.weights.original.families import unknown_prediction_error
from daguerre.weights.original.tokenizer import tokenizer_of
from daguerre.weights.tensors.reader import open_tensors, weight_files
from daguerre.weights.tensors.safetensors import to_compute_layout

FillPart = Callable[[nn.Module, str], None]  # fills a network on the meta device with the tensors of a part
# The parts that a model of each family has in addition to the UNet and the autoencoder.
REQUIRED_PARTS = {
    "sd1": ("text_encoder",),
    "sd2": ("text_encoder",),
    "sd2-upscaler": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
    "sdxl-refiner": ("text_encoder_2",),
    "ldm-unconditional": (),
    "ldm-churches": (),
    "ldm-super-resolution": (),
    "ldm-inpainting": (),
    "ldm-class": ("condition",),
    "ldm-class-f8": ("condition",),
    "ldm-semantic": ("condition",),
    "ldm-layout": ("text_encoder",),
    "ldm-text2img": ("text_encoder",),
    "ldm-text2img-vq": ("text_encoder",),
}


def load_single_file(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: Prediction | None = None,
    heads: int | tuple[int, ...] | None = None,
    ema: bool | None = None,
    variant: str | None = None,
    offload: bool | SequentialOffload = False,
    load_other_vae: Callable[[float], AutoencoderKL | TinyAutoencoder] | None = None,
) -> LatentDiffusion:
    """Load a model from one file, from shards with an index, or from a folder of parts.

    Args:
        prediction: what the UNet predicts, if the file does not contain it.
        heads: of the UNet, one number or one per level, if its family has no rule.
        ema: use the EMA of the UNet's weights; None uses it only if the file has no other weights.
        variant: of a folder's files, such as "fp16".
        offload: keep one network in memory at a time; a SequentialOffload also states which ones stay loaded.
        load_other_vae: loads the autoencoder, given the scaling factor of the latents, instead of that of the file, which may have none.

    Raises:
        DaguerreError: a part is missing or does not fit, or numbers are not finite; lists all of them.
    """
    file = open_tensors(path, variant=variant)
    detected = with_file_schedule(detect(file, prediction=prediction, heads=heads, ema=ema))
    _check_complete(detected, needs_vae=load_other_vae is None)
    if detected.prediction is None:
        raise unknown_prediction_error(path)
    offloader = SequentialOffload() if offload is True else offload or None
    files = weight_files(file.path, variant)
    is_mapped = _memory_map_test(files)

    def to_device(tensor: Tensor) -> Tensor:
        return to_compute_layout(tensor, device, dtype, mapped=is_mapped(tensor))

    def release(tensor: Tensor) -> None:
        if is_mapped(tensor):
            release_pages(tensor)

    names = [name for name in file.shapes if name not in detected.contents.ignored]
    components = split_components(file.read(names, None if offloader is None else release), ema=ema).parts

    def fill_part(network: nn.Module, part: str) -> None:
        tensors = detected.canonical(components[part])
        if isinstance(network, CLIPText):  # it may have fewer layers than the file
            tensors = {name: tensors[name] for name in network.state_dict() if name in tensors}
        if offloader is not None and part not in offloader.keep_loaded:
            offloader.add(network, tensors, to_device, release, path)
            return
        fill(network, {name: to_device(tensor) for name, tensor in tensors.items()}, path)
        if offloader is not None:
            offloader.register_resident(network)

    unet = detected.networks["unet"]
    assert isinstance(unet, UNet)
    fill_part(unet, "unet")
    if load_other_vae is None:
        autoencoder = detected.networks["vae"]
        fill_part(autoencoder, "vae")
    else:
        autoencoder = load_other_vae(_scaling_factor(detected))
        if offloader is not None:
            offloader.register_resident(autoencoder)
    assert isinstance(autoencoder, AutoencoderKL | VQModel | TinyAutoencoder)
    return LatentDiffusion(
        unet=unet.eval(),
        autoencoder=autoencoder.eval(),
        conditioner=_conditioner(detected, fill_part),
        schedule=Schedule(detected.schedule),
        prediction=detected.prediction,
        name=file.path.resolve().name if file.path.is_dir() else file.path.stem,
        sample_size=detected.sample_size,
        default_guidance=stored_guidance(detected.stored_configs.get("model_index", {})),
        files=files,
        sampler_config=folder_sampler(detected.stored_configs.get("scheduler", {})),
        low_res_schedule=_low_res_schedule(detected),
        unet_offload_dtype=None
        if offloader is None or "unet" in offloader.keep_loaded
        else offload_dtype(detected.canonical(components["unet"]).values(), torch.device(device), dtype),
    )


def load_first_stage_file(
    path: str | Path,
    *,
    scaling_factor: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AutoencoderKL | VQModel:
    """Load the first stage from a file of its own or of a complete model.

    Args:
        scaling_factor: of latents; None is that of the complete model, or the usual one.

    Raises:
        DaguerreError: the file has no first stage, or it does not fit.
    """
    file = open_tensors(path)
    detected = with_file_schedule(detect(file))
    part = detected.contents.parts.get("vae")
    if part is None or detected.autoencoder is None:
        raise DaguerreError(f"'{path}' holds no autoencoder; give a file that does, such as vae-ft-mse-840000-ema-pruned.safetensors.")
    config = detected.autoencoder if scaling_factor is None else replace(detected.autoencoder, scaling_factor=scaling_factor)
    tensors = split_components(file.read(part.prefix + name for name in part.original)).parts["vae"].canonical()
    with shapes_only():
        autoencoder = VQModel(config) if isinstance(config, VQModelConfig) else AutoencoderKL(config)
    is_mapped = _memory_map_test(weight_files(file.path))
    tensors = {name: to_compute_layout(tensor, device, dtype, mapped=is_mapped(tensor)) for name, tensor in tensors.items()}
    fill(autoencoder, tensors, path)
    return autoencoder.eval()


def _conditioner(detected: DetectedModel, fill_part: FillPart) -> Callable[[Sequence[str]], Conditioning]:
    """The conditioner of the family, with its networks filled."""
    text_encoders = detected.text_encoders

    def text_conditioner(part: str, config: CLIPTextConfig, *, layer: int = -1, norm: bool = True, cut_layers: int = 0) -> TextConditioner:
        tokenizer = tokenizer_of(part, detected)
        assert isinstance(tokenizer, Tokenizer)
        with shapes_only():
            encoder = CLIPText(config)
        fill_part(encoder, part)
        return TextConditioner(tokenizer, encoder.eval(), layer=layer, norm=norm, cut_layers=cut_layers)

    assert detected.family is not None
    family = detected.family.name
    if family == "sd1":
        return text_conditioner("text_encoder", text_encoders["text_encoder"]).eval()
    if family.startswith("sd2"):
        # SD 2 uses the penultimate layer of OpenCLIP, so the last layer and the projection are not loaded.
        config = text_encoders["text_encoder"]
        if config.projection is not None:
            config = replace(config, layers=config.layers - 1, projection=None)
        return text_conditioner("text_encoder", config, cut_layers=1).eval()
    if family.startswith("sdxl"):
        towers = []
        if "text_encoder" in text_encoders:
            towers.append(text_conditioner("text_encoder", text_encoders["text_encoder"], layer=-2, norm=False))
        towers.append(text_conditioner("text_encoder_2", text_encoders["text_encoder_2"], layer=-2, norm=False))
        refiner, index = family == "sdxl-refiner", detected.stored_configs.get("model_index", {})
        scored, zero_empty = index.get("requires_aesthetics_score", refiner), index.get("force_zeros_for_empty_prompt", not refiner)
        return SDXLConditioner(towers, uses_aesthetic_score=scored, zero_empty=zero_empty).eval()
    return _ldm_conditioner(detected, fill_part)


def _ldm_conditioner(detected: DetectedModel, fill_part: FillPart) -> Callable[[Sequence[str]], Conditioning]:
    """The conditioner of a latent diffusion model older than Stable Diffusion."""

    def filled(part: str) -> nn.Module:
        fill_part(detected.networks[part], part)
        return detected.networks[part].eval()

    assert detected.family is not None
    index = detected.stored_configs.get("model_index", {})
    match detected.family.name.split("-")[1]:
        case "text2img":
            encoder, tokenizer = filled("text_encoder"), tokenizer_of("text_encoder", detected)
            assert isinstance(encoder, LDMBert)
            assert isinstance(tokenizer, WordPiece)
            return LDMTextConditioner(tokenizer, encoder).eval()
        case "layout":
            encoder = filled("text_encoder")
            assert isinstance(encoder, LDMBert)
            return LayoutConditioner(encoder, stored_class_names(index) or ()).eval()
        case "class":
            classes = filled("condition")
            assert isinstance(classes, ClassConditioner)
            return classes
        case "semantic":
            rescaler = filled("condition")
            assert isinstance(rescaler, SpatialRescaler)
            return MapConditioner(rescaler).eval()
    return plain_conditioner(index)


def _low_res_schedule(detected: DetectedModel) -> Schedule | None:
    """The noise schedule for an upscaler's low-resolution input: the one of its folder, or that of the published model."""
    if detected.family is None or detected.family.name != "sd2-upscaler":
        return None
    given = detected.stored_configs.get("low_res_scheduler")
    return Schedule(schedule_config(given, detected.file.path)[0] if given else detected.family.schedule)


def _scaling_factor(detected: DetectedModel) -> float:
    """The scaling factor of the latents, also if the file has no autoencoder."""
    if detected.autoencoder is not None:
        return 1.0 if isinstance(detected.autoencoder, VQModelConfig) else detected.autoencoder.scaling_factor
    assert detected.family is not None
    usual, file = detected.family.scaling_factor, detected.file
    return unrounded(file.tensor("scale_factor"), usual) if "scale_factor" in file.shapes else usual


def _check_complete(detected: DetectedModel, *, needs_vae: bool) -> None:
    path, parts = detected.file.path, detected.contents.parts
    held = ", ".join(f"{part.name} ({part.kind.network})" for part in parts.values()) or "no known network"
    if detected.family is None and (kind := attachment_kind(detected.file.shapes)):
        raise DaguerreError(f"'{path}' is not a model but a file of the kind {kind}, which modifies a model; give the model.")
    if detected.family is None:
        raise DaguerreError(f"'{path}' is not a complete model: it holds {held}. A model has a UNet, an autoencoder and a text encoder.")
    family = detected.family.name
    missing = [name for name in (*(["vae"] if needs_vae else []), *REQUIRED_PARTS[family]) if name not in parts]
    if missing == ["vae"]:
        raise DaguerreError(f"'{path}' has no autoencoder (VAE): give one with --vae, in Python vae=.")
    if missing:
        raise DaguerreError(f"'{path}' holds only {held}; a complete {family} model also has {', '.join(missing)}.")
    detected.check_keys()


def _memory_map_test(files: Sequence[Path]) -> Callable[[Tensor], bool]:
    """A function that tests whether a tensor is part of the memory map of one of these files, instead of having its own memory."""
    sizes = {file.stat().st_size for file in files}
    return lambda tensor: tensor.untyped_storage().nbytes() in sizes
