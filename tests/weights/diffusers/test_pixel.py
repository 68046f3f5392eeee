"""Diffusion models of pixels: equal to diffusers' DDPMPipeline and DDIMPipeline on the same folder, in both directions."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import daguerre
from daguerre.conditioning.class_map_image import LabelConditioner
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.pipelines import stream
from daguerre.training.options.ddpm import UNetShape
from daguerre.training.recipes.ddpm import plain_unet
from daguerre.weights import load_diffusion
from daguerre.weights.inspect import inspect
from tests.families.peers import randomized
from tests.tolerance import NETWORK_TERMS, assert_rounded

SIDE, STEPS = 16, 5
UNET = {
    "sample_size": SIDE,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}


def pipeline(variance: str = "fixed_small", **scheduler: Any) -> Any:
    unet = randomized(diffusers.UNet2DModel(**UNET, out_channels=6 if variance == "learned_range" else 3), 1)
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(variance_type=variance, **scheduler))


def reference(pipe: Any, seed: int, **options: Any) -> Tensor:
    """The image (3, H, W) of a pipeline of diffusers, in [−1, 1]."""
    pipe.set_progress_bar_config(disable=True)
    image = pipe(generator=torch.Generator().manual_seed(seed), num_inference_steps=STEPS, output_type="np", **options).images[0]
    return torch.from_numpy(image).movedim(-1, 0) * 2 - 1


def generated(model: LatentDiffusion, **request: Any) -> Tensor:
    *_, last = stream(model, steps=STEPS, **request)
    return last.x[0].clamp(-1, 1)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ancestral_sampling_equals_ddpm_pipeline(tmp_path: Path, variance: str):
    pipe = pipeline(variance)
    pipe.save_pretrained(tmp_path / "ddpm")
    model = load_diffusion(tmp_path / "ddpm")
    ours = generated(model, sampler="ddpm", spacing="leading", seed=7)
    assert_rounded(ours, reference(pipe, 7), STEPS * NETWORK_TERMS)
    assert (model.latent_channels, model.sample_size, model.default_guidance) == (3, SIDE, 1)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_ddim_pipeline(tmp_path: Path, eta: float):
    pipe = diffusers.DDIMPipeline(pipeline().unet, diffusers.DDIMScheduler(clip_sample=True))
    pipe.save_pretrained(tmp_path / "ddim")
    ours = generated(load_diffusion(tmp_path / "ddim"), seed=3, eta=eta)
    assert_rounded(ours, reference(pipe, 3, eta=eta), STEPS * NETWORK_TERMS)


def our_model(*, variance: str = "small", names: tuple[str, ...] | None = None, schedule: str = "linear") -> LatentDiffusion:
    shape = UNetShape((16, 32), 1, (1,), 16)
    channels = 6 if variance == "learned" else 3
    config = plain_unet(shape, in_channels=3, out_channels=channels, classes=None if names is None else len(names) + 1)
    return LatentDiffusion(
        randomized(UNet(config), 2),
        IdentityAutoencoder(),
        LabelConditioner(names or ()),
        Schedule(ScheduleConfig(schedule, 0.0001, 0.02)),
        "v",
        "ours",
        SIDE,
        default_guidance=3.0,
        variance=variance,
    )


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_what_we_save_opens_in_ddpm_pipeline(tmp_path: Path, variance: str):
    from daguerre.conditioning.class_map_image import UnconditionalConditioner

    model = our_model(variance=variance, schedule="cosine")
    object.__setattr__(model, "conditioner", UnconditionalConditioner())
    daguerre.save(model, tmp_path / "ours")
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading", steps_offset=0)
    again = load_diffusion(tmp_path / "ours")
    assert again.variance == variance
    assert_rounded(generated(again, sampler="ddpm", spacing="leading", seed=1), reference(pipe, 1), STEPS * NETWORK_TERMS)


def test_classes_and_guidance_equal_a_loop_of_diffusers(tmp_path: Path):
    model = our_model(names=("cat", "red fox"))
    daguerre.save(model, tmp_path / "ours")
    again = load_diffusion(tmp_path / "ours")
    assert isinstance(again.conditioner, LabelConditioner)
    assert (again.conditioner.names, again.default_guidance) == (("cat", "red fox"), 3.0)
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours" / "unet")
    scheduler = diffusers.DDIMScheduler.from_config(diffusers.DDPMScheduler.from_pretrained(tmp_path / "ours" / "scheduler").config)
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for t in scheduler.timesteps:
            label, null = (unet(x, t, class_labels=torch.tensor([number])).sample for number in (1, 2))
            x = scheduler.step(null + 3 * (label - null), t, x).prev_sample
    for name in ("Red Fox", "1"):
        assert_rounded(generated(again, prompt=name, seed=4), x[0].clamp(-1, 1), STEPS * NETWORK_TERMS)
    with pytest.raises(DaguerreError, match="Did you mean 'red fox'"):
        generated(again, prompt="red fix")


def test_the_oldest_layout_has_all_files_at_the_top_and_old_names(tmp_path: Path):
    pipe, folder = pipeline("fixed_large"), tmp_path / "ddpm"
    pipe.save_pretrained(folder)
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            shutil.move(file, folder / file.name)
        (folder / part).rmdir()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.") if ".attentions." in name else name
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "diffusion_pytorch_model.safetensors")
    ours = generated(load_diffusion(folder), sampler="ddpm", spacing="leading", seed=7)
    assert_rounded(ours, reference(pipe, 7), STEPS * NETWORK_TERMS)
    report = inspect(folder)
    assert (report.family, report.task, report.prediction_type) == ("ddpm", "text-to-image", "epsilon")
    assert report.unmatched_keys == report.missing_keys == report.wrong_shapes == []


@pytest.mark.parametrize("names", ["cat", [1, 2]])
def test_wrong_class_labels_are_an_error(tmp_path: Path, names: Any):
    daguerre.save(our_model(names=("cat",)), tmp_path / "ours")
    index = tmp_path / "ours" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_labels": names}))
    with pytest.raises(DaguerreError, match="list of class names"):
        load_diffusion(tmp_path / "ours")
    with pytest.raises(DaguerreError, match=r"has no vae|no model 'x'"):
        load_diffusion(tmp_path / "ours", vae="x")
