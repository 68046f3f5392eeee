"""The Python blocks of docs/python.md run in order, in an empty folder, and do what the page states."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

import daguerre

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    apple, decoded = (np.asarray(Image.open(name), dtype=float) for name in ("apple.png", "decoded.png"))
    assert names["z"].shape == (1, 16, 16, 16)
    assert np.abs(apple - decoded).mean() < 8  # of 255: the autoencoder loses little
    assert np.array_equal(apple, np.asarray(Image.open("same.png")))
    assert names["states"].ndim == 3
    assert names["output"].shape == names["z"].shape
    assert np.asarray(Image.open("euler.png"), dtype=float).std() > 20
    assert names["distance"] < 0.6
    assert names["loss"].isfinite()


def test_every_public_name_is_importable_and_listed():
    assert dir(daguerre) == sorted(daguerre.__all__)
    for name in daguerre.__all__:
        assert getattr(daguerre, name) is not None
