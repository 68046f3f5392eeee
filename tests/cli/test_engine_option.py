"""`--engine`: an image by OpenVINO, and engines that are not here."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run


@pytest.mark.long
def test_openvino_gives_the_image_of_torch_and_keeps_its_graphs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = {}
    for engine in ("torch", "openvino", "openvino"):
        caplog.clear()
        code, _, _ = run("txt2img", "a cat", "--steps", "2", "--seed", "1", "--engine", engine, "--out", f"{engine}.png")
        assert code == 0
        assert ("OpenVINO compiled the UNet" in caplog.text) == (engine == "openvino" and engine not in images)
        images[engine] = np.asarray(Image.open(tmp_path / f"{engine}.png"), dtype=int)
    assert np.abs(images["torch"] - images["openvino"]).max() <= 2  # of 255: float32 sums in another order, rounded to 8 bits
    assert list((tmp_path / "cache").rglob("*"))


def test_an_engine_that_is_not_installed_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, stdout, stderr = run("txt2img", "a cat", "--engine", "openvino")
    assert (code, stdout) == (2, "")
    assert "openvino is not installed; install it with `pip install 'daguerre[openvino]'`" in stderr
    assert "Traceback" not in stderr
