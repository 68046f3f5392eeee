"""Skipped steps: fewer calls of the UNet, near the full run, recorded in the request, refused where they are wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate, stream
from daguerre.pipelines.metadata.write import parameters
from daguerre.pipelines.tasks import Hires


def calls_of(model: LatentDiffusion, request: Request) -> int:
    """How often a run calls the UNet."""
    calls = []
    hook = model.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    try:
        generate(model, request)
    finally:
        hook.remove()
    return len(calls)


def test_fast_computes_half_of_the_steps(make_tiny_model: Callable[..., LatentDiffusion]):
    model, request = make_tiny_model(), Request("a red apple", steps=20, fast=True)
    assert calls_of(model, request) == 10
    assert calls_of(model, replace(request, prompt="[a red:a blue:10] apple")) == 12  # the step of the other prompt and the one after it
    assert calls_of(model, replace(request, task=Hires(1.5, 0.25))) == 10 + 5  # the second run is too short to skip any


def test_a_forecast_is_closer_to_the_full_run_than_fewer_steps(tiny_model: LatentDiffusion):
    full, fast, fewer = (
        [step.x0 for step in stream(tiny_model, "a red apple", steps=steps, fast=fast)][-1]
        for steps, fast in ((20, False), (20, True), (10, False))
    )
    assert 0 < (fast - full).norm() < (fewer - full).norm() / 2


def test_metadata_states_it(tiny_model: LatentDiffusion):
    image = generate(tiny_model, "a red apple", steps=10, fast=True)[0]
    assert image.provenance.request.fast
    assert Request.from_json(image.provenance.request.to_json()).fast
    assert "Skipped steps: forecast" in parameters(image.provenance, image.image.size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 9}, "fast needs 10 steps or more"),
        ({"sampler": "euler_a"}, "without fresh noise, one of dpmpp_2m"),
        ({"sampler": "euler", "eta": 0.5}, "without fresh noise"),
        ({"sampler": "heun"}, "this is 'heun'"),
        ({"sampler": "euler", "cfg_plus_plus": True, "guidance_scale": 0.6}, "does not go with CFG"),
    ],
)
def test_it_is_refused_where_it_is_wrong(tiny_model: LatentDiffusion, fields: dict[str, Any], message: str):
    with pytest.raises(DaguerreError, match=message):
        stream(tiny_model, "a red apple", **{"steps": 20, "fast": True, **fields})
