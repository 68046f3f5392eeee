"""`daguerre train ldm --condition …`: models for maps, boxes, super-resolution, inpainting, colourisation and image variations."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from daguerre.cli.main import main
from daguerre.conditioning import Tokenizer, train_tokenizer
from daguerre.conditioning.class_map_image import ConcatConditioner, without_colour
from daguerre.data import FolderDataset, to_tensor
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.pipelines import generate
from daguerre.pipelines.capabilities import model_task
from daguerre.pipelines.tasks import Colorize, Upscale
from daguerre.training.condition_preview import condition_example, find_examples
from daguerre.training.datasets.conditions import check_colours, load_image_conditioner, with_clip_normalization, with_condition_image
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.recipes.ldm import open_conditioned, run
from daguerre.weights import load_clip, load_diffusion, save_clip, save_first_stage
from daguerre.weights.diffusers.clip_config import IMAGE_MEAN, IMAGE_STD
from daguerre.weights.inspect import inspect
from tests.tolerance import assert_rounded
from tests.training.recipes.test_ldm import LOOP, SMALL, recipe


def folder(path: Path, count: int = 6, side: int = 16) -> Path:
    """Images of coloured noise."""
    path.mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    tokenizer: Tokenizer = train_tokenizer(["a red circle"], 600, 8)
    text = CLIPTextConfig(len(tokenizer), 8, 16, 1, 1, 16, "gelu", projection=12, eos=tokenizer.eos)
    model = CLIP(CLIPConfig(text, CLIPVisionConfig(16, 8, 3, 16, 1, 1, 16, "gelu", projection=12)))
    return save_clip(model, tokenizer, tmp_path_factory.mktemp("clip") / "clip")


TASKS = [
    ("kl", {"condition": "low-res", "scale": 2}, "upscaling", 4 + 3),
    ("vq", {"condition": "masked"}, "inpainting", 4 + 4 + 1),
    ("vq", {"condition": "grey"}, "colorization", 4 + 4),
    ("kl", {"condition": "map"}, "map", 4 + 4),
    ("vq", {"condition": "map", "map": "semantic"}, "map", 4 + 10),
    ("vq", {"condition": "layout"}, "text-to-image", 4),
    ("kl", {"condition": "clip-image"}, "image-variation", 4),
]


@pytest.mark.parametrize(("kind", "options", "task", "channels"), TASKS)
def test_each_task_is_trained_stored_and_run(
    tmp_path: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    options: dict[str, object],
    task: str,
    channels: int,
):
    monkeypatch.setattr("daguerre.training.recipes.ldm.find_examples", partial(find_examples, count=1))
    encoder = {"image_encoder": clip} if options["condition"] == "clip-image" else {}
    shown = options["condition"] == "masked"
    wanted = recipe(tmp_path, kind, **options, **encoder, loop=replace(LOOP, sample_every=int(shown)))
    saved = run(wanted)
    model, report = load_diffusion(saved), inspect(saved)
    assert (model_task(model), model.unet.config.in_channels, report.unmatched_keys) == (task, channels, [])
    assert report.task == ("layout" if options["condition"] == "layout" else task)
    if shown:
        with Image.open(tmp_path / "run" / "samples" / "000001.png") as sheet:
            assert sheet.width > 3 * 128  # condition, generated, original
    sample = open_conditioned(wanted).trained.sample(0, np.random.default_rng(0))
    example = condition_example(model.conditioner, sample.image, sample.caption)
    assert generate(model, example.request(steps=1))[0].image.size == (16, 16)
    other = Upscale(sample.image) if task == "colorization" else Colorize(sample.image)  # type: ignore[arg-type]
    with pytest.raises(DaguerreError, match=rf"cannot do {other.name}; take a model that can, such as .*This one does \w"):
        generate(model, task=other)
    assert str(saved) in capsys.readouterr().err.split("Try it: daguerre ")[1]


def test_an_interrupted_run_ends_with_the_same_weights_and_held_out_images_have_a_loss(tmp_path: Path):
    data = str(folder(tmp_path / "images", 12))
    options = {"condition": "masked", "data": data, "num_images": 12, "images": TrainingImageOptions(validation_fraction=0.4, mirror=True)}
    whole = run(recipe(tmp_path, "kl", **options, loop=replace(LOOP, max_train_steps=2), out=tmp_path / "whole"))
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert 0 < logged[-1]["validation unet"] < 10
    run(recipe(tmp_path, "kl", **options))
    shutil.rmtree(tmp_path / "run" / "cache")
    resumed = run(recipe(tmp_path, "kl", **options, loop=replace(LOOP, max_train_steps=2)))
    first, second = (load_file(path / "unet" / "diffusion_pytorch_model.safetensors") for path in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(DaguerreError, match="belongs to a run with"):
        run(recipe(tmp_path, "vq", **options))  # another first stage


def test_the_commands_run_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    picture = folder(tmp_path / "images", 1) / "0.png"
    rest = ["--steps", "1", "--device", "cpu"]
    for name, options, command in (
        ("low-res", {"scale": 2}, ["upscale", str(picture)]),
        ("grey", {}, ["colorize", str(picture)]),
        ("layout", {}, ["layout", "circle 0 0 0.5 1", "2 0.5 0.5 1 1"]),
    ):
        model = run(recipe(tmp_path, "kl", condition=name, **options, out=tmp_path / name))
        assert main([*command, "--model", str(model), *rest, "--out", f"{name}.png"]) == 0
    with Image.open("low-res.png") as image:
        assert image.size == (36, 32)
    with Image.open("grey.png") as coloured, Image.open(picture) as given:
        difference = np.asarray(coloured.convert("L"), dtype=int) - np.asarray(given.convert("L"), dtype=int)
        assert np.abs(difference).mean() < 20  # the brightness stays, except where a colour is too bright or too dark for RGB
    assert main(["layout", "cloud 0 0 1 1", "--model", str(tmp_path / "layout" / "model"), *rest]) == 2
    assert "The classes are 0 to 8: circle" in capsys.readouterr().err
    assert main(["colorize", str(picture), *rest]) == 2  # the embedded model
    assert "train ldm --condition grey" in capsys.readouterr().err


def test_a_small_image_of_the_latents_size_opens_in_diffusers(tmp_path: Path):
    stage = save_first_stage(VQModel(VQModelConfig(QuantizerConfig(codes=8, width=3), latent_channels=8, **SMALL)), tmp_path / "stage")
    saved = run(recipe(tmp_path, "vq", condition="low-res", scale=2, first_stage=stage))
    pipeline = diffusers.LDMSuperResolutionPipeline.from_pretrained(saved)
    images = pipeline(Image.new("RGB", (32, 32)), num_inference_steps=1, output_type="pil").images
    assert images[0].size == (64, 64)


def encode(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1, ::2, ::2]  # a first stage with one channel and f = 2


def test_the_channels_of_each_condition():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    small = ConcatConditioner("low-res", scale=2).channels(encode, 4, x)
    assert small.shape == (2, 12, 4, 4)
    assert torch.equal(small[:, :4, 0, 0], x[:, 0, :2, :2].flatten(1))
    hole = torch.zeros(2, 1, 8, 8)
    hole[:, :, 3, 3] = 1  # one pixel opens the position around it
    masked = ConcatConditioner("masked").channels(encode, 2, x, hole)
    assert torch.equal(masked[:, 0], encode(x * (1 - hole) - hole)[:, 0])
    assert (masked[0, 1] == 1).nonzero().tolist() == [[1, 1]]
    palette = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, 0], pixels[:, 2:] = palette[1], palette[2]
    semantic = ConcatConditioner("semantic", palette=palette)
    shares = semantic.channels(encode, 2, to_tensor(pixels)[None])[0]
    assert shares[:, 0, 0].tolist() == [0.75, 0.25, 0]
    assert shares[:, 1, 1].tolist() == [0, 0, 1]
    numbers = np.full((4, 4, 3), 2, np.uint8)
    assert semantic.channels(encode, 2, to_tensor(numbers)[None])[0, 2].eq(1).all()
    with pytest.raises(DaguerreError, match=r"the colour \(9, 8, 7\), which is none of the 3 classes"):
        semantic.channels(encode, 2, to_tensor(np.full((4, 4, 3), (9, 8, 7), np.uint8))[None])
    with pytest.raises(DaguerreError, match="grey values from 0 to 2"):
        semantic.channels(encode, 2, to_tensor(np.full((4, 4, 3), 3, np.uint8))[None])


def test_grey_is_the_brightness_of_pillow():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    assert (without_colour(to_tensor(image)[None])[0] - to_tensor(image.convert("L").convert("RGB"))).abs().max() <= 1.01 / 127.5


def test_a_map_is_cropped_and_mirrored_as_its_image(tmp_path: Path):
    images = FolderDataset(folder(tmp_path / "images"), 8, crop="random", mirror=True, captioned=False)
    maps = tmp_path / "maps"
    shutil.copytree(tmp_path / "images", maps)
    pairs, conditioner = with_condition_image(recipe(tmp_path, "kl", condition="map", map="depth", maps=maps), images)
    assert (conditioner.kind, len(pairs)) == ("map", 6)
    for index in range(6):
        both = np.asarray(pairs.sample(index, np.random.default_rng(index)).image)
        assert np.array_equal(both[:, :8], both[:, 8:])


def test_layouts_of_a_folder_come_from_text_files(tmp_path: Path):
    data, layouts = folder(tmp_path / "images", 4), tmp_path / "layouts"
    layouts.mkdir()
    for i in range(4):
        (layouts / f"{i}.txt").write_text("red cat, 0, 0, 0.5, 1\n\ndog 0.5 0 1 1\n")
    options = {"condition": "layout", "data": str(data), "maps": layouts}
    with pytest.raises(DaguerreError, match="use --crop stretch"):
        open_conditioned(recipe(tmp_path, "kl", **options))
    stretched = options | {"images": TrainingImageOptions(crop="stretch")}
    found = open_conditioned(recipe(tmp_path, "kl", **stretched))
    assert found.names == ("dog", "red cat")
    assert found.trained.sample(0, np.random.default_rng(0)).caption == "red cat 0 0 0.5 1; dog 0.5 0 1 1"
    (layouts / "2.txt").write_text("dog 0.5 0 0.4 1")
    with pytest.raises(DaguerreError, match=r"'dog 0.5 0 0.4 1' is not an object of a layout"):
        open_conditioned(recipe(tmp_path, "kl", **stretched))
    (layouts / "2.txt").unlink()
    with pytest.raises(DaguerreError, match="each image needs a text file"):
        open_conditioned(recipe(tmp_path, "kl", **stretched))


def test_a_clip_trained_here_takes_images_normalised_as_published_ones(clip: Path):
    encoder = load_clip(clip)[0].vision
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    with torch.no_grad():
        wanted, found = encoder(x).projected, with_clip_normalization(encoder)(((x + 1) / 2 - mean) / std).projected
    assert_rounded(found, wanted, 3 * 8 * 8 + 16 * 16)  # the terms of the patch embedding and of the layers
    assert load_image_conditioner(clip).encoder.config.projection == 12


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("kl", {"condition": "low-res", "scale": 3}, "scale is 3; it must divide 2"),
        ("kl", {"condition": "low-res", "scale": 1}, "at least 2 times"),
        ("vq", {"condition": "clip-image", "image_encoder": Path("clip")}, "needs a KL first stage"),
        ("kl", {"condition": "grey", "image_encoder": Path("clip")}, "--image-encoder applies only to"),
        ("kl", {"condition": "clip-image", "image_encoder": Path("nowhere")}, "There is no CLIP in 'nowhere'"),
        ("kl", {"condition": "grey", "maps": Path("maps")}, "--maps applies only to"),
        ("kl", {"condition": "map", "map": "depth"}, "There are no 'depth' maps of these images"),
        ("kl", {"condition": "layout", "data": "FOLDER"}, "There are no boxes of the images"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path: Path, kind: str, options: dict[str, object], message: str):
    if options.get("data") == "FOLDER":
        options = options | {"data": str(folder(tmp_path / "images", 2))}
    with pytest.raises(DaguerreError, match=message):
        run(recipe(tmp_path, kind, **options))
    assert not (tmp_path / "run").exists()


def test_bad_images_and_maps_are_errors(tmp_path: Path):
    data, maps = folder(tmp_path / "images", 3), tmp_path / "maps"
    options = {"condition": "map", "map": "pose", "data": str(data), "maps": maps}
    shutil.copytree(data, maps)
    Image.new("RGB", (9, 9)).save(maps / "1.png")
    with pytest.raises(DaguerreError, match="it must have the size of its image"):
        open_conditioned(recipe(tmp_path, "kl", **options))
    (maps / "1.png").write_bytes(b"no image")
    with pytest.raises(DaguerreError, match=r"1\.png"):
        open_conditioned(recipe(tmp_path, "kl", **options))
    (maps / "1.png").unlink()
    with pytest.raises(DaguerreError, match="each image needs a PNG map"):
        open_conditioned(recipe(tmp_path, "kl", **options))
    with pytest.raises(DaguerreError, match="There are 3 images, fewer than --batch-size 4"):
        open_conditioned(recipe(tmp_path, "kl", condition="grey", data=str(data), num_images=8, loop=replace(LOOP, batch_size=4)))
    for path in data.iterdir():
        Image.open(path).convert("L").convert("RGB").save(path)
    with pytest.raises(DaguerreError, match="are all grey"):
        check_colours(str(data), FolderDataset(data, 16, captioned=False))
