"""Teach a model one thing from a few images, as a LoRA or a whole model: DreamBooth."""

from dataclasses import fields, replace
from pathlib import Path

from daguerre.data import FolderDataset
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.progress import track
from daguerre.training.datasets.fine_tuning import ClassPrior, open_captioned_images
from daguerre.training.datasets.images import TrainingImages
from daguerre.training.distributed.processes import main_process_first, rank, state
from daguerre.training.options.adapters.dreambooth import DreamBoothRecipe, words_of
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.text_to_image import TextToImageRecipe
from daguerre.training.plan import announce
from daguerre.training.recipes.adapters.lora import train_lora
from daguerre.training.recipes.stages import trained_parts
from daguerre.training.recipes.text_to_image import fine_tune
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion


def run(recipe: DreamBoothRecipe) -> Path:
    """Generate the images of the class prompts, train, and return the finished LoRA, or with `full` the directory of the finished model.

    Raises:
        DaguerreError: there are no images, the model has no autoencoder or text encoder, no layer is chosen, or `out` belongs to another
            run.
    """
    model = load_diffusion(recipe.model)
    model = replace(model, sample_size=model.sample_size if recipe.resolution is None else recipe.resolution)
    autoencoder, _ = trained_parts(model)
    size, unet = model.sample_size, model.unet.config
    found = open_captioned_images(recipe.data, size, recipe.images, autoencoder, unet, model.name, captioned=False)
    images = TrainingImages(*(part and captioned(part, recipe) for part in found))  # pyright: ignore[reportArgumentType]
    source = f"{images.trained.key} of {recipe.instance_prompt!r}, class {list(recipe.class_prompt)}"
    threads, kind = recipe.machine.threads, "DreamBooth, full" if recipe.full else "DreamBooth"
    record_run(recipe.out, kind, source, size=size, seed=recipe.loop.seed, base=recipe.model, threads=threads)
    prior = None
    if recipe.class_prompt:
        folder = recipe.out / "class-images" if recipe.class_data is None else recipe.class_data
        main_process_first(lambda: generate_class_images(recipe, model, folder))
        opened = open_captioned_images(folder, size, TrainingImageOptions(crop="center"), autoencoder, unet, model.name).trained
        assert isinstance(opened, FolderDataset)
        prior = ClassPrior(opened, recipe.prior_loss_weight)
    if not recipe.full:
        return train_lora(recipe, model, images, prior)
    names = {each.name for each in fields(TextToImageRecipe)} & {each.name for each in fields(recipe)}
    return fine_tune(TextToImageRecipe(**{name: getattr(recipe, name) for name in names}), model, images, prior)


def captioned(source: FolderDataset, recipe: DreamBoothRecipe) -> FolderDataset:
    """The images with the instance prompt as the caption of those that have none. Warns of captions without the new word."""
    items = [item._replace(caption=item.caption.strip() or recipe.instance_prompt) for item in source.items]
    lacking = [item for item in items if not {*recipe.new_words} & {*words_of(item.caption)}]
    if lacking:
        word, first = " or ".join(map(repr, recipe.new_words)), lacking[0]
        announce(
            f"warning: {len(lacking)} of {len(items)} captions lack {word}, such as {first.caption!r} of {first.path.name}; an image "
            "teaches the word only if its caption has it"
        )
    return source.part(items)


def generate_class_images(recipe: DreamBoothRecipe, model: LatentDiffusion, folder: Path) -> None:
    """Generate the images of the class prompts, in turn, with the prompts as captions; images that are there already are kept."""
    names = [f"{number:04d}" for number in range(recipe.num_class_images)]
    missing = [number for number, name in enumerate(names) if not (folder / f"{name}.png").is_file()]
    announce(f"extra stage: {len(missing)} images of the class prompts, in {folder}, where {len(names) - len(missing)} of {len(names)} are")
    folder.mkdir(parents=True, exist_ok=True)
    model.to(state().device)
    for number in track(missing, "generating images of the class prompts", shown=rank() == 0):
        prompt = recipe.class_prompt[number % len(recipe.class_prompt)]
        (image,) = generate(model, Request(prompt, seed=recipe.loop.seed + number))
        (folder / f"{names[number]}.txt").write_text(prompt, encoding="utf-8")  # first, so that no image is without a caption
        image.save(folder / f"{names[number]}.png")
