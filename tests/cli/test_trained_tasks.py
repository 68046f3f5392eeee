"""Commands for models trained for one task, and for a model with a refiner."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import daguerre
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet

Run = Callable[..., tuple[int, str, str]]
CHANNELS = {"pix2pix": 6, "depth": 1, "upscaler": 3, "refiner": 0}  # in addition to those of the latents


@pytest.fixture
def models(tiny_model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`models("depth")` is the folder of a tiny model of that kind."""

    def made(kind: str) -> str:
        config = replace(tiny_model.unet.config, in_channels=6 + CHANNELS[kind], classes=1000 if kind == "upscaler" else None)
        return str(daguerre.save(replace(tiny_model, unet=UNet(config)), tmp_path_factory.mktemp("trained") / kind))

    return made


@pytest.fixture
def given(run: Run) -> None:
    """An image and a depth map in the empty folder where commands run."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save("picture.png")
    Image.fromarray(np.uint16(np.linspace(0, 65535, 32 * 48)).reshape(32, 48)).save("depth.png")


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("kind", "command", "size"),
    [
        ("pix2pix", ["pix2pix", "picture.png", "make it blue", "--image-guidance-scale", "2"], (48, 32)),
        ("depth", ["depth2img", "depth.png", "a hill"], (48, 32)),
        ("depth", ["depth2img", "depth.png", "a hill", "--image", "picture.png", "--strength", "0.5"], (48, 32)),
        ("upscaler", ["upscale", "picture.png", "--noise", "50"], (192, 128)),
    ],
)
def test_each_task_generates_an_image_and_reproduces(
    run: Run, models: Callable[[str], str], kind: str, command: list[str], size: tuple[int]
):
    assert run(*command, "--model", models(kind), "--steps", "2", "--out", "new.png") == (0, "new.png\n", "")
    assert Image.open("new.png").size == size
    assert run("reproduce", "new.png") == (0, "identical\n", "")


@pytest.mark.usefixtures("given")
def test_an_upscaled_image_is_named_after_its_input(run: Run, models: Callable[[str], str]):
    assert run("upscale", "picture.png", "--model", models("upscaler"), "--steps", "1") == (0, "picture-x4.png\n", "")


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("pix2pix", ["pix2pix", "all", "make it blue"]),
        ("depth", ["depth2img", "maps", "a hill", "--image", "all"]),
        ("upscaler", ["upscale", "all"]),
    ],
)
def test_each_task_takes_a_folder(run: Run, models: Callable[[str], str], kind: str, command: list[str]):
    for name in ("a", "b"):
        for folder, source in (("all", "picture.png"), ("maps", "depth.png")):
            Path(folder).mkdir(exist_ok=True)
            Image.open(source).save(f"{folder}/{name}.png")
    assert run(*command, "--model", models(kind), "--steps", "2", "--out", "new") == (0, "new/a.png\nnew/b.png\n", "")


@pytest.mark.usefixtures("given")
def test_reproduce_names_a_depth_map_that_moved(run: Run, models: Callable[[str], str]):
    assert run("depth2img", "depth.png", "a hill", "--model", models("depth"), "--steps", "1", "--out", "new.png")[0] == 0
    Path("depth.png").rename("deep.png")
    code, _, err = run("reproduce", "new.png")
    assert code == 2
    assert "give its file with --depth" in err
    assert run("reproduce", "new.png", "--depth", "deep.png") == (0, "identical\n", "")


@pytest.mark.usefixtures("given")
def test_the_embedded_model_names_a_model_for_each_task(run: Run):
    for command in (
        ["pix2pix", "picture.png", "make it blue"],
        ["depth2img", "depth.png", "a hill"],
        ["upscale", "picture.png"],
        ["variations", "picture.png"],
    ):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert f"cannot do {command[0]}; take a model that can, such as" in err
    assert sorted(path.name for path in Path().iterdir()) == ["depth.png", "picture.png"]


def test_a_refiner_does_the_last_steps(run: Run, models: Callable[[str], str]):
    refiner = models("refiner")
    fields = ["txt2img", "a red apple", "--steps", "4"]
    assert run(*fields, "--out", "alone.png")[0] == 0
    for share in ("1", "0.5", "0"):
        assert run(*fields, "--refiner", refiner, "--refiner-switch-at", share, "--out", f"{share}.png") == (0, f"{share}.png\n", "")
    assert run(*fields, "--model", refiner, "--out", "refiner.png")[0] == 0
    pixels = {name: np.asarray(Image.open(f"{name}.png")) for name in ("alone", "1", "0.5", "0", "refiner")}
    assert np.array_equal(pixels["1"], pixels["alone"])
    assert np.array_equal(pixels["0"], pixels["refiner"])
    assert not np.array_equal(pixels["0.5"], pixels["alone"])
    assert not np.array_equal(pixels["0.5"], pixels["refiner"])
    code, _, err = run(*fields, "--refiner", models("depth"))
    assert code == 2
    assert "has 7 input channels where 'tiny' has 6" in err
