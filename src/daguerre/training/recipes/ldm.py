"""Train a latent diffusion model on the latents of a first stage: unconditional, with classes, text, boxes, or an image (Rombach et al.
2022, arXiv:2112.10752, sections 3.2 and 3.3).

Every image is encoded once. Text and boxes are encoded by a transformer that is trained from random weights together with the UNet, for
its cross-attention (section 4.3.1). Maps, small images, images with a hole and grey images are concatenated to the noisy latents (sections
4.3.2 to 4.5). The CLIP embedding of an image is one token of the cross-attention.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from daguerre.conditioning import TextConditioner
from daguerre.conditioning.class_map_image import (
    ConcatConditioner,
    ImageConditioner,
    LabelConditioner,
    LayoutConditioner,
    UnconditionalConditioner,
)
from daguerre.data import Dataset, FolderDataset
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.ldm_bert import LDMBert, LDMBertConfig
from daguerre.models.unet import UNet
from daguerre.training.condition_preview import example_sheet, find_examples
from daguerre.training.datasets.conditions import (
    LAYOUT_LENGTH,
    LAYOUT_VOCABULARY,
    LatentEncoder,
    latent_channels,
    load_image_conditioner,
    with_condition_image,
    with_layouts,
)
from daguerre.training.datasets.images import validation_sample
from daguerre.training.datasets.latents import CachedLatents, one_size_batches
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import PREVIEW_SEEDS, DiffusionTask
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.options.ldm import LDMRecipe
from daguerre.training.plan import announce, epoch_images, network_bytes, print_plan
from daguerre.training.recipes.ddpm import CLASS_GUIDANCE, encoder_of, open_images, plain_unet, preview_classes
from daguerre.training.recipes.stages import learned_tokenizer, tiny_text, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_first_stage, save
from daguerre.weights.diffusers.vae import FirstStage
from daguerre.weights.hashing import network_hash

LDM_SCHEDULE = ScheduleConfig("scaled_linear", 0.0015, 0.0195)  # of the published models of faces
TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH = 256, 4, 32
TEXT_GUIDANCE = 3.0  # default guidance scale of models with text
MAX_CROPS_EACH = 10  # encoded crops of each image of a folder
# The command that tries a model of each condition.
TRY: Mapping[str, str] = {
    "none": "sample --model {path}",
    "class": "sample --model {path}",
    "text": "sample --model {path} --prompt 'something red'",
    "map": "layout --map MAP.png --model {path}",
    "layout": "layout 'CLASS 0.1 0.1 0.5 0.9' --model {path}",
    "low-res": "upscale SMALL.png --model {path}",
    "masked": "inpaint IMAGE.png MASK.png '' --model {path}",
    "grey": "colorize GREY.png --model {path}",
    "clip-image": "variations IMAGE.png --model {path}",
}


def run(recipe: LDMRecipe) -> Path:
    """Train, and return the directory of the finished model.

    Raises:
        DaguerreError: there are too few images, an image has no class, caption, map or layout, the resolution does not suit the first
            stage, the first stage does not suit the condition, or `out` belongs to another run.
    """
    first_stage = load_first_stage(recipe.first_stage).requires_grad_(False)
    check_first_stage(recipe, first_stage)
    data = open_conditioned(recipe)
    source, recipe = data.trained, with_epochs(recipe, data.trained)
    loop, key = recipe.loop, network_hash(first_stage)
    identity = {**run_options(recipe), "classes": data.names, "first stage": key}
    if isinstance(data.conditioner, ImageConditioner):
        identity["image encoder"] = network_hash(data.conditioner)
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
    encode = LatentEncoder(first_stage, data.conditioner, recipe.out / "cache", loop.seed, loop.workers)
    encoded, validation = encode(source, count), []
    if data.held_out is not None:
        kept = encode(data.held_out, len(data.held_out))
        validation = one_size_batches(list(kept.latents), kept.captions, loop.batch_size, kept.condition)
    torch.manual_seed(loop.seed)
    model = build_latent_model(recipe, first_stage, data)
    trained = model.conditioner if isinstance(model.conditioner, TextConditioner | LayoutConditioner) else None
    examples = [] if recipe.condition in ("none", "class", "text") else find_examples(model.conditioner, data.held_out or source)
    task = DiffusionTask(
        model,
        recipe.loss,
        encoder_of(model),
        source.captions(PREVIEW_SEEDS, 0) if recipe.condition == "text" else preview_classes(data.names),
        trained_text=trained,
        preview=partial(example_sheet, examples=examples) if examples else None,
    )
    networks = {"UNet": model.unet} | ({"text encoder": trained} if trained else {})
    print_plan(
        networks,
        loop,
        recipe.out,
        images=epoch_images(source),
        model_bytes=network_bytes(*model.modules),
        cache_bytes=encoded.latents.nbytes + (0 if encoded.condition is None else encoded.condition.nbytes),
    )
    batches = CachedLatents(encoded.latents, encoded.captions, loop.batch_size, loop.seed, condition=encoded.condition)
    train(task, batches, loop, recipe.out, recipe=identity | {"source": source.key}, validation=validation)
    if rank() == 0:
        save(model, recipe.out / "model")
        announce(f"Try it: daguerre {TRY[recipe.condition].format(path=shlex.quote(str(recipe.out / 'model')))}")
    return recipe.out / "model"


def check_first_stage(recipe: LDMRecipe, first_stage: FirstStage) -> None:
    """Raise DaguerreError if the resolution or the condition does not suit the first stage."""
    f = first_stage.downsample_factor
    require_multiple(recipe.resolution, f, f"the first stage '{recipe.first_stage}'")
    recipe.shape.check_side(recipe.resolution // f)
    if recipe.condition in ("text", "clip-image") and not isinstance(first_stage, AutoencoderKL):
        raise DaguerreError(
            f"A model with the condition {recipe.condition} is saved as a Stable Diffusion folder, which needs a KL first stage; see "
            "`daguerre train kl`."
        )
    if recipe.condition == "low-res" and f % recipe.scale:
        raise DaguerreError(f"scale is {recipe.scale}; it must divide {f}, the factor of the first stage '{recipe.first_stage}'.")


def run_options(recipe: LDMRecipe) -> dict[str, Any]:
    """The options that determine the trained weights, apart from those of data and loop."""
    names = ["prediction", "condition", "num_images", "vocab_size"]
    names += {"map": ["map"], "low-res": ["scale"]}.get(recipe.condition, [])
    return {name: getattr(recipe, name) for name in names} | {"shape": asdict(recipe.shape), "loss": asdict(recipe.loss)}


class ConditionedImages(NamedTuple):
    """The images to train on, with conditions; those kept out, if any; and the conditioner and the names of classes that are known."""

    trained: Dataset
    held_out: Dataset | None
    conditioner: ConcatConditioner | ImageConditioner | None = None
    names: tuple[str, ...] | None = None


def open_conditioned(recipe: LDMRecipe) -> ConditionedImages:
    """The images of a recipe with what they are conditioned on. Raises DaguerreError as `run`."""
    trained, names, held_out = open_images(recipe)
    held_out = validation_sample(held_out) if isinstance(held_out, FolderDataset) else held_out
    match recipe.condition:
        case "none" | "class" | "text":
            return ConditionedImages(trained, held_out, names=names)
        case "clip-image":
            return ConditionedImages(trained, held_out, load_image_conditioner(recipe.image_encoder))
        case "layout":
            layouts = [with_layouts(recipe, images) for images in (trained, held_out) if images is not None]
            names = tuple(sorted({name for _, known in layouts for name in known}))
            return ConditionedImages(layouts[0][0], layouts[1][0] if len(layouts) > 1 else None, names=names)
    found = [with_condition_image(recipe, images) for images in (trained, held_out) if images is not None]
    palette = dict.fromkeys(colour for _, conditioner in found for colour in conditioner.palette)  # of all semantic maps
    conditioner = ConcatConditioner(found[0][1].kind, scale=found[0][1].scale, palette=tuple(palette))
    return ConditionedImages(found[0][0], found[1][0] if len(found) > 1 else None, conditioner)


def build_latent_model(recipe: LDMRecipe, first_stage: FirstStage, data: ConditionedImages) -> LatentDiffusion:
    """The model of a recipe with random weights, on a first stage. Trains a tokenizer if the model has text."""
    channels = latent_channels(first_stage)
    conditioner, guidance, classes, context_width, extra = data.conditioner, 1.0, None, None, 0
    match recipe.condition:
        case "none":
            conditioner = UnconditionalConditioner()
        case "class":
            assert data.names is not None
            conditioner, classes, guidance = LabelConditioner(data.names), len(data.names) + 1, CLASS_GUIDANCE
        case "text":
            tokenizer = learned_tokenizer(data.trained, recipe.vocab_size, TEXT_LENGTH, recipe.loop.seed, recipe.out / "tokenizer")
            text = replace(tiny_text(len(tokenizer), TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH), eos=tokenizer.eos)
            conditioner, guidance, context_width = TextConditioner(tokenizer, CLIPText(text)), TEXT_GUIDANCE, TEXT_WIDTH
        case "layout":
            heads = TEXT_WIDTH // 64
            boxes = LDMBertConfig(LAYOUT_VOCABULARY, LAYOUT_LENGTH, TEXT_WIDTH, TEXT_LAYERS, heads, 64, 4 * TEXT_WIDTH)
            conditioner, context_width = LayoutConditioner(LDMBert(boxes), data.names or ()), TEXT_WIDTH
    assert conditioner is not None
    if isinstance(conditioner, ConcatConditioner):
        extra = conditioner.channel_count(channels, first_stage.downsample_factor)
    elif isinstance(conditioner, ImageConditioner):
        context_width, guidance = conditioner.encoder.config.projection, CLASS_GUIDANCE
    config = plain_unet(recipe.shape, in_channels=channels + extra, out_channels=channels, classes=classes)
    return LatentDiffusion(
        UNet(replace(config, context_width=context_width)),
        first_stage,
        conditioner,
        Schedule(LDM_SCHEDULE),
        recipe.prediction,
        recipe.out.name,
        recipe.resolution,
        guidance,
    )
