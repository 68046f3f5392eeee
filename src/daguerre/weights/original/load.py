"""A whole model out of one file (or its shards, or a folder of parts).

Every name and shape of every part is checked before the first weight is read, so nothing is ever half loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from daguerre.conditioning import LDMTextConditioner, SDXLConditioner, TextConditioner, Tokenizer, WordPiece
from daguerre.conditioning.class_map_image import ClassConditioner, LayoutConditioner, MapConditioner, UnconditionalConditioner
from daguerre.conditioning.tokenizer import EOS
from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import Schedule
from daguerre.errors import DaguerreError, join_names
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.spatial_rescaler import SpatialRescaler
from daguerre.models.unet import UNet
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.nn.meta import fill, shapes_only
from daguerre.runtime.allocator import release_pages
from daguerre.runtime.offload import SequentialOffload, offload_dtype
from daguerre.weights.diffusers.configs import schedule_config
from daguerre.weights.diffusers.index import own_guidance
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import DetectedModel, detect, with_file_schedule
from daguerre.weights.original.families import unknown_prediction_error
from daguerre.weights.tensors.reader import open_tensors, weight_files
from daguerre.weights.tensors.safetensors import to_compute_layout

Give = Callable[[nn.Module, str], None]  # a network built on the meta device gets the tensors of a part
BLANK = "!"  # OpenCLIP's padding token, whose id is 0


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
) -> LatentDiffusion:
    """Open a model that lies in one file, in shards with an index, or in a folder of parts.

    Args:
        prediction: what the network predicts, where the file does not say.
        heads: of the UNet, one number or one per level, where its family has no rule.
        ema: read the running average of the UNet's weights; None: only where there is nothing else.
        variant: of a folder's files, such as "fp16".
        offload: keep one network in memory at a time; a SequentialOffload also states which ones stay loaded.

    Raises:
        DaguerreError: a part is missing or does not fit, or numbers are not finite; lists what and where.
    """
    file = open_tensors(path, variant=variant)
    about = with_file_schedule(detect(file, prediction=prediction, heads=heads, ema=ema))
    _check_whole(about)
    if about.prediction is None:
        raise unknown_prediction_error(path)
    order = SequentialOffload() if offload is True else offload or None
    files = weight_files(file.path, variant)
    mapped = _mapped(files)

    def place(tensor: Tensor) -> Tensor:
        return to_compute_layout(tensor, device, dtype, mapped=mapped(tensor))

    def release(tensor: Tensor) -> None:
        if mapped(tensor):
            release_pages(tensor)

    names = [name for name in file.shapes if name not in about.contents.ignored]
    tensors = split_components(file.read(names, None if order is None else release), ema=ema).parts

    def give(network: nn.Module, part: str) -> None:
        wanted = network.state_dict().keys() if isinstance(network, CLIPText) else None  # its highest blocks may be left in the file
        given = {name: tensor for name, tensor in about.canonical(tensors[part]).items() if wanted is None or name in wanted}
        if order is not None and part not in order.keep_loaded:
            order.add(network, given, place, release, path)
            return
        fill(network, {name: place(tensor) for name, tensor in given.items()}, path)
        if order is not None:
            order.register_resident(network)

    unet, autoencoder = about.networks["unet"], about.networks["vae"]
    assert isinstance(unet, UNet)
    assert isinstance(autoencoder, AutoencoderKL | VQModel)
    give(unet, "unet")
    give(autoencoder, "vae")
    return LatentDiffusion(
        unet=unet.eval(),
        autoencoder=autoencoder.eval(),
        conditioner=_conditioner(about, give),
        schedule=Schedule(about.schedule),
        prediction=about.prediction,
        name=file.path.resolve().name if file.path.is_dir() else file.path.stem,
        sample_size=about.size,
        default_guidance=own_guidance(about.stored_configs.get("model_index", {})),
        files=files,
        low_res_schedule=_low_resolution(about),
        unet_offload_dtype=None
        if order is None or "unet" in order.keep_loaded
        else offload_dtype(about.canonical(tensors["unet"]).values(), torch.device(device), dtype),
    )


def load_first_stage_file(
    path: str | Path,
    *,
    scaling_factor: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AutoencoderKL | VQModel:
    """The first stage in a file of its own or in a whole model's.

    Args:
        scaling_factor: of latents; None: the whole model's, or what is usual.

    Raises:
        DaguerreError: there is none, or it does not fit.
    """
    file = open_tensors(path)
    about = with_file_schedule(detect(file))
    part = about.contents.parts.get("vae")
    if part is None or about.autoencoder is None:
        raise DaguerreError(f"'{path}' holds no autoencoder; give a file that does, such as vae-ft-mse-840000-ema-pruned.safetensors.")
    config = about.autoencoder if scaling_factor is None else replace(about.autoencoder, scaling_factor=scaling_factor)
    tensors = split_components(file.read(part.prefix + name for name in part.original)).parts["vae"].canonical()
    with shapes_only():
        autoencoder = VQModel(config) if isinstance(config, VQModelConfig) else AutoencoderKL(config)
    mapped = _mapped(weight_files(file.path))
    fill(autoencoder, {name: to_compute_layout(tensor, device, dtype, mapped=mapped(tensor)) for name, tensor in tensors.items()}, path)
    return autoencoder.eval()


def _conditioner(about: DetectedModel, give: Give) -> Callable[[Sequence[str]], Conditioning]:
    """The way from prompts to conditions of each family."""
    texts = about.texts

    def tower(
        part: str, config: CLIPTextConfig, pad: str = EOS, *, layer: int = -1, norm: bool = True, cut_layers: int = 0
    ) -> TextConditioner:
        beside = about.file.path / part.replace("text_encoder", "tokenizer")
        tokenizer = Tokenizer.from_folder(beside) if beside.is_dir() else Tokenizer.clip(pad=pad)
        with shapes_only():
            encoder = CLIPText(config)
        give(encoder, part)
        return TextConditioner(tokenizer, encoder.eval(), layer=layer, norm=norm, cut_layers=cut_layers)

    assert about.family is not None
    if about.family.name == "sd1":
        return tower("text_encoder", texts["text_encoder"]).eval()
    if about.family.name.startswith("sd2"):
        # The penultimate layer is read: OpenCLIP's last block and its projection are left in the file.
        config = texts["text_encoder"]
        if config.projection is not None:
            config = replace(config, layers=config.layers - 1, projection=None)
        return tower("text_encoder", config, BLANK, cut_layers=1).eval()
    if about.family.name.startswith("sdxl"):
        towers = [tower("text_encoder", texts["text_encoder"], layer=-2, norm=False)] if "text_encoder" in texts else []
        towers.append(tower("text_encoder_2", texts["text_encoder_2"], BLANK, layer=-2, norm=False))
        refiner, index = about.family.name == "sdxl-refiner", about.stored_configs.get("model_index", {})
        scored, zero_empty = index.get("requires_aesthetics_score", refiner), index.get("force_zeros_for_empty_prompt", not refiner)
        return SDXLConditioner(towers, uses_aesthetic_score=scored, zero_empty=zero_empty).eval()
    return _without_clip(about, give)


def _without_clip(about: DetectedModel, give: Give) -> Callable[[Sequence[str]], Conditioning]:
    """The conditioners of latent diffusion before Stable Diffusion."""

    def filled(part: str) -> nn.Module:
        give(about.networks[part], part)
        return about.networks[part].eval()

    assert about.family is not None
    match about.family.name.split("-")[1]:
        case "text2img":
            encoder, beside = filled("text_encoder"), about.file.path / "tokenizer"
            assert isinstance(encoder, LDMBert)
            length = encoder.config.length
            tokenizer = WordPiece.from_folder(beside, max_length=length) if beside.is_dir() else WordPiece.bert(max_length=length)
            return LDMTextConditioner(tokenizer, encoder).eval()
        case "layout":
            encoder = filled("text_encoder")
            assert isinstance(encoder, LDMBert)
            return LayoutConditioner(encoder).eval()
        case "class":
            classes = filled("condition")
            assert isinstance(classes, ClassConditioner)
            return classes
        case "semantic":
            rescaler = filled("condition")
            assert isinstance(rescaler, SpatialRescaler)
            return MapConditioner(rescaler).eval()
    return UnconditionalConditioner()


def _low_resolution(about: DetectedModel) -> Schedule | None:
    """The noise on the small picture of an upscaler: as its folder says, else as the published one has it."""
    if about.family is None or about.family.name != "sd2-upscaler":
        return None
    given = about.stored_configs.get("low_res_scheduler")
    return Schedule(schedule_config(given, about.file.path)[0] if given else about.family.schedule)


NEEDS = {
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
}  # the parts beside UNet and autoencoder


def _check_whole(about: DetectedModel) -> None:
    path, parts = about.file.path, about.contents.parts
    held = ", ".join(f"{part.name} ({part.kind.network})" for part in parts.values()) or "no network that is known here"
    if about.family is None:
        raise DaguerreError(f"'{path}' is not a whole model: it holds {held}. A model has a UNet, an autoencoder and a text encoder.")
    lost = [name for name in ("vae", *NEEDS[about.family.name]) if name not in parts]
    if lost:
        raise DaguerreError(f"'{path}' holds only {held}; a whole {about.family.name} model also has {', '.join(lost)}.")
    faults = {what: names for what, names in about.key_errors().items() if names}
    if faults:
        lists = "; ".join(f"{len(names)} {what} ({join_names(names)})" for what, names in faults.items())
        raise DaguerreError(f"'{path}' does not fit the {about.family.name} model that it looks like: {lists}.")


def _mapped(files: Sequence[Path]) -> Callable[[Tensor], bool]:
    """Tells whether a tensor lies in the map of one of these files as a whole, and not in memory of its own."""
    sizes = {each.stat().st_size for each in files}
    return lambda tensor: tensor.untyped_storage().nbytes() in sizes
