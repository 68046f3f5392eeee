"""`daguerre score IMAGE TEXT…`: how well each text matches an image, by CLIP; prints a table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import choose_threads
from daguerre.cli.options import ImagePath, Threads
from daguerre.cli.parsing import UsageError, parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.request import check_unicode
from daguerre.progress import spinner
from daguerre.weights.catalog import clip_folder


@dataclass(frozen=True)
class ScoreOptions:
    """Measure how well texts match an image: their similarity, and how probable each one is among them.

    The similarity is the cosine of the CLIP embeddings of image and text. The probabilities, a softmax over the texts, classify the image
    without training (Radford et al. 2021, section 3.1).
    """

    image: ImagePath
    """The image."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]", help_behavior_hint="")]
    """The texts, such as "a cat" "a dog"."""
    clip: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Directory of a CLIP in the layout of transformers. Default: the embedded CLIP, which knows emoji only."""
    threads: Threads = None
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise DaguerreError('There is no text to compare with the image; give one or more, such as "a cat" "a dog".')
        for text in self.texts:
            check_unicode("text", text)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(ScoreOptions, arguments, "score")
    with usage_errors():
        image = read_input(options.image)
    folder = clip_folder(options.clip)
    if not folder.is_dir():
        raise UsageError(f"There is no directory '{folder}'; give that of a CLIP, or leave --clip out for the embedded one.")
    choose_threads(options.threads)

    from daguerre.evaluation.clip_scorer import load_clip_scorer
    from daguerre.pipelines.images.preprocess import flatten_input

    with spinner("scoring"):
        scores = load_clip_scorer(folder).score(flatten_input(image), options.texts)
    if options.json:
        print(json.dumps([{"text": score.text, "similarity": score.similarity, "probability": score.probability} for score in scores]))
        return
    width = max(len("text"), *(len(score.text) for score in scores))
    print(f"{'text':<{width}}  similarity  probability")
    for score in sorted(scores, key=lambda score: -score.similarity):
        print(f"{score.text:<{width}}  {score.similarity:10.3f}  {score.probability:11.1%}")
