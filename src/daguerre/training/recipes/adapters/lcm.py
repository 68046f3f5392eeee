"""Distil a model to few steps, as a LoRA; the model stays as it is."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.adapters import load_lora
from daguerre.adapters.presets import PRESET_KEY, STEP_PRESETS
from daguerre.data import BatchLoader
from daguerre.errors import DaguerreError
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.datasets.images import open_training_images, validation_batches
from daguerre.training.loop import train
from daguerre.training.objectives.adapters.lcm import SOLVER_STEPS, ConsistencyTask
from daguerre.training.objectives.adapters.lora import LoraNetwork, layers_of, new_layers
from daguerre.training.options.adapters.lcm import LCMRecipe
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.plan import epoch_images, print_plan
from daguerre.training.recipes.adapters.lora import announce_lora, common_header, write_lora
from daguerre.training.recipes.stages import require_text_to_image, trained_parts, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion
from daguerre.weights.hashing import file_hash, network_hash

PREVIEWS = 8  # images of the sample sheet


def run(recipe: LCMRecipe) -> Path:
    """Train, and return the finished file in kohya's naming; next to it is one in PEFT's naming, which ends in `-peft.safetensors`.

    Raises:
        DaguerreError: there are no images, the model has no autoencoder or text encoder or another input than latents, no layer is chosen,
            or `out` belongs to another run.
    """
    model = load_diffusion(recipe.model)
    autoencoder, conditioner = trained_parts(model)
    require_text_to_image(model, "distil")
    if len(model.schedule) < SOLVER_STEPS:
        raise DaguerreError(f"{model.name} has {len(model.schedule)} noise levels, and distillation needs {SOLVER_STEPS} or more.")
    size = model.sample_size if recipe.resolution is None else recipe.resolution
    require_multiple(size, autoencoder.downsample_factor, model.name)
    images = open_training_images(recipe.data, size, recipe.images, captioned=True, repeats=True)
    source = images.trained
    recipe = with_epochs(recipe, source)
    loop, options = recipe.loop, recipe.lora
    record_run(recipe.out, "LCMRecipe", source.key, size=size, seed=loop.seed, base=recipe.model, threads=recipe.machine.threads)
    dtype = getattr(torch, options.base_dtype)
    model = replace(model, unet=model.unet.to(dtype), conditioner=conditioner.to(dtype), sample_size=size)
    torch.manual_seed(loop.seed)
    layers = new_layers(model, options) if options.init_lora is None else layers_of(load_lora(options.init_lora), model)
    network = LoraNetwork(model, layers)
    print_plan({f"LoRA of {len(layers)} layers": network}, loop, recipe.out, images=epoch_images(source))
    task = ConsistencyTask(network, recipe.loss, source.captions(PREVIEWS, seed=0))
    identity = {"data": source.key, "size": size, "model": recipe.model, "unet": network_hash(model.unet), "guidance": task.guidance}
    identity |= {"autoencoder": network_hash(autoencoder), "text": network_hash(conditioner)}
    identity |= {"lora": asdict(options), "loss": asdict(recipe.loss), "init_lora": options.init_lora and file_hash(options.init_lora)}
    with ExitStack() as stack:
        stack.enter_context(network.attached())
        if recipe.loop.gradient_checkpointing:
            stack.enter_context(checkpointed(model.unet))
        batches = BatchLoader(source, loop.batch_size, loop.seed)
        validation = validation_batches(images, loop.batch_size, loop.seed)
        train(task, batches, loop, recipe.out, recipe=identity, validation=validation)
    header = common_header(recipe, model) | {PRESET_KEY: STEP_PRESETS["lcm"].name, "lcm.guidance_scale": str(task.guidance)}
    path = write_lora(network, recipe, header)
    announce_lora(recipe, path, task.preview_prompts)
    return path
