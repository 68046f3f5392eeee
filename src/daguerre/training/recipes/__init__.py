"""Recipes of `daguerre train`: an options dataclass and a run function each, both imported on demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """One line of help, and "module:name" of the options and of the run function, inside `daguerre.training`."""

    summary: str
    options_path: str
    run_path: str

    @property
    def options(self) -> type:
        """The dataclass of its options; importing it does not import torch."""
        return _load(self.options_path)

    @property
    def run(self) -> Callable[[Any], Path]:
        """The function that trains and returns the directory of the finished model."""
        return _load(self.run_path)


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(f"daguerre.training.{module}"), name)


_FIRST_STAGE = "recipes.first_stage:run"
RECIPES: Mapping[str, Recipe] = {
    "emoji": Recipe(
        "the embedded model: autoencoder, CLIP, diffusion on emoji", "options.latent_diffusion:EmojiRecipe", "recipes.emoji:run"
    ),
    "shapes": Recipe("a small model of rendered shapes, on two CPU cores", "options.latent_diffusion:ShapesRecipe", "recipes.shapes:run"),
    "text-to-image": Recipe(
        "fine-tune a model on images with captions", "options.text_to_image:TextToImageRecipe", "recipes.text_to_image:run"
    ),
    "clip-scorer": Recipe(
        "the CLIP that `daguerre evaluate` scores with", "options.latent_diffusion:ClipScorerRecipe", "recipes.clip_scorer:run"
    ),
    "autoencoder": Recipe("a plain autoencoder", "options.first_stage:AutoencoderRecipe", _FIRST_STAGE),
    "vae": Recipe("a variational autoencoder, on the evidence lower bound", "options.first_stage:VAERecipe", _FIRST_STAGE),
    "vqvae": Recipe("a VQ-VAE: the latent is a grid of codes", "options.first_stage:VQVAERecipe", _FIRST_STAGE),
    "vqgan": Recipe("a VQGAN: a VQ-VAE with a discriminator", "options.first_stage:VQGANRecipe", _FIRST_STAGE),
    "kl": Recipe("the autoencoder of latent diffusion", "options.first_stage:KLRecipe", _FIRST_STAGE),
    "prior": Recipe("a prior over the codes of a VQ-VAE or a VQGAN", "options.prior:PriorRecipe", "recipes.prior:run"),
    "decoder": Recipe("only the decoder of a model's autoencoder", "options.decoder:DecoderRecipe", "recipes.decoder:run"),
}
