"""`daguerre train prior` at a tiny size: every condition, held-out images, code lengths, and refused options."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import daguerre
from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import bits_per_code
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import MapToImage
from daguerre.training.config import LoopConfig
from daguerre.training.objectives.prior import CodeBatch, code_lengths, no_decay
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.prior import PriorRecipe
from daguerre.training.recipes import prior as recipe
from daguerre.training.recipes.prior import run
from daguerre.weights import save_first_stage

SHAPE = {"blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 2}
VQ = VQModelConfig(QuantizerConfig(codes=8, width=4), latent_channels=4, channels=(4, 8, 8), **SHAPE)
LOOP = LoopConfig(max_train_steps=2, batch_size=4, lr_warmup_steps=1, ema_decay=0, log_every=1, sample_every=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_first_stage(VQModel(VQ), tmp_path_factory.mktemp("stages") / "one", 16)


def tiny(first_stage: Path, out: Path, **changes) -> PriorRecipe:
    options = {
        "data": "shapes",
        "resolution": 16,
        "num_images": 8,
        "eval_images": 6,
        "hidden_size": 8,
        "layers": 1,
        "heads": 2,
        "loop": LOOP,
    }
    return PriorRecipe(first_stage, out=out, **{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "request_"),
    [
        ({}, Request()),
        ({"kind": "pixelcnn", "condition": "class"}, Request(prompt="circle")),
        ({"kind": "pixelsnail"}, Request()),
        ({"condition": "text", "pkeep": 0.9}, Request(prompt="a red circle")),
        ({"condition": "coordinates"}, Request(width=24)),
        ({"condition": "map"}, Request(task=MapToImage(Image.new("RGB", (16, 16))))),
    ],
    ids=["none", "class", "pixelsnail", "text", "coordinates", "map"],
)  # fmt: skip
def test_every_prior_trains_and_generates(first_stage: Path, tmp_path: Path, monkeypatch, changes: dict, request_: Request):
    monkeypatch.setattr(recipe, "MAP_STEPS", 2)
    model = daguerre.load(run(tiny(first_stage, tmp_path / "out", **changes)))
    assert isinstance(model, LatentPrior)
    assert len(daguerre.generate(model, request_)) == 1
    found = json.loads((tmp_path / "out" / "nll.json").read_text())
    assert found["images"] == 6
    assert found["bits_per_pixel"]["value"] == pytest.approx(found["bits_per_code"]["value"] / 16)
    assert 1 < found["bits_per_code"]["value"] < 4


def test_code_lengths_are_those_of_each_grid():
    torch.manual_seed(0)
    prior = recipe.TransformerPrior(recipe.TransformerPriorConfig(8, 3, 10, (3, 3), width=8, layers=1, heads=2))
    data = CodeBatch(torch.randint(8, (5, 3, 3), dtype=torch.uint8), torch.randint(3, (5, 1)))
    whole = code_lengths(prior, data)
    assert torch.equal(code_lengths(prior, data, batch_size=2), whole)
    codes = data.codes.long()
    torch.testing.assert_close(whole, bits_per_code(prior(codes, data.condition), codes).detach())


def test_embeddings_have_no_weight_decay():
    prior = recipe.TransformerPrior(recipe.TransformerPriorConfig(8, 3, 10, (3, 3), width=8, layers=1, heads=2))
    exempt = {id(p) for p in no_decay(prior)}
    decayed = {name for name, p in prior.named_parameters() if p.ndim > 1 and id(p) not in exempt}
    assert decayed == {name for name, _ in prior.named_parameters() if name.endswith("weight") and "emb" not in name and "ln" not in name}
    assert id(prior.tok_emb.weight) in exempt
    assert id(prior.pos_emb) in exempt


def test_every_tenth_image_of_a_folder_is_held_out(first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "cat" / "bad.png").write_bytes(b"not an image")
    options = {"data": str(tmp_path / "images"), "condition": "class"}
    with pytest.raises(DaguerreError, match="--skip-bad"):
        run(tiny(first_stage, tmp_path / "out", **options))
    path = run(tiny(first_stage, tmp_path / "out", num_images=500, eval_images=500, images=TrainingImageOptions(skip_bad=True), **options))
    printed = capsys.readouterr().err
    assert all(start in printed for start in ("images: 20 in", "crops: a random part", "training: ", "disk: "))
    assert f"Try it: daguerre sample --model {path} --class cat\n" in printed
    model = daguerre.load(path)
    assert model.prefix.names == ("cat", "dog")
    found = json.loads((tmp_path / "out" / "nll.json").read_text())
    assert found["unseen"]
    assert found["images"] == 2  # no image counts twice
    assert {path.name.split("-")[2] for path in (tmp_path / "out" / "cache").iterdir()} == {"180", "2"}  # ten crops of each image
    options["images"] = TrainingImageOptions(skip_bad=True)
    trained, measured, unseen = recipe.split_held_out(*recipe.open_prior_dataset(tiny(first_stage, tmp_path, **options)))
    assert (len(trained.images), len(measured.images), unseen) == (18, 2, True)


@pytest.mark.parametrize("condition", ["none", "text"])
def test_held_out_images_have_a_loss_in_the_log(first_stage: Path, tmp_path: Path, condition: str):
    (tmp_path / "images").mkdir()
    for i in range(24):
        Image.new("RGB", (16, 16), (10 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "images" / f"{i}.txt").write_text(f"red {i}")
    options = {"data": str(tmp_path / "images"), "condition": condition, "images": TrainingImageOptions(validation_fraction=0.4)}
    run(tiny(first_stage, tmp_path / "out", num_images=8, **options))
    *_, last = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    measured = json.loads((tmp_path / "out" / "nll.json").read_text())
    assert measured["unseen"]
    assert last["validation bits/code"] == pytest.approx(measured["bits_per_code"]["value"], rel=1e-4)  # the same images and weights


def test_depth_maps_come_from_files(first_stage: Path, tmp_path: Path):
    for i in range(3):
        for name, mode in (("images", "RGB"), ("depth", "L")):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.linear_gradient("L").convert(mode).rotate(90 * i).save(tmp_path / name / f"{i}.png")
    options = {"data": str(tmp_path / "images"), "condition": "map", "map": "depth", "map_first_stage": first_stage}
    model = daguerre.load(run(tiny(first_stage, tmp_path / "out", maps=tmp_path / "depth", **options)))
    assert model.prefix.kind == "depth"
    assert not json.loads((tmp_path / "out" / "nll.json").read_text())["unseen"]
    image, *_ = daguerre.generate(model, Request(task=MapToImage(Image.linear_gradient("L").resize((16, 16)))))
    assert image.image.size == (16, 16)
    with pytest.raises(DaguerreError, match="--maps"):
        run(tiny(first_stage, tmp_path / "other", **options))


def test_impossible_options_are_refused(first_stage: Path, tmp_path: Path):
    for changes, message in (
        ({"resolution": 18}, "18; for this first stage it must be a multiple of 4, such as 16"),
        ({"data": str(tmp_path / "none")}, "none"),
    ):
        with pytest.raises(DaguerreError, match=message):
            run(tiny(first_stage, tmp_path / "out", **changes))
    for changes, message in (
        ({"kind": "pixelcnn", "condition": "text"}, "use --kind transformer"),
        ({"heads": 3}, "heads must divide hidden_size"),
        ({"num_images": 2}, "use at least 4 and 1"),
        ({"map_first_stage": first_stage}, "only to --condition map"),
    ):
        with pytest.raises(DaguerreError, match=message):
            tiny(first_stage, tmp_path / "out", **changes)


def test_another_first_stage_in_the_same_folder_is_refused(first_stage: Path, tmp_path: Path):
    run(tiny(first_stage, tmp_path / "out"))
    torch.manual_seed(1)
    other = save_first_stage(VQModel(VQ), tmp_path / "other", 16)
    with pytest.raises(DaguerreError, match="first stage"):
        run(tiny(other, tmp_path / "out"))


def test_a_first_stage_without_codes_is_refused(tmp_path: Path):
    from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig

    folder = save_first_stage(
        AutoencoderKL(AutoencoderKLConfig(latent_channels=4, channels=(4, 8), blocks=1, norm_groups=2)), tmp_path / "kl", 16
    )
    with pytest.raises(DaguerreError, match="has no codebook"):
        run(replace(tiny(folder, tmp_path / "out")))
