"""Train a ControlNet on a directory of images; the model stays as it is."""

import shlex
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.adapters import load_controlnet
from daguerre.adapters.controlnet import save_controlnet
from daguerre.data import BatchLoader
from daguerre.models.controlnet import ControlNetModel
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.condition_preview import find_examples
from daguerre.training.datasets.control_maps import with_control_maps
from daguerre.training.datasets.images import ValidationBatches, open_training_images, validation_sample
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.adapters.controlnet import ControlledModel, ControlNetTask
from daguerre.training.options.adapters.controlnet import ControlNetRecipe
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.plan import announce, epoch_images, example_caption, print_plan
from daguerre.training.recipes.stages import require_text_to_image, trained_parts, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion
from daguerre.weights.hashing import network_hash


def run(recipe: ControlNetRecipe) -> Path:
    """Train, and return the folder of the finished ControlNet, in the layout of diffusers.

    Raises:
        DaguerreError: there are no images or maps, the model has no autoencoder or text encoder or another input than latents, or `out`
            belongs to another run.
    """
    model = load_diffusion(recipe.model)
    autoencoder, conditioner = trained_parts(model)
    require_text_to_image(model, "train the ControlNet on")
    size = model.sample_size if recipe.resolution is None else recipe.resolution
    require_multiple(size, autoencoder.downsample_factor, model.name)
    trained, held_out = open_training_images(recipe.data, size, recipe.images, captioned=True, repeats=True)
    source = with_control_maps(trained, recipe.control)
    recipe = with_epochs(recipe, source)
    loop = recipe.loop
    torch.manual_seed(loop.seed)
    model = replace(model, unet=model.unet.float(), conditioner=conditioner.float(), sample_size=size)
    network = ControlledModel(model, new_controlnet(recipe, model))
    record_run(recipe.out, "ControlNetRecipe", source.key, size=size, seed=loop.seed, base=recipe.model, threads=recipe.machine.threads)
    print_plan({"ControlNet": network}, loop, recipe.out, images=epoch_images(source))
    identity = {"data": source.key, "size": size, "model": recipe.model, "unet": network_hash(model.unet), "loss": asdict(recipe.loss)}
    identity |= {"autoencoder": network_hash(autoencoder), "text": network_hash(conditioner), "start": network_hash(network.controlnet)}
    validation = ()
    if held_out is not None:
        held_out = with_control_maps(validation_sample(held_out), recipe.control)
        validation = ValidationBatches(held_out, loop.batch_size, loop.seed)
    examples = find_examples(network.controlnet, source if held_out is None else held_out)
    task = ControlNetTask(network, recipe.loss, examples)
    with checkpointed(model.unet) if loop.gradient_checkpointing else nullcontext():
        train(task, BatchLoader(source, loop.batch_size, loop.seed), loop, recipe.out, recipe=identity, validation=validation)
    path = recipe.out / recipe.out.absolute().name
    if rank() == 0:
        save_controlnet(network.controlnet, path)
    base = "" if recipe.model is None else f" --model {shlex.quote(recipe.model)}"
    caption = shlex.quote(example_caption([each.prompt for each in examples]))
    announce(f"Try it: daguerre txt2img {caption}{base} --controlnet {shlex.quote(str(path))} --control-image MAP.png")
    return path


def new_controlnet(recipe: ControlNetRecipe, model: LatentDiffusion) -> ControlNetModel:
    """The network that training starts from, in float32: a copy of the model's encoder, or the ControlNet that the recipe names."""
    if recipe.init_controlnet is None:
        return ControlNetModel.from_unet(model.unet, model.autoencoder.downsample_factor)
    return load_controlnet(recipe.init_controlnet, model).network.float()
