"""Does the model draw what it's asked for? Images of prompts that it knows and of combinations that it never saw, before a judge.

    prompts ─► the road every user walks ─► images ─► judge ─► R-precision, Fréchet distance, nearest training images

Everything is measured twice, on the generated images and on true renders, which shows what the judge and the measure are worth. Where a
judge doesn't recognise the true renders, its word on the model counts for nothing.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path, check_writable
from daguerre.data import BatchLoader, EmojiDataset, ShapesDataset
from daguerre.data.images import to_image, to_tensor
from daguerre.errors import DaguerreError
from daguerre.evaluation.clip_scorer import ClipScorer, load_clip_scorer
from daguerre.evaluation.config import EvaluateConfig
from daguerre.evaluation.prompts_emoji import Box, EvalPrompt, held_out_prompts, known_prompts
from daguerre.evaluation.prompts_shapes import shapes_prompts
from daguerre.evaluation.report import DistanceReport, EvaluationReport, KindReport, PromptReport
from daguerre.evaluation.shapes_scorer import ShapesScorer
from daguerre.metrics import (
    Neighbours,
    bootstrap,
    clip_score,
    copying,
    cosine,
    frechet_distance,
    kernel_distance,
    nearest_neighbours,
    proportion,
    ranks,
    recall_at,
)
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines import Request, generate, stream
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.planners.vq_prior import DIFFUSION_ONLY
from daguerre.pipelines.tasks import VQ_PRIOR
from daguerre.progress import track
from daguerre.weights import load

EVAL_BATCH = 32  # prompts sampled together; they share their noise, as the prompts of any one request do
SHOWN_PER_KIND = 32  # images on a sheet
SHOWN_NEIGHBOURS = 12
KNOWN_SHARE = "known"  # the kind of trial whose prompts training saw
SOURCES = {"emoji": EmojiDataset, "shapes": ShapesDataset}
AnyScorer = ClipScorer | ShapesScorer
OTHER_PROMPTS = 1  # added to the seed of the prompts, for the true renders of others


@dataclass(frozen=True)
class Evaluation:
    """The report, and the images (N, 3, H, W) that it speaks of: generated, and the training image nearest to each in either sense."""

    report: EvaluationReport
    images: Tensor
    nearest_in_features: Tensor
    nearest_in_pixels: Tensor

    def save(self, folder: Path) -> None:
        """Write `report.json`, `report.md`, and sheets: of each kind the first images and what was mistaken, and the neighbours.

        Raises DaguerreError if the place cannot be written.
        """
        prompts = self.report.prompts
        with atomic_path(folder) as beside:
            beside.mkdir()
            (beside / "report.json").write_text(json.dumps(self.report.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            (beside / "report.md").write_text(self.report.markdown() + "\n", encoding="utf-8")
            for kind in dict.fromkeys(prompt.kind for prompt in prompts):
                here = [i for i, prompt in enumerate(prompts) if prompt.kind == kind]
                shown, missed = here[:SHOWN_PER_KIND], [i for i in here if prompts[i].rank > 0][:SHOWN_PER_KIND]
                labelled_grid([*map(to_image, self.images[shown])], [prompts[i].prompt for i in shown]).save(beside / f"samples-{kind}.png")
                if missed:
                    labels = [f"{prompts[i].prompt} (taken for {prompts[i].taken_for})" for i in missed]
                    labelled_grid([*map(to_image, self.images[missed])], labels).save(beside / f"mistaken-{kind}.png")
            spread = torch.linspace(0, len(prompts) - 1, min(SHOWN_NEIGHBOURS, len(prompts))).long().tolist()
            rows = [self.images[spread], self.nearest_in_features[spread], self.nearest_in_pixels[spread]]
            labels = [prompts[i].prompt for i in spread] + ["nearest to the judge"] * len(spread) + ["nearest in pixels"] * len(spread)
            labelled_grid([*map(to_image, torch.cat(rows))], labels, columns=len(spread)).save(beside / "neighbours.png")


def run(config: EvaluateConfig) -> EvaluationReport:
    """Draw the prompts, judge the images and write everything to `config.out`.

    Raises:
        DaguerreError: no such model or judge, fewer than `count` prompts of a kind, an impossible setting, or `out` can't be written.
    """
    request = Request(steps=config.steps, sampler=config.sampler, guidance_scale=config.guidance_scale, seed=config.seed)
    check_out(config.out)
    model = load(config.model)
    if request.guidance_scale is None and isinstance(model, LatentDiffusion):
        request = replace(request, guidance_scale=model.default_guidance)  # so that the report names it
    stream(model, request)  # says at once if the model can't do what is asked
    judge = ShapesScorer() if config.data == "shapes" else load_clip_scorer(config.scorer, device=model.device)
    trials, others = (
        eval_prompts(config.data, model.sample_size, config.num_images, seed) for seed in (config.seed, config.seed + OTHER_PROMPTS)
    )
    training = BatchLoader(SOURCES[config.data](model.sample_size, split="train"), 64, config.seed)
    evaluation = evaluate(
        judge,
        trials,
        generate_set(model, [trial.prompt for trial in trials], request),
        reference=true_renders(others),
        training=first_images(training, config.training_images),
    )
    evaluation.save(config.out)
    return evaluation.report


def eval_prompts(data: Literal["emoji", "shapes"], size: int, count: int, seed: int) -> list[EvalPrompt]:
    """`count` prompts of each kind that there is of emoji, or of shapes."""
    if data == "shapes":
        return shapes_prompts(size, count, seed)
    source = EmojiDataset(size, split="all")
    return known_prompts(source, count, seed) + held_out_prompts(source, count, seed)


@dataclass(frozen=True)
class GeneratedSet:
    """One image (N, 3, H, W) for each of N prompts, the seed of each, and who made them, how, in how many seconds."""

    images: Tensor
    seeds: tuple[int, ...]
    model: str
    request: Request
    seconds: float


def generate_set(model: LatentDiffusion | LatentPrior, prompts: Sequence[str], request: Request) -> GeneratedSet:
    """Generate an image for each prompt.

    Prompts are drawn `AT_ONCE` at a time by one request with one seed, which is one more for the next. They are shuffled before, so that
    no kind of prompt meets its own noises.
    """
    started = time.monotonic()
    parts = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(request.seed)).split(EVAL_BATCH)
    images: dict[int, Tensor] = {}
    seeds: dict[int, int] = {}
    for number, part in enumerate(track(parts, f"sampling, {EVAL_BATCH} prompts at once")):
        places: list[int] = part.tolist()
        here = replace(request, prompt=tuple(literal(prompts[i]) for i in places), seed=request.seed + number, num_images=1)
        for i, image in zip(places, generate(model, here), strict=True):
            images[i], seeds[i] = to_tensor(image.image), here.seed
    if isinstance(model, LatentPrior):
        request = replace(request, sampler=VQ_PRIOR)
    everywhere = range(len(prompts))
    whole = torch.stack([images[i] for i in everywhere])
    return GeneratedSet(whole, tuple(seeds[i] for i in everywhere), model.name, request, time.monotonic() - started)


def evaluate(judge: AnyScorer, trials: Sequence[EvalPrompt], made: GeneratedSet, *, reference: Tensor, training: Tensor) -> Evaluation:
    """Measure the images that were made of trials.

    Args:
        trials: the prompts, of any kinds, each with its true render and as many distractors as the others.
        made: an image for each trial, from `sample`.
        reference: true renders (M, 3, H, W) of other prompts of the same kinds, which both the generated images and the trials' true
            renders are set against.
        training: images (T, 3, H, W) that the model was trained on, to search for neighbours.
    """
    known = torch.cat([judge.embed_images(part) for part in track(training.split(256), "judging training images")])  # (T, P)
    said = [_said(judge, trial) for trial in track(trials, "reading prompts")]
    ours, true = (_judged(judge, x, said, training, known) for x in (made.images, true_renders(trials)))
    others = judge.embed_images(reference)
    unheeded = {"prompt", "num_images"} | (DIFFUSION_ONLY.keys() - {"sampler"} if made.request.sampler == VQ_PRIOR else set())
    report = EvaluationReport(
        model=made.model,
        scorer=judge.name,
        settings={field.name: getattr(made.request, field.name) for field in fields(Request) if field.name not in unheeded},
        candidates=ours.scores.shape[1],
        kinds=tuple(_kind_report(kind, ours, true, here) for kind, here in _kinds(trials)),
        frechet=DistanceReport(frechet_distance(ours.features, others), frechet_distance(true.features, others)),
        kid=DistanceReport(kernel_distance(ours.features, others).mean, kernel_distance(true.features, others).mean),
        training_images=len(training),
        prompts=tuple(
            PromptReport(
                kind=trial.kind,
                prompt=trial.prompt,
                seed=made.seeds[i],
                rank=int(ours.rank[i]),
                taken_for=trial.candidates[int(ours.scores[i].argmax())].prompt,
                true_rank=int(true.rank[i]),
                nearest_in_features=ours.by_features.distance[i, 0].item(),
                nearest_in_pixels=ours.by_pixels.distance[i, 0].item(),
            )
            for i, trial in enumerate(trials)
        ),
        seconds=made.seconds,
    )
    return Evaluation(report, made.images, training[ours.by_features.index[:, 0]], training[ours.by_pixels.index[:, 0]])


@dataclass(frozen=True)
class _PromptFeatures:
    """What the claims of one trial say, K parts in all: of which claim each is, where it is looked at, and its text's embedding (K, P)."""

    claim: Tensor  # (K,)
    boxes: list[Box]
    texts: Tensor

    def scores(self, seen: Mapping[Box, Tensor]) -> Tensor:
        """The cosines (M,) of each claim with one image, whose embedding (P,) in each box is given: the mean over the claim's parts."""
        cosines = cosine(torch.stack([seen[box] for box in self.boxes])[:, None], self.texts[:, None])[:, 0, 0]
        counts = self.claim.bincount()
        return torch.zeros(len(counts), dtype=cosines.dtype).index_add_(0, self.claim, cosines) / counts


def _said(judge: AnyScorer, trial: EvalPrompt) -> _PromptFeatures:
    claims = trial.candidates
    boxes, texts = zip(*(part for claim in claims for part in claim.parts), strict=True)
    return _PromptFeatures(
        torch.arange(len(claims)).repeat_interleave(torch.tensor([len(c.parts) for c in claims])), list(boxes), judge.embed_texts(texts)
    )


@dataclass(frozen=True)
class _Scores:
    """What is known of N images, each with M candidate claims, the first its own."""

    features: Tensor  # (N, P)
    scores: Tensor  # (N, M), cosines with each claim, the mean over its parts
    rank: Tensor  # (N,), of its own claim
    by_features: Neighbours
    by_pixels: Neighbours


def _judged(judge: AnyScorer, x: Tensor, said: Sequence[_PromptFeatures], training: Tensor, training_features: Tensor) -> _Scores:
    features = judge.embed_images(x)
    scores = _claim_scores(judge, x, said)
    return _Scores(
        features=features,
        scores=scores,
        rank=ranks(scores, torch.zeros(len(x), dtype=torch.long)),
        by_features=nearest_neighbours(features, training_features),
        by_pixels=nearest_neighbours(x, training, chunk=512),
    )


def _claim_scores(judge: AnyScorer, x: Tensor, said: Sequence[_PromptFeatures]) -> Tensor:
    """How well each image of x (N, 3, H, W) shows each claim of its trial: (N, M) cosines."""
    seen = {box: judge.embed_images(crop_box(x, box)) for box in dict.fromkeys(box for each in said for box in each.boxes)}
    return torch.stack([each.scores({box: features[i] for box, features in seen.items()}) for i, each in enumerate(said)])


def crop_box(x: Tensor, box: Box) -> Tensor:
    """The part of images (N, 3, H, W) inside a box, in whole pixels."""
    (height, width), (left, top, right, bottom) = x.shape[-2:], box
    return x[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def _kinds(trials: Sequence[EvalPrompt]) -> Iterator[tuple[str, Tensor]]:
    """Each kind of trial with its mask (N,), in order; then all that training never saw together."""
    kinds = [trial.kind for trial in trials]
    for kind in dict.fromkeys(kinds):
        yield kind, torch.tensor([each == kind for each in kinds])
    if len({*kinds} - {KNOWN_SHARE}) > 1:
        yield "all held out", torch.tensor([each != KNOWN_SHARE for each in kinds])


def _kind_report(kind: str, made: _Scores, true: _Scores, here: Tensor) -> KindReport:
    """The report of the images that the mask `here` (N,) selects."""
    return KindReport(
        kind=kind,
        at_1=proportion(recall_at(made.rank[here], 1)),
        at_5=proportion(recall_at(made.rank[here], 5)),
        true_at_1=proportion(recall_at(true.rank[here], 1)),
        true_at_5=proportion(recall_at(true.rank[here], 5)),
        score=bootstrap(clip_score(made.scores[here, 0])),
        true_score=bootstrap(clip_score(true.scores[here, 0])),
        in_features=copying(made.by_features.distance[here, 0], true.by_features.distance[here, 0]),
        in_pixels=copying(made.by_pixels.distance[here, 0], true.by_pixels.distance[here, 0]),
    )


def literal(prompt: str) -> str:
    """A prompt whose brackets, should a thing's name have some, are brackets and not emphasis."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", prompt)


def true_renders(trials: Sequence[EvalPrompt]) -> Tensor:
    """The true renders of trials as (N, 3, H, W) in [−1, 1]."""
    return torch.stack([to_tensor(trial.image) for trial in trials])


def first_images(batches: BatchLoader, count: int) -> Tensor:
    """The first `count` images that training with these batches would see, (count, 3, H, W)."""
    parts = range(-(-count // batches.batch_size))
    return torch.cat([batches.batch(step).x for step in track(parts, "drawing training images")])[:count]


def check_out(folder: Path) -> None:
    """Refuse, before hours are spent, a folder that can't be written or holds something other than an earlier evaluation."""
    if folder.exists() and not (folder / "report.json").is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DaguerreError(f"'{folder}' exists and holds no earlier evaluation, so it is not overwritten; name another with --out.")
    check_writable(folder / "report.json")
