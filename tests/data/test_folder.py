"""Folders of images: layouts, image formats and bad input."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from daguerre.data import FolderDataset, open_image, resize_and_crop
from daguerre.data.images import READABLE_FORMATS, decode_image
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
    assert [item.caption for item in source.items] == ["cat", "red apple"]


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
    captions = {item.path.relative_to(tmp_path).as_posix(): item.caption for item in source.items}
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
    assert [item.caption for item in source.items] == ["cat", "dog"]
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


# Folders as systems and other programs leave them


def add(path: Path, caption: str | bytes | None = None, suffix: str = ".txt", image: Image.Image | None = None) -> Path:
    """Save an image with an optional caption file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or halves()).save(path)
    if caption is not None:
        path.with_suffix(suffix).write_bytes(caption.encode() if isinstance(caption, str) else caption)
    return path


def captions_of(folder: Path, **options: bool) -> dict[str, str]:
    return {item.path.relative_to(folder).as_posix(): item.caption for item in FolderDataset(folder, 16, **options).items}


CAPTION = "the painter’s café, a red kite"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv"])
def test_captions_in_every_usual_encoding(tmp_path: Path, encoding: str, name: str):
    add(tmp_path / "a.png")
    entry = json.dumps({"file_name": "a.png", "text": CAPTION}, ensure_ascii=False)
    text = {"a.txt": CAPTION + "\r\n", "metadata.jsonl": entry + "\r\n", "metadata.csv": f'file_name,text\r\na.png,"{CAPTION}"\r\n'}[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    source = FolderDataset(tmp_path, 16)
    assert [item[:2] for item in source.items] == [(tmp_path / "a.png", CAPTION)]
    assert any("Windows-1252" in line and name in line for line in source.summary) is (encoding == "cp1252")


@pytest.mark.parametrize("encoding", ["utf-16-le", "shift_jis", "cp1251"])
def test_captions_in_other_encodings_are_refused(tmp_path: Path, encoding: str):
    text = {"utf-16-le": "a kite", "shift_jis": "赤い凧", "cp1251": "красный змей"}[encoding]
    add(tmp_path / "a.png", text.encode(encoding))
    with pytest.raises(DaguerreError, match=r"a\.png has no caption; write it in .*a\.txt in UTF-8"):
        FolderDataset(tmp_path, 16)
    entries = '{"file_name": "a.png"}\n' + json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(entries.encode(encoding))
    with pytest.raises(DaguerreError, match=r"metadata\.jsonl, line [12], is neither UTF-8"):
        FolderDataset(tmp_path, 16)


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_line_separators_inside_json_captions(tmp_path: Path, separator: str):
    add(tmp_path / "a.png")
    text = f"a red kite{separator} over a lake"
    line = f'{{"file_name": "a.png", "text": {json.dumps(text, ensure_ascii=separator < " ")}}}'
    (tmp_path / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    assert captions_of(tmp_path) == {"a.png": text}


def test_metadata_in_subfolders(tmp_path: Path):
    """Paths are relative to the metadata file; of two files, the one closest to the image is valid."""
    for name in ("train/a.png", "train/b.png", "test/c.png"):
        add(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/a.png", "text": "far"}\n{"file_name": "test/c.png", "text": "c"}')
    (tmp_path / "train" / "metadata.csv").write_text('file_name,text\na.png,near\nb.png,"b, with a comma"\n')
    assert captions_of(tmp_path) == {"train/a.png": "near", "train/b.png": "b, with a comma", "test/c.png": "c"}


def test_the_name_of_a_whole_dataset_is_no_caption(tmp_path: Path):
    add(tmp_path / "train" / "a.png")
    with pytest.raises(DaguerreError, match=r"train/a\.png has no caption"):
        FolderDataset(tmp_path, 16)


def test_a_csv_file_needs_its_columns(tmp_path: Path):
    add(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("image;text\na.png;a kite\n")
    with pytest.raises(DaguerreError, match="image;text; it needs file_name and text"):
        FolderDataset(tmp_path, 16)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a kite\n,another\n")
    with pytest.raises(DaguerreError, match=r"metadata\.csv, line 3, has no file_name"):
        FolderDataset(tmp_path, 16)


def test_caption_files_of_other_programs(tmp_path: Path):
    add(tmp_path / "10_sks dog" / "a.png", "a brown dog on a beach", ".caption")
    add(tmp_path / "b.PNG", "upper case", ".TXT")
    add(tmp_path / "c.png")
    (tmp_path / "c.png.txt").write_text("with both suffixes")
    add(tmp_path / "d.png", "", ".txt")
    (tmp_path / "d.caption").write_text("the text file is empty")
    assert captions_of(tmp_path) == {
        "10_sks dog/a.png": "a brown dog on a beach",
        "b.PNG": "upper case",
        "c.png": "with both suffixes",
        "d.png": "the text file is empty",
    }


def test_folder_names_with_repeats(tmp_path: Path):
    """Images of "10_sks dog" occur as often relative to "4_cat" as the numbers state, if repeats are wanted."""
    for name in ("10_sks dog/a.png", "4_cat/b.png", "4_cat/c.png"):
        add(tmp_path / name)
    assert captions_of(tmp_path) == {"10_sks dog/a.png": "sks dog", "4_cat/b.png": "cat", "4_cat/c.png": "cat"}
    assert len(FolderDataset(tmp_path, 16)) == 3
    source = FolderDataset(tmp_path, 16, repeats=True)
    names = [item.path.name for item in source.items]
    assert {name: names.count(name) for name in names} == {"a.png": 5, "b.png": 2, "c.png": 2}
    assert "images: 3 in" in source.summary[0]
    assert any("10_sks dog 5×" in line and "4_cat 2×" in line for line in source.summary)


def test_leftovers_of_systems_are_no_images(tmp_path: Path):
    add(tmp_path / "a.png", "a red kite")
    for name in ("@eaDir/a.png/SYNOPHOTO_THUMB_S.jpg", "thumbs/a.jpg", "__MACOSX/a.png", ".cache/a.png"):
        add(tmp_path / name)
    for name in ("desktop.ini", "Thumbs.db", ".DS_Store", "._a.png"):
        (tmp_path / name).write_bytes(b"\0")
    source = FolderDataset(tmp_path, 16)
    assert [item[:2] for item in source.items] == [(tmp_path / "a.png", "a red kite")]
    summary = "\n".join(source.summary)
    assert all(name in summary for name in ("@eaDir", "thumbs", "__MACOSX"))
    assert "not used" not in summary


def test_runs_inside_the_folder_are_left_out(tmp_path: Path):
    add(tmp_path / "a.png", "a red kite")
    for run in (tmp_path / "run", tmp_path):
        run.mkdir(exist_ok=True)
        (run / "recipe.json").write_text("{}")
        add(run / "samples" / "000001.png")
    source = FolderDataset(tmp_path, 16)
    assert [item[:2] for item in source.items] == [(tmp_path / "a.png", "a red kite")]
    assert any("folders left out" in line and str(tmp_path / "run") in line for line in source.summary)


def test_the_summary_counts_captions_and_unused_files(tmp_path: Path):
    add(tmp_path / "a.png", "a red kite")
    add(tmp_path / "cat" / "b.png")
    (tmp_path / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    for name in ("film.mp4", "alone.txt", "more.txt"):
        (tmp_path / name).write_bytes(b"text")
    summary = FolderDataset(tmp_path, 16).summary
    assert summary[:2] == [f"images: 2 in {tmp_path}", "captions: 1 from .txt files, 1 from folder names ('cat')"]
    assert all(part in summary[2] for part in ("2 .txt", "1 .mp4"))


def test_names_as_other_systems_write_them(tmp_path: Path):
    """Windows separates folders by backslashes; macOS writes accented letters as two characters."""
    add(tmp_path / "train" / "a.png")
    add(tmp_path / "cafe\u0301.png")
    lines = [{"file_name": "train\\a.png", "text": "a red kite"}, {"file_name": "caf\u00e9.png", "text": "a café"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert captions_of(tmp_path) == {"train/a.png": "a red kite", "cafe\u0301.png": "a café"}


def test_a_folder_given_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "./a.png", "text": "a kite"}')
    monkeypatch.chdir(tmp_path / "data")
    for path in (".", "../data", "../data/../data"):
        assert [item.caption for item in FolderDataset(Path(path), 16).items] == ["a kite"]
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "../a.png", "text": "a kite"}')
    with pytest.raises(DaguerreError, match="outside the folder"):
        FolderDataset(Path(), 16)


def test_links_to_folders_are_followed_once(tmp_path: Path):
    add(tmp_path / "elsewhere" / "a.png", "a kite")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    assert captions_of(tmp_path / "data") == {"link/a.png": "a kite"}


def test_names_that_differ_only_in_the_suffix_case(tmp_path: Path):
    add(tmp_path / "a.png", "a kite")
    add(tmp_path / "a.PNG")
    assert captions_of(tmp_path) == {"a.png": "a kite", "a.PNG": "a kite"}


def test_key_changes_with_an_edit_that_keeps_size_and_time(tmp_path: Path):
    path = add(tmp_path / "a.bmp", "a kite")
    first, before = FolderDataset(tmp_path, 16).key, path.stat()
    halves().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert FolderDataset(tmp_path, 16).key != first


# Kinds of image


@pytest.mark.parametrize(("suffix", "kind"), [(".jfif", "JPEG"), (".jpe", "JPEG"), (".mpo", "MPO"), (".apng", "PNG"), (".avif", "AVIF")])
def test_less_common_suffixes(tmp_path: Path, suffix: str, kind: str):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    halves().save(tmp_path / f"a{suffix}", kind)
    (tmp_path / "a.txt").write_text("a kite")
    assert captions_of(tmp_path) == {f"a{suffix}": "a kite"}


def test_heic_names_its_package(tmp_path: Path):
    if "HEIF" in READABLE_FORMATS:
        pytest.skip("pillow-heif is installed")
    add(tmp_path / "b.png", "a kite")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    assert any("1 .heic; .heic needs the package pillow-heif" in line for line in FolderDataset(tmp_path, 16).summary)
    with pytest.raises(DaguerreError, match="pillow-heif"):
        open_image(tmp_path / "a.heic")


def test_the_images_of_a_phone_are_not_animations(tmp_path: Path):
    halves().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[halves()])
    assert decode_image(tmp_path / "a.jpg")[1] == 1


def test_large_texts_and_profiles(tmp_path: Path):
    info = PngInfo()
    info.add_text("workflow", "a" * (3 << 20), zip=True)
    halves().save(tmp_path / "text.png", pnginfo=info)
    halves().save(tmp_path / "profile.png", icc_profile=np.random.default_rng(0).bytes(3 << 20))
    for name in ("text.png", "profile.png"):
        assert open_image(tmp_path / name).tobytes() == halves().tobytes()


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
