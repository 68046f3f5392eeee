"""Train a latent diffusion model on the latents of a first stage: unconditional, with classes, or with text (Rombach et al. 2022,
arXiv:2112.10752, sections 3.2 and 3.3).

Every image is encoded once. Text is encoded by a transformer that is trained from random weights together with the UNet, as in the first
text-to-image model of that paper (section 4.3.1).
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.conditioning import TextConditioner
from daguerre.conditioning.class_map_image import LabelConditioner, UnconditionalConditioner
from daguerre.data import BatchLoader, Dataset, FolderDataset
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.training.datasets.images import open_training_images, validation_sample
from daguerre.training.datasets.latents import CachedLatents, cache_latents, one_size_batches
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import PREVIEW_SEEDS, DiffusionTask
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.options.ldm import LDMRecipe
from daguerre.training.plan import epoch_images, network_bytes, print_plan
from daguerre.training.processes import rank
from daguerre.training.recipes.ddpm import CLASS_GUIDANCE, encoder_of, open_images, plain_unet, preview_classes
from daguerre.training.recipes.stages import learned_tokenizer, tiny_text, with_epochs
from daguerre.training.run_identity import fingerprint, record_run
from daguerre.weights import load_first_stage, save
from daguerre.weights.diffusers.vae import FirstStage
from daguerre.weights.hashing import network_hash

LDM_SCHEDULE = ScheduleConfig("scaled_linear", 0.0015, 0.0195)  # of the published models of faces
TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH = 256, 4, 32
TEXT_GUIDANCE = 3.0  # default guidance scale of models with text
MAX_CROPS_EACH = 10  # encoded crops of each image of a folder
ENCODE_IMAGES = 50  # images encoded in one call


def run(recipe: LDMRecipe) -> Path:
    """Train, and return the directory of the finished model.

    Raises:
        DaguerreError: there are too few images, an image has no class or caption, the resolution does not suit the first stage, or `out`
            belongs to another run.
    """
    first_stage = load_first_stage(recipe.first_stage).requires_grad_(False)
    f = first_stage.downsample_factor
    require_multiple(recipe.resolution, f, f"the first stage '{recipe.first_stage}'")
    recipe.shape.check_side(recipe.resolution // f)
    if recipe.condition == "text" and not isinstance(first_stage, AutoencoderKL):
        raise DaguerreError(
            "A model with text is saved as a Stable Diffusion folder, which needs a KL first stage; see `daguerre train kl`."
        )
    source, names, held_out = open_conditioned(recipe)
    recipe = with_epochs(recipe, source)
    loop, key = recipe.loop, network_hash(first_stage)
    options = {name: getattr(recipe, name) for name in ("prediction", "condition", "num_images", "vocab_size")}
    identity = {**options, "shape": asdict(recipe.shape), "loss": asdict(recipe.loss), "classes": names, "first stage": key}
    record_run(
        recipe.out,
        "LDMRecipe",
        source.key,
        size=recipe.resolution,
        seed=loop.seed,
        base=f"first stage {key}",
        plan=identity,
        threads=recipe.machine.threads,
    )
    count = recipe.num_images if source.rendered else min(recipe.num_images, MAX_CROPS_EACH * len(source))

    def encode(images: Dataset, count: int) -> tuple[Tensor, list[str]]:
        batches = BatchLoader(images, min(count, ENCODE_IMAGES), loop.seed + 3)
        cache = fingerprint(images.key, loop.seed, key)
        latents, captions = cache_latents(batches, first_stage, count, recipe.out / "cache", cache, loop.workers)  # type: ignore[arg-type]
        return latents[:count], captions[:count]

    latents, captions = encode(source, count)
    validation = []
    if held_out is not None:
        kept, texts = encode(held_out, len(held_out))
        validation = one_size_batches(list(kept), texts, loop.batch_size)
    torch.manual_seed(loop.seed)
    model = build_latent_model(recipe, first_stage, source, names)
    text = model.conditioner if isinstance(model.conditioner, TextConditioner) else None
    preview = source.captions(PREVIEW_SEEDS, 0) if text else preview_classes(names)
    task = DiffusionTask(model, recipe.loss, encoder_of(model), preview, trained_text=text)
    networks = {"UNet": model.unet} | ({"text encoder": text} if text else {})
    size = network_bytes(model.unet, first_stage, *filter(None, [text]))
    print_plan(networks, loop, recipe.out, images=epoch_images(source), model_bytes=size, cache_bytes=latents.nbytes)
    batches = CachedLatents(latents, captions, loop.batch_size, loop.seed)
    train(task, batches, loop, recipe.out, recipe=identity | {"source": source.key}, validation=validation)
    if rank() == 0:
        save(model, recipe.out / "model")
    return recipe.out / "model"


def open_conditioned(recipe: LDMRecipe) -> tuple[Dataset, tuple[str, ...] | None, Dataset | None]:
    """The images to train on, the names of their classes if the model has any, and the images kept out, if any."""
    if recipe.condition == "text":
        source, held_out = open_training_images(recipe.data, recipe.resolution, recipe.images, captioned=True)
        names = None
    else:
        source, names, held_out = open_images(recipe)
    return source, names, validation_sample(held_out) if isinstance(held_out, FolderDataset) else held_out


def build_latent_model(recipe: LDMRecipe, first_stage: FirstStage, source: Dataset, names: Sequence[str] | None) -> LatentDiffusion:
    """The model of a recipe with random weights, on a first stage. Trains a tokenizer if the model has text."""
    channels = first_stage.config.latent_channels if isinstance(first_stage, AutoencoderKL) else first_stage.config.quantizer.width
    config = plain_unet(recipe.shape, in_channels=channels, out_channels=channels, classes=None if names is None else len(names) + 1)
    conditioner: Any = UnconditionalConditioner() if names is None else LabelConditioner(names)
    guidance = 1.0 if names is None else CLASS_GUIDANCE
    if recipe.condition == "text":
        tokenizer = learned_tokenizer(source, recipe.vocab_size, TEXT_LENGTH, recipe.loop.seed, recipe.out / "tokenizer")
        text = replace(tiny_text(len(tokenizer), TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH), eos=tokenizer.eos)
        conditioner, guidance = TextConditioner(tokenizer, CLIPText(text)), TEXT_GUIDANCE
        config = replace(config, context_width=TEXT_WIDTH)
    schedule = Schedule(LDM_SCHEDULE)
    return LatentDiffusion(
        UNet(config), first_stage, conditioner, schedule, recipe.prediction, recipe.out.name, recipe.resolution, guidance
    )
