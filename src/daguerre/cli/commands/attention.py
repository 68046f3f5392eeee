"""`daguerre attention PROMPT…`: pictures, and where the model looked for each word; prints a path a line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.generation import SamplingOptions, check_outputs, generate_with_progress, warn_prompt
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import open_model
from daguerre.cli.options import OptionalPath, slug
from daguerre.errors import DaguerreError, nearest
from daguerre.pipelines.images.output import numbered_paths, write_image
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import ImageToImage, Inpaint, Task, TextToImage
from daguerre.progress import spinner


@dataclass(frozen=True)
class AttentionOptions(SamplingOptions):
    """Make pictures, and show for each word of the prompt where the model looked for it.

    Each picture's sheet has the picture and an overlay for every word: cross-attention, averaged over heads, layers and steps.
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="")]
    """What to draw; quote each prompt."""
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD [WORD ...]", help_behavior_hint="")] = ()
    """Only these words; all if not given."""
    image: OptionalPath = None
    """Draw over this picture, as `daguerre img2img` does."""
    mask: OptionalPath = None
    """Draw only what is white in this mask of the picture, as `daguerre inpaint` does."""
    strength: float | None = None
    """How much of the picture is drawn anew, 0 to 1; what those commands take if not given."""
    save_overlays: bool = False
    """Also write every overlay alone, in the picture's size: the sheet's name with -WORD after it."""

    def task(self) -> Task:
        """What is drawn of what. Raises DaguerreError for a mask or a strength without a picture."""
        if self.image is None:
            if self.mask is not None or self.strength is not None:
                raise DaguerreError("--mask and --strength are about a picture; give it with --picture.")
            return TextToImage()
        picture = read_input(self.image)
        task = ImageToImage(picture) if self.mask is None else Inpaint(picture, read_input(self.mask))
        return task if self.strength is None else replace(task, strength=self.strength)

    def request(self) -> Request:
        """The request that these options are."""
        return self.request_for(self.prompt, self.task())


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(tyro.cli(Annotated[AttentionOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre attention"))


def run(options: AttentionOptions) -> None:
    """Make the pictures and print where the sheets are.

    Raises:
        DaguerreError: the model reads no words, the prompt has none, or not those that were asked for.
    """
    request = options.request()
    out = options.out or Path(f"{slug(request.prompts[0])}-{request.seed}-attention.png")
    check_outputs({"--out": out}, request)
    with spinner("opening the model"):
        model = open_model(options.model, None, options.device, options.dtype, offline=options.offline)
    warn_prompt(model, request)

    from daguerre.pipelines.attention_maps import attention_sheet, overlay, record_attention

    count = len(request.items)
    with record_attention(model) as record:
        sought = _sought(record.expected(request), options.words)
        pictures = generate_with_progress(model, request)
    for i, (picture, place) in enumerate(zip(pictures, numbered_paths(out, count), strict=True)):
        words = [word for word in record.words(i) if word.text in sought]
        write_image(place, attention_sheet(picture.image, request.items[i][0], words))
        print(place)
        for j, word in enumerate(words if options.save_overlays else ()):
            alone = place.with_stem(f"{place.stem}-{j + 1}-{slug(word.text)}")
            write_image(alone, overlay(picture.image, word))
            print(alone)


def _sought(have: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The words to show of those that the prompts have: the wanted ones, all where none is named."""
    if not have:
        raise DaguerreError('The prompt has no words to look for; give a prompt such as "a cat and a pizza".')
    for word in wanted:
        if word.lower() not in have:
            raise DaguerreError(f"The prompt has no word {word!r}; it has {', '.join(have)}.{nearest(word, have)}")
    return [word.lower() for word in wanted] or list(have)
