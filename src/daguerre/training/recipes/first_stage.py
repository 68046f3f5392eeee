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

from daguerre.data import Batches, EmojiSource, FolderSource, ShapesSource, Source
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.lineage_options import GROUPS, FirstStageRecipe, PlainRecipe, VariationalRecipe, VQVAERecipe
from daguerre.training.loop import train
from daguerre.training.objectives.autoencoder import AutoencoderStage
from daguerre.training.objectives.perceptual import Perceptual, load_perceptual
from daguerre.training.objectives.vae_vq import PlainStage, QuantizedStage, VariationalStage, cooled
from daguerre.training.processes import rank
from daguerre.training.recipes.latent_diffusion import remember
from daguerre.training.recipes.stages import with_measured_scale
from daguerre.weights import save_first_stage
from daguerre.weights.diffusers.vae import FirstStage

MULTIPLES = (1, 2, 3, 4, 4, 4)  # of the width, from full resolution down to 1/32
LATENT_CHANNELS = {2: 4, 4: 8, 8: 16, 16: 32, 32: 64}  # by f: a latent has about a tenth of its picture's numbers
DECAY = 0.95  # of the codes' averages: the encoder moves fast at first, and what falls behind shall be found dead soon


def network_of(recipe: FirstStageRecipe) -> FirstStage:
    """The network that a recipe trains, untrained."""
    levels = recipe.f.bit_length()
    channels = tuple(recipe.width * multiple for multiple in MULTIPLES[:levels])
    shape: dict[str, Any] = {"channels": channels, "blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": GROUPS}
    if isinstance(recipe, VQVAERecipe):
        revive = recipe.revive if recipe.revive is not None else 0.0 if recipe.codebook == "gumbel" else 0.1
        quantizer = QuantizerConfig(recipe.codes, recipe.code_width, recipe.codebook, decay=DECAY, revive=revive)
        return VQModel(VQModelConfig(quantizer, latent_channels=channels[-1], **shape))
    width = recipe.latent_channels or LATENT_CHANNELS[recipe.f]
    return AutoencoderKL(AutoencoderKLConfig(latent_channels=width, quant_conv=False, post_quant_conv=False, **shape))


def stage_of(recipe: FirstStageRecipe, network: Any, shown: Tensor, perceptual: Perceptual | None) -> AutoencoderStage:
    """What trains that network; the pictures `shown` (N, 3, H, W) make the sample grid."""
    if isinstance(recipe, VariationalRecipe):
        return VariationalStage(network, shown)
    critic = PatchDiscriminator(PatchDiscriminatorConfig(**asdict(recipe.critic))) if recipe.loss.adversarial else None
    others: dict[str, Any] = {"discriminator": critic, "perceptual": perceptual and perceptual.distance}
    if isinstance(recipe, VQVAERecipe):
        when = {"temperature": cooled(recipe.cooling)} if recipe.codebook == "gumbel" else {"enters": recipe.enters}
        return QuantizedStage(network, recipe.weights, shown, **when, **others)
    return (PlainStage if isinstance(recipe, PlainRecipe) else AutoencoderStage)(network, recipe.weights, shown, **others)


def run(recipe: FirstStageRecipe) -> Path:
    """Train, and return the folder of the finished first stage.

    Raises:
        DaguerreError: there are no pictures, a setting is impossible, or `out` holds another run.
    """
    source, loop = picture_source(recipe.data, recipe.size, skip_bad=recipe.skip_bad), recipe.loop
    paths = () if isinstance(recipe, VariationalRecipe) else recipe.perceptual
    perceptual = load_perceptual(paths) if paths else None
    torch.manual_seed(loop.seed)
    network = network_of(recipe)
    shown = Batches(source, 8, loop.seed + 1).batch(0).x
    stage = stage_of(recipe, network, shown, perceptual)
    plan = {
        "model": asdict(network.config),
        "loss": asdict(stage.weights),
        "perceptual": perceptual and perceptual.key,
        "perceptual from": perceptual and perceptual.name,
    }
    remember(recipe.out, type(recipe).__name__, source.key, size=recipe.size, seed=loop.seed, plan=plan)
    identity = {name: value for name, value in plan.items() if name != "perceptual from"} | {"source": source.key}
    train(stage, Batches(source, loop.batch_size, loop.seed), loop, recipe.out, recipe=identity)
    network = with_measured_scale(network, Batches(source, 256, loop.seed + 2).batch(0).x)
    if rank() == 0:
        save_first_stage(network, recipe.out / "model", recipe.size)
    return recipe.out / "model"


def picture_source(
    data: str, size: int, *, skip_bad: bool = False, crop: Literal["random", "center"] = "random", captioned: bool = False
) -> Source:
    """Pictures of `size` pixels a side: "shapes" or "emoji", which are drawn, or those of a folder.

    Raises:
        DaguerreError: there is no such folder, no picture in it, or, where they must be `captioned`, one that is not.
    """
    if data in DRAWN:
        return DRAWN[data](size)
    if not Path(data).is_dir():
        raise DaguerreError(f"There is no folder '{data}'; the data is a folder of pictures, or {' or '.join(DRAWN)}, which are drawn.")
    source = FolderSource(Path(data), size, crop=crop, captioned=captioned, skip_bad=skip_bad)
    for path, why in source.bad:
        print(f"skipped {path}: {why}", file=sys.stderr)
    return source


DRAWN = {"shapes": ShapesSource, "emoji": EmojiSource}
