"""Images with the image that a latent diffusion model is conditioned on, and their encoding.

A pair is one wide image, so that loaders, caches and crops treat both alike:

    [ image | map or hole ]   ─►   latents z and channels c of the condition, at the same positions
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.conditioning.bbox_tokens import layout_tokens
from daguerre.conditioning.class_map_image import ConcatConditioner, ImageConditioner
from daguerre.data import BatchLoader, Dataset, EmojiDataset, FolderDataset, ShapesDataset
from daguerre.data.condition_maps import edges, load_condition_maps, random_hole, with_maps
from daguerre.data.dataset import Sample, Subset
from daguerre.data.images import to_image
from daguerre.data.shapes import SHAPES
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPVision
from daguerre.pipelines.images.preprocessors import PREPROCESSORS
from daguerre.pipelines.planners.image_variation import clip_pixels
from daguerre.training.datasets.encoded import EncodedSamples
from daguerre.training.datasets.latents import cache_latents
from daguerre.training.objectives.perceptual import image_normalization
from daguerre.training.options.ldm import LDMRecipe
from daguerre.training.run_identity import fingerprint
from daguerre.weights import load_clip
from daguerre.weights.catalog import clip_folder
from daguerre.weights.diffusers.clip_config import IMAGE_MEAN, IMAGE_STD
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.diffusers.load import load_image_encoder
from daguerre.weights.diffusers.vae import FirstStage
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_json

ENCODE_IMAGES = 50  # images encoded in one call
LAYOUT_VOCABULARY, LAYOUT_LENGTH = 1024, 32  # tokens, which are also the cells of a 32 × 32 grid; positions, for ten objects
COLOUR_SAMPLES, MIN_COLOUR = 64, 12  # images that are searched for colours; difference of 8-bit channels that counts as one


def with_condition_image(recipe: LDMRecipe, source: Dataset) -> tuple[Dataset, ConcatConditioner]:
    """The images of a recipe with the images that they are conditioned on, and the conditioner.

    Raises:
        DaguerreError: there are no such maps, a map is missing or does not fit its image, or images to colour have no colours.
    """
    match recipe.condition:
        case "map":
            computed = {"edges": edges, **PREPROCESSORS}
            maps = load_condition_maps(source, recipe.map, recipe.maps, computed)
            kind = "semantic" if maps.palette else "map"
            return with_maps(source, maps.source), ConcatConditioner(kind, palette=maps.palette)
        case "masked":
            holes = Subset(source.size, "holes", lambda _, rng: Sample(random_hole(source.size, rng), ""), range(len(source)))
            return with_maps(source, holes), ConcatConditioner("masked")
        case "low-res":
            return source, ConcatConditioner("low-res", scale=recipe.scale)
    check_colours(recipe.data, source)
    return source, ConcatConditioner("grey")


def check_colours(data: str, source: Dataset) -> None:
    """Raise DaguerreError if none of some of the images has colours."""
    for index in np.linspace(0, len(source) - 1, min(COLOUR_SAMPLES, len(source))).astype(int):
        pixels = np.asarray(source.sample(int(index), np.random.default_rng(0)).image).astype(int)
        if np.ptp(pixels, axis=-1).max() > MIN_COLOUR:
            return
    raise DaguerreError(f"The images in '{data}' are all grey, so a model cannot learn colours from them; use coloured images.")


def condition_image(conditioner: ConcatConditioner, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The condition image of samples x (B, 3, H, H or 2·H) for `ConcatConditioner.channels`, and the hole (B, 1, H, H) if it has one."""
    side = x.shape[-2]
    image, second = x[..., :side], x[..., side:]
    match conditioner.kind:
        case "low-res":
            small = side // conditioner.scale
            return F.interpolate(image, size=(small, small), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1), None
        case "masked":
            return image, (second[:, :1] > 0).to(x.dtype)
        case "grey":
            return image, None
    return second, None


@dataclass(frozen=True)
class Encoded:
    """Latents (N, Z, h, w), captions, and the conditions that do not come from captions."""

    latents: Tensor | EncodedSamples
    captions: list[str]
    condition: Conditioning | None


@dataclass(frozen=True)
class LatentEncoder:
    """Encodes images, with the images that they are conditioned on, once, with a cache in `folder`."""

    first_stage: FirstStage
    conditioner: object
    folder: Path
    seed: int
    workers: int

    def __call__(self, source: Dataset, count: int) -> Encoded:
        """`count` samples in the order of the seed."""
        first_stage, conditioner = self.first_stage, self.conditioner
        batches = BatchLoader(source, min(count, ENCODE_IMAGES), self.seed + 3)
        key = fingerprint(source.key, self.seed, network_hash(first_stage))
        if isinstance(conditioner, ConcatConditioner):
            concat, f = conditioner, first_stage.downsample_factor

            def encode(x: Tensor) -> Tensor:
                channels = concat.channels(first_stage.encode, f, *condition_image(concat, x))
                return torch.cat([first_stage.encode(x[..., : x.shape[-2]]), channels], dim=1)

            described = fingerprint(key, concat.kind, concat.scale)
            encoded, captions = cache_latents(batches, first_stage, count, self.folder, described, self.workers, encode)
            both = encoded.joined()
            channels = concat.channel_count(latent_channels(first_stage), f)
            return Encoded(both[:count, :-channels], captions[:count], Conditioning(concat=both[:count, -channels:]))
        latents, captions = cache_latents(batches, first_stage, count, self.folder, key, self.workers)
        condition = None
        if isinstance(conditioner, ImageConditioner):
            encoder = conditioner
            described = fingerprint(key, network_hash(encoder))
            embeddings, _ = cache_latents(
                batches, first_stage, count, self.folder, described, self.workers, lambda x: clip_embeddings(encoder, x)
            )
            condition = Conditioning(context=embeddings.joined()[:count])
        return Encoded(latents.first(count), captions[:count], condition)


def clip_embeddings(conditioner: ImageConditioner, x: Tensor) -> Tensor:
    """Contexts (B, 1, D) of images x (B, 3, H, W), prepared as image variations prepare theirs."""
    side = conditioner.encoder.config.size
    return conditioner.encode_image(torch.cat([clip_pixels(to_image(each), side) for each in x]))


def latent_channels(first_stage: FirstStage) -> int:
    """Z of the latents that diffusion works on."""
    return first_stage.config.latent_channels if isinstance(first_stage, AutoencoderKL) else first_stage.config.quantizer.width


def with_layouts(recipe: LDMRecipe, source: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """The images of a recipe with their layouts as captions, and the names of the classes.

    Raises:
        DaguerreError: there are no layouts of these images, or they do not fit the options.
    """
    size = source.size
    match source:
        case ShapesDataset():
            names = SHAPES

            def layout(index: int, rng: np.random.Generator) -> str:
                return "; ".join(_object(drawn.shape, [side / size for side in drawn.box]) for drawn in source.scene(index, rng).shapes)

        case EmojiDataset():
            names = tuple(sorted({thing.subgroup for thing in source.things}))

            def layout(index: int, rng: np.random.Generator) -> str:
                placed = source.scene(index, rng).placed
                return "; ".join(_object(each.thing.subgroup, [side / size for side in each.box(size)]) for each in placed)

        case FolderDataset() if recipe.maps is not None:
            if recipe.images.crop != "stretch" or recipe.images.mirror:
                raise DaguerreError("Boxes are shares of a whole image: with --condition layout use --crop stretch and no --mirror.")
            layouts = layout_texts(recipe.maps, source)
            names = tuple(sorted({each.rsplit(maxsplit=4)[0] for text in layouts for each in text.split("; ") if each}))
            for text in layouts:  # a wrong line stops here, not after encoding
                layout_tokens(text, LAYOUT_LENGTH, LAYOUT_VOCABULARY, names)

            def layout(index: int, rng: np.random.Generator) -> str:
                return layouts[index]

        case _:
            raise DaguerreError(
                f"There are no boxes of the images in '{recipe.data}'; use shapes or emoji, or give a directory of text files with --maps."
            )

    def sample(index: int, rng: np.random.Generator) -> Sample:
        text = layout(index, deepcopy(rng))
        return Sample(source.sample(index, rng).image, text)

    digest = fingerprint(names, [layout(i, np.random.default_rng(0)) for i in range(len(source))])
    return Subset(size, f"layouts {digest} of {source.key}", sample, range(len(source)), source.rendered), names


def _object(name: str, box: Sequence[float]) -> str:
    return " ".join([name, *(f"{side:.4g}" for side in box)])


def layout_texts(folder: Path, images: FolderDataset) -> list[str]:
    """The layout of each image of a folder: the lines of `folder/a/b.txt` for the image `a/b.jpg`, one object each.

    Raises:
        DaguerreError: a file is missing or cannot be read.
    """
    found = []
    for image in images.relative_paths:
        path = folder / image.with_suffix(".txt")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DaguerreError(
                f"Cannot read the layout '{path}' of the image '{image}' ({error}): each image needs a text file of its name with one "
                "CLASS LEFT TOP RIGHT BOTTOM per line."
            ) from None
        found.append("; ".join(" ".join(line.replace(",", " ").split()) for line in lines if line.strip()))
    return found


def load_image_conditioner(folder: Path | None = None) -> ImageConditioner:
    """The image encoder of a CLIP: a folder from `daguerre train clip-scorer`, or a published CLIP in the layout of transformers; None is
    the embedded one.

    Raises:
        DaguerreError: there is none, or its files are incomplete.
    """
    folder = clip_folder(folder)
    given = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    if "vision_config" in given:
        encoder = load_clip(folder)[0].vision
        encoder = encoder if image_normalization(folder) else with_clip_normalization(encoder)
    elif given.get("model_type") == "clip_vision_model":
        encoder = load_image_encoder(folder, device="cpu", dtype=torch.float32)
    else:
        raise DaguerreError(f"There is no CLIP in '{folder}'; give a folder from `daguerre train clip-scorer`, or a published CLIP.")
    return ImageConditioner(encoder).requires_grad_(False).eval()


@torch.no_grad()
def with_clip_normalization(encoder: CLIPVision) -> CLIPVision:
    """A vision tower that takes images normalised as CLIP's, from one that takes x in [−1, 1] as those trained here do.

    x = 2σ·n + (2μ − 1) for normalised n: the patch embedding scales its channels, and the position embedding adds the constant.
    """
    encoder = deepcopy(encoder)
    embeddings = encoder.vision_model.embeddings
    patch, positions = embeddings.patch_embedding.weight, embeddings.position_embedding.weight
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    positions[1:] += (patch * (2 * mean - 1)[:, None, None]).sum((1, 2, 3))  # the first position is that of the class
    patch *= (2 * std)[:, None, None]
    return encoder
