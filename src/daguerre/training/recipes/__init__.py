"""Recipes: typed values that a command line can be made of, each with the function that runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from daguerre.training.recipes import decoder, emoji, first_stage, judge, shapes, text_to_image

RECIPES: dict[str, tuple[type, Callable[[Any], Path]]] = {
    "emoji": (emoji.EmojiRecipe, emoji.run),
    "shapes": (shapes.ShapesRecipe, shapes.run),
    "text-to-image": (text_to_image.TextToImageRecipe, text_to_image.run),
    "judge": (judge.JudgeRecipe, judge.run),
    "autoencoder": (first_stage.PlainRecipe, first_stage.run),
    "vae": (first_stage.VariationalRecipe, first_stage.run),
    "vqvae": (first_stage.VQVAERecipe, first_stage.run),
    "vqgan": (first_stage.VQGANRecipe, first_stage.run),
    "kl": (first_stage.KLRecipe, first_stage.run),
    "decoder": (decoder.DecoderRecipe, decoder.run),
}
