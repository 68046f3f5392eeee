"""The Python blocks of each page of the tour run in order and do what the page states; each image of a page is made by its blocks."""

import re
from pathlib import Path
from typing import Any

import jupytext
import numpy as np
import pytest

import daguerre
from docs.tour.make import TOUR, blocks, run

Variables = dict[str, Any]


def autoencoder(v: Variables) -> None:
    assert v["quality"].min() > 20  # dB
    assert v["z"].shape == (6, 16, 4, 4)


def vae(v: Variables) -> None:
    first, last = (np.asarray(v["path"][i], dtype=float) for i in (0, -1))
    a, b = (np.asarray(daguerre.to_image(v[name][0]), dtype=float) for name in "ab")
    assert np.abs(first - a).mean() < np.abs(first - b).mean()
    assert np.abs(last - b).mean() < np.abs(last - a).mean()


def vq_vae(v: Variables) -> None:
    assert v["codes"].shape == (5, 8, 8)
    assert (v["decoded"] - v["x"]).square().mean() < 0.05
    assert len(v["results"]) == 5


def vqgan(v: Variables) -> None:
    images, *models = ([np.asarray(image, dtype=float) for image in row] for row in v["rows"])
    vq_vae_error, vqgan_error = (np.mean([np.square(x - y).mean() for x, y in zip(images, row, strict=True)]) for row in models)
    assert vqgan_error < vq_vae_error
    assert [image.size for image in v["samples"]] == [(32, 32)] * 6


def ddpm(v: Variables) -> None:
    assert v["errors"][0] < 1e-3 < v["errors"][-1]  # one training image; the estimate gets worse with t
    assert v["errors"][0] < v["errors"][3] < v["errors"][5]
    assert len(v["steps"]) == 100


def samplers(v: Variables) -> None:
    images = {steps: np.asarray(image, dtype=float) for steps, image in v["images"].items()}
    change = [np.abs(images[a] - images["50 steps"]).mean() for a in ("1 steps", "5 steps", "20 steps")]
    assert change[0] > change[1] > change[2]


def latent_diffusion(v: Variables) -> None:
    assert v["z"].shape == (1, 16, 16, 16)
    assert v["compression"] == 12
    assert np.abs(np.asarray(v["photo"], dtype=float) - np.asarray(v["decoded"], dtype=float)).mean() < 8  # of 255


def unet(v: Variables) -> None:
    assert v["output"].shape == v["x"].shape
    assert len(v["shapes"]) == len(v["blocks"])
    assert [word.text for word in v["words"]] == ["cat", "pizza"]


def guidance(v: Variables) -> None:
    assert [len(row) for row in v["rows"]] == [5, 5]
    pink = np.asarray(v["rows"][0][2], dtype=float).mean((0, 1))
    assert pink[0] > pink[1]  # more red than green


def tasks(v: Variables) -> None:
    left, right = np.split(np.asarray(v["halves"], dtype=float), 2, axis=1)
    assert left.mean((0, 1))[0] > left.mean((0, 1))[2]  # red
    assert right.mean((0, 1))[2] > right.mean((0, 1))[0]  # blue


def clip(v: Variables) -> None:
    assert v["cosines"].argmax(1).tolist() == list(range(6))
    assert v["states"].shape[0] == 3
    assert v["red"].item() == pytest.approx(1, abs=1e-4)


def own_images(v: Variables) -> None:
    assert np.mean(v["losses"][-5:]) < np.mean(v["losses"][:5])
    image, off, on = (np.asarray(v["row"][i], dtype=float) for i in (0, 1, 3))
    assert np.abs(on - image).mean() < np.abs(off - image).mean()  # the LoRA brings the samples nearer to the image
    assert sum(p.numel() for p in v["parameters"]) < 0.01 * 32e6


CHECKS = {
    "01-autoencoder": autoencoder, "02-vae": vae, "05-vq-vae": vq_vae, "06-vqgan": vqgan,
    "03-ddpm": ddpm, "04-samplers": samplers, "07-latent-diffusion": latent_diffusion, "08-clip": clip, "09-unet": unet,
    "10-guidance": guidance, "11-tasks": tasks, "12-own-images": own_images,
}  # fmt: skip


@pytest.mark.parametrize("page", sorted(TOUR.glob("[0-9]*.md")), ids=lambda page: page.stem)
def test_a_page_runs(page: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CHECKS[page.stem](run(page))
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")))
    assert {path.name for path in tmp_path.glob("*.png")} == shown
    assert all((TOUR / name).is_file() for name in shown)


@pytest.mark.parametrize("page", sorted(TOUR.glob("[0-9]*.md")), ids=lambda page: page.stem)
def test_a_page_becomes_a_notebook_with_the_same_code(page: Path):
    notebook = jupytext.read(page)
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code"] == [block.strip() for block in blocks(page)]


def test_the_index_lists_every_page():
    linked = re.findall(r"\]\((\d\d-[\w-]+\.md)\)", (TOUR / "README.md").read_text(encoding="utf-8"))
    assert linked == sorted(path.name for path in TOUR.glob("[0-9]*.md"))


def words_removed(page: Path) -> dict[str, list[str]]:
    """The parts of a page that a translation keeps: equations, levels of headings, commands, …"""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return {
        "code": blocks(page),
        "equations": re.findall(r"\$\$.*?\$\$", prose, re.DOTALL),
        "headings": re.findall(r"^#+ ", prose, re.MULTILINE),
        "rows of tables": re.findall(r"^\|", prose, re.MULTILINE),
        "commands": sorted(" ".join(command.split()) for command in re.findall(r"`((?:daguerre|make|--)[^`]*)`", prose)),
        "targets": sorted(re.findall(r"\]\(([^)]+)\)", prose)),
    }


@pytest.mark.parametrize("page", sorted(TOUR.glob("*.md")), ids=lambda page: page.stem)
def test_the_chinese_page_differs_in_words_only(page: Path):
    english, chinese = words_removed(page), words_removed(TOUR / "zh" / page.name)
    english["targets"].remove(f"zh/{page.name}")
    chinese["targets"].remove(f"../{page.name}")
    here = re.compile(r"https://.*|\d\d-[\w-]+\.md")  # a Chinese page links to Chinese pages
    english["targets"] = sorted(target if here.fullmatch(target) else f"../{target}" for target in english["targets"])
    assert chinese == english


def test_every_chinese_page_has_an_english_one():
    assert sorted(path.name for path in (TOUR / "zh").iterdir()) == sorted(path.name for path in TOUR.glob("*.md"))
