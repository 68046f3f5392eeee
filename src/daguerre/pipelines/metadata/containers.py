"""Find the texts in an image file: PNG texts, EXIF, XMP, JPEG comments, and texts hidden in the lowest bits of the pixels."""

import html
import json
import re
import zlib
from collections.abc import Iterator, Mapping

from PIL import ExifTags, Image, PngImagePlugin

TEXT, JSON = "parameters", "daguerre"  # the names of daguerre's own texts
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # bytes: workflows exceed Pillow's 1 MiB
MAX_XMP = 1 << 20  # characters that are searched
MAX_HIDDEN = 1 << 22  # bytes of a hidden text
UNICODE = b"UNICODE\0"  # how EXIF 2.3 (section 4.6.5) marks a comment in UTF-16
CHARSETS = UNICODE, b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)
# Where web UIs and NovelAI hide a text: the channels, and the mark of an uncompressed and of a gzip-compressed text.
HIDDEN: Mapping[str, tuple[bytes, bytes]] = {
    "A": (b"stealth_pnginfo", b"stealth_pngcomp"),
    "RGB": (b"stealth_rgbinfo", b"stealth_rgbcomp"),
}
_LOWEST_BIT = bytes(b"01"[value & 1] for value in range(256))


def image_texts(image: Image.Image) -> dict[str, str]:
    """All texts in a loaded image, by name. A text that another one of the same name follows is renamed, not dropped."""
    texts: dict[str, str] = {}
    for name, found in _texts(image):
        text = found.lstrip("\ufeff")
        if name in texts and texts[name] != text:
            number = next(n for n in range(2, len(texts) + 3) if f"{name} ({n})" not in texts)
            texts[f"{name} ({number})"] = texts[name]
        texts[name] = text
    return texts


def decode_text(data: bytes, *, utf16: bool = False) -> str:
    """A text in UTF-8 or UTF-16, with or without a byte-order mark. utf16: whether a file says so, which is not always right."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace").rstrip("\0")
    if b"\0" in data.rstrip(b"\0"):  # UTF-16; the byte order is the one in which the zeros are the higher bytes
        order = "utf-16-be" if data[::2].count(0) > data[1::2].count(0) else "utf-16-le"
        return data.decode(order, errors="replace").strip("\0\ufeff")
    try:
        return data.decode("utf-8-sig").rstrip("\0")
    except UnicodeDecodeError:
        return data.decode("utf-16-be" if utf16 else "latin-1", errors="replace").rstrip("\0")


def _texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    yield from _xmp_texts(image.info.get("xmp", image.info.get("XML:com.adobe.xmp", b"")))
    if isinstance(comment := image.info.get("comment"), bytes):  # of a JPEG
        yield "Comment", decode_text(comment)
    exif = image.getexif()
    for tag in (ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software, ExifTags.Base.XPComment):
        value = exif.get(tag)
        if not isinstance(value, str | bytes):
            continue
        text = decode_text(value) if isinstance(value, bytes) else _repaired(value)
        name, _, rest = text.partition(":")  # ComfyUI puts "prompt:{…}" and "workflow:{…}" into any of them
        graph = name.lower() in ("prompt", "workflow") and rest.lstrip().startswith("{")
        is_daguerre = tag == ExifTags.Base.ImageDescription and text.startswith(('{"request"', '{"comparison"'))
        yield (name.lower(), rest) if graph else (JSON if is_daguerre else tag.name, text)
    for directory in (exif, exif.get_ifd(ExifTags.IFD.Exif)):  # Fooocus puts its comment into the first one
        if isinstance(comment := directory.get(ExifTags.Base.UserComment), bytes | str):
            yield TEXT, _repaired(comment) if isinstance(comment, str) else _comment(comment)
    for name, text in image.info.items():
        if isinstance(text, str) and name != "XML:com.adobe.xmp":
            yield str(name), text if isinstance(text, PngImagePlugin.iTXt) else _repaired(text)
    yield from _hidden_texts(image)


def _comment(comment: bytes) -> str:
    """An EXIF comment. Its first eight bytes may name its encoding."""
    marked = comment.startswith(CHARSETS)
    return decode_text(comment[8:] if marked else comment, utf16=comment.startswith(UNICODE))


def _repaired(text: str) -> str:
    """A text that was read as Latin-1, as its format requires, although a program wrote UTF-8 or UTF-16."""
    if text.isascii() and "\0" not in text:
        return text
    try:
        return decode_text(text.encode("latin-1"))
    except UnicodeEncodeError:
        return text


def _xmp_texts(packet: bytes | str) -> Iterator[tuple[str, str]]:
    """The description and the comment in an XMP packet, written as elements, lists of languages or attributes."""
    xmp = (decode_text(packet) if isinstance(packet, bytes) else str(packet))[:MAX_XMP]
    for tag, name in (("dc:description", "dc:description"), ("exif:UserComment", TEXT)):
        start, end = xmp.find(f"<{tag}"), xmp.find(f"</{tag}>")
        if 0 <= start < end:
            element = xmp[xmp.find(">", start, end) + 1 : end]
            item = element.find("<rdf:li")
            text = element[element.find(">", item) + 1 : element.find("</rdf:li>")] if item >= 0 else element
            yield name, html.unescape(text.strip().removeprefix("<![CDATA[").removesuffix("]]>"))
        elif attribute := re.search(rf"\b{tag}=(\"[^\"]*\"|'[^']*')", xmp):
            yield name, html.unescape(attribute[1][1:-1])


def _hidden_texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    """The texts in the lowest bits of the alpha channel or of all colors, column by column: a mark, the length in bits, the text."""
    for channels, (plain, compressed) in HIDDEN.items():
        if image.mode != "RGBA" and image.mode != channels:
            continue
        length = len(plain)
        head = _lowest_bytes(image, channels, length + 4)
        if head[:length] not in (plain, compressed):
            continue
        size = int.from_bytes(head[length:], "big") // 8
        data = _lowest_bytes(image, channels, length + 4 + min(size, MAX_HIDDEN))[length + 4 :]
        if head[:length] == compressed:
            try:
                data = zlib.decompressobj(wbits=31).decompress(data, MAX_HIDDEN)
            except zlib.error:
                continue
        text = decode_text(data)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        texts = {name: value for name, value in values.items() if isinstance(value, str)} if isinstance(values, dict) else {}
        yield from texts.items() if "Comment" in texts else [(TEXT, text)]


def _lowest_bytes(image: Image.Image, channels: str, count: int) -> bytes:
    """The first bytes that the lowest bits of the channels form, column by column."""
    columns = min(image.width, -(-8 * count // (image.height * len(channels))))
    crop = image.crop((0, 0, columns, image.height)).transpose(Image.Transpose.TRANSPOSE)
    pixels = crop.getchannel("A").tobytes() if channels == "A" else crop.convert("RGB").tobytes()
    bits = pixels.translate(_LOWEST_BIT)[: 8 * count]
    bits = bits[: len(bits) // 8 * 8]
    return int(bits or b"0", 2).to_bytes(len(bits) // 8, "big")
