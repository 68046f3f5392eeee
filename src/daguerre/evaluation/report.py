"""What an evaluation found: typed values, as JSON for programs and as Markdown tables for the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from daguerre.metrics import Copying, Interval
from daguerre.pipelines import Request

TRUSTED = 0.95  # the share of true renders that a judge must recognise before its word on generated images counts
EXPLANATION = ("steps", "sampler", "guidance_scale", "seed")  # settings that a card names even where they are the default


@dataclass(frozen=True)
class KindReport:
    """How the prompts of one kind fared, each ranked among its candidates; beside it, how the true renders of the same prompts do."""

    kind: str
    at_1: Interval  # R-precision of the generated images
    at_5: Interval
    true_at_1: Interval  # of the true renders, which is what the judge is worth
    true_at_5: Interval
    score: Interval  # 2.5 × the judge's cosine of image and prompt, or 0 if that is negative: with a CLIP as judge, CLIPScore
    true_score: Interval
    in_features: Copying  # distances to the nearest training image, in the judge's embedding
    in_pixels: Copying

    @property
    def trusted(self) -> bool:
        """Whether the judge recognises enough of the true renders."""
        return self.true_at_1.value >= TRUSTED


@dataclass(frozen=True)
class DistanceReport:
    """A distance between two sets of images, and the same between two sets of true renders of that size: what zero looks like."""

    generated: float
    true: float


@dataclass(frozen=True)
class PromptReport:
    """One prompt: its rank among its candidates (0 is first), what the judge took the image for, and how near training is."""

    kind: str
    prompt: str
    seed: int
    rank: int
    taken_for: str
    true_rank: int
    nearest_in_features: float
    nearest_in_pixels: float


@dataclass(frozen=True)
class EvaluationReport:
    """All that `evaluate` measures."""

    model: str
    scorer: str
    settings: Mapping[str, Any]  # of the requests: steps, sampler, guidance, …
    candidates: int  # texts that each image is ranked among
    kinds: tuple[KindReport, ...]
    frechet: DistanceReport  # squared Fréchet distance of the judge's embeddings
    kid: DistanceReport
    training_images: int  # how many were searched for neighbours
    prompts: tuple[PromptReport, ...]
    seconds: float  # spent sampling

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, the verdict on the judge included."""
        return {**asdict(self), "trusted": {kind.kind: kind.trusted for kind in self.kinds}}

    def markdown(self) -> str:
        """The tables of a model card, with what is needed to read them."""
        default = Request()
        given = {name: value for name, value in self.settings.items() if value is not None}
        made = ", ".join(f"{name} {value}" for name, value in given.items() if name in EXPLANATION or value != getattr(default, name))
        doubted = [kind.kind for kind in self.kinds if not kind.trusted]
        verdict = (
            f"The judge recognises fewer than {TRUSTED:.0%} of the true renders of {', '.join(doubted)}: there its numbers for the model "
            "are not a measurement."
            if doubted
            else f"The judge recognises at least {TRUSTED:.0%} of the true renders of every kind."
        )
        return "\n\n".join(
            [
                f"`{self.model}`, measured by `{self.scorer}` ({made}). Brackets are 95 % intervals.",
                f"R-precision: of {self.candidates} prompts, is an image's own the first, or among the first five, in the judge's order? "
                "The score is 2.5 × the cosine of image and prompt in the judge's embedding, at least 0.",
                _table(
                    ["prompts", "n", "@1", "@5", "true renders @1", "@5", "score", "of true renders"],
                    [_precision_row(kind) for kind in self.kinds],
                ),
                verdict,
                f"The {len(self.prompts)} generated images against true renders of other prompts of the same kinds, on the judge's "
                "embeddings; beside it the true renders of the same prompts against those, which is as near to zero as so many come:",
                _table(
                    ["distance", "generated", "true renders"],
                    [
                        ["Fréchet", f"{self.frechet.generated:.4f}", f"{self.frechet.true:.4f}"],
                        ["KID × 1000", f"{1000 * self.kid.generated:.3f}", f"{1000 * self.kid.true:.3f}"],
                    ],
                ),
                f"Is it copying? The root-mean-square distance of each image to the nearest of {self.training_images} training "
                "images; how often a generated one is nearer than a true render (0.5 is new, 1 is copied); and how often nearer than "
                "99 % of the true renders (0.01 by chance). Known things are meant to come near: judge copying by the other kinds.",
                _table(
                    ["prompts, nearest in", "generated, 5 / 50 / 95 %", "true renders, 5 / 50 / 95 %", "nearer", "nearer than 99 %"],
                    [
                        _copying_row(f"{kind.kind}, {space}", found)
                        for kind in self.kinds
                        for space, found in (("embedding", kind.in_features), ("pixels", kind.in_pixels))
                    ],
                ),
            ]
        )


def _precision_row(kind: KindReport) -> list[str]:
    precisions = map(str, (kind.at_1, kind.at_5, kind.true_at_1, kind.true_at_5))
    return [kind.kind, str(kind.at_1.count), *precisions, f"{kind.score.value:.3f}", f"{kind.true_score.value:.3f}"]


def _copying_row(name: str, found: Copying) -> list[str]:
    distances = [" / ".join(f"{distance:.4f}" for distance in quantiles) for quantiles in (found.generated, found.held_out)]
    return [name, *distances, f"{found.nearer:.3f}", f"{found.copied:.3f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
