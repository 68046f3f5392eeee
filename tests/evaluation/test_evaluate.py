"""Evaluation with a scorer whose results are known: it embeds images as their mean colour."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from daguerre.conditioning import train_tokenizer
from daguerre.conditioning.prior_prefix import TextPrefix
from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError
from daguerre.evaluation import evaluate as module
from daguerre.evaluation.clip_scorer import load_clip_scorer
from daguerre.evaluation.config import EvaluateConfig
from daguerre.evaluation.evaluate import Evaluation, GeneratedSet, evaluate, generate_set, literal, run, true_renders
from daguerre.evaluation.prompts_emoji import FULL_IMAGE, Box, Candidate, EvalPrompt
from daguerre.evaluation.prompts_shapes import shapes_prompts
from daguerre.evaluation.shapes_scorer import ShapesScorer
from daguerre.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.pipelines import Request, generate
from daguerre.weights import save, save_clip

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}
NAMES = list(COLOURS)
SIDE = 16


class ColourScorer:
    """Embeds an image as its mean colour, and a text as the colour that it names, a corner of the RGB cube."""

    name = "colours"

    def embed_images(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x.mean((2, 3)), dim=1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        corners = [torch.tensor(COLOURS[text.split()[0]]) / 127.5 - 1 for text in texts]
        return torch.nn.functional.normalize(torch.stack(corners), dim=1)


class BlindScorer(ColourScorer):
    """Embeds all images alike."""

    def embed_images(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), 3)


def solid(name: str) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), COLOURS[name])


def full_image(text: str) -> Candidate:
    return Candidate(text, ((FULL_IMAGE, text),))


def prompts_of_colours(count: int = 12) -> list[EvalPrompt]:
    """Prompts of two held-out kinds and a known one, each with all other colours as distractors."""
    kinds = ["known", "background", "colour"]
    return [
        EvalPrompt(
            full_image(f"{name} {i}"), solid(name), kinds[i % 3], tuple(full_image(f"{other} {i}") for other in NAMES if other != name)
        )
        for i, name in ((i, NAMES[i % len(NAMES)]) for i in range(count))
    ]


def generated_set(names: list[str]) -> GeneratedSet:
    images = torch.stack([to_tensor(solid(name)) for name in names])
    return GeneratedSet(images, tuple(range(len(names))), "model", Request(steps=3, sampler="dpmpp_2m", guidance_scale=5.0), 1.5)


def random_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def evaluated(names: list[str], scorer: ColourScorer | None = None, training: torch.Tensor | None = None) -> Evaluation:
    reference = torch.cat([true_renders(prompts_of_colours()), random_images(12)])
    images = random_images(50, seed=1) if training is None else training
    return evaluate(scorer or ColourScorer(), prompts_of_colours(), generated_set(names), reference=reference, training=images)  # type: ignore[arg-type]


def test_perfect_model_has_perfect_scores():
    report = evaluated([NAMES[i % 6] for i in range(12)]).report
    assert [kind.kind for kind in report.kinds] == ["known", "background", "colour", "all held out"]
    assert [kind.at_1.count for kind in report.kinds] == [4, 4, 4, 8]
    assert all(kind.at_1.value == kind.true_at_1.value == 1 and kind.trusted for kind in report.kinds)
    assert all(prompt.rank == 0 and prompt.best_match == prompt.prompt for prompt in report.prompts)
    assert report.candidates == 6
    # The generated images equal the true renders, so all distances and quantiles are equal.
    assert report.frechet.generated == report.frechet.true > 0
    assert report.kid.generated == report.kid.true
    assert all(kind.in_pixels.generated == kind.in_pixels.held_out and kind.in_pixels.nearer == 0.5 for kind in report.kinds)
    assert all(kind.score.value == kind.true_score.value == pytest.approx(2.5, abs=1e-6) for kind in report.kinds)


def test_model_that_always_generates_red():
    report = evaluated(["red"] * 12).report
    by_prompt = {prompt.prompt: prompt for prompt in report.prompts}
    assert by_prompt["red 0"].rank == by_prompt["red 6"].rank == 0
    assert by_prompt["cyan 4"].rank == 5  # the opposite corner of the cube is last
    assert (
        by_prompt["yellow 3"].rank == 2
    )  # the corners next to red, yellow and magenta, tie after it, and ties count against the true candidate
    assert all(prompt.best_match == prompt.prompt.replace(prompt.prompt.split()[0], "red") for prompt in report.prompts)
    assert all(prompt.true_rank == 0 for prompt in report.prompts)
    at_1 = {kind.kind: kind.at_1.value for kind in report.kinds}
    assert at_1 == {"known": 0.5, "background": 0.0, "colour": 0.0, "all held out": 0.0}  # prompts 0 and 6 are red; both are known
    assert {kind.kind: kind.at_5.value for kind in report.kinds}["all held out"] == 6 / 8  # all but cyan
    assert report.frechet.generated > 2 * report.frechet.true


def test_candidate_parts_are_scored_in_their_boxes():
    """The mean colour of a red and a blue half does not depend on their order, but the boxes do."""
    halves: tuple[Box, Box] = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
    sides = {f"{a} and {b}": Candidate(f"{a} and {b}", ((halves[0], a), (halves[1], b))) for a, b in (("red", "blue"), ("blue", "red"))}
    render = Image.new("RGB", (SIDE, SIDE), COLOURS["blue"])
    render.paste(COLOURS["red"], (0, 0, SIDE // 2, SIDE))
    prompts = [
        EvalPrompt(sides[name], render, kind, (*(c for c in sides.values() if c.prompt != name), full_image("magenta")))
        for name, kind in (("red and blue", "pair"), ("blue and red", "known"))
    ]
    generated = GeneratedSet(true_renders(prompts), (0, 1), "model", Request(steps=3, sampler="dpmpp_2m", guidance_scale=5.0), 1.5)
    report = evaluate(ColourScorer(), prompts, generated, reference=random_images(12), training=random_images(12)).report  # type: ignore[arg-type]
    assert [prompt.rank for prompt in report.prompts] == [0, 2]
    assert report.prompts[1].best_match == "red and blue"
    assert report.kinds[0].score.value == pytest.approx(2.5, abs=1e-6)


def test_copied_training_images_are_detected():
    """Every generated image is a training image; the true renders are not."""
    training = true_renders(prompts_of_colours()) + 0.05 * random_images(12)
    report = evaluate(
        ColourScorer(),  # type: ignore[arg-type]
        prompts_of_colours(),
        replace(generated_set([NAMES[i % 6] for i in range(12)]), images=training),
        reference=random_images(12),
        training=training,
    ).report
    assert all(kind.in_pixels.nearer == 1 and kind.in_pixels.copied == 1 for kind in report.kinds)
    assert max(prompt.nearest_in_pixels for prompt in report.prompts) < 1e-7


def test_inaccurate_scorer_is_reported_as_unreliable():
    report = evaluated([NAMES[i % 6] for i in range(12)], BlindScorer()).report
    assert not any(kind.trusted for kind in report.kinds)
    assert not any(report.to_json()["trusted"].values())
    assert "not reliable" in report.markdown()
    assert "not reliable" not in evaluated(["red"] * 12).report.markdown()


def test_saved_report_equals_the_results(tmp_path: Path):
    evaluation = evaluated(["red"] * 12)
    evaluated(["blue"] * 12).save(tmp_path / "out")
    evaluation.save(tmp_path / "out")  # overwrites the earlier one
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored == json.loads(json.dumps(evaluation.report.to_json()))
    assert stored["kinds"][0]["at_1"]["value"] == 0.5
    assert stored["settings"]["steps"] == 3
    text = (tmp_path / "out" / "report.md").read_text()
    assert "(steps 3, sampler dpmpp_2m, guidance_scale 5.0, seed 0)" in text  # other settings have their defaults
    row = next(line for line in text.splitlines() if line.startswith("| known |"))
    assert "| 4 | 0.500 [" in row
    assert all(len(line.split(" | ")) == 8 for line in text.splitlines() if line.startswith(("| known |", "| colour |", "| prompts |")))
    sheets = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert sheets == {f"{what}-{kind}.png" for what in ("samples", "mistaken") for kind in ("known", "background", "colour")} | {
        "neighbours.png"
    }
    with Image.open(tmp_path / "out" / "samples-colour.png") as sheet:
        found_colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20) or ()}
    assert COLOURS["red"] in found_colours
    assert COLOURS["blue"] not in found_colours


def test_batched_images_equal_images_generated_alone(tiny_model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "EVAL_BATCH", 3)
    prompts = ["a red apple", "a blue apple", "two cats (left)", "a pizza", "a [green] circle", "", "an apple"]
    generated = generate_set(tiny_model, prompts, Request(steps=2, guidance_scale=3.0, seed=5))
    assert sorted(generated.seeds) == [5, 5, 5, 6, 6, 6, 7]
    assert generated.seeds != tuple(sorted(generated.seeds))  # shuffled, so that the noise does not depend on the kind
    for prompt, seed, image in zip(prompts, generated.seeds, generated.images, strict=True):
        alone = generate(tiny_model, prompt=literal(prompt), steps=2, guidance_scale=3.0, seed=seed)[0]
        assert torch.allclose(to_tensor(alone.image), image, atol=1.01 / 127.5)


def test_literal_escapes_brackets(tiny_model):
    prompt = r"a (cat) [x] \ y"
    escaped = tiny_model.conditioner([literal(prompt)]).context
    assert torch.equal(escaped, tiny_model.conditioner.encode_captions([prompt]).context)
    assert not torch.equal(escaped, tiny_model.conditioner([prompt]).context)


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = train_tokenizer(["a red apple", "a blue banana on a green background"] * 4, vocab_size=600, max_length=24)
        text = CLIPTextConfig(len(tokenizer), 24, 32, 2, 2, 64, "gelu", projection=16, eos=tokenizer.eos)
        clip = CLIP(CLIPConfig(text, CLIPVisionConfig(SIDE, 8, 3, 32, 2, 2, 64, "gelu", projection=16)))
    return save_clip(clip.eval(), tokenizer, tmp_path_factory.mktemp("runs") / "scorer")


def test_scorer_embeddings_equal_transformers(scorer_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("daguerre.evaluation.clip_scorer.SCORE_BATCH", 3)
    scorer = load_clip_scorer(scorer_folder)
    texts = ["a red apple", "a blue banana", "a red apple", "green", "a cat above a pizza"]
    reference = transformers.CLIPModel.from_pretrained(scorer_folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(scorer_folder)
    x = random_images(5)
    with torch.no_grad():
        ids = tokenizer(texts, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids
        states = reference(input_ids=ids, pixel_values=x)
    assert torch.allclose(scorer.embed_texts(texts), states.text_embeds, atol=1e-5)
    assert torch.allclose(scorer.embed_images(x), states.image_embeds, atol=1e-5)
    assert scorer.name.endswith("/scorer")


@pytest.mark.parametrize("folder", ["none", "."])
def test_missing_scorer_raises(folder: str, tmp_path: Path):
    with pytest.raises(DaguerreError, match=r"There is no CLIP scorer at .*daguerre train clip-scorer"):
        load_clip_scorer(tmp_path / folder)


def test_scorer_resizes_like_pillow(scorer_folder: Path):
    scorer = load_clip_scorer(scorer_folder)
    smooth = torch.nn.functional.interpolate(random_images(2), size=(4 * SIDE, 4 * SIDE), mode="bilinear")
    pixels = ((smooth + 1) * 127.5).round().to(torch.uint8)
    pillow = [Image.fromarray(b.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for b in pixels]
    expected = scorer.embed_images(torch.stack([to_tensor(image) for image in pillow]))
    assert torch.allclose(scorer.embed_images(pixels / 127.5 - 1), expected, atol=0.01)


def test_evaluate_emoji_model(tiny_model, scorer_folder: Path, tmp_path: Path):
    save(tiny_model, tmp_path / "model")
    config = EvaluateConfig(str(tmp_path / "model"), scorer_folder, tmp_path / "out", num_images=2, steps=2, training_images=70)
    report = run(config)
    assert [kind.kind for kind in report.kinds] == ["known", "colour", "background", "pair", "and", "all held out"]
    assert report.candidates == 100
    assert report.training_images == 70
    assert len({prompt.prompt for prompt in report.prompts}) == 10
    assert (tmp_path / "out" / "neighbours.png").is_file()


def test_evaluate_vq_prior_on_shapes(scorer_folder: Path, tmp_path: Path):
    torch.manual_seed(0)
    shape = {"blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 2}
    first_stage = VQModel(VQModelConfig(QuantizerConfig(codes=8, width=4), latent_channels=4, channels=(4, 8, 8), **shape)).eval()
    tokenizer = load_clip_scorer(scorer_folder).tokenizer
    prefix = TextPrefix(tokenizer)
    length = tokenizer(["a"]).shape[1] + 16
    prior = TransformerPrior(TransformerPriorConfig(8, prefix.tokens, length, (4, 4), width=8, layers=1, heads=2)).eval()
    model = save(LatentPrior(prior, first_stage, prefix, "prior", 16), tmp_path / "model")
    report = run(EvaluateConfig(str(model), out=tmp_path / "out", data="shapes", num_images=2, training_images=64))
    assert [kind.kind for kind in report.kinds] == ["known", "colour", "background", "count", "all held out"]
    assert report.settings["sampler"] == "vq-prior"
    assert not {"steps", "guidance_scale"} & report.settings.keys()
    assert len(report.prompts) == 8
    assert all(kind.true_at_1.value == 1 for kind in report.kinds)


def test_shapes_scorer_recognises_true_renders():
    prompts_of_colours, scorer = shapes_prompts(32, 12, seed=5), ShapesScorer()
    true = true_renders(prompts_of_colours)
    texts = scorer.embed_texts([prompt.prompt for prompt in prompts_of_colours])
    cosines = (scorer.embed_images(true) * texts).sum(dim=1)
    assert cosines.min() > 0.9
    blurred = torch.nn.functional.avg_pool2d(true, 3, 1, 1, count_include_pad=False)
    assert ((scorer.embed_images(blurred) * texts).sum(dim=1) > 0.6).float().mean() > 0.9
    # One of four properties differs: the cosine is 3/4.
    for other in ("a blue circle", "a red star", "two red circles", "a red circle on a blue background"):
        text = scorer.embed_texts(["a red circle", other])
        assert torch.isclose(text[0] @ text[1], torch.tensor(0.75))
    empty = scorer.embed_images(torch.ones(1, 3, 32, 32))  # in a white image only the background can match
    assert torch.isclose((empty @ scorer.embed_texts(["a red circle"]).T)[0, 0], torch.tensor(0.5), atol=0.01)
    with pytest.raises(DaguerreError, match="names no known colour and shape"):
        scorer.embed_texts(["a fox"])


def test_invalid_config_raises_before_generating(tiny_model, scorer_folder: Path, tmp_path: Path):
    model = str(save(tiny_model, tmp_path / "model"))
    valid = EvaluateConfig(model, scorer_folder, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    for config, message in (
        (replace(valid, scorer=tmp_path / "nobody"), "no CLIP scorer at .*daguerre train clip-scorer"),
        (replace(valid, model=str(tmp_path / "nothing")), "nothing"),
        (replace(valid, out=tmp_path / "full"), "holds no evaluation"),
        (replace(valid, sampler="eulr"), "euler"),
        (replace(valid, steps=0), "steps is 0"),
        (replace(valid, num_images=5000), "5000"),
    ):
        with pytest.raises(DaguerreError, match=message):
            run(config)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_failed_save_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evaluation = evaluated(["red"] * 12)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DaguerreError, match="No space left"):
        evaluation.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
