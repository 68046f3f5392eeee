"""Relations that the papers report, on a shipped model of faces: `python -m benchmarks.relations [--model ldm]`.

    steps      Fréchet distance against steps, for DDIM at several η and for DDPM (Song et al. 2021, arXiv:2010.02502, table 1)
    guidance   fidelity and diversity against the guidance scale (Ho and Salimans 2022, arXiv:2207.12598, figure 4 and table 1)

Every setting starts from the same seeds. Features are those of the embedded CLIP. The features of a setting are kept in `--out`, so an
interrupted run resumes. Writes benchmarks/relations.md and .png. A step of the latent model costs much less than one of pixels.
"""

import argparse
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import daguerre
from daguerre.conditioning.class_map_image import LabelConditioner
from daguerre.data import BatchLoader, to_tensor
from daguerre.data.catalog import open_dataset
from daguerre.evaluation.clip_scorer import ClipScorer, load_clip_scorer
from daguerre.metrics import cosine, frechet_distance, proportion, ranks, recall_at
from daguerre.metrics.intervals import Interval
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request

PAGE = Path(__file__).with_suffix(".md")
STEPS = (5, 10, 20, 50)
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
REDRAWS = 200
METHODS = {
    "DDIM, η = 0": Request(sampler="euler", eta=0.0),
    "DDIM, η = 0.5": Request(sampler="euler", eta=0.5),
    "DDIM, η = 1": Request(sampler="euler", eta=1.0),
    "DDPM, large variance": Request(sampler="ddpm_large"),
}


@dataclass(frozen=True)
class Features:
    """CLIP features (N, P) of images, N a multiple of the number of classes, in the order of the classes."""

    values: Tensor
    classes: int

    def recall(self, texts: Tensor) -> Interval:
        """How often the right class name is first among all of them."""
        labels = torch.arange(self.classes).repeat(len(self.values) // self.classes)
        return proportion(recall_at(ranks(cosine(self.values, texts), labels), 1))

    def diversity(self) -> Interval:
        """1 − cosine of two images of one class, the mean over all such pairs."""
        of_class = self.values.view(-1, self.classes, self.values.shape[1]).transpose(0, 1)  # (C, n, P)
        n = of_class.shape[1]
        pairs = 1 - (of_class @ of_class.mT)[:, ~torch.eye(n, dtype=torch.bool)].mean(1)
        return resampled(lambda index: pairs[index].mean().item(), len(pairs))

    def distance(self, true: Tensor) -> Interval:
        """The Fréchet distance to true images; the interval is the spread over redraws, laid around the distance, because a distance of
        few distinct images is biased upwards."""
        interval = resampled(lambda index: frechet_distance(self.values[index], true), len(self.values))
        value = frechet_distance(self.values, true)
        half = (interval.high - interval.low) / 2
        return Interval(value, value - half, value + half, len(self.values))


def resampled(statistic, count: int) -> Interval:
    """The percentile bootstrap interval of a statistic of indices (N,)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([statistic(torch.randint(count, (count,), generator=generator)) for _ in range(REDRAWS)], dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(statistic(torch.arange(count)), low, high, count)


class Runs:
    """Samples of the model under each setting, embedded and kept in a folder."""

    def __init__(self, name: str, out: Path, rounds: int) -> None:
        model = daguerre.load(name)
        assert isinstance(model, LatentDiffusion)
        assert isinstance(model.conditioner, LabelConditioner)
        self.model, self.scorer, self.out, self.rounds = model, load_clip_scorer(), out, rounds
        self.names = model.conditioner.names
        self.texts = self.scorer.embed_texts([f"a {name}" for name in self.names])
        out.mkdir(parents=True, exist_ok=True)

    def of(self, name: str, request: Request, seed: int) -> Features:
        """The features of `rounds` images of each class."""
        path = self.out / f"{name} {seed}.safetensors"
        if not path.is_file():
            generated = [
                to_tensor(image.image)
                for number in range(self.rounds)
                for image in daguerre.generate(self.model, replace(request, prompt=tuple(self.names), seed=1000 * seed + number))
            ]
            save_file({"features": embed(self.scorer, torch.stack(generated))}, path)
            print(name, seed, flush=True)
        return Features(load_file(path)["features"], len(self.names))

    def true(self, count: int, seed: int) -> Tensor:
        """Features of `count` images of the dataset."""
        path = self.out / f"true {count} {seed}.safetensors"
        if not path.is_file():
            images = open_dataset("emoji-faces", self.model.sample_size)
            save_file({"features": embed(self.scorer, BatchLoader(images, count, seed).batch(0).x)}, path)
        return load_file(path)["features"]


def embed(scorer: ClipScorer, x: Tensor) -> Tensor:
    """Features (N, P) of images (N, 3, H, W) in [−1, 1]."""
    return scorer.embed_images(x).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("ldm", "ddpm"), default="ldm")
    parser.add_argument("--out", type=Path, default=Path("out/relations"))
    parser.add_argument("--rounds", type=int, default=6, help="images of each class and setting")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    runs, seeds = Runs(options.model, options.out / options.model, options.rounds), range(options.seeds)
    true = runs.true(2048, 1)
    others = Features(runs.true(options.rounds * len(runs.names), 2), len(runs.names)).distance(true)

    distances = {
        (method, steps, seed): runs.of(f"{method} {steps}", replace(request, steps=steps, guidance_scale=1.0), seed).distance(true)
        for seed, (method, request), steps in product(seeds, METHODS.items(), STEPS)
    }
    guided = {
        (scale, seed): runs.of(f"guidance {scale}", replace(METHODS["DDIM, η = 0"], steps=20, guidance_scale=scale), seed)
        for seed, scale in product(seeds, SCALES)
    }
    rows = [[method, str(seed), *(str(distances[method, steps, seed]) for steps in STEPS)] for method in METHODS for seed in seeds]
    guidance = [
        [f"{scale:g}", str(seed), str(each.recall(runs.texts)), str(each.diversity()), str(each.distance(true))]
        for (scale, seed), each in sorted(guided.items())
    ]
    PAGE.write_text("\n".join(page(options.model, rows, guidance, others, options.rounds * len(runs.names))), encoding="utf-8")
    plot(distances, {key: (each.recall(runs.texts), each.diversity()) for key, each in guided.items()}, others, seeds)
    print(PAGE)


def page(model: str, rows: list[list[str]], guidance: list[list[str]], others: Interval, count: int) -> list[str]:
    """The lines of the page."""
    return [
        f"# Relations of the papers, on the shipped model `{model}`",
        "",
        f"`python -m benchmarks.relations --model {model}`. {count} images for each setting and seed, the same seeds for all settings; "
        "Fréchet distance on the features of the embedded CLIP to 2048 images of the dataset. As many other images of the dataset are "
        f"{others} away. Brackets are 95 % intervals over the images.",
        "",
        "## Steps, DDIM and DDPM",
        "",
        *markdown(["sampler", "seed", *(f"{steps} steps" for steps in STEPS)], rows),
        "",
        "## Guidance: fidelity against diversity",
        "",
        "20 steps of DDIM. R@1: how often the right class of 32 is first for the CLIP. Diversity: 1 − cosine of two images of one class.",
        "",
        *markdown(["scale", "seed", "R@1", "diversity", "Fréchet distance"], guidance),
        "",
        "![Both relations](relations.png)",
        "",
    ]


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def plot(distances, guided, others: Interval, seeds: range) -> None:
    """Both relations, the mean over seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for method in METHODS:
        means = [sum(distances[method, steps, seed].value for seed in seeds) / len(seeds) for steps in STEPS]
        left.plot(STEPS, means, marker="o", label=method)
    left.axhline(others.value, color="#999999", linestyle=":", label="other images of the dataset")
    left.set(xscale="log", xlabel="steps", ylabel="Fréchet distance", title="Steps")
    left.set_xticks(STEPS, [str(steps) for steps in STEPS], minor=False)
    left.minorticks_off()
    left.legend()
    for seed in seeds:
        points = [(guided[scale, seed][1].value, guided[scale, seed][0].value) for scale in SCALES]
        right.plot(*zip(*points, strict=True), marker="o", label=f"seed {seed}")
        for (x, y), scale in zip(points, SCALES, strict=True):
            right.annotate(f"{scale:g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=9)
    right.set(xlabel="diversity (1 − cosine within a class)", ylabel="R@1", title="Guidance scale")
    right.legend()
    figure.tight_layout()
    figure.savefig(PAGE.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
