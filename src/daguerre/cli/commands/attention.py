"""`daguerre attention PROMPT…`: generate images and show the attention of each word or of one position; prints one path per line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from daguerre.atomic_io import free_path, numbered_paths
from daguerre.cli.adapters import with_adapter_options
from daguerre.cli.generation import check_outputs, generate_with_progress, warn_prompt
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import check_sampler, choose_threads, open_model
from daguerre.cli.options import (
    ControlledAdapterOptions,
    ModelOptions,
    NegativePrompt,
    OptionalFloat,
    OptionalPath,
    Out,
    Prompts,
    SamplingOptions,
    SizedImageOptions,
    build_request,
    slug,
    with_preset,
)
from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.errors import DaguerreError, nearest
from daguerre.pipelines.images.output import write_image
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import ImageToImage, Inpaint, Task, TextToImage
from daguerre.progress import spinner

if TYPE_CHECKING:
    from PIL.Image import Image

    from daguerre.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class AttentionOptions:
    """Generate images and show the cross-attention of each word of the prompt, or the self-attention of one position.

    Each output is a sheet with the image and one overlay per word: attention averaged over heads, layers and steps. With --self there is
    one overlay for all layers and one for each resolution of the feature maps.
    """

    prompt: Prompts
    """What the image shows; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD [WORD ...]", help_behavior_hint="")] = ()
    """Show only these words. Default: all words."""
    position: Annotated[str | None, tyro.conf.arg(name="self", metavar="X,Y", help_behavior_hint="")] = None
    """Instead of words: the self-attention of this position, in pixels from the upper left corner."""
    image: OptionalPath = None
    """Start from this image, like `daguerre img2img`."""
    mask: OptionalPath = None
    """Regenerate only the white part of this mask of --image, like `daguerre inpaint`."""
    strength: OptionalFloat = None
    """Denoising strength of --image, 0 to 1. Default: as for img2img or inpaint."""
    image_options: Annotated[SizedImageOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="image", help="")] = field(
        default_factory=SizedImageOptions
    )
    sampling: Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")] = field(default_factory=SamplingOptions)
    loading: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="model", help="")] = field(default_factory=ModelOptions)
    adapters: Annotated[ControlledAdapterOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="adapter", help="")] = field(
        default_factory=ControlledAdapterOptions
    )
    out: Out = None
    save_overlays: bool = False
    """Also save each overlay in the size of the image, as <sheet>-<number>-<word>."""

    def task(self) -> Task:
        """The task. Raises DaguerreError for --mask or --strength without --image."""
        if self.image is None:
            if self.mask is not None or self.strength is not None:
                raise DaguerreError("--mask and --strength need an input image; give it with --image.")
            return TextToImage()
        image = read_input(self.image)
        task = ImageToImage(image) if self.mask is None else Inpaint(image, read_input(self.mask))
        return task if self.strength is None else replace(task, strength=self.strength)

    def request(self) -> Request:
        """The request that these options describe."""
        groups = self.image_options, self.sampling, self.loading
        request = build_request(self.prompt, self.task(), *groups, negative_prompt=self.negative_prompt)
        return with_preset(with_adapter_options(request, self.adapters), self.sampling, self.loading.model)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse_options(AttentionOptions, arguments, "attention"))


def run(options: AttentionOptions) -> None:
    """Generate the images and print the paths of the sheets.

    Raises:
        DaguerreError: the model has no cross-attention to words, or the prompt does not have the requested words.
    """
    with usage_errors():
        request, position = options.request(), parse_position(options.position)
        if position and options.words:
            raise DaguerreError("--words and --self exclude each other; remove one of them.")
        out = options.out or free_path(Path(f"{slug(request.prompts[0])}-{request.seed}-attention.png"), len(request.items))
        check_outputs({"--out": out}, request)
    loading = options.loading
    choose_threads(loading.threads)
    with spinner("opening the model"):
        check_sampler(request)
        model = open_model(loading.model, None, loading.device, loading.dtype, offline=loading.offline, adapters=request.adapters)
    warn_prompt(model, request)
    if position is None:
        _show_words(options, model, request, out)
    else:
        _show_position(options, model, request, out, position)


def _show_position(options: AttentionOptions, model: "LatentDiffusion", request: Request, out: Path, position: tuple[int, int]) -> None:
    """Generate and write sheets with the self-attention of a position (x, y) in pixels."""
    from daguerre.pipelines.attention_maps import attention_sheet, overlay
    from daguerre.pipelines.context import GenerationContext
    from daguerre.pipelines.self_attention import check_position, record_self_attention

    with usage_errors():
        context, given = GenerationContext.of(model, request), request.task.input_images.get("image")
        size = context.image_size if given is None else context.size_on(given.pixels)
        check_position(position, size)
    with record_self_attention(model, position, size) as record:
        images = generate_with_progress(model, request)
    for i, (image, path) in enumerate(zip(images, numbered_paths(out, len(images)), strict=True)):
        maps = record.maps(i)
        title = f"{request.items[i][0]}; position {position[0]},{position[1]}"
        overlays = [(overlay(image.image, each), each.text) for each in maps]
        _write_sheet(options, path, attention_sheet(image.image, title, maps, position), overlays)


def _show_words(options: AttentionOptions, model: "LatentDiffusion", request: Request, out: Path) -> None:
    """Generate and write sheets with the cross-attention of each word."""
    from daguerre.pipelines.attention_maps import attention_sheet, overlay, record_attention

    with record_attention(model) as record:
        with usage_errors():
            selected = _select_words(record.expected(request), options.words)
        images = generate_with_progress(model, request)
    for i, (image, path) in enumerate(zip(images, numbered_paths(out, len(images)), strict=True)):
        words = [word for word in record.words(i) if word.text in selected]
        sheet = attention_sheet(image.image, request.items[i][0], words)
        _write_sheet(options, path, sheet, [(overlay(image.image, word), word.text) for word in words])


def _write_sheet(options: AttentionOptions, path: Path, sheet: "Image", overlays: Sequence[tuple["Image", str]]) -> None:
    """Write a sheet, and with --save-overlays its overlays with their names, and print the paths."""
    write_image(path, sheet)
    print(path)
    for j, (image, name) in enumerate(overlays if options.save_overlays else ()):
        overlay_path = path.with_stem(f"{path.stem}-{j + 1}-{slug(name)}")
        write_image(overlay_path, image)
        print(overlay_path)


def parse_position(text: str | None) -> tuple[int, int] | None:
    """The position of --self X,Y in pixels.

    Raises:
        DaguerreError: the text is not two whole numbers.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5}),(\d{1,5})", text.replace(" ", ""))
    if match is None:
        raise DaguerreError(f"--self is {text!r}; it is X,Y, a position in pixels from the upper left corner, such as 40,64.")
    return int(match[1]), int(match[2])


def _select_words(available: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted words, or all words of the prompts if none is wanted."""
    if not available:
        raise DaguerreError('The prompt has no words; give a prompt such as "a cat and a pizza".')
    for word in wanted:
        if word.lower() not in available:
            raise DaguerreError(f"The prompt has no word {word!r}; it has {', '.join(available)}.{nearest(word, available)}")
    return [word.lower() for word in wanted] or list(available)
