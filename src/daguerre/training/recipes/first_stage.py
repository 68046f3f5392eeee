"""Train a first stage: plain or variational autoencoder, VQ-VAE, VQGAN, or the KL autoencoder of latent diffusion, f2 to f32.

Kingma and Welling 2014, arXiv:1312.6114; van den Oord et al. 2017, arXiv:1711.00937; Esser et al. 2021, arXiv:2012.09841; Rombach et al.
2022, arXiv:2112.10752, section 3.1.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.data import BatchLoader
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.datasets.images import open_training_images, validation_batches
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.autoencoder import AutoencoderTask
from daguerre.training.objectives.perceptual import PerceptualLoss, load_perceptual
from daguerre.training.objectives.vae_vq import PlainAutoencoderTask, QuantizedTask, VariationalTask, cosine_anneal
from daguerre.training.options.first_stage import NORM_GROUPS, AutoencoderRecipe, FirstStageRecipe, VAERecipe, VQVAERecipe
from daguerre.training.plan import epoch_images, network_bytes, print_plan
from daguerre.training.recipes.stages import with_epochs, with_measured_scale
from daguerre.training.run_identity import record_run
from daguerre.weights import save_first_stage
from daguerre.weights.diffusers.vae import FirstStage

CHANNEL_MULTIPLES = (1, 2, 3, 4, 4, 4)  # of base_channels, from full resolution down to 1/32
LATENT_CHANNELS = {2: 4, 4: 8, 8: 16, 16: 32, 32: 64}  # by f
CODEBOOK_EMA_DECAY = 0.95  # low, because the encoder changes quickly at first and dead codes must be found soon


def build_network(recipe: FirstStageRecipe) -> FirstStage:
    """The untrained network of a recipe."""
    levels = recipe.f.bit_length()
    channels = tuple(recipe.base_channels * multiple for multiple in CHANNEL_MULTIPLES[:levels])
    shape: dict[str, Any] = {"channels": channels, "blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": NORM_GROUPS}
    if isinstance(recipe, VQVAERecipe):
        threshold = recipe.dead_code_threshold
        if threshold is None:
            threshold = 0.0 if recipe.codebook == "gumbel" else 0.1
        quantizer = QuantizerConfig(
            recipe.codebook_size, recipe.code_dim, recipe.codebook, decay=CODEBOOK_EMA_DECAY, dead_code_threshold=threshold
        )
        return VQModel(VQModelConfig(quantizer, latent_channels=channels[-1], **shape))
    latent_channels = recipe.latent_channels or LATENT_CHANNELS[recipe.f]
    return AutoencoderKL(AutoencoderKLConfig(latent_channels=latent_channels, quant_conv=False, post_quant_conv=False, **shape))


def training_task(recipe: FirstStageRecipe, network: Any, preview: Tensor, perceptual: PerceptualLoss | None) -> AutoencoderTask:
    """The task that trains the network of a recipe; `preview` (N, 3, H, W) are the images of the sample grid."""
    if isinstance(recipe, VAERecipe):
        return VariationalTask(network, preview)
    config = PatchDiscriminatorConfig(channels=recipe.discriminator_channels, layers=recipe.discriminator_layers)
    discriminator = PatchDiscriminator(config) if recipe.loss.adversarial_weight else None
    shared: dict[str, Any] = {"discriminator": discriminator, "perceptual": perceptual and perceptual.distance}
    if isinstance(recipe, VQVAERecipe) and recipe.codebook == "gumbel":
        return QuantizedTask(network, recipe.weights, preview, temperature=cosine_anneal(recipe.temperature_steps), **shared)
    if isinstance(recipe, VQVAERecipe):
        return QuantizedTask(network, recipe.weights, preview, codebook_start=recipe.codebook_start, **shared)
    return (PlainAutoencoderTask if isinstance(recipe, AutoencoderRecipe) else AutoencoderTask)(network, recipe.weights, preview, **shared)


def run(recipe: FirstStageRecipe) -> Path:
    """Train, and return the directory of the finished first stage.

    Raises:
        DaguerreError: there are no images, an option is impossible, or `out` belongs to another run.
    """
    images = open_training_images(recipe.data, recipe.resolution, recipe.images)
    source = images.trained
    recipe = with_epochs(recipe, source)
    loop = recipe.loop
    paths = () if isinstance(recipe, VAERecipe) else recipe.perceptual
    perceptual = load_perceptual(paths) if paths else None
    torch.manual_seed(loop.seed)
    network = build_network(recipe)
    preview = BatchLoader(source, 8, loop.seed + 1).batch(0).x
    task = training_task(recipe, network, preview, perceptual)
    identity = {"model": asdict(network.config), "loss": asdict(task.weights), "perceptual": perceptual and perceptual.key}
    plan = identity | {"perceptual name": perceptual and perceptual.name}
    record_run(
        recipe.out, type(recipe).__name__, source.key, size=recipe.resolution, seed=loop.seed, plan=plan, threads=recipe.machine.threads
    )
    batches = BatchLoader(source, loop.batch_size, loop.seed)
    print_plan(task.networks, loop, recipe.out, images=epoch_images(source), model_bytes=network_bytes(network))
    validation = validation_batches(images, loop.batch_size, loop.seed)
    train(task, batches, loop, recipe.out, recipe=identity | {"source": source.key}, validation=validation)
    network = with_measured_scale(network, BatchLoader(source, 256, loop.seed + 2).batch(0).x)
    if rank() == 0:
        save_first_stage(network, recipe.out / "model", recipe.resolution)
    return recipe.out / "model"
