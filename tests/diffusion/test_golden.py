"""End points of k-diffusion's samplers on a Gaussian mixture in float64, with the same noise levels, initial x and noise."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from daguerre.diffusion import GaussianMixture, parse_sampler_name

GOLDEN = load_file(Path(__file__).parents[1] / "fixtures" / "golden" / "k_diffusion_trajectories.safetensors")
MIXTURE = GaussianMixture(GOLDEN["gmm.weights"], GOLDEN["gmm.means"], GOLDEN["gmm.stds"])
RUNS = sorted(key.removesuffix(".out") for key in GOLDEN if key.endswith(".out"))


def test_the_whole_fixture_is_used():
    assert len(RUNS) == 44
    assert len({run.split(".")[0] for run in RUNS}) == 11


@pytest.mark.parametrize("run", RUNS)
def test_end_points_equal_k_diffusion(run: str):
    name, spacing, steps = run.split(".")
    noises = iter(GOLDEN.get(f"{run}.noise", ()))
    sigmas = GOLDEN[f"sigmas.{spacing}.{steps}"]
    *_, (x, _x0) = parse_sampler_name(name).sampler(MIXTURE.denoise, GOLDEN["x_start"], sigmas, noise=lambda *_: next(noises))
    torch.testing.assert_close(x, GOLDEN[f"{run}.out"], rtol=0, atol=1e-10)
    assert next(noises, None) is None  # uses all of the noise
