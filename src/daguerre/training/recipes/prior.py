"""A prior over the codes of a first stage, from pictures to a folder that `daguerre sample` and `daguerre txt2img` open.

Every picture is encoded once; the prior learns the grids of codes, each behind what it is told: nothing, a class, a text, the codes of a
map by a second first stage, or its places. At the end stands the exact code length of pictures that training never saw.
van den Oord et al. 2017, arXiv:1711.00937, section 4; Esser et al. 2021, arXiv:2012.09841, sections 3.2 and 4.1.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.atomic_io import atomic_write
from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, EmptyPrefix, MapPrefix, Prefixes, TextPrefix
from daguerre.data import BatchLoader, FolderDataset
from daguerre.data.condition_maps import ConditionMaps, load_condition_maps
from daguerre.metrics import Interval, bootstrap
from daguerre.models.latent_prior import LatentPrior, Prior
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vq_model import VQModel
from daguerre.training.datasets.codes import CodeEncoder, PriorDataset, shape_classes, shapes_by_class, split_held_out
from daguerre.training.lineage_options import PRIOR_LOOP, AutoencoderLoss, PriorRecipe, require_multiple
from daguerre.training.loop import train, weights_key
from daguerre.training.objectives.prior import CodeBatch, CodeBatches, PriorTask, code_lengths
from daguerre.training.objectives.vae_vq import QuantizedTask
from daguerre.training.processes import rank
from daguerre.training.recipes.first_stage import open_dataset
from daguerre.training.recipes.latent_diffusion import record_run
from daguerre.training.recipes.stages import learned_tokenizer
from daguerre.weights import load_first_stage, save
from daguerre.weights.diffusers.prior import require_codebook

MAP_CODES, MAP_STEPS = 64, 600
COORDINATE_TOKENS = 1024  # numbers that coordinates are told by
PREVIEW_IMAGES = 16  # pictures of the sample grid
CROPS = 10  # of each picture of a folder that are encoded, at most


def run(recipe: PriorRecipe) -> Path:
    """Train, and return the folder of the finished model; its code length stands in `nll.json` beside it.

    Raises:
        DaguerreError: there are no pictures, a size does not fit, or `out` holds another run.
    """
    first_stage = require_codebook(load_first_stage(recipe.first_stage), recipe.first_stage).requires_grad_(False)
    require_multiple(recipe.resolution, first_stage.downsample_factor, "this first stage")
    material, seed, key = open_prior_dataset(recipe), recipe.loop.seed, weights_key(first_stage)
    plan = {"first stage": key, **recipe.network}
    record_run(recipe.out, "PriorRecipe", material.images.key, size=recipe.resolution, seed=seed, base=f"first stage {key}", plan=plan)
    prefix = build_prefix(recipe, material, first_stage)
    trained, measured, unseen = split_held_out(material)
    encode = CodeEncoder(first_stage, prefix, recipe.out / "cache", recipe.loop.workers)
    data, _ = encode(trained, trained.enough(recipe.num_images, CROPS), seed + 3)
    test, captions = encode(measured, measured.enough(recipe.eval_images, 1), seed + 1000)
    torch.manual_seed(seed)
    prior = build_prior(recipe, first_stage, prefix, data)
    batches = CodeBatches(data.codes, data.condition, recipe.loop.batch_size, seed)
    stage = PriorTask(prior, first_stage, test[:PREVIEW_IMAGES], captions[:PREVIEW_IMAGES], pkeep=recipe.pkeep)
    train(stage, batches, recipe.loop, recipe.out, recipe=plan)
    if rank() == 0:
        write_nll(recipe.out, bootstrap(code_lengths(prior, test)), first_stage.downsample_factor, unseen)
        save(LatentPrior(prior, first_stage, prefix, recipe.out.name, recipe.resolution), recipe.out / "model")
    return recipe.out / "model"


def open_prior_dataset(recipe: PriorRecipe) -> PriorDataset:
    """The pictures of a recipe, with captions where the prior is told by them, and their maps."""
    if recipe.condition == "class" and recipe.data == "shapes":
        return PriorDataset(shapes_by_class(recipe.resolution))
    captioned = recipe.condition in ("class", "text")
    pictures = open_dataset(recipe.data, recipe.resolution, skip_bad=recipe.skip_bad, captioned=captioned)
    maps = load_condition_maps(pictures, recipe.map, recipe.maps) if recipe.condition == "map" else None
    return PriorDataset(pictures, maps, drawn=not isinstance(pictures, FolderDataset))


def build_prefix(recipe: PriorRecipe, material: PriorDataset, first_stage: VQModel) -> Prefixes:
    """How the prior is told; a tokenizer, or the first stage of maps, is made where there is none."""
    source, seed = material.images, recipe.loop.seed
    match recipe.condition:
        case "none":
            return EmptyPrefix()
        case "class":
            return ClassPrefix(shape_classes(source))
        case "text":
            return TextPrefix(learned_tokenizer(source, recipe.vocabulary, recipe.max_text_tokens, seed, recipe.out / "tokenizer"))
        case "map":
            assert material.maps is not None
            stage = train_map_stage(recipe, material.maps, first_stage)
            require_multiple(recipe.resolution, stage.downsample_factor, "the first stage of maps")
            return MapPrefix(stage.requires_grad_(False), recipe.map, material.maps.palette)
        case "coordinates":
            return CoordinatePrefix(COORDINATE_TOKENS, first_stage.downsample_factor)


def train_map_stage(recipe: PriorRecipe, maps: ConditionMaps, like: VQModel) -> VQModel:
    """The first stage of maps: the one that is named, or a small one with the f of another one, trained in the run's folder."""
    if recipe.map_stage is not None:
        return require_codebook(load_first_stage(recipe.map_stage), recipe.map_stage)
    source, seed = maps.source, recipe.loop.seed
    torch.manual_seed(seed)
    network = VQModel(replace(like.config, quantizer=replace(like.config.quantizer, codes=MAP_CODES, kind="ema", dead_code_threshold=0.1)))
    loop = replace(PRIOR_LOOP, max_train_steps=MAP_STEPS, batch_size=16, betas=(0.9, 0.99), sample_every=MAP_STEPS, seed=seed)
    stage = QuantizedTask(network, AutoencoderLoss(), BatchLoader(source, 8, seed + 1).batch(0).x)
    identity = {"model": asdict(network.config), "maps": source.key}
    train(stage, BatchLoader(source, loop.batch_size, seed), loop, recipe.out / "map-stage", recipe=identity)
    return network.eval()


def build_prior(recipe: PriorRecipe, first_stage: VQModel, prefix: Prefixes, data: CodeBatch) -> Prior:
    """A prior that knows nothing yet, for such codes and conditions."""
    codes, (_, h, w) = first_stage.config.quantizer.codes, data.codes.shape
    shape = {"width": recipe.width, "dropout": recipe.dropout}
    if recipe.kind == "pixelcnn":
        return PixelCNN(PixelCNNConfig(codes, layers=recipe.layers, classes=prefix.tokens, **shape))
    if recipe.kind == "pixelsnail":  # `layers` are shared out over blocks of three convolutions and one attention
        heads = {"heads": recipe.heads, "key_width": recipe.width // 2 // recipe.heads * recipe.heads}
        return PixelSNAIL(PixelSNAILConfig(codes, blocks=max(1, recipe.layers // 3), layers=3, classes=prefix.tokens, **heads, **shape))
    before = 1 if data.condition is None else data.condition[0].numel()
    config = TransformerPriorConfig(codes, prefix.tokens, before + h * w, (h, w), layers=recipe.layers, heads=recipe.heads, **shape)
    return TransformerPrior(config)


def write_nll(out: Path, bits: Interval, downsampling: int, unseen: bool) -> None:
    """Write the code length to `out/nll.json` and say it."""
    area, whose = downsampling**2, "that training never saw" if unseen else "that were trained on, for there are too few to keep some"
    found = {name: getattr(bits, name) for name in ("value", "low", "high")}
    record = {
        "bits_per_code": found,
        "bits_per_pixel": {name: value / area for name, value in found.items()},
        "pictures": bits.count,
        "unseen": unseen,
    }
    with atomic_write(out / "nll.json") as file:
        file.write(json.dumps(record, indent=1).encode())
    print(f"NLL of {bits.count} pictures {whose}: {bits} bits/code, {bits.value / area:.4f} bits/pixel", file=sys.stderr)
