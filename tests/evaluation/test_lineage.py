"""`daguerre lineage`: every cell is an image or has a reason, the recorded commands parse, and training again skips what is finished."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from daguerre.cli.parsing import parse_options
from daguerre.errors import DaguerreError
from daguerre.evaluation.lineage import sheet
from daguerre.evaluation.lineage.cells import Column, render_faces
from daguerre.evaluation.lineage.generations import GENERATIONS, ROWS
from daguerre.training.options.first_stage import VAERecipe
from daguerre.training.recipes import RECIPES
from daguerre.training.recipes.first_stage import build_network
from daguerre.weights import save_first_stage


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda each: each.name)
def test_each_cell_has_an_image_or_a_reason_and_each_command_parses(generation, tmp_path: Path):
    shown = {*generation.samples, *({"reconstruct"} if "reconstruct" not in generation.missing else ())}
    assert shown | {*generation.missing} == {*ROWS}
    assert not shown & {*generation.missing}
    *stages, last = sheet.commands(generation, tmp_path)
    for arguments in (*stages, last):
        options = parse_options(RECIPES[arguments[0]].options, arguments[1:], f"train {arguments[0]}")
        assert options.out.parent == tmp_path
    assert last[last.index("--out") + 1] == str(tmp_path / generation.name)


def test_it_shows_what_was_trained_and_leaves_measured_figures_of_other_weights_out(tmp_path: Path):
    torch.manual_seed(0)
    network = build_network(VAERecipe(data="shapes", resolution=32, f=8, base_channels=4))
    save_first_stage(network, tmp_path / "runs" / "vae" / "model", 32)
    written = sheet.show(tmp_path / "out", 0, tmp_path / "runs")
    image, page = Image.open(written[0]), written[1].read_text()
    assert image.width > 400
    assert "has no text" in page
    assert "Kingma and Welling 2014" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere
    (vae,) = json.loads((tmp_path / "out" / "report.json").read_text())["generations"]
    assert vae["Fréchet distance of samples"] == "–"
    with pytest.raises(DaguerreError, match="no trained model"):
        sheet.show(tmp_path / "other", 0, tmp_path / "nothing")


def test_training_again_skips_finished_runs_and_stops_at_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []

    class Process:
        returncode = 0

    def start(arguments, check):
        started.append(arguments[4])
        Process.returncode = int(arguments[4] == "ddpm")
        return Process

    monkeypatch.setattr(sheet.subprocess, "run", start)
    (tmp_path / "ae" / "model").mkdir(parents=True)
    with pytest.raises(DaguerreError, match="`daguerre train ddpm` ended with code 1"):
        sheet.train_all(tmp_path)
    assert "autoencoder" not in started
    assert started[0] == "vae"
    assert started[-1] == "ddpm"


def test_the_faces_are_those_asked_for():
    fox, panda = render_faces(16, ("fox", "panda"))
    assert fox[0].mean() > fox[2].mean() + 0.2  # orange: red above blue
    assert abs(panda[0].mean() - panda[2].mean()) < 0.05


def test_numbers_without_a_measurement_are_dashes():
    numbers = Column(GENERATIONS[0], {}, {}, 1_250_000, 0.0123, {"psnr": 25.04}).numbers()
    assert numbers["parameters"] == "1.2 M"
    assert numbers["time per image, here"] == "12 ms"
    assert numbers["PSNR of reconstructions"] == "25.0 dB"
    assert numbers["peak memory for an image"] == numbers["training"] == "–"
