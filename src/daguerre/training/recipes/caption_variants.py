"""Teach the text encoder of a trained model that other wordings of a caption mean the same; all other tensors stay as they are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from daguerre.conditioning import TextConditioner
from daguerre.data import Dataset
from daguerre.data.caption_variants import PHRASES
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.config import LoopConfig
from daguerre.training.datasets.caption_variants import CaptionVariants
from daguerre.training.datasets.images import open_training_images
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.caption_variants import CaptionVariantTask, record_cross_attention_inputs
from daguerre.training.options.caption_variants import CaptionVariantsRecipe
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.plan import network_bytes, print_plan
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion, save
from daguerre.weights.catalog import local
from daguerre.weights.hashing import network_hash
from daguerre.weights.vocabulary import Vocabulary

CAPTIONS = 40_000  # of the dataset, each with another variant in each epoch
RECORDED_PROMPTS = 24  # images that the model generates to record the inputs of its cross-attentions


def run(recipe: CaptionVariantsRecipe) -> Path:
    """Train, and return the directory of the finished model.

    Raises:
        DaguerreError: there are no captions or no such model, the model has no CLIP text encoder, or `out` belongs to another run.
    """
    model = load_diffusion(recipe.model)
    source = open_training_images(recipe.data, model.sample_size, TrainingImageOptions(), captioned=True).trained
    record_run(
        recipe.out,
        "CaptionVariantsRecipe",
        source.key,
        size=model.sample_size,
        seed=recipe.loop.seed,
        base=recipe.model,
        threads=recipe.machine.threads,
    )
    model = replace(model, name=recipe.out.name)
    train_caption_variants(model, source, recipe.loop, recipe.out, ("a red apple.", "draw a red apple, please"))
    if rank() == 0:
        save(model, recipe.out / "model")
        if (path := local(recipe.model)) and path.is_dir() and (vocabulary := Vocabulary.read(path)):
            vocabulary.with_captions(PHRASES).write(recipe.out / "model")
    return recipe.out / "model"


def train_caption_variants(model: LatentDiffusion, source: Dataset, loop: LoopConfig, out: Path, prompts: Sequence[str]) -> None:
    """Train the text encoder of `model` on the captions of `source`. `prompts`: of the sample grid."""
    conditioner = model.conditioner
    if not isinstance(conditioner, TextConditioner):
        raise DaguerreError(f"{model.name} has no CLIP text encoder; caption variants need one.")
    model.to(dtype=torch.float32)
    captions = source.captions(CAPTIONS, loop.seed)
    longest = conditioner.tokenizer.max_length - 2
    batches = CaptionVariants(captions, loop.batch_size, loop.seed, lambda text: len(conditioner.tokenizer.encode(text)) <= longest)
    identity = {"data": source.key, "text": network_hash(conditioner), "unet": network_hash(model.unet)}
    inputs = record_cross_attention_inputs(model, captions[:RECORDED_PROMPTS], seed=loop.seed)
    task = CaptionVariantTask(model, conditioner, inputs, prompts)
    print_plan(task.networks, loop, out, images=len(captions), model_bytes=network_bytes(*model.modules))
    train(task, batches, loop, out, recipe=identity)
