"""The results of an evaluation, as JSON for programs and as Markdown tables for the model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daguerre.atomic_io import check_overwrite, check_writable
from daguerre.metrics import Copying, Interval
from daguerre.pipelines import Request

MIN_TRUE_PRECISION = 0.95  # precision on true renders from which a scorer is reliable
ALWAYS_LISTED = ("steps", "sampler", "guidance_scale", "seed")  # settings that the Markdown report lists even if they are the default


@dataclass(frozen=True)
class KindReport:
    """R-precision, scores and copying for the prompts of one kind, with the same metrics for the true renders of these prompts."""

    kind: str
    at_1: Interval  # R-precision of the generated images
    at_5: Interval
    true_at_1: Interval  # of the true renders: the accuracy of the scorer
    true_at_5: Interval
    score: Interval  # 2.5·max(cosine of image and prompt, 0); with a CLIP this is CLIPScore
    true_score: Interval
    in_features: Copying  # distances to the nearest training image in the scorer's embedding
    in_pixels: Copying

    @property
    def trusted(self) -> bool:
        """Whether the scorer recognises enough of the true renders."""
        return self.true_at_1.value >= MIN_TRUE_PRECISION


@dataclass(frozen=True)
class DistanceReport:
    """A distance of the generated images to reference renders, and that of the true renders, as a baseline."""

    generated: float
    true: float


@dataclass(frozen=True)
class PromptReport:
    """One prompt: its rank among its candidates (0 is best), the best matching candidate, and distances to training images."""

    kind: str
    prompt: str
    seed: int
    rank: int
    best_match: str
    true_rank: int
    nearest_in_features: float
    nearest_in_pixels: float


@dataclass(frozen=True)
class EvaluationReport:
    """All results of `evaluate`."""

    model: str
    scorer: str
    settings: Mapping[str, Any]  # of the requests: steps, sampler, guidance_scale, …
    candidates: int  # number of prompts that are ranked for each image
    kinds: tuple[KindReport, ...]
    frechet: DistanceReport  # squared Fréchet distance of the scorer's embeddings
    kid: DistanceReport
    training_images: int  # number of images in the neighbour search
    prompts: tuple[PromptReport, ...]
    seconds: float  # for generating the images

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, including whether the scorer is reliable for each kind."""
        return {**asdict(self), "trusted": {kind.kind: kind.trusted for kind in self.kinds}}

    def markdown(self) -> str:
        """The tables of a model card, with explanations."""
        default = Request()
        settings = {name: value for name, value in self.settings.items() if value is not None}
        listed = ", ".join(
            f"{name} {value}" for name, value in settings.items() if name in ALWAYS_LISTED or value != getattr(default, name)
        )
        unreliable = [kind.kind for kind in self.kinds if not kind.trusted]
        verdict = (
            f"The scorer recognises fewer than {MIN_TRUE_PRECISION:.0%} of the true renders of {', '.join(unreliable)}; "
            "for these kinds its numbers are not reliable."
            if unreliable
            else f"The scorer recognises at least {MIN_TRUE_PRECISION:.0%} of the true renders of every kind."
        )
        return "\n\n".join(
            [
                f"`{self.model}`, measured by `{self.scorer}` ({listed}). Brackets are 95 % intervals.",
                f"R-precision: how often the scorer ranks the true prompt of an image first, or among the first five of {self.candidates}. "
                "The score is 2.5 × the cosine of image and prompt in the scorer's embedding, at least 0.",
                markdown_table(
                    ["prompts", "n", "@1", "@5", "true renders @1", "@5", "score", "of true renders"],
                    [_precision_row(kind) for kind in self.kinds],
                ),
                verdict,
                f"Distances of the {len(self.prompts)} generated images to true renders of other prompts of the same kinds, on the "
                "scorer's embeddings. As a baseline, the distances of the true renders of the same prompts:",
                markdown_table(
                    ["distance", "generated", "true renders"],
                    [
                        ["Fréchet", f"{self.frechet.generated:.4f}", f"{self.frechet.true:.4f}"],
                        ["KID × 1000", f"{1000 * self.kid.generated:.3f}", f"{1000 * self.kid.true:.3f}"],
                    ],
                ),
                f"Copying: the root-mean-square distance of each image to the nearest of {self.training_images} training images; how "
                "often a generated image is nearer than a true render (0.5 means new, 1 means copied); and how often it is nearer than "
                "99 % of the true renders (0.01 by chance). Known prompts should be near, so the other kinds show copying.",
                markdown_table(
                    ["prompts, nearest in", "generated, 5 / 50 / 95 %", "true renders, 5 / 50 / 95 %", "nearer", "nearer than 99 %"],
                    [
                        _copying_row(f"{kind.kind}, {space}", found)
                        for kind in self.kinds
                        for space, found in (("embedding", kind.in_features), ("pixels", kind.in_pixels))
                    ],
                ),
            ]
        )


def check_out(folder: Path, kind: str, marker: str) -> None:
    """Raise DaguerreError before the work if the folder cannot be written or is neither empty nor an earlier report with file `marker`."""
    check_overwrite(folder, marker, kind)
    check_writable(folder / "report.json")


def write_report(folder: Path, report: Mapping[str, Any], markdown: str) -> None:
    """Create the folder with `report.json` and `report.md`."""
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown + "\n", encoding="utf-8")


def _precision_row(kind: KindReport) -> list[str]:
    precisions = map(str, (kind.at_1, kind.at_5, kind.true_at_1, kind.true_at_5))
    return [kind.kind, str(kind.at_1.count), *precisions, f"{kind.score.value:.3f}", f"{kind.true_score.value:.3f}"]


def _copying_row(name: str, found: Copying) -> list[str]:
    distances = [" / ".join(f"{distance:.4f}" for distance in quantiles) for quantiles in (found.generated, found.held_out)]
    return [name, *distances, f"{found.nearer:.3f}", f"{found.copied:.3f}"]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
