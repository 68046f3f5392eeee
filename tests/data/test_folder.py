"""Folders of images: layouts, image formats and bad input."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daguerre.data import FolderDataset, open_image, resize_and_crop
from daguerre.errors import DaguerreError

RED, BLUE = (220, 40, 30), (30, 60, 210)


def halves(width: int = 40, height: int = 30) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(int(v) for v in np.asarray(image)[y, x])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Layouts


def test_metadata(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    halves().save(tmp_path / "sub" / "a.png")
    Image.new("RGB", (20, 20), BLUE).save(tmp_path / "b.png")
    lines = [{"file_name": "sub/a.png", "text": " red and blue "}, {"file_name": "b.png", "text": "blue"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    source = FolderDataset(tmp_path, 16, crop="center")
    assert [source.sample(i, rng()).caption for i in range(len(source))] == ["red and blue", "blue"]
    image = source.sample(0, rng()).image
    assert image.size == (16, 16)
    assert pixel(image, 1, 8) == RED
    assert pixel(image, 14, 8) == BLUE


def test_text_files(tmp_path: Path):
    for name, caption in (("a.PNG", "first"), ("below/b.webp", "zweites Bild: ü")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        halves().save(path)
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    source = FolderDataset(tmp_path, 16)
    assert source.captions(2, 0) != []
    assert sorted(source.captions(2, 0)) == ["first", "zweites Bild: ü"]


def test_one_folder_per_class(tmp_path: Path):
    for name in ("red_apple", "cat"):
        (tmp_path / name).mkdir()
        halves().save(tmp_path / name / "1.jpg")
    source = FolderDataset(tmp_path, 16)
    assert [caption for _, caption in source.items] == ["cat", "red apple"]


def test_caption_sources_can_be_mixed(tmp_path: Path):
    """One folder can mix captions from metadata.jsonl, text files and class folders."""
    for name in ("loose.png", "text.png", "below/listed.png", "red_apple/1.png", "cat/1.png", "cat/._1.png", ".cache/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        halves().save(tmp_path / name)
    (tmp_path / "text.txt").write_text("from a file", encoding="utf-8")
    (tmp_path / "loose.txt").write_text("loose", encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "below/listed.png", "text": "in a line"}\n{"file_name": "text.png"}', encoding="utf-8"
    )
    source = FolderDataset(tmp_path, 16)
    captions = {path.relative_to(tmp_path).as_posix(): caption for path, caption in source.items}
    assert captions == {
        "below/listed.png": "in a line",
        "text.png": "from a file",
        "cat/1.png": "cat",
        "loose.png": "loose",
        "red_apple/1.png": "red apple",
    }


def test_an_uncaptioned_image_outside_class_folders_is_bad(tmp_path: Path):
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        halves().save(tmp_path / name)
    halves().save(tmp_path / "loose.png")
    (tmp_path / "._loose.png").write_bytes(b"macOS metadata")
    with pytest.raises(DaguerreError, match=r"/loose\.png has no caption; write it in .*/loose\.txt\. Fix"):
        FolderDataset(tmp_path, 16)
    source = FolderDataset(tmp_path, 16, skip_bad=True)
    assert [caption for _, caption in source.items] == ["cat", "dog"]
    assert [path.name for path, _ in source.skipped] == ["loose.png"]


def test_a_missing_text_file_does_not_make_a_class(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        halves().save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "a.txt").write_text("a caption")
    with pytest.raises(DaguerreError, match=r"photos/b\.png has no caption; write it in .*b\.txt"):
        FolderDataset(tmp_path, 16)


def test_random_and_centre_crops(tmp_path: Path):
    (tmp_path / "wide").mkdir()
    halves(200, 20).save(tmp_path / "wide" / "1.png")
    means = [FolderDataset(tmp_path, 16).sample(0, np.random.default_rng(i)).image.resize((1, 1)).getpixel((0, 0)) for i in range(20)]
    assert len(set(means)) > 1
    centred = FolderDataset(tmp_path, 16, crop="center").sample(0, rng()).image
    assert pixel(centred, 0, 8) == RED
    assert pixel(centred, 15, 8) == BLUE


def test_key_depends_on_the_contents(tmp_path: Path):
    (tmp_path / "a").mkdir()
    halves().save(tmp_path / "a" / "1.png")
    first = FolderDataset(tmp_path, 16).key
    assert FolderDataset(tmp_path, 16).key == first
    halves(42).save(tmp_path / "a" / "2.png")
    assert FolderDataset(tmp_path, 16).key != first


# Kinds of image


def test_resize_and_crop_positions():
    wide = halves(80, 20)
    assert pixel(resize_and_crop(wide, 10, 0.0), 9, 5) == RED
    assert pixel(resize_and_crop(wide, 10, 1.0), 0, 5) == BLUE
    assert resize_and_crop(halves(20, 90), 16).size == (16, 16)
    assert resize_and_crop(halves(16, 16), 16).tobytes() == halves(16, 16).tobytes()


def test_rotation_from_exif(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed rotated by 90° clockwise: the left half is at the top
    halves().save(tmp_path / "a.png", exif=exif)
    upright = open_image(tmp_path / "a.png")
    assert upright.size == (30, 40)
    assert pixel(upright, 15, 2) == RED
    assert pixel(upright, 15, 37) == BLUE


def test_transparency_becomes_white(tmp_path: Path):
    layer = halves().convert("RGBA")
    layer.paste((0, 0, 0, 0), (0, 0, 20, 30))
    layer.save(tmp_path / "rgba.png")
    palette = Image.new("P", (10, 10), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.paste(0, (0, 0, 5, 10))
    palette.save(tmp_path / "p.png", transparency=0)
    Image.new("LA", (10, 10), (0, 128)).save(tmp_path / "la.png")
    assert pixel(open_image(tmp_path / "rgba.png"), 2, 5) == (255, 255, 255)
    assert pixel(open_image(tmp_path / "rgba.png"), 30, 5) == BLUE
    assert pixel(open_image(tmp_path / "p.png"), 2, 5) == (255, 255, 255)
    assert pixel(open_image(tmp_path / "p.png"), 8, 5) == RED
    assert pixel(open_image(tmp_path / "la.png"), 2, 5) == (127, 127, 127)


def test_sixteen_bit_gray(tmp_path: Path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    seen = np.asarray(open_image(tmp_path / "deep.png"))[0, :, 0]
    assert np.abs(seen.astype(int) - np.arange(256)).max() <= 1


def test_cmyk_and_gray_and_one_bit(tmp_path: Path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    Image.new("L", (4, 4), 77).save(tmp_path / "g.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "b.png")
    r, g, b = pixel(open_image(tmp_path / "c.jpg"), 8, 8)
    assert r > 200
    assert max(g, b) < 60
    assert pixel(open_image(tmp_path / "g.png"), 0, 0) == (77, 77, 77)
    assert pixel(open_image(tmp_path / "b.png"), 0, 0) == (255, 255, 255)


# Bad input


def classes(tmp_path: Path, name: str, content: bytes) -> Path:
    folder = tmp_path / "thing"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif"), ("BMP", "bmp")]
)
def test_truncated_image_raises_or_is_skipped(tmp_path: Path, kind: str, suffix: str):
    bad = classes(tmp_path, f"cut.{suffix}", encoded(kind)[: len(encoded(kind)) // 2])
    classes(tmp_path, "whole.png", encoded("PNG"))
    with pytest.raises(DaguerreError, match=rf"cut\.{suffix} is (damaged|not an image).*--skip-bad"):
        FolderDataset(tmp_path, 16)
    source = FolderDataset(tmp_path, 16, skip_bad=True)
    assert len(source) == 1
    assert [path for path, _ in source.skipped] == [bad]


def test_error_counts_the_bad_images(tmp_path: Path):
    for i in range(3):
        classes(tmp_path, f"{i}.png", b"no image")
    classes(tmp_path, "whole.png", encoded("PNG"))
    with pytest.raises(DaguerreError, match=r"0\.png is not an image.* 2 more of 4"):
        FolderDataset(tmp_path, 16)
    assert len(FolderDataset(tmp_path, 16, skip_bad=True).skipped) == 3


def test_only_bad_images_raise_even_with_skip_bad(tmp_path: Path):
    classes(tmp_path, "a.png", b"")
    with pytest.raises(DaguerreError, match="None of the 1 images"):
        FolderDataset(tmp_path, 16, skip_bad=True)


def test_image_size_is_checked_before_decoding(tmp_path: Path):
    """A PNG header with 60,000 × 60,000 pixels and no data."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    classes(tmp_path, "bomb.png", b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(DaguerreError, match=r"bomb\.png"):
        FolderDataset(tmp_path, 16)
    halves(100, 100).save(tmp_path / "big.png")
    with pytest.raises(DaguerreError, match=r"100×100 pixels; at most 0\.005 million"):
        open_image(tmp_path / "big.png", max_pixels=5000)


def test_missing_captions(tmp_path: Path):
    halves().save(tmp_path / "a.png")
    halves().save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a caption")
    with pytest.raises(DaguerreError, match=r"a\.png has no caption; write it in .*a\.txt"):
        FolderDataset(tmp_path, 16)
    assert len(FolderDataset(tmp_path, 16, skip_bad=True)) == 1
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DaguerreError, match="UTF-8"):
        FolderDataset(tmp_path, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{nonsense", "line 1, is not of the form"),
        ('{"text": "no file"}', "line 1, is not of the form"),
        ('{"file_name": "a.png", "text": "x"}\n["a list"]', "line 2, is not of the form"),
        ('{"file_name": "a.png"}', r'a\.png has no caption; write it in "text" in .*line 1'),
        ('{"file_name": "a.png", "text": 3}', r"a\.png has no caption"),
        ('{"file_name": "gone.png", "text": "x"}', r"gone\.png does not exist"),
        ('{"file_name": "../a.png", "text": "x"}', "is outside the folder"),
    ],
)
def test_bad_metadata(tmp_path: Path, text: str, message: str):
    folder = tmp_path / "data"
    folder.mkdir()
    halves().save(folder / "a.png")
    halves().save(tmp_path / "a.png")
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DaguerreError, match=message):
        FolderDataset(folder, 16)


def test_missing_and_empty_folders(tmp_path: Path):
    with pytest.raises(DaguerreError, match="There is no folder"):
        FolderDataset(tmp_path / "none", 16)
    with pytest.raises(DaguerreError, match="No images in"):
        FolderDataset(tmp_path, 16)
    (tmp_path / "a").mkdir()
    halves().save(tmp_path / "a" / "1.png")
    with pytest.raises(DaguerreError, match="size is 0"):
        FolderDataset(tmp_path, 0)
