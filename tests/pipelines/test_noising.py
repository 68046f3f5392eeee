"""Adding noise at a timestep and predicting it equals the formulas, for every prediction type."""

from collections.abc import Callable

import pytest
import torch

from daguerre.diffusion import Prediction
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.noising import predict_noise


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_predictions_are_the_networks_output_at_the_noisy_latent(prediction: Prediction, make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model(prediction, zero_terminal_snr=prediction != "epsilon")
    z = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(3))
    timesteps = (0, 400, 999)
    for found, t in zip(predict_noise(model, z, timesteps, "a red apple", seed=5), timesteps, strict=True):
        alpha_bar = model.schedule.alphas_cumprod[t].item()
        a, b = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        assert torch.equal(found.eps, torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(5))[None])
        torch.testing.assert_close(found.x_t, a * z + b * found.eps, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            output = model.unet(found.x_t, torch.tensor([float(t)]), model.conditioner(["a red apple"]))
        if prediction == "epsilon":
            x0, eps = (found.x_t - b * output) / a, output
        elif prediction == "v":
            x0, eps = a * found.x_t - b * output, b * found.x_t + a * output
        else:
            x0, eps = output, (found.x_t - a * output) / b
        # Both sides divide by √ᾱ or √(1−ᾱ), which multiplies the rounding of float32 by up to 1/√ᾱ or 1/√(1−ᾱ).
        bound = 1e-4 / min(max(a, 1e-2), b)
        torch.testing.assert_close(found.x0_predicted, x0, rtol=1e-4, atol=bound)
        torch.testing.assert_close(found.eps_predicted, eps, rtol=1e-4, atol=bound)
        assert found.snr == pytest.approx(alpha_bar / (1 - alpha_bar), rel=1e-5)


def test_impossible_timesteps_are_refused(make_tiny_model: Callable[..., LatentDiffusion]):
    model, z = make_tiny_model("epsilon"), torch.zeros(1, 6, 8, 8)
    for timesteps in ((), (1000,), (-1,)):
        with pytest.raises(DaguerreError, match=r"each from 0 \(no noise\) to 999"):
            predict_noise(model, z, timesteps)
    with pytest.raises(DaguerreError, match="epsilon prediction cannot start"):  # zero terminal SNR
        predict_noise(model, z, (999,))
