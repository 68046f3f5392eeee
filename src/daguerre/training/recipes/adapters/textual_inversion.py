"""Learn a new word from a few images: textual inversion. The model stays as it is."""

import shlex
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.adapters.embedding import save_embedding
from daguerre.data import FolderDataset
from daguerre.errors import DaguerreError
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.datasets.fine_tuning import latent_batches, open_captioned_images
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.adapters.textual_inversion import (
    CAPTION,
    OBJECT_TEMPLATES,
    STYLE_TEMPLATES,
    WORD,
    TextualInversionTask,
    WordVectors,
    filled,
    first_vectors,
)
from daguerre.training.options.adapters.textual_inversion import TextualInversionRecipe
from daguerre.training.plan import announce, print_plan
from daguerre.training.recipes.stages import trained_parts, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion
from daguerre.weights.hashing import network_hash


def run(recipe: TextualInversionRecipe) -> Path:
    """Train, and return the file of the finished embedding, which has the word's name.

    Raises:
        DaguerreError: there are no images, a template lacks the word, the model has no autoencoder or CLIP text encoder or has the word
            already, or `out` belongs to another run.
    """
    model = load_diffusion(recipe.model)
    autoencoder, conditioner = trained_parts(model)
    size = model.sample_size if recipe.resolution is None else recipe.resolution
    templates = read_templates(recipe)
    captioned = any(CAPTION in template for template in templates)
    images = open_captioned_images(recipe.data, size, recipe.images, autoencoder, model.unet.config, model.name, captioned=captioned)
    source = images.trained
    assert isinstance(source, FolderDataset)
    recipe = with_epochs(recipe, source)
    loop, base = recipe.loop, recipe.model
    record_run(recipe.out, "TextualInversionRecipe", source.key, size=size, seed=loop.seed, base=base, threads=recipe.machine.threads)
    model = replace(model, unet=model.unet.float(), conditioner=conditioner.float(), sample_size=size)
    torch.manual_seed(loop.seed)
    network = WordVectors(model, first_vectors(model, recipe.word, recipe.num_vectors, recipe.initial_word))
    print_plan({f"vectors of {recipe.word!r}": network}, loop, recipe.out, images=len(source))
    encoded = {"data": source.key, "size": size, "autoencoder": network_hash(autoencoder)}
    batches, validation = latent_batches(images, autoencoder, recipe.out, loop, recipe.crops_per_image if recipe.cache else None)
    identity = encoded | {"model": base, "unet": network_hash(model.unet), "text": network_hash(conditioner), "templates": templates}
    identity |= {name: getattr(recipe, name) for name in ("word", "num_vectors", "initial_word", "crops_per_image", "cache")}
    identity["loss"] = asdict(recipe.loss)
    with ExitStack() as stack:
        stack.enter_context(network.attached())
        if recipe.loop.gradient_checkpointing:
            stack.enter_context(checkpointed(model.unet))
        train(TextualInversionTask(network, recipe.loss, templates), batches, loop, recipe.out, recipe=identity, validation=validation)
    path = recipe.out / f"{recipe.word.strip('<>') or 'word'}.safetensors"
    if rank() == 0:
        save_embedding(network.cpu().value, path, {"name": recipe.word, "sd_checkpoint_name": model.name})
    prompt = shlex.quote(filled(templates[0], recipe.word, ""))
    option = "" if base is None else f" --model {shlex.quote(base)}"
    announce(f"Try it: daguerre txt2img {prompt}{option} --embedding {shlex.quote(str(path))}")
    return path


def read_templates(recipe: TextualInversionRecipe) -> list[str]:
    """The templates of a recipe; {} or the web UI's [name] is the word.

    Raises:
        DaguerreError: the file cannot be read, has no template, or one without the word.
    """
    if recipe.templates is None:
        return list(OBJECT_TEMPLATES if recipe.learnable_property == "object" else STYLE_TEMPLATES)
    try:
        lines = recipe.templates.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DaguerreError(f"The templates '{recipe.templates}' cannot be read ({error}); give a text file.") from error
    found = [line.strip().replace("[name]", WORD) for line in lines if line.strip()]
    wrong = next((line for line in found if WORD not in line), None)
    if wrong is not None or not found:
        what = "is empty" if wrong is None else f"has a line without the word: {wrong!r}"
        raise DaguerreError(f"'{recipe.templates}' {what}; write {WORD} where the word belongs, such as 'a photo of a {WORD}'.")
    return found
