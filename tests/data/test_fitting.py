"""Crops, padding, stretching, mirroring and aspect-ratio buckets; class labels; the validation part of a folder."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daguerre.data import FolderDataset
from daguerre.data.fitting import aspect_ratio_bucket, fit_image
from daguerre.errors import DaguerreError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def thirds(width: int = 48, height: int = 16) -> Image.Image:
    """Red, white and blue from left to right."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 3, height))
    image.paste(BLUE, (width - width // 3, 0, width, height))
    return image


def colours(image: Image.Image, row: int) -> list[tuple[int, ...]]:
    """The colours of a row from left to right, without repetitions and without the mixed ones at the borders."""
    row_colours = [tuple(pixel) for pixel in np.asarray(image)[row].tolist()]
    clear = [colour for colour in row_colours if colour in (RED, BLUE, WHITE, (0, 0, 0))]
    return [clear[0], *(after for before, after in pairwise(clear) if before != after)]


def test_each_crop_shows_the_right_part():
    image = thirds()
    assert colours(fit_image(image, (16, 16), "center"), 8) == [WHITE]
    assert colours(fit_image(image, (16, 16), "random", 0), 8) == [RED]
    assert colours(fit_image(image, (16, 16), "random", 1), 8) == [BLUE]
    assert colours(fit_image(image, (18, 18), "stretch"), 8) == [RED, WHITE, BLUE]
    padded = fit_image(image, (24, 24), "pad")
    assert padded.size == (24, 24)
    assert colours(padded, 12) == [RED, WHITE, BLUE]
    assert colours(padded, 2) == colours(padded, 21) == [WHITE]
    assert fit_image(image.rotate(90, expand=True), (24, 24), "pad").size == (24, 24)
    assert colours(fit_image(image, (16, 32), "bucket", 0), 8) == [RED, WHITE]  # two thirds of the width: red and white


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (37, 64), (64, 64)])
@pytest.mark.parametrize("crop", ["random", "center", "pad", "stretch"])
def test_every_shape_gets_the_size(size: tuple[int, int], crop):
    assert fit_image(Image.new("RGB", size), (16, 24), crop, 0.3).size == (24, 16)


def test_the_bucket_has_the_nearest_ratio():
    assert aspect_ratio_bucket((512, 512), 512, 64) == (512, 512)
    assert aspect_ratio_bucket((1024, 1024), 512, 64) == (512, 512)
    assert aspect_ratio_bucket((600, 800), 512, 64) == (448, 576)
    assert aspect_ratio_bucket((800, 600), 512, 64) == (576, 448)
    assert aspect_ratio_bucket((10, 1000), 512, 64) == (256, 1024)
    for height, width in np.random.default_rng(0).integers(16, 2000, (300, 2)).tolist():
        h, w = aspect_ratio_bucket((height, width), 128, 16)
        assert h % 16 == w % 16 == 0
        assert h * w <= 128**2
        assert h * w >= 0.65 * 128**2  # rounding down loses less than one step of one side
        if 0.3 < width / height < 3:
            assert abs(np.log(w / h) - np.log(width / height)) < np.log(144 / 112) / 2 + 0.15  # half the distance of two ratios, at most


def test_samples_have_their_buckets(tmp_path: Path):
    thirds(96, 32).save(tmp_path / "wide.png")
    thirds(64, 64).save(tmp_path / "square.png")
    turned = thirds(96, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "tall.jpg", exif=exif)
    source = FolderDataset(tmp_path, 64, crop="bucket", bucket_step=8, captioned=False)
    sizes = {item.path.name: item.size for item in source.items}
    assert sizes["square.png"] == (64, 64)
    assert sizes["tall.jpg"] == sizes["wide.png"][::-1]
    for index, item in enumerate(source.items):
        assert source.sample(index, np.random.default_rng(1)).image.size == item.size[::-1]
    assert len(set(source.buckets)) == 3
    assert source.summary[-1].startswith("crops: rectangles")


def test_half_of_the_samples_are_mirrored(tmp_path: Path):
    thirds(24, 24).save(tmp_path / "a.png")
    plain = FolderDataset(tmp_path, 24, captioned=False)
    source = FolderDataset(tmp_path, 24, captioned=False, mirror=True)
    first = [colours(source.sample(0, np.random.default_rng(seed)).image, 8)[0] for seed in range(200)]
    assert 60 < first.count(BLUE) < 140  # ± 5.6 standard deviations
    assert {*first} == {RED, BLUE}
    assert {colours(plain.sample(0, np.random.default_rng(seed)).image, 8)[0] for seed in range(20)} == {RED}
    assert source.key != plain.key


def test_labels_come_from_subfolders_or_the_metadata(tmp_path: Path):
    for name in ("train/red_apple/a.png", "train/cat/images/b.png", "10_dog/c.png", "d.png", "e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        thirds().save(path)
    (tmp_path / "metadata.csv").write_text("file_name,label\ne.png,7\n")
    source = FolderDataset(tmp_path, 16, captioned=False)
    labels = {item.path.name: item.label for item in source.items}
    assert labels == {"a.png": "red apple", "b.png": "cat", "c.png": "dog", "d.png": "", "e.png": "7"}
    assert source.labels == ["7", "cat", "dog", "red apple"]
    assert {source.sample(i, np.random.default_rng(0)).label for i in range(5)} == {"", *source.labels}


def test_the_validation_part_depends_on_the_content_only(tmp_path: Path):
    for i in range(60):
        Image.new("RGB", (16, 16), (4 * i, 0, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    source = FolderDataset(tmp_path, 16, captioned=False)
    trained, held_out = source.split(0.2)
    assert len(trained) + len(held_out) == 61
    assert not {item.digest for item in trained.items} & {item.digest for item in held_out.items}  # the copy is on the same side
    assert 3 <= len(held_out) <= 24  # 12 ± 4 standard deviations
    kept = {item.digest for item in held_out.items}
    (tmp_path / "0.png").rename(tmp_path / "renamed.png")
    Image.new("RGB", (16, 16), "lime").save(tmp_path / "new.png")
    again = {item.digest for item in FolderDataset(tmp_path, 16, captioned=False).split(0.2)[1].items}
    assert kept <= again
    assert len(again - kept) <= 1
    assert trained.key != source.key != held_out.key
    with pytest.raises(DaguerreError, match="larger fraction"):
        source.split(1e-9)
    with pytest.raises(DaguerreError, match="smaller fraction"):
        source.split(1.0)
