"""Measures whether a model generates what the prompt asks for, on known prompts and on combinations held out from training.

    prompts ─► generate ─► images ─► scorer ─► R-precision, Fréchet distance, nearest training images

Every metric is also computed on true renders of the prompts, as a reference for the scorer and the metric. If the scorer does not
recognise the true renders, its scores of the generated images are not reliable.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import BatchLoader, EmojiDataset, ShapesDataset
from daguerre.data.images import to_image, to_tensor
from daguerre.evaluation.clip_scorer import ClipScorer, load_clip_scorer
from daguerre.evaluation.config import EvaluateConfig
from daguerre.evaluation.prompts_emoji import Box, EvalPrompt, held_out_prompts, known_prompts
from daguerre.evaluation.prompts_shapes import shapes_prompts
from daguerre.evaluation.report import DistanceReport, EvaluationReport, KindReport, PromptReport, check_out, write_report
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

EVAL_BATCH = 32  # prompts per request; they share their initial noise, as in any request with several prompts
GRID_IMAGES = 32  # images per grid and kind of prompt
GRID_NEIGHBOURS = 12
KNOWN_KIND = "known"  # the kind of prompts that training contains
DATASETS = {"emoji": EmojiDataset, "shapes": ShapesDataset}
AnyScorer = ClipScorer | ShapesScorer
REFERENCE_SEED_OFFSET = 1  # added to the seed, for the prompts of the reference renders


@dataclass(frozen=True)
class Evaluation:
    """The report, the generated images (N, 3, H, W), and the nearest training image of each by features and by pixels."""

    report: EvaluationReport
    images: Tensor
    nearest_in_features: Tensor
    nearest_in_pixels: Tensor

    def save(self, folder: Path) -> None:
        """Write `report.json`, `report.md`, grids of the first and of the mistaken images of each kind, and a grid of neighbours.

        Raises DaguerreError if the folder cannot be written.
        """
        prompts = self.report.prompts
        with atomic_path(folder) as temporary:
            write_report(temporary, self.report.to_json(), self.report.markdown())
            for kind in dict.fromkeys(prompt.kind for prompt in prompts):
                indices = [i for i, prompt in enumerate(prompts) if prompt.kind == kind]
                shown, missed = indices[:GRID_IMAGES], [i for i in indices if prompts[i].rank > 0][:GRID_IMAGES]
                labelled_grid([*map(to_image, self.images[shown])], [prompts[i].prompt for i in shown]).save(
                    temporary / f"samples-{kind}.png"
                )
                if missed:
                    labels = [f"{prompts[i].prompt} (mistaken for {prompts[i].best_match})" for i in missed]
                    labelled_grid([*map(to_image, self.images[missed])], labels).save(temporary / f"mistaken-{kind}.png")
            sample = torch.linspace(0, len(prompts) - 1, min(GRID_NEIGHBOURS, len(prompts))).long().tolist()
            rows = [self.images[sample], self.nearest_in_features[sample], self.nearest_in_pixels[sample]]
            labels = [prompts[i].prompt for i in sample] + ["nearest by features"] * len(sample) + ["nearest by pixels"] * len(sample)
            labelled_grid([*map(to_image, torch.cat(rows))], labels, columns=len(sample)).save(temporary / "neighbours.png")


def run(config: EvaluateConfig) -> EvaluationReport:
    """Generate images for the prompts, score them and write the results to `config.out`.

    Raises:
        DaguerreError: there is no such model or scorer; there are fewer than `num_images` prompts of a kind; a setting is invalid; `out`
            cannot be written.
    """
    request = Request(steps=config.steps, sampler=config.sampler, guidance_scale=config.guidance_scale, seed=config.seed)
    check_out(config.out, "evaluation", "report.json")
    model = load(config.model)
    if request.guidance_scale is None and isinstance(model, LatentDiffusion):
        request = replace(request, guidance_scale=model.default_guidance)  # for the report
    stream(model, request)  # raises early if the model does not support the request
    scorer = ShapesScorer() if config.rendered == "shapes" else load_clip_scorer(config.scorer, device=model.device)
    prompts, others = (
        eval_prompts(config.rendered, model.sample_size, config.num_images, seed)
        for seed in (config.seed, config.seed + REFERENCE_SEED_OFFSET)
    )
    training = BatchLoader(DATASETS[config.rendered](model.sample_size, split="train"), 64, config.seed)
    evaluation = evaluate(
        scorer,
        prompts,
        generate_set(model, [prompt.prompt for prompt in prompts], request),
        reference=true_renders(others),
        training=first_images(training, config.training_images),
    )
    evaluation.save(config.out)
    return evaluation.report


def eval_prompts(data: Literal["emoji", "shapes"], size: int, count: int, seed: int) -> list[EvalPrompt]:
    """`count` evaluation prompts of each kind, for emoji or shapes."""
    if data == "shapes":
        return shapes_prompts(size, count, seed)
    source = EmojiDataset(size, split="all")
    return known_prompts(source, count, seed) + held_out_prompts(source, count, seed)


@dataclass(frozen=True)
class GeneratedSet:
    """One image (N, 3, H, W) and seed for each of N prompts, with the model, the request and the total time in seconds."""

    images: Tensor
    seeds: tuple[int, ...]
    model: str
    request: Request
    seconds: float


def generate_set(model: LatentDiffusion | LatentPrior, prompts: Sequence[str], request: Request) -> GeneratedSet:
    """Generate an image for each prompt.

    Each request takes `EVAL_BATCH` prompts; the seed increases by one per request. The prompts are shuffled first, so that the noise does
    not depend on the kind of prompt.
    """
    started = time.monotonic()
    batches = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(request.seed)).split(EVAL_BATCH)
    images: dict[int, Tensor] = {}
    seeds: dict[int, int] = {}
    for number, batch in enumerate(track(batches, f"generating images, {EVAL_BATCH} prompts per batch")):
        indices: list[int] = batch.tolist()
        batch_request = replace(request, prompt=tuple(literal(prompts[i]) for i in indices), seed=request.seed + number, num_images=1)
        for i, image in zip(indices, generate(model, batch_request), strict=True):
            images[i], seeds[i] = to_tensor(image.image), batch_request.seed
    if isinstance(model, LatentPrior):
        request = replace(request, sampler=VQ_PRIOR)
    order = range(len(prompts))
    return GeneratedSet(
        torch.stack([images[i] for i in order]), tuple(seeds[i] for i in order), model.name, request, time.monotonic() - started
    )


def evaluate(
    scorer: AnyScorer, prompts: Sequence[EvalPrompt], generated: GeneratedSet, *, reference: Tensor, training: Tensor
) -> Evaluation:
    """Score the images that were generated for `prompts`.

    Args:
        prompts: of any kinds, each with its true render and the same number of distractors.
        generated: an image for each prompt, from `generate_set`.
        reference: true renders (M, 3, H, W) of other prompts of the same kinds; the distances of both the generated images and the true
            renders are to these.
        training: training images (T, 3, H, W) for the nearest-neighbour search.
    """
    training_features = torch.cat([scorer.embed_images(part) for part in track(training.split(256), "embedding training images")])  # (T, P)
    features = [prompt_features(scorer, prompt) for prompt in track(prompts, "embedding prompts")]
    scores, true = (_score(scorer, x, features, training, training_features) for x in (generated.images, true_renders(prompts)))
    others = scorer.embed_images(reference)
    unused = {"prompt", "num_images"} | (DIFFUSION_ONLY.keys() - {"sampler"} if generated.request.sampler == VQ_PRIOR else set())
    report = EvaluationReport(
        model=generated.model,
        scorer=scorer.name,
        settings={field.name: getattr(generated.request, field.name) for field in fields(Request) if field.name not in unused},
        candidates=scores.scores.shape[1],
        kinds=tuple(_kind_report(kind, scores, true, mask) for kind, mask in _kinds(prompts)),
        frechet=DistanceReport(frechet_distance(scores.features, others), frechet_distance(true.features, others)),
        kid=DistanceReport(kernel_distance(scores.features, others).mean, kernel_distance(true.features, others).mean),
        training_images=len(training),
        prompts=tuple(
            PromptReport(
                kind=prompt.kind,
                prompt=prompt.prompt,
                seed=generated.seeds[i],
                rank=int(scores.rank[i]),
                best_match=prompt.candidates[int(scores.scores[i].argmax())].prompt,
                true_rank=int(true.rank[i]),
                nearest_in_features=scores.by_features.distance[i, 0].item(),
                nearest_in_pixels=scores.by_pixels.distance[i, 0].item(),
            )
            for i, prompt in enumerate(prompts)
        ),
        seconds=generated.seconds,
    )
    return Evaluation(report, generated.images, training[scores.by_features.index[:, 0]], training[scores.by_pixels.index[:, 0]])


@dataclass(frozen=True)
class PromptFeatures:
    """The K parts of all candidates of one prompt: the candidate, the image box and the text embedding of each part."""

    candidate: Tensor  # (K,), index
    boxes: list[Box]
    texts: Tensor  # (K, P)

    def scores(self, box_features: Mapping[Box, Tensor]) -> Tensor:
        """The score (M,) of each candidate for one image with features (P,) of each box: the mean cosine over the candidate's parts."""
        cosines = cosine(torch.stack([box_features[box] for box in self.boxes])[:, None], self.texts[:, None])[:, 0, 0]
        counts = self.candidate.bincount()
        return torch.zeros(len(counts), dtype=cosines.dtype).index_add_(0, self.candidate, cosines) / counts


def prompt_features(scorer: AnyScorer, prompt: EvalPrompt) -> PromptFeatures:
    """Embed the texts of all candidates."""
    boxes, texts = zip(*(part for candidate in prompt.candidates for part in candidate.parts), strict=True)
    counts = torch.tensor([len(candidate.parts) for candidate in prompt.candidates])
    return PromptFeatures(torch.arange(len(counts)).repeat_interleave(counts), list(boxes), scorer.embed_texts(texts))


@dataclass(frozen=True)
class _Scores:
    """The scores of N images, each with M candidates, the first one true."""

    features: Tensor  # (N, P)
    scores: Tensor  # (N, M), mean cosines
    rank: Tensor  # (N,), of the true candidate
    by_features: Neighbours
    by_pixels: Neighbours


def _score(scorer: AnyScorer, x: Tensor, prompts: Sequence[PromptFeatures], training: Tensor, training_features: Tensor) -> _Scores:
    """The scores of images x (N, 3, H, W), one for each prompt."""
    scores = candidate_scores(scorer, x, prompts)
    features = scorer.embed_images(x)
    return _Scores(
        features=features,
        scores=scores,
        rank=ranks(scores, torch.zeros(len(x), dtype=torch.long)),
        by_features=nearest_neighbours(features, training_features),
        by_pixels=nearest_neighbours(x, training, chunk=512),
    )


def candidate_scores(scorer: AnyScorer, x: Tensor, prompts: Sequence[PromptFeatures]) -> Tensor:
    """The score (N, M) of each candidate, the true one first, for images x (N, 3, H, W), one for each prompt."""
    by_box = {box: scorer.embed_images(crop_box(x, box)) for box in dict.fromkeys(box for prompt in prompts for box in prompt.boxes)}
    return torch.stack([prompt.scores({box: parts[i] for box, parts in by_box.items()}) for i, prompt in enumerate(prompts)])


def crop_box(x: Tensor, box: Box) -> Tensor:
    """Crop images (N, 3, H, W) to a box, rounded to pixels."""
    (height, width), (left, top, right, bottom) = x.shape[-2:], box
    return x[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def _kinds(prompts: Sequence[EvalPrompt]) -> Iterator[tuple[str, Tensor]]:
    """Each kind of prompt with its mask (N,); then all held-out prompts together."""
    kinds = [prompt.kind for prompt in prompts]
    for kind in dict.fromkeys(kinds):
        yield kind, torch.tensor([each == kind for each in kinds])
    if len({*kinds} - {KNOWN_KIND}) > 1:
        yield "all held out", torch.tensor([each != KNOWN_KIND for each in kinds])


def _kind_report(kind: str, generated: _Scores, true: _Scores, mask: Tensor) -> KindReport:
    """The report of the images in `mask` (N,)."""
    return KindReport(
        kind=kind,
        at_1=proportion(recall_at(generated.rank[mask], 1)),
        at_5=proportion(recall_at(generated.rank[mask], 5)),
        true_at_1=proportion(recall_at(true.rank[mask], 1)),
        true_at_5=proportion(recall_at(true.rank[mask], 5)),
        score=bootstrap(clip_score(generated.scores[mask, 0])),
        true_score=bootstrap(clip_score(true.scores[mask, 0])),
        in_features=copying(generated.by_features.distance[mask, 0], true.by_features.distance[mask, 0]),
        in_pixels=copying(generated.by_pixels.distance[mask, 0], true.by_pixels.distance[mask, 0]),
    )


def literal(prompt: str) -> str:
    """Escape the brackets of a prompt, which would otherwise change its weights."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", prompt)


def true_renders(prompts: Sequence[EvalPrompt]) -> Tensor:
    """The true renders of prompts (N, 3, H, W) in [−1, 1]."""
    return torch.stack([to_tensor(prompt.image) for prompt in prompts])


def first_images(batches: BatchLoader, count: int) -> Tensor:
    """The first `count` images of a loader, (count, 3, H, W)."""
    parts = range(-(-count // batches.batch_size))
    return torch.cat([batches.batch(step).x for step in track(parts, "loading training images")])[:count]
