"""First stages on their own: plain and variational autoencoders, VQ-VAE, VQGAN, and the KL autoencoder of latent diffusion, f2 to f32.

One recipe a kind, which share data, size, f and loop: see `lineage_options`. `run` leaves a model folder.
Kingma and Welling 2014, arXiv:1312.6114; van den Oord et al. 2017, arXiv:1711.00937; Esser et al. 2021, arXiv:2012.09841; Rombach et al.
2022, arXiv:2112.10752, section 3.1.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from daguerre.data import BatchLoader, Dataset, EmojiDataset, FolderDataset, ShapesDataset
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.lineage_options import GROUPS, FirstStageRecipe, PlainRecipe, VariationalRecipe, VQVAERecipe
from daguerre.training.loop import train
from daguerre.training.objectives.autoencoder import AutoencoderTask
from daguerre.training.objectives.perceptual import PerceptualLoss, load_perceptual
from daguerre.training.objectives.vae_vq import AutoencoderOnlyTask, QuantizedTask, VariationalTask, cosine_anneal
from daguerre.training.processes import rank
from daguerre.training.recipes.latent_diffusion import record_run
from daguerre.training.recipes.stages import with_measured_scale
from daguerre.weights import save_first_stage
from daguerre.weights.diffusers.vae import FirstStage

MULTIPLES = (1, 2, 3, 4, 4, 4)  # of the width, from full resolution down to 1/32
LATENT_CHANNELS = {2: 4, 4: 8, 8: 16, 16: 32, 32: 64}  # by f: a latent has about a tenth of its picture's numbers
DECAY = 0.95  # of the codes' averages: the encoder moves fast at first, and what falls behind shall be found dead soon


def build_network(recipe: FirstStageRecipe) -> FirstStage:
    """The network that a recipe trains, untrained."""
    levels = recipe.f.bit_length()
    channels = tuple(recipe.width * multiple for multiple in MULTIPLES[:levels])
    shape: dict[str, Any] = {"channels": channels, "blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": GROUPS}
    if isinstance(recipe, VQVAERecipe):
        revive = recipe.dead_code_threshold if recipe.dead_code_threshold is not None else 0.0 if recipe.codebook == "gumbel" else 0.1
        quantizer = QuantizerConfig(recipe.codebook_size, recipe.code_width, recipe.codebook, decay=DECAY, dead_code_threshold=revive)
        return VQModel(VQModelConfig(quantizer, latent_channels=channels[-1], **shape))
    width = recipe.latent_channels or LATENT_CHANNELS[recipe.f]
    return AutoencoderKL(AutoencoderKLConfig(latent_channels=width, quant_conv=False, post_quant_conv=False, **shape))


def training_task(recipe: FirstStageRecipe, network: Any, shown: Tensor, perceptual: PerceptualLoss | None) -> AutoencoderTask:
    """What trains that network; the pictures `shown` (N, 3, H, W) make the sample grid."""
    if isinstance(recipe, VariationalRecipe):
        return VariationalTask(network, shown)
    critic = PatchDiscriminator(PatchDiscriminatorConfig(**asdict(recipe.discriminator))) if recipe.loss.adversarial else None
    others: dict[str, Any] = {"discriminator": critic, "perceptual": perceptual and perceptual.distance}
    if isinstance(recipe, VQVAERecipe):
        when = (
            {"temperature": cosine_anneal(recipe.temperature_steps)}
            if recipe.codebook == "gumbel"
            else {"codebook_start": recipe.codebook_start}
        )
        return QuantizedTask(network, recipe.weights, shown, **when, **others)
    return (AutoencoderOnlyTask if isinstance(recipe, PlainRecipe) else AutoencoderTask)(network, recipe.weights, shown, **others)


def run(recipe: FirstStageRecipe) -> Path:
    """Train, and return the folder of the finished first stage.

    Raises:
        DaguerreError: there are no pictures, a setting is impossible, or `out` holds another run.
    """
    source, loop = open_dataset(recipe.data, recipe.resolution, skip_bad=recipe.skip_bad), recipe.loop
    paths = () if isinstance(recipe, VariationalRecipe) else recipe.perceptual
    perceptual = load_perceptual(paths) if paths else None
    torch.manual_seed(loop.seed)
    network = build_network(recipe)
    shown = BatchLoader(source, 8, loop.seed + 1).batch(0).x
    stage = training_task(recipe, network, shown, perceptual)
    plan = {
        "model": asdict(network.config),
        "loss": asdict(stage.weights),
        "perceptual": perceptual and perceptual.key,
        "perceptual from": perceptual and perceptual.name,
    }
    record_run(recipe.out, type(recipe).__name__, source.key, size=recipe.resolution, seed=loop.seed, plan=plan)
    identity = {name: value for name, value in plan.items() if name != "perceptual from"} | {"source": source.key}
    train(stage, BatchLoader(source, loop.batch_size, loop.seed), loop, recipe.out, recipe=identity)
    network = with_measured_scale(network, BatchLoader(source, 256, loop.seed + 2).batch(0).x)
    if rank() == 0:
        save_first_stage(network, recipe.out / "model", recipe.resolution)
    return recipe.out / "model"


def open_dataset(
    data: str, size: int, *, skip_bad: bool = False, crop: Literal["random", "center"] = "random", captioned: bool = False
) -> Dataset:
    """Pictures of `size` pixels a side: "shapes" or "emoji", which are drawn, or those of a folder.

    Raises:
        DaguerreError: there is no such folder, no picture in it, or, where they must be `captioned`, one that is not.
    """
    if data in BUILT_IN_DATASETS:
        return BUILT_IN_DATASETS[data](size)
    if not Path(data).is_dir():
        raise DaguerreError(
            f"There is no folder '{data}'; the data is a folder of pictures, or {' or '.join(BUILT_IN_DATASETS)}, which are drawn."
        )
    source = FolderDataset(Path(data), size, crop=crop, captioned=captioned, skip_bad=skip_bad)
    for path, why in source.skipped:
        print(f"skipped {path}: {why}", file=sys.stderr)
    return source


BUILT_IN_DATASETS = {"shapes": ShapesDataset, "emoji": EmojiDataset}
