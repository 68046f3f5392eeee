"""A program that a type checker reads and nobody runs: `make lint` checks every `assert_type`, and that every expected error is one."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from PIL import Image

import daguerre
from daguerre import GeneratedImage, GeneratedImages, Request, Step
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.planners.vq_prior import CodeStep
from daguerre.pipelines.tasks import ImageToImage
from daguerre.weights import load_diffusion, load_vae


def loading() -> None:
    assert_type(daguerre.load(), LatentDiffusion)
    assert_type(daguerre.load(device="cpu", dtype=torch.bfloat16), LatentDiffusion)
    assert_type(daguerre.load("model"), LatentDiffusion | LatentPrior)
    assert_type(daguerre.load(Path("model"), offline=True), LatentDiffusion | LatentPrior)
    assert_type(daguerre.load("model", vae="other"), LatentDiffusion)
    assert_type(daguerre.load("model.safetensors", prediction="v", heads=8, ema=True), LatentDiffusion)
    assert_type(daguerre.load("model", offload=True, device="cpu"), LatentDiffusion)
    assert_type(load_diffusion("model").unet.config.context_width, int | None)
    load_vae("vae", scaling_factor=0.13025)
    daguerre.load("model", predicts="v")  # pyright: ignore[reportCallIssue]
    daguerre.load("model", prediction="noise")  # pyright: ignore[reportCallIssue, reportArgumentType]


def generating(model: LatentDiffusion, prior: LatentPrior) -> None:
    assert_type(daguerre.generate(model, "a red apple"), GeneratedImages)
    assert_type(daguerre.generate(model, ["a red apple", "a cat"], steps=4, guidance_scale=2, seed=7), GeneratedImages)
    assert_type(daguerre.generate(model, prompt=("a", "b"), width=96, height=64, guidance_interval=(0.1, 0.8)), GeneratedImages)
    assert_type(daguerre.generate(prior, Request(steps=3), temperature=0.9, top_k=8), GeneratedImages)
    given = InputImage.from_any(daguerre.to_image(torch.zeros(3, 8, 8)))
    (image,) = daguerre.generate(model, task=ImageToImage(given, strength=0.5))
    assert_type(image, GeneratedImage)
    assert_type(image.image, Image.Image)
    assert_type(daguerre.stream(model, prompt="a"), Iterator[Step])
    assert_type(daguerre.stream(prior, prompt="a"), Iterator[CodeStep])
    daguerre.generate(model, prompt=3)  # pyright: ignore[reportArgumentType]
    daguerre.generate(model, step=3)  # pyright: ignore[reportCallIssue]
    daguerre.generate(model, tiling="z")  # pyright: ignore[reportArgumentType]


def converting(model: LatentDiffusion, image: Image.Image, pixels: np.ndarray) -> None:
    assert_type(daguerre.encode(model, image), torch.Tensor)
    assert_type(daguerre.decode(model, torch.zeros(1, 4, 8, 8)), Image.Image)
    assert_type(daguerre.to_tensor(pixels), torch.Tensor)
    assert_type(daguerre.to_image(torch.zeros(3, 8, 8)), Image.Image)
    assert_type(daguerre.save(model, "folder"), Path)
