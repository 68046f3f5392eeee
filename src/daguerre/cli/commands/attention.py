"""`daguerre attention PROMPT…`: generate images and show the cross-attention of each word; prints one path per line."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.atomic_io import free_path, numbered_paths
from daguerre.cli.generation import check_outputs, generate_with_progress, warn_prompt
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import check_sampler, open_model
from daguerre.cli.options import (
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
)
from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.errors import DaguerreError, nearest
from daguerre.pipelines.images.output import write_image
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import ImageToImage, Inpaint, Task, TextToImage
from daguerre.progress import spinner


@dataclass(frozen=True)
class AttentionOptions:
    """Generate images and show the cross-attention of each word of the prompt.

    Each output is a sheet with the image and one overlay per word: attention averaged over heads, layers and steps.
    """

    prompt: Prompts
    """What the image shows; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD [WORD ...]", help_behavior_hint="")] = ()
    """Show only these words. Default: all words."""
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
        return build_request(self.prompt, self.task(), *groups, negative_prompt=self.negative_prompt)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse_options(AttentionOptions, arguments, "attention"))


def run(options: AttentionOptions) -> None:
    """Generate the images and print the paths of the sheets.

    Raises:
        DaguerreError: the model has no cross-attention to words, or the prompt does not have the requested words.
    """
    with usage_errors():
        request = options.request()
        out = options.out or free_path(Path(f"{slug(request.prompts[0])}-{request.seed}-attention.png"), len(request.items))
        check_outputs({"--out": out}, request)
    loading = options.loading
    with spinner("opening the model"):
        check_sampler(request)
        model = open_model(loading.model, None, loading.device, loading.dtype, offline=loading.offline)
    warn_prompt(model, request)

    from daguerre.pipelines.attention_maps import attention_sheet, overlay, record_attention

    count = len(request.items)
    with record_attention(model) as record:
        with usage_errors():
            selected = _select_words(record.expected(request), options.words)
        images = generate_with_progress(model, request)
    for i, (image, path) in enumerate(zip(images, numbered_paths(out, count), strict=True)):
        words = [word for word in record.words(i) if word.text in selected]
        write_image(path, attention_sheet(image.image, request.items[i][0], words))
        print(path)
        for j, word in enumerate(words if options.save_overlays else ()):
            overlay_path = path.with_stem(f"{path.stem}-{j + 1}-{slug(word.text)}")
            write_image(overlay_path, overlay(image.image, word))
            print(overlay_path)


def _select_words(available: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted words, or all words of the prompts if none is wanted."""
    if not available:
        raise DaguerreError('The prompt has no words; give a prompt such as "a cat and a pizza".')
    for word in wanted:
        if word.lower() not in available:
            raise DaguerreError(f"The prompt has no word {word!r}; it has {', '.join(available)}.{nearest(word, available)}")
    return [word.lower() for word in wanted] or list(available)
