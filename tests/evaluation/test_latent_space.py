"""Random latents, latents between two images, and the error on seen and unseen images."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from daguerre.cli.main import main
from daguerre.data.images import to_image
from daguerre.evaluation.latent_space import decode_random, interpolate
from daguerre.models.vq_model import VQModel
from daguerre.training.options.first_stage import VAERecipe, VQVAERecipe
from daguerre.training.recipes.first_stage import build_network
from daguerre.weights import save_first_stage

TINY = {"data": "shapes", "resolution": 32, "f": 4, "base_channels": 8}


class Halves(torch.nn.Module):
    """A first stage whose latent is the image, scaled by 1/4 about 2."""

    downsample_factor = 1

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"latent_channels": 3, "shift_factor": 2.0, "scaling_factor": 0.25})

    def encode(self, x):
        return (x - 2.0) * 0.25

    def decode(self, z):
        return z / 0.25 + 2.0


def test_random_latents_are_normal_before_scaling_and_follow_the_seed():
    x = decode_random(Halves(), 64, 16, seed=1)
    n = x.numel()
    assert abs(x.mean().item()) < 5 / n**0.5
    assert abs(x.var().item() - 1) < 5 * (2 / n) ** 0.5  # five standard errors of mean and variance
    assert torch.equal(x, decode_random(Halves(), 64, 16, seed=1))
    assert not torch.equal(x, decode_random(Halves(), 64, 16, seed=2))


def test_random_codes_decode_like_codes():
    torch.manual_seed(0)
    stage = build_network(VQVAERecipe(**TINY, codebook_size=16, code_dim=4)).eval()
    assert isinstance(stage, VQModel)
    with torch.no_grad():
        x = decode_random(stage, 3, 32, seed=5)
        codes = torch.randint(16, (3, 8, 8), generator=torch.Generator().manual_seed(5))
        assert torch.equal(x, stage.decode_codes(codes))


def test_an_interpolation_is_linear_in_the_latent():
    a, b = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    x = interpolate(Halves(), a, b, (0.0, 0.25, 1.0))
    assert torch.allclose(x.mean(dim=(1, 2, 3)), torch.tensor([0.0, 0.25, 1.0]), atol=1e-5)


def test_the_command_writes_sheets_and_compares_seen_with_unseen_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    model = save_first_stage(build_network(VAERecipe(**TINY)), tmp_path / "vae", 32)
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    for name, image in zip("abc", x, strict=True):
        (tmp_path / ("unseen" if name == "c" else "seen")).mkdir(exist_ok=True)
        to_image(image).save(tmp_path / ("unseen" if name == "c" else "seen") / f"{name}.png")
    shared = ["--model", str(model), "--resolution", "32"]
    out = tmp_path / "out"
    explored = ["--random", "2", "--unseen", str(tmp_path / "unseen"), "--out", str(out)]
    assert main(["reconstruct", str(tmp_path / "seen"), *shared, *explored]) == 0
    (row,) = json.loads((out / "report.json").read_text())["rows"]
    assert row["psnr"]["count"] == 2
    assert row["unseen"]["count"] == 1
    assert Image.open(out / "random.png").width > 2 * 32
    assert "| vae |" in capsys.readouterr().out
    pair = [str(tmp_path / "seen" / "a.png"), *shared, "--interpolate-to", str(tmp_path / "seen" / "b.png")]
    assert main(["reconstruct", *pair, "--out", str(tmp_path / "between")]) == 0
    assert (tmp_path / "between" / "interpolation.png").is_file()
    assert not (tmp_path / "between" / "random.png").exists()
