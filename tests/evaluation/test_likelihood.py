"""Bits per dimension of a model of pixels: the report, and that the number does not depend on the batches."""

import json
from pathlib import Path

import pytest
import torch

from daguerre.cli.main import main
from daguerre.data import Batch
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.evaluation import likelihood
from daguerre.evaluation.likelihood import measure_bound
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.datasets.classes import open_labelled
from daguerre.training.options.ddpm import DDPMRecipe, UNetShape
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.recipes.ddpm import build_model
from daguerre.weights import save

T = 8


def tiny(names: tuple[str, ...] | None = None, variance: str = "small") -> LatentDiffusion:
    torch.manual_seed(0)
    model = build_model(DDPMRecipe("shapes", Path("tiny"), 16, variance=variance, shape=UNetShape((8, 8), 1, (), 8)), names)  # type: ignore[arg-type]
    object.__setattr__(model, "schedule", Schedule(ScheduleConfig("linear", 0.01, 0.5, timesteps=T)))
    return model


@pytest.mark.parametrize(("names", "variance"), [(None, "small"), (("circle", "square", "star"), "learned")])
def test_the_command_reports_every_term(tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...] | None, variance: str):
    if names:
        names = open_labelled("shapes", 16, TrainingImageOptions()).names
    folder, out = save(tiny(names, variance), tmp_path / "model"), tmp_path / "report"
    options = ["--bits-per-dim", "--model", str(folder), "--data", "shapes", "--num-images", "3", "--out", str(out)]
    assert main(["evaluate", *options]) == 0
    assert f"with the {variance} variance" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert len(report["by_step"]) == T
    parts = [report[name]["value"] for name in ("prior", "steps", "decoder")]
    assert report["total"]["value"] == pytest.approx(sum(parts), rel=1e-5)
    assert sum(report["by_step"]) == pytest.approx(parts[1] + parts[2], rel=1e-5)


def test_the_bound_of_an_image_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch):
    x = (torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).round() / 127.5 - 1
    images, model = Batch(x, [""] * 3, labels=[""] * 3), tiny()
    together = measure_bound(model, images, 5).total
    monkeypatch.setattr(likelihood, "BOUND_BATCH", 64)
    alone = measure_bound(model, images, 5).total
    assert torch.allclose(together, alone, rtol=1e-4)


def test_only_models_of_pixels_have_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "--bits-per-dim", "--model", "emoji", "--data", "shapes", "--out", str(tmp_path / "report")]) == 1
    assert "is not a diffusion model of pixels" in capsys.readouterr().err
    assert main(["evaluate", "--bits-per-dim", "--out", str(tmp_path / "report")]) == 2
    assert "give --data" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
