"""Fills the cells of the sheet: what each generation reconstructs and generates, and how long an image takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daguerre.data.catalog import open_dataset
from daguerre.data.images import to_image, to_tensor
from daguerre.evaluation.latent_space import decode_random
from daguerre.evaluation.lineage.generations import Generation, Row
from daguerre.evaluation.reconstruct_models import encode_and_decode
from daguerre.metrics import psnr
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines import generate
from daguerre.weights import load, load_first_stage
from daguerre.weights.diffusers.vae import FirstStage

SHOWN_FACES = ("fox", "panda", "frog", "smiling face with sunglasses")  # the faces of the sheet
FACE_SIZE = 32  # side of the images of the small first stages in pixels
TILE, TILE_GAP = 96, 4  # pixels of an image in a cell, and between two

AnyGeneration = FirstStage | LatentDiffusion | LatentPrior


@dataclass(frozen=True)
class Column:
    """One generation: its images and their captions by row, its number of parameters, and the seconds that it takes for one image.

    measured: figures of the shipped weights that take longer than the sheet; empty for weights that were trained again.
    """

    generation: Generation
    images: dict[Row, list[Image.Image]]
    captions: dict[Row, str]
    parameters: int
    seconds: float
    measured: dict[str, Any]

    def numbers(self) -> dict[str, str]:
        """The rows of the table below the sheet."""
        found, formats = self.measured, {"psnr": "{:.1f} dB", "frechet": "{:.3f}", "diversity": "{:.3f}", "recall": "{:.0%}"}
        texts = {name: form.format(found[name]) if name in found else "–" for name, form in formats.items()}
        return {
            "parameters": f"{self.parameters / 1e6:.1f} M",
            "training": found.get("training", "–"),
            "time per image, here": f"{1000 * self.seconds:.0f} ms",
            "peak memory for an image": f"{found['peak_memory_mb']} MB" if "peak_memory_mb" in found else "–",
            "PSNR of reconstructions": texts["psnr"],
            "Fréchet distance of samples": texts["frechet"],
            "diversity over seeds": texts["diversity"],
            "named correctly": texts["recall"],
        }


def open_generation(generation: Generation, folder: str) -> AnyGeneration:
    """The first stage, prior or diffusion model of a generation. Raises DaguerreError if it is missing or incomplete."""
    return load_first_stage(folder) if generation.name in ("ae", "vae") else load(folder, device="cpu", dtype=torch.float32)


def fill_cells(generation: Generation, folder: str, seed: int, measured: dict[str, Any]) -> Column:
    """Reconstruct and generate `SHOWN_FACES`: everything that the generation can."""
    model = open_generation(generation, folder)
    images: dict[Row, list[Image.Image]] = {}
    captions: dict[Row, str] = {}
    if "reconstruct" not in generation.missing:
        x = render_faces(side_of(model))
        y = reconstructions(model, x)
        images["reconstruct"], captions["reconstruct"] = [*map(to_image, y)], f"PSNR {psnr(x, y).mean():.1f} dB"
    started = time.monotonic()
    for row, template in generation.samples.items():
        images[row] = [*map(to_image, sample_prompts(model, [template.format(name) for name in SHOWN_FACES], seed))]
        captions[row] = f"seed {seed}" if template else f"seeds {seed} to {seed + len(SHOWN_FACES) - 1}"
        if not isinstance(model, LatentDiffusion | LatentPrior):
            captions[row] = "random latents"
    seconds = (time.monotonic() - started) / (len(SHOWN_FACES) * len(generation.samples))
    return Column(generation, images, captions, _parameters(model), seconds, measured)


def side_of(model: AnyGeneration) -> int:
    """Side of the images of a model in pixels."""
    return model.sample_size if isinstance(model, LatentDiffusion | LatentPrior) else FACE_SIZE


def render_faces(size: int, names: Sequence[str] = SHOWN_FACES) -> Tensor:
    """True renders of faces, by name: (N, 3, size, size)."""
    source = open_dataset("emoji-faces", size)
    found = {sample.caption: sample.image for i in range(len(source)) if (sample := source.sample(i, np.random.default_rng(i)))}
    return torch.stack([to_tensor(found[name]) for name in names])


@torch.no_grad()
def reconstructions(model: AnyGeneration, x: Tensor) -> Tensor:
    """Images x (N, 3, H, W) through the first stage of a model."""
    stage = model.autoencoder if isinstance(model, LatentDiffusion | LatentPrior) else model
    return encode_and_decode(stage, x)[1].clamp(-1, 1)  # pyright: ignore[reportArgumentType]  # no cell reconstructs with an identity


@torch.no_grad()
def sample_prompts(model: AnyGeneration, prompts: Sequence[str], seed: int) -> Tensor:
    """One image (N, 3, H, W) for each prompt; an empty one is unconditional, with a seed of its own for each image."""
    if not isinstance(model, LatentDiffusion | LatentPrior):
        return decode_random(model, len(prompts), FACE_SIZE, seed).clamp(-1, 1)
    if not any(prompts):
        return torch.stack([to_tensor(image.image) for image in generate(model, prompt="", seed=seed, num_images=len(prompts))])
    return torch.stack([to_tensor(image.image) for image in generate(model, prompt=tuple(prompts), seed=seed)])


def _parameters(model: AnyGeneration) -> int:
    """The number of weights of all networks of a model."""
    networks = model.modules if isinstance(model, LatentDiffusion | LatentPrior) else (model,)
    return sum(weight.numel() for network in networks for weight in network.parameters())


def mosaic(images: Sequence[Image.Image]) -> Image.Image:
    """Up to four images as one white square, each enlarged or reduced to `TILE` pixels."""
    side = 2 * TILE + TILE_GAP
    cell = Image.new("RGB", (side, side), "white")
    for i, image in enumerate(images[:4]):
        at = (i % 2) * (TILE + TILE_GAP), (i // 2) * (TILE + TILE_GAP)
        cell.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), at)
    return cell
