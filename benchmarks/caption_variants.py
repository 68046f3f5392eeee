"""Whether a model generates the same for a prompt in 40 wordings: R-precision of each wording, same prompts and seeds.

    python -m benchmarks.caption_variants [--model FOLDER] [--prompts 100] [--variants 40] [--steps 6] [--out FILE.json]

A fifth of the prompts is of each kind of `daguerre evaluate`. Wordings that the tokenizer reads as the plain prompt, such as other letter
case, give the same image and are not generated again. `--states` measures only the text encoder, in a minute: the share of the variance
between prompts that a wording loses in the cross-attention of the UNet (see `training.objectives.caption_variants`). `--colours` measures
two other things: the colours of two things in one prompt, and how much the images of different seeds differ.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from daguerre.conditioning import TextConditioner
from daguerre.data import EmojiDataset, to_image
from daguerre.data.captions import article
from daguerre.data.colours import colour_of
from daguerre.evaluation.clip_scorer import ClipScorer, load_clip_scorer
from daguerre.evaluation.evaluate import candidate_scores, generate_set, prompt_features, true_renders
from daguerre.evaluation.prompts_emoji import EvalPrompt, held_out_prompts, known_prompts
from daguerre.metrics import frechet_distance, ranks
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request
from daguerre.training.objectives.caption_variants import CaptionVariantTask, record_cross_attention_inputs
from daguerre.weights import load_diffusion

KINDS = 5


@dataclass(frozen=True)
class Variant:
    """A wording. The template has {} for the prompt ("a red apple"), {bare} without its first article, {short} without any article."""

    template: str
    trained: bool = True  # whether `daguerre train caption-variants` has it, or its parts
    case: Callable[[str], str] = str

    def __call__(self, prompt: str) -> str:
        fields = {"bare": re.sub(r"^(an?|the) ", "", prompt), "short": re.sub(r"\b(an?|the) ", "", prompt)}
        return self.case(self.template.format(prompt, **fields)).replace(" AND ", " and ")  # in capitals it joins two prompts

    @property
    def name(self) -> str:
        return self("a red apple")


VARIANTS = (
    Variant("{}."), Variant("{}!"), Variant("{}?"), Variant("{},"), Variant("{}..."), Variant('"{}"'), Variant("{};", False),
    Variant("- {}", False),
    Variant("{}", case=str.upper), Variant("{}", case=str.title), Variant("{}.", case=str.capitalize),
    Variant("{short}"), Variant("the {bare}"), Variant("{short}.", case=str.capitalize), Variant("this {bare}", False),
    Variant("my {bare}", False),
    Variant("draw {}"), Variant("draw {}, please"), Variant("Please draw {}."), Variant("can you draw {}?"),
    Variant("Could you please show me {}?"), Variant("{} please"), Variant("I want {}!"), Variant("imagine {}", False),
    Variant("generate {} for me"), Variant("kindly paint {}"), Variant("I would like to see {}", False),
    Variant("{}, thanks"),
    Variant("a photo of {}"), Variant("a drawing of {}"), Variant("an emoji of {}"), Variant("{bare} emoji"),
    Variant("an illustration of {}"), Variant("a poster of {}", False), Variant("{}, icon"), Variant("a sketch of {}", False),
    Variant("a sticker of {}"),
    Variant("Draw a photo of {}, please."), Variant("please create an image of {}!"), Variant("SHOW ME {bare} picture", case=str.upper),
)  # fmt: skip


def eval_prompts(size: int, count: int, seed: int) -> list[EvalPrompt]:
    """`count` prompts: known things, and held-out colours, backgrounds and pairs."""
    source, each = EmojiDataset(size, split="all"), count // KINDS
    return known_prompts(source, each, seed) + held_out_prompts(source, each, seed)


class Wordings:
    """R-precision of a model for wordings of the same prompts."""

    def __init__(self, model: LatentDiffusion, scorer: ClipScorer, prompts: Sequence[EvalPrompt], request: Request):
        self.model, self.scorer, self.prompts, self.request = model, scorer, prompts, request
        self.features = [prompt_features(scorer, prompt) for prompt in prompts]
        self._images: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def images(self, texts: Sequence[str]) -> Tensor:
        """One image (N, 3, H, W) for each text; equal tokens give the same images."""
        assert isinstance(self.model.conditioner, TextConditioner)
        key = tuple(tuple(self.model.conditioner.tokenizer.encode(text)) for text in texts)
        if key not in self._images:
            self._images[key] = generate_set(self.model, texts, self.request).images
        return self._images[key]

    def recognised(self, texts: Sequence[str]) -> Tensor:
        """For each prompt whether its image is ranked first: (N,) bool."""
        scores = candidate_scores(self.scorer, self.images(texts), self.features)
        return ranks(scores, torch.zeros(len(texts), dtype=torch.long)) == 0


def lost_variance(model: LatentDiffusion, original: LatentDiffusion, prompts: Sequence[str], variants: Sequence[Variant]) -> list[float]:
    """Of each variant, against `original` and the plain prompt."""
    assert isinstance(model.conditioner, TextConditioner)
    assert isinstance(original.conditioner, TextConditioner)
    inputs = record_cross_attention_inputs(original, prompts[:: max(1, len(prompts) // 16)], steps=6)
    task = CaptionVariantTask(original, original.conditioner, inputs, ())
    with torch.no_grad():
        target, lost = task.original(prompts), []
        for variant in variants:
            context = model.conditioner([variant(prompt) for prompt in prompts]).context
            assert context is not None
            lost.append(task.lost_variance(context, target, torch.Generator().manual_seed(0)).item())
    return lost


COLOUR_PAIRS = (
    ("green", "cat", "red", "dog"), ("blue", "apple", "yellow", "car"), ("red", "cat face", "blue", "dog face"),
    ("purple", "rabbit", "green", "pear"), ("yellow", "tulip", "red", "key"), ("pink", "elephant", "blue", "balloon"),
    ("green", "crab", "purple", "fish"), ("orange", "umbrella", "green", "heart"),
)  # fmt: skip
VARIED = ("a flag", "a cat", "a red apple", "a flower", "a car", "a face")
VARIED_SEEDS = 4


def right_colours(model: LatentDiffusion, request: Request) -> float:
    """The share of the things in COLOUR_PAIRS with the colour of the prompt, each in its half of the image."""
    prompts = [f"{article(f'{c} {first}')} and {article(f'{d} {second}')}" for c, first, d, second in COLOUR_PAIRS]
    found = []
    for (left, _, right, _), x in zip(COLOUR_PAIRS, generate_set(model, prompts, request).images, strict=True):
        foreground = ((x < 0.8).any(0) * 255).to(torch.uint8)  # (H, W), not white
        image = to_image(x).convert("RGBA")
        image.putalpha(Image.fromarray(foreground.numpy()))
        width, height = image.size
        halves = image.crop((0, 0, width // 2, height)), image.crop((width // 2, 0, width, height))
        found += [colour_of(half) == colour for half, colour in zip(halves, (left, right), strict=True)]
    return sum(found) / len(found)


def variety(model: LatentDiffusion, request: Request) -> float:
    """The root-mean-square difference of two images of one prompt with different seeds, in [0, 2], the mean over VARIED."""
    images = torch.stack([generate_set(model, VARIED, replace(request, seed=seed)).images for seed in range(VARIED_SEEDS)])
    differences = [(a - b).square().mean((1, 2, 3)).sqrt().mean() for a, b in combinations(images, 2)]
    return torch.stack(differences).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="name or directory; default: the embedded model")
    parser.add_argument("--original", help="with --states: the model before the training; default: the embedded model")
    parser.add_argument("--prompts", type=int, default=100, help=f"a multiple of {KINDS}")
    parser.add_argument("--variants", type=int, default=len(VARIANTS), help="the first of each group, if fewer than all")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--states", action="store_true", help="measure only the text encoder")
    parser.add_argument("--colours", action="store_true", help="measure colours in pairs and the variety over seeds")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    model = load_diffusion(options.model)
    prompts = eval_prompts(model.sample_size, options.prompts, options.seed)
    stride = len(VARIANTS) / options.variants
    variants = [VARIANTS[int(i * stride)] for i in range(options.variants)]
    plain = [prompt.prompt for prompt in prompts]
    if options.states:
        lost = lost_variance(model, load_diffusion(options.original), plain, variants)
        for variant, share in zip(variants, lost, strict=True):
            print(f"{share:.3f}  {variant.name}{'' if variant.trained else '  (not in training)'}")
        print(f"{sum(lost) / len(lost):.3f}  mean")
        return
    request = Request(steps=options.steps, seed=options.seed, guidance_scale=model.default_guidance)
    if options.colours:
        print(f"{right_colours(model, request):.3f}  of the things in pairs have their colour")
        print(f"{variety(model, request):.3f}  root-mean-square difference between seeds")
        return
    wordings = Wordings(model, load_clip_scorer(), prompts, request)
    base = wordings.recognised(plain)
    features, true = (wordings.scorer.embed_images(x) for x in (wordings.images(plain), true_renders(prompts)))
    figures = {"plain": base.double().mean().item(), "frechet": frechet_distance(features, true), "variants": {}}
    print(f"{figures['plain']:.3f}  plain; Fréchet distance to the true renders {figures['frechet']:.4f}", flush=True)
    for variant in variants:
        value = wordings.recognised([variant(prompt) for prompt in plain]).double().mean().item()
        figures["variants"][variant.name] = value
        print(f"{value:.3f}  {variant.name}{'' if variant.trained else '  (not in training)'}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    values = list(figures["variants"].values())
    print(f"{sum(values) / len(values):.3f}  mean of {len(values)} variants, worst {min(values):.3f}")


if __name__ == "__main__":
    main()
