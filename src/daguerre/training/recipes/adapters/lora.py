"""Train a LoRA on a directory of images; the model stays as it is."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.adapters import load_lora
from daguerre.adapters.attach import adapted_networks
from daguerre.adapters.lora.lora import CONTEXT_FAMILIES
from daguerre.adapters.lora.write import HEADER_VERSIONS, save_lora
from daguerre.data import FolderDataset
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.datasets.fine_tuning import ClassPrior, example_captions, latent_batches, open_captioned_images, preview_captions
from daguerre.training.datasets.images import TrainingImages
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.adapters.lora import LoraNetwork, LoraTask, layers_of, new_layers
from daguerre.training.objectives.diffusion import with_prior
from daguerre.training.options.adapters.lcm import LCMRecipe
from daguerre.training.options.adapters.lora import LoraRecipe
from daguerre.training.plan import announce, example_caption, print_plan
from daguerre.training.recipes.stages import trained_parts, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion
from daguerre.weights.hashing import file_hash, network_hash

HEADER_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}
V_ARCHITECTURE = "stable-diffusion-v2-768-v"


def run(recipe: LoraRecipe) -> Path:
    """Train, and return the finished file in kohya's naming; next to it is one in PEFT's naming, which ends in `-peft.safetensors`.

    Raises:
        DaguerreError: there are no images, the model has no autoencoder or text encoder, no layer is chosen, or `out` belongs to another
            run.
    """
    model = load_diffusion(recipe.model)
    autoencoder, _ = trained_parts(model)
    size = model.sample_size if recipe.resolution is None else recipe.resolution
    images = open_captioned_images(recipe.data, size, recipe.images, autoencoder, model.unet.config, model.name)
    key, seed = images.trained.key, recipe.loop.seed
    record_run(recipe.out, "LoraRecipe", key, size=size, seed=seed, base=recipe.model, threads=recipe.machine.threads)
    return train_lora(recipe, replace(model, sample_size=size), images)


def train_lora(recipe: LoraRecipe, model: LatentDiffusion, images: TrainingImages, prior: ClassPrior | None = None) -> Path:
    """Train a LoRA of a model on opened images of its size, as `run` does; `prior`: preserved images of a class."""
    source, (autoencoder, conditioner), size = images.trained, trained_parts(model), model.sample_size
    assert isinstance(source, FolderDataset)
    recipe = with_epochs(recipe, source)
    loop, options = recipe.loop, recipe.lora
    dtype = getattr(torch, options.base_dtype)
    model = replace(model, unet=model.unet.to(dtype), conditioner=conditioner.to(dtype))
    torch.manual_seed(loop.seed)
    layers = new_layers(model, options) if options.init_lora is None else layers_of(load_lora(options.init_lora), model)
    network = LoraNetwork(model, layers, cached=not options.shuffle_captions)
    print_plan({f"LoRA of {len(layers)} layers": network}, loop, recipe.out, images=len(source))
    encoded = {"data": source.key, "size": size, "autoencoder": network_hash(autoencoder)}
    crops = recipe.crops_per_image if recipe.cache else None
    batches, validation = latent_batches(images, autoencoder, recipe.out, loop, crops, prior)
    identity = encoded | {"model": recipe.model, "unet": network_hash(model.unet), "text": network_hash(conditioner)}
    identity |= {"crops_per_image": recipe.crops_per_image, "cache": recipe.cache, "loss": asdict(recipe.loss), "lora": asdict(options)}
    if options.init_lora is not None:
        identity["init_lora"] = file_hash(options.init_lora)
    if prior is not None:
        identity["prior"] = prior.identity
    task = LoraTask(network, recipe.loss, options, preview_captions(source, prior))
    with ExitStack() as stack:
        stack.enter_context(network.attached())
        if recipe.loop.gradient_checkpointing:
            stack.enter_context(checkpointed(model.unet))
        train(with_prior(task, prior), batches, loop, recipe.out, recipe=identity, validation=validation)
    path = write_lora(network, recipe, header(recipe, model, source) if rank() == 0 else {})
    announce_lora(recipe, path, example_captions(source))
    return path


def write_lora(network: LoraNetwork, recipe: LoraRecipe | LCMRecipe, header: Mapping[str, str]) -> Path:
    """Write a trained LoRA in both namings, and return the file in kohya's naming. header: needed in the first process only."""
    name = recipe.out.absolute().name
    path = recipe.out / f"{name}.safetensors"
    if rank() == 0:
        lora, networks = network.cpu().value(name, {**header, **network.sizes}), adapted_networks(network.model)
        save_lora(lora, path, networks)
        save_lora(lora, recipe.out / f"{name}-peft.safetensors", networks, naming="peft")
    return path


def announce_lora(recipe: LoraRecipe | LCMRecipe, path: Path, captions: Sequence[str]) -> None:
    """Print a command that uses a LoRA, with one of the captions."""
    base = "" if recipe.model is None else f" --model {shlex.quote(recipe.model)}"
    announce(f"Try it: daguerre txt2img {shlex.quote(example_caption(captions))}{base} --lora {shlex.quote(str(path))}")


def header(recipe: LoraRecipe, model: LatentDiffusion, source: FolderDataset) -> dict[str, str]:
    """What other programs read from the header of a LoRA that is trained on a folder of images.

    The tags of shards at an address are not counted, because all of the shards would have to be fetched.
    """
    tags = {}
    if source.fetch_shard is None:
        counts = Counter(part.strip() for item in source.items for part in item.caption.split(",") if part.strip())
        tags = {"ss_tag_frequency": json.dumps({source.folder.absolute().name: dict(counts)}, ensure_ascii=False)}
    values = tags | {
        "ss_num_train_images": len(source),
        "ss_enable_bucket": recipe.images.crop == "bucket",
        "ss_caption_dropout_rate": recipe.loss.caption_dropout,
        "ss_min_snr_gamma": recipe.loss.snr_gamma,
        "ss_noise_offset": recipe.lora.noise_offset or None,
        "ss_shuffle_caption": recipe.lora.shuffle_captions,
        "ss_keep_tokens": recipe.lora.keep_tokens,
    }
    return common_header(recipe, model) | {name: str(value) for name, value in values.items()}


def common_header(recipe: LoraRecipe | LCMRecipe, model: LatentDiffusion) -> dict[str, str]:
    """What other programs read from the header of a trained LoRA, by kohya's and modelspec's names."""
    family = CONTEXT_FAMILIES.get(model.unet.config.context_width or 0, "")
    has_v = family == "sd2" and model.prediction == "v"
    values: dict[str, object] = {
        "ss_sd_model_name": model.name,
        "ss_learning_rate": recipe.loop.learning_rate,
        "ss_optimizer": recipe.loop.optimizer,
        "ss_lr_scheduler": recipe.loop.lr_scheduler,
        "ss_max_train_steps": recipe.loop.max_train_steps,
        "ss_total_batch_size": recipe.loop.batch_size,
        "ss_seed": recipe.loop.seed,
        "ss_resolution": f"({model.sample_size}, {model.sample_size})",
        "modelspec.title": recipe.out.absolute().name,
        "modelspec.prediction_type": model.prediction,
        "modelspec.resolution": f"{model.sample_size}x{model.sample_size}",
    }
    if family in HEADER_VERSIONS:
        values["ss_base_model_version"] = "sd_v2_v" if has_v else HEADER_VERSIONS[family]
        values["modelspec.architecture"] = f"{V_ARCHITECTURE if has_v else HEADER_ARCHITECTURES[family]}/lora"
    if recipe.lora.dora:
        values["ss_network_args"] = json.dumps({"dora_wd": "True"})
    return {name: str(value) for name, value in values.items()}
