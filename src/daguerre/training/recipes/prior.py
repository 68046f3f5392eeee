"""Train a prior over the codes of a first stage, for `daguerre sample` and `daguerre txt2img`.

Every image is encoded once. The prior learns its grid of codes after a prefix with the condition: nothing, a class, a text, the codes of a
condition map from a second first stage, or coordinates. The run ends with the exact code length of held-out images.
van den Oord et al. 2017, arXiv:1711.00937, section 4; Esser et al. 2021, arXiv:2012.09841, sections 3.2 and 4.1.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.atomic_io import atomic_write
from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, EmptyPrefix, MapPrefix, Prefixes, TextPrefix
from daguerre.data import BatchLoader, Dataset
from daguerre.data.condition_maps import ConditionMaps, load_condition_maps
from daguerre.metrics import Interval, bootstrap
from daguerre.models.latent_prior import LatentPrior, Prior
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vq_model import VQModel
from daguerre.training.config import AutoencoderLoss
from daguerre.training.datasets.codes import CodeEncoder, PriorDataset, class_names, shapes_by_class, split_held_out
from daguerre.training.datasets.images import MAX_VALIDATION_IMAGES, open_training_images
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.prior import CodeBatch, CodeBatches, PriorTask, code_lengths
from daguerre.training.objectives.vae_vq import QuantizedTask
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.options.prior import PRIOR_LOOP, PriorRecipe
from daguerre.training.plan import announce, epoch_images, example_caption, network_bytes, print_plan
from daguerre.training.recipes.stages import learned_tokenizer, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_first_stage, save
from daguerre.weights.diffusers.prior import require_codebook
from daguerre.weights.hashing import network_hash

MAP_CODES, MAP_STEPS = 64, 600
COORDINATE_TOKENS = 1024  # distinct values of a coordinate
PREVIEW_IMAGES = 16  # images in the sample grid
MAX_CROPS = 10  # encoded crops of each image of a folder


def run(recipe: PriorRecipe) -> Path:
    """Train, and return the directory of the finished model. Writes the code length to `out/nll.json`.

    Raises:
        DaguerreError: there are no images, the resolution does not fit, or `out` belongs to another run.
    """
    first_stage = require_codebook(load_first_stage(recipe.first_stage), recipe.first_stage).requires_grad_(False)
    require_multiple(recipe.resolution, first_stage.downsample_factor, "this first stage")
    (dataset, held_out), seed, key = open_prior_dataset(recipe), recipe.loop.seed, network_hash(first_stage)
    recipe = with_epochs(recipe, dataset.images)
    plan = {"first stage": key, **recipe.network}
    record_run(
        recipe.out,
        "PriorRecipe",
        dataset.images.key,
        size=recipe.resolution,
        seed=seed,
        base=f"first stage {key}",
        plan=plan,
        threads=recipe.machine.threads,
    )
    prefix = build_prefix(recipe, dataset, first_stage)
    trained, measured, unseen = split_held_out(dataset, held_out)
    encode = CodeEncoder(first_stage, prefix, recipe.out / "cache", recipe.loop.workers)
    data, _ = encode(trained, trained.limit(recipe.num_images, MAX_CROPS), seed + 3)
    test, captions = encode(measured, measured.limit(recipe.eval_images, 1), seed + 1000)
    torch.manual_seed(seed)
    prior = build_prior(recipe, first_stage, prefix, data)
    batches = CodeBatches(data.codes, data.condition, recipe.loop.batch_size, seed)
    task = PriorTask(prior, first_stage, test[:PREVIEW_IMAGES], captions[:PREVIEW_IMAGES], pkeep=recipe.pkeep)
    print_plan(task.networks, recipe.loop, recipe.out, images=epoch_images(trained.images), model_bytes=network_bytes(prior, first_stage))
    validation = () if held_out is None else validation_codes(test, recipe.loop.batch_size)
    train(task, batches, recipe.loop, recipe.out, recipe=plan, validation=validation)
    if rank() == 0:
        write_nll(recipe.out, bootstrap(code_lengths(prior, test)), first_stage.downsample_factor, unseen)
        save(LatentPrior(prior, first_stage, prefix, recipe.out.name, recipe.resolution), recipe.out / "model")
    announce(f"Try it: daguerre sample --model {shlex.quote(str(recipe.out / 'model'))}{_example_condition(recipe, prefix, captions)}")
    return recipe.out / "model"


def _example_condition(recipe: PriorRecipe, prefix: Prefixes, captions: Sequence[str]) -> str:
    """The options of a `daguerre sample` command with a condition that this prior knows."""
    if isinstance(prefix, ClassPrefix):
        return f" --class {shlex.quote(prefix.names[0])}"
    if isinstance(prefix, TextPrefix):
        return f" --prompt {shlex.quote(example_caption(captions))}"
    return f" --map MAP.png  # a {recipe.map} map" if isinstance(prefix, MapPrefix) else ""


def validation_codes(data: CodeBatch, batch_size: int) -> list[CodeBatch]:
    """The first `MAX_VALIDATION_IMAGES` grids of codes in batches."""
    shown = data[:MAX_VALIDATION_IMAGES]
    whole = CodeBatch(shown.codes.long(), None if shown.condition is None else shown.condition.long())
    return [whole[first : first + batch_size] for first in range(0, len(whole), batch_size)]


def open_prior_dataset(recipe: PriorRecipe) -> tuple[PriorDataset, PriorDataset | None]:
    """The images of a recipe and its validation part, with captions or condition maps if the prior is conditioned on them."""
    captioned = recipe.condition in ("class", "text")
    images = open_training_images(recipe.data, recipe.resolution, recipe.images, captioned=captioned)
    if recipe.condition == "class" and recipe.data == "shapes":
        return PriorDataset(shapes_by_class(recipe.resolution)), None
    return _with_maps(recipe, images.trained), None if images.held_out is None else _with_maps(recipe, images.held_out)


def _with_maps(recipe: PriorRecipe, images: Dataset) -> PriorDataset:
    return PriorDataset(images, load_condition_maps(images, recipe.map, recipe.maps) if recipe.condition == "map" else None)


def build_prefix(recipe: PriorRecipe, dataset: PriorDataset, first_stage: VQModel) -> Prefixes:
    """The prefix with the prior's condition. Trains a tokenizer, or a first stage of condition maps, if there is none."""
    source, seed = dataset.images, recipe.loop.seed
    match recipe.condition:
        case "none":
            return EmptyPrefix()
        case "class":
            return ClassPrefix(class_names(source))
        case "text":
            return TextPrefix(learned_tokenizer(source, recipe.vocab_size, recipe.max_text_tokens, seed, recipe.out / "tokenizer"))
        case "map":
            assert dataset.maps is not None
            map_stage = map_first_stage(recipe, dataset.maps, first_stage)
            require_multiple(recipe.resolution, map_stage.downsample_factor, "the first stage of maps")
            return MapPrefix(map_stage.requires_grad_(False), recipe.map, dataset.maps.palette)
        case "coordinates":
            return CoordinatePrefix(COORDINATE_TOKENS, first_stage.downsample_factor)


def map_first_stage(recipe: PriorRecipe, maps: ConditionMaps, like: VQModel) -> VQModel:
    """The first stage of condition maps: the recipe's, or one with the shape of `like` and a small codebook, trained in `out/map-stage`."""
    if recipe.map_first_stage is not None:
        return require_codebook(load_first_stage(recipe.map_first_stage), recipe.map_first_stage)
    source, seed, out = maps.source, recipe.loop.seed, recipe.out / "map-stage"
    announce(f"extra stage: a first stage of the {recipe.map} maps, in {out}; --map-first-stage takes a finished one instead")
    torch.manual_seed(seed)
    network = VQModel(replace(like.config, quantizer=replace(like.config.quantizer, codes=MAP_CODES, kind="ema", dead_code_threshold=0.1)))
    loop = replace(PRIOR_LOOP, max_train_steps=MAP_STEPS, batch_size=16, betas=(0.9, 0.99), sample_every=MAP_STEPS, seed=seed)
    task = QuantizedTask(network, AutoencoderLoss(), BatchLoader(source, 8, seed + 1).batch(0).x)
    identity = {"model": asdict(network.config), "maps": source.key}
    print_plan(task.networks, loop, out, images=epoch_images(source))
    train(task, BatchLoader(source, loop.batch_size, seed), loop, out, recipe=identity)
    return network.eval()


def build_prior(recipe: PriorRecipe, first_stage: VQModel, prefix: Prefixes, data: CodeBatch) -> Prior:
    """An untrained prior for these codes and conditions."""
    codes, (_, h, w) = first_stage.config.quantizer.codes, data.codes.shape
    shape = {"width": recipe.hidden_size, "dropout": recipe.dropout}
    if recipe.kind == "pixelcnn":
        return PixelCNN(PixelCNNConfig(codes, layers=recipe.layers, classes=prefix.tokens, **shape))
    if recipe.kind == "pixelsnail":  # each block has three convolutions and one attention layer
        heads = {"heads": recipe.heads, "key_width": recipe.hidden_size // 2 // recipe.heads * recipe.heads}
        return PixelSNAIL(PixelSNAILConfig(codes, blocks=max(1, recipe.layers // 3), layers=3, classes=prefix.tokens, **heads, **shape))
    prefix_length = 1 if data.condition is None else data.condition[0].numel()
    config = TransformerPriorConfig(codes, prefix.tokens, prefix_length + h * w, (h, w), layers=recipe.layers, heads=recipe.heads, **shape)
    return TransformerPrior(config)


def write_nll(out: Path, bits: Interval, f: int, unseen: bool) -> None:
    """Write the code length to `out/nll.json` and print it. f: the downsampling factor. unseen: the images were held out."""
    area, kind = f**2, "held-out images" if unseen else "training images (there are too few to hold some out)"
    interval = {name: getattr(bits, name) for name in ("value", "low", "high")}
    record = {
        "bits_per_code": interval,
        "bits_per_pixel": {name: value / area for name, value in interval.items()},
        "images": bits.count,
        "unseen": unseen,
    }
    with atomic_write(out / "nll.json") as file:
        file.write(json.dumps(record, indent=1).encode())
    print(f"NLL of {bits.count} {kind}: {bits} bits/code, {bits.value / area:.4f} bits/pixel", file=sys.stderr)
