"""Recipes of `daguerre train`: an options dataclass and a run function each, both imported on demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """One line of help, "module:name" of the options and of the run function, inside `daguerre.training`, and the command to type next.

    `next_command` has the fields {path}, of the finished model, and {data} and {resolution}, of the options.
    """

    summary: str
    options_path: str
    run_path: str
    next_command: str = ""

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
_GENERATE = "txt2img 'something red' --model {path}"
_SAMPLE = "sample --model {path}"
_RECONSTRUCT = "reconstruct {data} --model {path} --resolution {resolution}"
RECIPES: Mapping[str, Recipe] = {
    "emoji": Recipe(
        "the embedded model: autoencoder, CLIP, diffusion on emoji",
        "options.latent_diffusion:EmojiRecipe",
        "recipes.emoji:run",
        _GENERATE,
    ),
    "shapes": Recipe(
        "a small model of rendered shapes, on two CPU cores",
        "options.latent_diffusion:ShapesRecipe",
        "recipes.shapes:run",
        _GENERATE,
    ),
    "text-to-image": Recipe(
        "fine-tune a model on images with captions", "options.text_to_image:TextToImageRecipe", "recipes.text_to_image:run"
    ),
    "lora": Recipe("a LoRA: a small file that changes a model", "options.adapters.lora:LoraRecipe", "recipes.adapters.lora:run"),
    "dreambooth": Recipe(
        "one thing from a few images, under a new word",
        "options.adapters.dreambooth:DreamBoothRecipe",
        "recipes.adapters.dreambooth:run",
    ),
    "textual-inversion": Recipe(
        "a new word for prompts, with vectors of its own",
        "options.adapters.textual_inversion:TextualInversionRecipe",
        "recipes.adapters.textual_inversion:run",
    ),
    "lcm": Recipe(
        "a LoRA with which a model needs only 4 steps: consistency distillation",
        "options.adapters.lcm:LCMRecipe",
        "recipes.adapters.lcm:run",
    ),
    "controlnet": Recipe(
        "a ControlNet: images follow edges or another map",
        "options.adapters.controlnet:ControlNetRecipe",
        "recipes.adapters.controlnet:run",
    ),
    "caption-variants": Recipe(
        "only the text encoder: other wordings of a caption give the same image",
        "options.caption_variants:CaptionVariantsRecipe",
        "recipes.caption_variants:run",
        "txt2img 'something red, please' --model {path}",
    ),
    "ddpm": Recipe("a diffusion model of pixels: DDPM", "options.ddpm:DDPMRecipe", "recipes.ddpm:run", _SAMPLE),
    "ldm": Recipe("a latent diffusion model on a first stage of your own", "options.ldm:LDMRecipe", "recipes.ldm:run"),
    "clip-scorer": Recipe(
        "a CLIP of images with captions, such as the one of `daguerre evaluate`",
        "options.latent_diffusion:ClipScorerRecipe",
        "recipes.clip_scorer:run",
    ),
    "autoencoder": Recipe("a plain autoencoder", "options.first_stage:AutoencoderRecipe", _FIRST_STAGE, _RECONSTRUCT),
    "vae": Recipe("a variational autoencoder, on the evidence lower bound", "options.first_stage:VAERecipe", _FIRST_STAGE, _RECONSTRUCT),
    "vqvae": Recipe("a VQ-VAE: the latent is a grid of codes", "options.first_stage:VQVAERecipe", _FIRST_STAGE, _RECONSTRUCT),
    "vqgan": Recipe("a VQGAN: a VQ-VAE with a discriminator", "options.first_stage:VQGANRecipe", _FIRST_STAGE, _RECONSTRUCT),
    "kl": Recipe("the autoencoder of latent diffusion", "options.first_stage:KLRecipe", _FIRST_STAGE, _RECONSTRUCT),
    "prior": Recipe("a prior over the codes of a VQ-VAE or a VQGAN", "options.prior:PriorRecipe", "recipes.prior:run"),
    "tiny-decoder": Recipe(
        "a small decoder, for previews and fast decoding",
        "options.decoder:TinyDecoderRecipe",
        "recipes.decoder:run_tiny",
        "txt2img 'something red' --vae {path}",
    ),
    "decoder": Recipe("only the decoder of a model's autoencoder", "options.decoder:DecoderRecipe", "recipes.decoder:run", _RECONSTRUCT),
}
