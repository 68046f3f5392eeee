"""DDIM inversion: the image comes back, more exactly with more steps; interpolation has the two images at its ends."""

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.conditioning.class_map_image import LabelConditioner
from daguerre.data.images import to_tensor
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.pipelines import Request, stream
from daguerre.pipelines.tasks import Inversion
from daguerre.training.options.ddpm import UNetShape
from daguerre.training.recipes.ddpm import plain_unet
from tests.tolerance import NETWORK_TERMS, assert_rounded

SIDE = 8


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    torch.manual_seed(0)
    config = plain_unet(UNetShape((8, 8), 1, (), 8), in_channels=3, out_channels=3, classes=3)
    unet = UNet(config).eval()
    for parameter in unet.parameters():
        if not parameter.count_nonzero():
            torch.nn.init.normal_(parameter, std=0.02)
    schedule = Schedule(ScheduleConfig("linear", 0.0001, 0.02))
    return LatentDiffusion(unet, IdentityAutoencoder(), LabelConditioner(("a", "b")), schedule, "v", "tiny", SIDE, 1.0)


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(60, 190, (SIDE, SIDE, 3), dtype=np.uint8))


def result(model: LatentDiffusion, task: Inversion, **request: object) -> torch.Tensor:
    *_, last = stream(model, Request(task=task, sampler="ddim"), **request)
    return last.x


def test_an_image_comes_back_more_exactly_with_more_steps(model: LatentDiffusion):
    errors = [(result(model, Inversion(image(0)), steps=steps)[0] - to_tensor(image(0))).norm().item() for steps in (5, 10, 20)]
    assert errors[1] < 0.65 * errors[0]  # of first order, so twice the steps halve the error
    assert errors[2] < 0.65 * errors[1]


def test_the_ends_of_an_interpolation_are_the_two_images(model: LatentDiffusion):
    ends = [result(model, Inversion(image(0), image(1), weight), steps=10) for weight in (0.0, 1.0)]
    for end, alone in zip(ends, (image(0), image(1)), strict=True):
        assert_rounded(end, result(model, Inversion(alone), steps=10), 20 * NETWORK_TERMS)
    middle = result(model, Inversion(image(0), image(1), 0.5), steps=10)
    distances = [(middle - end).norm().item() for end in ends]
    assert 0.5 < distances[0] / distances[1] < 2


def test_a_prompt_changes_the_image_and_each_prompt_gets_one(model: LatentDiffusion):
    both = result(model, Inversion(image(0)), steps=5, prompt=("a", "b"))
    assert len(both) == 2
    assert not torch.allclose(both[0], both[1])
    assert_rounded(both[1:], result(model, Inversion(image(0)), steps=5, prompt="b"), 10 * NETWORK_TERMS)


def test_a_sampler_that_adds_noise_is_refused(model: LatentDiffusion):
    for options in ({"sampler": "ddpm"}, {"sampler": "ddim", "eta": 0.5}):
        with pytest.raises(DaguerreError, match="adds noise"):
            stream(model, Request(task=Inversion(image(0)), **options))
    with pytest.raises(DaguerreError, match="weight is 2"):
        Inversion(image(0), image(1), 2)
