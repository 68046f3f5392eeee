"""Saved images, their metadata, grids and animations."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from daguerre import atomic_io as disk
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import labelled_grid, supported_text, wrap
from daguerre.pipelines.images.output import GeneratedImage, GeneratedImages, save_animation
from daguerre.pipelines.metadata.write import Provenance, parameters, read_image_texts, read_provenance
from daguerre.pipelines.request import Request

ORIGIN = Provenance(
    Request(prompt="a red apple", sampler="dpmpp_2m", spacing="trailing", guidance_scale=5.0, seed=7),
    0,
    "tiny",
    "0.1.0",
    "2.13.0",
    "cpu",
    "float32",
)


def picture(colour: str = "red", origin: Provenance = ORIGIN) -> GeneratedImage:
    return GeneratedImage(Image.new("RGB", (64, 48), colour), origin)


def test_the_parameters_text_has_the_format_of_other_programs():
    request = Request(
        prompt="a red apple, shiny", negative_prompt="blue: dark", steps=30, sampler="euler_a", spacing="karras", guidance_scale=7.5, seed=3
    )
    assert parameters(replace(ORIGIN, request=request), (64, 48)) == (
        "a red apple, shiny\nNegative prompt: blue: dark\n"
        "Steps: 30, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 3, Size: 64x48, Model: tiny, Version: daguerre 0.1.0"
    )
    # The negative line is left out when empty; a value that would end too soon is quoted.
    assert parameters(replace(ORIGIN, model="a, b"), (64, 48)) == (
        "a red apple\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Trailing, CFG scale: 5, Seed: 7, Size: 64x48, "
        'Model: "a, b", Version: daguerre 0.1.0'
    )


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
@pytest.mark.parametrize("prompt", ["a red apple", "ein Äpfelchen — 赤いりんご 🍎\nzweite Zeile"])
def test_a_saved_image_keeps_its_request(tmp_path: Path, suffix: str, prompt: str):
    origin = replace(ORIGIN, request=replace(ORIGIN.request, prompt=prompt))
    path = picture(origin=origin).save(tmp_path / f"apple{suffix}")
    image, again = read_provenance(path)
    assert again == origin
    assert read_image_texts(path)[1]["parameters"] == parameters(origin, (64, 48))
    if suffix != ".jpg":
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(picture().image))


def test_several_images_are_numbered_and_have_their_own_seed(tmp_path: Path):
    request = Request(prompt="a red apple", seed=7, num_images=2)
    pictures = GeneratedImages(picture(origin=replace(ORIGIN, request=request, index=i)) for i in range(2))
    paths = pictures.save(tmp_path / "deep" / "apple.png")
    assert [path.name for path in paths] == ["apple-1.png", "apple-2.png"]
    assert [f"Seed: {seed}" in read_image_texts(path)[1]["parameters"] for seed, path in zip((7, 8), paths, strict=True)] == [True, True]
    grid = pictures.grid()
    assert grid.provenance.index is None
    assert "Size" not in grid.parameters


def test_a_grid_shows_every_image_unchanged_above_its_label():
    colours = ["red", "green", "blue"]
    images = [Image.new("RGB", (128, 128), colour) for colour in colours]
    sheet = labelled_grid(images, ["a red apple", "a long label that has to be broken into several lines", ""])
    found = {colour: count for count, colour in sheet.getcolors(1 << 16)}
    assert all(found[images[i].getpixel((0, 0))] == 128 * 128 for i in range(3))
    assert found[(0, 0, 0)] > 20  # ink
    assert labelled_grid(images, colours, columns=3).width > labelled_grid(images, colours, columns=1).width


def test_a_grid_has_a_row_for_each_prompt():
    request = Request(prompt=("a", "b"), num_images=3)
    pictures = GeneratedImages(picture(origin=replace(ORIGIN, request=request, index=i)) for i in range(6))
    sheet = pictures.grid().image
    assert sheet.width > sheet.height  # three across, two down


def test_labels_wrap_between_words():
    font = ImageFont.load_default(size=12)
    text = "a red apple left of a tremendouslylongunbreakableword"
    lines = wrap(text, font, 60)
    assert all(font.getlength(line) <= 60 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[0] == "a red"
    assert supported_text("Äpfel — 赤 · x") == "Apfel - ? - x"


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_an_animation_has_every_frame(tmp_path: Path, suffix: str):
    frames = [Image.new("RGB", (16, 16), (i * 40, 0, 0)) for i in range(5)]
    with Image.open(save_animation(tmp_path / f"film{suffix}", frames)) as film:
        assert film.n_frames == 5
        for i, frame in enumerate(frames):
            film.seek(i)
            assert abs(np.asarray(film.convert("RGB")).astype(int) - np.asarray(frame)).max() <= 8  # WebP films are lossy


@pytest.mark.parametrize("name", ["apple.gif", "apple", "apple.png.txt"])
def test_an_unsupported_format_is_refused(tmp_path: Path, name: str):
    with pytest.raises(DaguerreError, match=r"use \.png, \.webp"):
        picture().save(tmp_path / name)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = picture("red").save(tmp_path / "apple.png")
    before = path.read_bytes()

    def no_space(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", no_space)
    with pytest.raises(DaguerreError, match=r"apple\.png': No space left on device"):
        picture("blue").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_files_are_refused(tmp_path: Path):
    whole = picture().save(tmp_path / "apple.png").read_bytes()
    for name, content, message in (("cut.png", whole[: len(whole) // 2], "Cannot read"), ("text.png", b"hello", "not an image")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DaguerreError, match=message):
            read_image_texts(tmp_path / name)
    with pytest.raises(DaguerreError, match="there is no such file"):
        read_image_texts(tmp_path / "none.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "foreign.png")
    with pytest.raises(DaguerreError, match="holds no request of daguerre"):
        read_provenance(tmp_path / "foreign.png")
