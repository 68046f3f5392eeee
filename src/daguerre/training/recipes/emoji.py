"""The embedded model: autoencoder, CLIP and diffusion on rendered emoji."""

from dataclasses import replace
from pathlib import Path

import torch

from daguerre.data import EmojiDataset, EmojiMix
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.models.unet import UNetConfig
from daguerre.training.config import AutoencoderLoss, DiffusionLoss, LoopConfig
from daguerre.training.distributed.processes import rank
from daguerre.training.options.latent_diffusion import EmojiRecipe
from daguerre.training.recipes.latent_diffusion import run_latent_recipe
from daguerre.training.recipes.stages import AutoencoderPlan, ClipPlan, DiffusionPlan, LatentDiffusionPlan, tiny_text, tiny_vision
from daguerre.weights.vocabulary import Vocabulary

CPU = LatentDiffusionPlan(
    size=64,
    autoencoder=AutoencoderPlan(
        AutoencoderKLConfig(
            latent_channels=16,
            channels=(16, 64, 128, 192),
            blocks=1,
            mid_attention=False,
            norm_groups=2,  # 16 groups would be one channel each: instance norm, which loses colour
            quant_conv=False,
            post_quant_conv=False,
        ),
        LoopConfig(
            max_train_steps=4000,
            batch_size=16,
            learning_rate=8e-4,
            ema_decay=0.998,
            mixed_precision="auto",
            checkpoint_every=200,
            sample_every=400,
        ),
        AutoencoderLoss(kl_weight=1e-3, equivariance=0.3),
    ),
    clip=ClipPlan(
        tiny_text(vocab_size=2048, width=256, layers=4),
        tiny_vision(size=64, patch=16, width=256, layers=4, projection=256),
        LoopConfig(
            max_train_steps=3000,
            batch_size=128,
            learning_rate=1e-3,
            weight_decay=0.1,
            betas=(0.9, 0.98),
            mixed_precision="auto",
            sample_every=0,
        ),
    ),
    diffusion=DiffusionPlan(
        UNetConfig(
            in_channels=16,
            out_channels=16,
            channels=(192, 256),
            blocks=1,
            depth=(1, 1),
            heads=(3, 4),
            context_width=256,
        ),
        LoopConfig(max_train_steps=6000, batch_size=64, learning_rate=1e-3, mixed_precision="auto", ema_decay=0.999),
        DiffusionLoss(shift=4.0),
        trains_text=True,
        guidance=2.0,  # the best of 1.5, 2, 3 and 5 by the CLIP scorer
    ),
    curriculum=0.15,
)

# About 20 minutes on an H200 with 16 CPU cores: 342 s (100 of them compile), 117 s, and about 720 s (estimated from 14 steps per second).
GPU = LatentDiffusionPlan(
    size=128,
    autoencoder=AutoencoderPlan(
        replace(CPU.autoencoder.model, channels=(32, 64, 128, 192), norm_groups=4),
        LoopConfig(
            max_train_steps=4000,
            workers=14,
            batch_size=128,
            learning_rate=8e-4,
            mixed_precision="bf16",
            compile=True,
            log_every=100,
            sample_every=2000,
        ),
        CPU.autoencoder.loss,
    ),
    clip=ClipPlan(
        CPU.clip.text,
        replace(CPU.clip.vision, size=128),
        replace(CPU.clip.loop, max_train_steps=1000, workers=14, batch_size=512, learning_rate=5e-4, log_every=100),
    ),
    diffusion=replace(
        CPU.diffusion,
        loop=LoopConfig(
            max_train_steps=8400,
            workers=14,
            batch_size=512,
            learning_rate=8e-4,
            lr_warmup_steps=200,
            lr_decay=0.3,
            mixed_precision="bf16",
            compile=True,
            log_every=100,
            sample_every=3000,
            checkpoint_every=3000,
        ),
        cached_samples=320_000,
    ),
    curriculum=0.1,
)

# Most things are centred: with 8×8 latents the model has little capacity to learn each thing at every position.
# Less than half of the things can be part of a pair, so `pair=0.5` makes a quarter of all images pairs.
EMOJI_MIX = EmojiMix(recoloured=0.3, background=0.15, pair=0.5, centred=0.8)
CURRICULUM = replace(EMOJI_MIX, recoloured=0.15, pair=0.65, reading_order=True)
VOCABULARY_CAPTIONS = 10_000  # from which the words other than names are taken
PRESETS = {"cpu": CPU, "gpu": GPU}
EMOJI_PREVIEW_PROMPTS = (
    "a red apple",
    "cat face",
    "a blue apple",
    "grinning face",
    "a rocket on a green background",
    "a cat to the left of a pizza",
    "a sunflower",
    "a purple elephant",
)


def run(recipe: EmojiRecipe) -> Path:
    """Train, and return the directory of the finished model. Raises DaguerreError for the preset gpu on a machine without a GPU."""
    if recipe.preset == "gpu" and not torch.cuda.is_available():
        raise DaguerreError("The preset gpu needs a GPU, and torch finds none; use --preset cpu.")
    plan = PRESETS[recipe.preset]
    source = EmojiDataset(plan.size, mix=EMOJI_MIX)
    path = run_latent_recipe(recipe, plan, source, EMOJI_PREVIEW_PROMPTS, EmojiDataset(plan.size, mix=CURRICULUM))
    if rank() == 0:
        vocabulary(source).write(path)
    return path


def vocabulary(source: EmojiDataset) -> Vocabulary:
    """The names of all things, and the words of the dataset's captions."""
    names = (name for thing in source.things for name in (thing.name, *thing.other_names))
    return Vocabulary.of(names, source.captions(VOCABULARY_CAPTIONS, seed=0))
