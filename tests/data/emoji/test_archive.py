"""The archive: what is written is read, the same input gives the same bytes, and the shipped one is whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from daguerre.data.emoji.archive import ARCHIVE, ARCHIVE_SIZE, EmojiEntry, read_images, read_index, write_archive
from daguerre.data.emoji.render import CELL_SIZE, listed_emoji, open_font, render
from daguerre.errors import DaguerreError

ENTRIES = [
    EmojiEntry("😀", ("grinning face",), "Smileys & Emotion", "face-smiling"),
    EmojiEntry("🇳🇴", ("flag: Norway", "flag: Bouvet Island"), "F", "f"),
]
LIST = """# group: Smileys & Emotion
# subgroup: face-smiling
1F600                    ; fully-qualified     # 😀 E1.0 grinning face
263A                     ; unqualified         # ☺ E0.6 smiling face
# group: People & Body
# subgroup: hand-fingers-open
1F44B                    ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FB              ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone
"""


def test_write_and_read(tmp_path: Path):
    tall = Image.new("RGBA", (64, 128), (200, 30, 40, 255))
    small = Image.new("RGBA", (28, 28), (0, 0, 255, 255))
    write_archive(tmp_path / "a.zip", ENTRIES, [tall, small])
    assert list(read_index(tmp_path / "a.zip")) == ENTRIES
    images = read_images(tmp_path / "a.zip")
    assert images.shape == (2, ARCHIVE_SIZE, ARCHIVE_SIZE, 4)
    opaque = images[0, ..., 3] == 255
    assert opaque[:, 34:94].all()  # centred in a transparent square
    assert not images[0][:, :30].any()
    assert (images[0][:, 40:90] == (200, 30, 40, 255)).all()
    rows = np.flatnonzero(images[1, :, 64, 3] > 127)
    assert len(rows) == 32  # 28 of 112: small images are not enlarged
    assert abs(rows.mean() - (ARCHIVE_SIZE - 1) / 2) <= 1


def test_writing_is_deterministic_and_leaves_no_other_files(tmp_path: Path):
    images = [Image.new("RGBA", (9, 9), colour) for colour in ("red", "blue")]
    write_archive(tmp_path / "a.zip", ENTRIES, images)
    write_archive(tmp_path / "b.zip", ENTRIES, images)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "b.zip"}


def test_shipped_archive_is_complete():
    entries = read_index()
    assert len(entries) == 1861
    assert not any("skin tone" in name for entry in entries for name in entry.names)
    images = read_images(ARCHIVE)
    assert len(images) == 1861
    assert (images[..., 3].reshape(1861, -1).max(1) == 255).all()  # no empty image
    assert (images[..., :3] <= images[..., 3:]).all()  # premultiplied


def test_broken_archive_raises(tmp_path: Path):
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(DaguerreError, match=r"Cannot read the emoji archive .*broken\.zip"):
        read_index(tmp_path / "broken.zip")


def test_only_fully_qualified_emoji_are_listed(tmp_path: Path):
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    listed = list(listed_emoji(tmp_path / "list.txt"))
    assert [(e.text, e.name, e.group, e.subgroup) for e in listed] == [
        ("😀", "grinning face", "Smileys & Emotion", "face-smiling"),
        ("👋", "waving hand", "People & Body", "hand-fingers-open"),
    ]
    assert [e.name for e in listed_emoji(tmp_path / "list.txt", skin_tones=True)][-1] == "waving hand: light skin tone"


def test_render_crops_and_rejects_wide_sequences():
    font = ImageFont.load_default(CELL_SIZE // 2)
    assert isinstance(font, ImageFont.FreeTypeFont)
    drawn = render(font, "I")
    assert drawn is not None
    alpha = np.asarray(drawn)[..., 3] > 0
    assert alpha.any(0).all()
    assert alpha.any(1).all()
    assert render(font, "WWWW") is None
    assert render(font, " ") is None


def test_missing_font_or_list_raises(tmp_path: Path):
    with pytest.raises(DaguerreError, match="unicode-data"):
        list(listed_emoji(tmp_path / "none.txt"))
    with pytest.raises(DaguerreError, match=r"fonts-noto-color-emoji|libfribidi0"):
        open_font(tmp_path / "none.ttf")
