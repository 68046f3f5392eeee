"""Recipes: what each is told, as a dataclass that a command line is made of, and the function that runs it; both loaded when asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """One line of help, and where in `daguerre.training` the two parts lie: "module:name"."""

    summary: str
    options_path: str
    run_path: str

    @property
    def options(self) -> type:
        """The dataclass of what it is told."""
        return _load(self.options_path)

    @property
    def run(self) -> Callable[[Any], Path]:
        """The function that trains, and returns where the result lies."""
        return _load(self.run_path)


def _load(where: str) -> Any:
    module, name = where.split(":")
    return getattr(import_module(f"daguerre.training.{module}"), name)


RECIPES: Mapping[str, Recipe] = {
    "emoji": Recipe("the embedded model: autoencoder, CLIP, diffusion on drawn emoji", "config:EmojiRecipe", "recipes.emoji:run"),
    "shapes": Recipe("a small model of drawn shapes, every stage, on two cores", "config:ShapesRecipe", "recipes.shapes:run"),
    "text-to-image": Recipe("a model of your own pictures and captions", "config:TextToImageRecipe", "recipes.text_to_image:run"),
    "judge": Recipe("the CLIP that `daguerre evaluate` measures with", "config:JudgeRecipe", "recipes.judge:run"),
    "autoencoder": Recipe("a plain autoencoder", "lineage_options:PlainRecipe", "recipes.first_stage:run"),
    "vae": Recipe("a variational autoencoder, on the evidence lower bound", "lineage_options:VariationalRecipe", "recipes.first_stage:run"),
    "vqvae": Recipe("a VQ-VAE: the latent is a grid of codes", "lineage_options:VQVAERecipe", "recipes.first_stage:run"),
    "vqgan": Recipe("a VQGAN: a VQ-VAE that has to convince a critic", "lineage_options:VQGANRecipe", "recipes.first_stage:run"),
    "kl": Recipe("the autoencoder of latent diffusion", "lineage_options:KLRecipe", "recipes.first_stage:run"),
    "prior": Recipe("a prior over the codes of a VQ-VAE or a VQGAN", "lineage_options:PriorRecipe", "recipes.prior:run"),
    "decoder": Recipe("the decoder alone of a model's autoencoder", "lineage_options:DecoderRecipe", "recipes.decoder:run"),
}
