"""Texts are found wherever PNG, JPEG and WebP store them, in any encoding, and our own survive a round trip."""

import gzip
import html
import io
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from daguerre.pipelines.metadata.containers import decode_text
from daguerre.pipelines.metadata.readers import ForeignMetadata, read_foreign
from daguerre.pipelines.metadata.write import Provenance, read_image_texts, read_provenance, write_image_with_metadata
from daguerre.pipelines.request import Request, with_fields

TEXT = "a fox, ünï 雪\nNegative prompt: rain\nSteps: 25, Sampler: Euler, CFG scale: 6.5, Seed: 31, Size: 512x768, Model: ferry"
EXPECTED = {
    "prompt": "a fox, ünï 雪",
    "negative_prompt": "rain",
    "steps": 25,
    "sampler": "euler",
    "guidance_scale": 6.5,
    "seed": 31,
    "width": 512,
    "height": 768,
}
SUFFIXES = [".png", ".jpg", ".webp"]


def read(path: Path) -> ForeignMetadata:
    found = read_foreign(read_image_texts(path)[1])
    assert found is not None
    return found


def save_png(path: Path, texts: dict[str, str | bytes]) -> Path:
    """A PNG with text chunks; texts in bytes are stored as they are, others as Unicode where they must."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        if isinstance(text, bytes):
            info.add(b"tEXt", name.encode() + b"\0" + text)
        else:
            info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mark", [b"UNICODE\0", b"ASCII\0\0\0", bytes(8), b""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("directory", ["first", "exif"])
def test_exif_comments_with_any_mark_encoding_and_directory(tmp_path, suffix, mark, encoding, directory):
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "x"
    holder = exif if directory == "first" else exif.get_ifd(ExifTags.IFD.Exif)
    holder[ExifTags.Base.UserComment] = mark + TEXT.encode(encoding) + bytes(2)
    Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", exif=exif)
    assert dict(read(tmp_path / f"a{suffix}").request) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_png_texts_that_are_not_latin_1(tmp_path, encoding):
    assert dict(read(save_png(tmp_path / "a.png", {"parameters": TEXT.encode(encoding)})).request) == EXPECTED


def test_a_compressed_text_longer_than_a_megabyte(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", TEXT)
    info.add_text("workflow", json.dumps({"nodes": [" " * (1 << 21)]}), zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert dict(read(tmp_path / "a.png").request) == EXPECTED


def test_exif_texts_in_utf_8(tmp_path):
    text = json.dumps({"prompt": "ünï 雪", "steps": 30}, ensure_ascii=False).encode()
    exif = Image.Exif()
    exif[ExifTags.Base.UserComment] = "?" * len(text)  # Pillow writes ASCII alone
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data.replace(b"?" * len(text), text))
    assert read(tmp_path / "a.jpg").request["prompt"] == "ünï 雪"


def test_a_text_does_not_hide_another_one_of_the_same_name(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + TEXT.encode()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "None")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", exif=exif, pnginfo=info)
    assert dict(read(tmp_path / "a.png").request) == EXPECTED


@pytest.mark.parametrize("name", ["Comment", "Description", "parameters", "anything"])
def test_settings_are_found_in_any_text(tmp_path, name):
    texts: dict[str, str | bytes] = {"parameters": "None", name: TEXT}
    assert dict(read(save_png(tmp_path / "a.png", texts)).request) == EXPECTED


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "form",
    [
        '<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></exif:UserComment>',
        "<exif:UserComment>{}</exif:UserComment>",
        '<rdf:Description exif:UserComment="{}"/>',
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>',
        "<dc:description>other</dc:description><exif:UserComment>{}</exif:UserComment>",
    ],
)
def test_xmp_as_elements_lists_and_attributes(tmp_path, suffix, form):
    packet = f"<x:xmpmeta><rdf:RDF>{form.format(html.escape(TEXT).replace(chr(10), '&#xA;'))}</rdf:RDF></x:xmpmeta>"
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    else:
        Image.new("RGB", (8, 8)).save(path, xmp=packet.encode())
    assert dict(read(path).request) == EXPECTED


def hide(text: str, channels: str, mark: bytes, *, size: tuple[int, int] = (96, 100)) -> Image.Image:
    """An image that holds a text in the lowest bits of its channels, column by column."""
    body = gzip.compress(text.encode()) if mark.endswith(b"comp") else text.encode()
    bits = [int(bit) for byte in mark + struct.pack(">I", 8 * len(body)) + body for bit in f"{byte:08b}"]
    image = Image.new("RGBA" if channels == "A" else "RGB", size, (90, 120, 60, 254)[: 4 if channels == "A" else 3])
    slots = [(x, y, "RGBA".index(channel)) for x in range(size[0]) for y in range(size[1]) for channel in channels]
    for (x, y, channel), bit in zip(slots, bits, strict=False):
        pixel = list(image.getpixel((x, y)))  # type: ignore[arg-type]
        pixel[channel] = pixel[channel] & ~1 | bit
        image.putpixel((x, y), tuple(pixel))
    return image


NOVELAI = {
    "Description": "a fox, ünï 雪",
    "Software": "NovelAI",
    "Comment": json.dumps({"steps": 25, "width": 512, "height": 768, "scale": 6.5, "seed": 31, "sampler": "k_euler", "uc": "rain"}),
}


@pytest.mark.parametrize(
    ("channels", "mark"),
    [("A", b"stealth_pnginfo"), ("A", b"stealth_pngcomp"), ("RGB", b"stealth_rgbinfo"), ("RGB", b"stealth_rgbcomp")],
)
@pytest.mark.parametrize(("text", "software"), [(TEXT, "AUTOMATIC1111's web UI or a similar program"), (json.dumps(NOVELAI), "NovelAI")])
def test_texts_hidden_in_pixels(tmp_path, channels, mark, text, software):
    hide(text, channels, mark).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png")
    assert (found.software, dict(found.request)) == (software, EXPECTED)


def test_a_hidden_text_that_is_truncated_or_damaged_is_ignored(tmp_path):
    hide(TEXT * 50, "A", b"stealth_pngcomp", size=(10, 20)).save(tmp_path / "small.png")
    image = hide(TEXT, "A", b"stealth_pngcomp")
    image.putalpha(image.getchannel("A").point(lambda value: value))
    for y in range(60, 96):
        image.putpixel((1, y), (0, 0, 0, 255))
    image.save(tmp_path / "damaged.png")
    for name in ("small.png", "damaged.png"):
        assert read_foreign(read_image_texts(tmp_path / name)[1]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"", ""), (b"\0\0", ""), (b"a\0", "a"), ("雪".encode("utf-16"), "雪"), ("é".encode("latin-1"), "é"), (b"\xff", "ÿ")],
)
def test_decodes_short_texts(text, expected):
    assert decode_text(text) == expected


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=100, deadline=None)
@given(ANY_TEXT, ANY_TEXT, st.integers(0, 2**63 - 2), st.sampled_from(SUFFIXES), st.booleans())
def test_our_own_metadata_survives_every_format(tmp_path_factory, prompt, negative, seed, suffix, stripped):
    origin = Provenance(Request(prompt=prompt, negative_prompt=negative, seed=seed), 0, "tiny", "0", "2", "cpu", "float32")
    path = tmp_path_factory.mktemp("round") / f"a{suffix}"
    with path.open("wb") as file:
        write_image_with_metadata(file, Image.new("RGB", (8, 8)), suffix, origin)
    if stripped:
        with Image.open(path) as image:
            Image.frombytes("RGB", image.size, image.convert("RGB").tobytes()).save(path)
        assert read_image_texts(path)[1] == {}
    else:
        assert read_provenance(path)[1] == origin


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30).filter(lambda text: "rompt:" not in text),
    st.sampled_from(SUFFIXES),
)
def test_our_settings_text_survives_the_loss_of_the_json(prompt, suffix):
    request = Request(prompt=prompt, negative_prompt="x", guidance_scale=3.5, sampler="euler")
    file = io.BytesIO()
    write_image_with_metadata(file, Image.new("RGB", (8, 8)), suffix, Provenance(request, 0, "tiny", "0", "2", "cpu", "float32"))
    texts = read_image_texts(file)[1]  # type: ignore[arg-type] # Pillow opens files, too
    found = read_foreign({name: text for name, text in texts.items() if name != "daguerre"})
    assert found is not None
    assert with_fields(Request(), found.request) == with_fields(request, {"width": 8, "height": 8})
