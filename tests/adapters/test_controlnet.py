"""ControlNets equal diffusers: the network in both layouts, and images from noise, from an image and in a mask, with all settings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import daguerre
from daguerre.adapters import ControlNet, load_controlnet, with_adapters
from daguerre.adapters.controlnet import controlnet_rules
from daguerre.adapters.describe import describe_adapter
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.controlnet import ControlNetConfig, ControlNetModel
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import SD1, SDXL
from daguerre.nn.meta import shapes_only
from daguerre.pipelines.attention_maps import record_attention
from daguerre.pipelines.tasks import Hires, ImageToImage, Inpaint
from daguerre.weights.original.key_map import KeyTable, Rule
from tests.adapters.files import manifest
from tests.families import peers

MAP = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
REQUEST = {"prompt": "a red apple", "negative_prompt": "blue"}


def reference(pipeline: Any, seed: int = 5) -> Any:
    """A ControlNet of diffusers for a pipeline's UNet, with random weights."""
    network = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(16, 32, 96, 256))
    return peers.randomized(network, seed)


def original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a tiny ControlNet of two levels under the names of the original code."""
    marks = {"input_blocks.0.0.weight": 0, "input_blocks.1.1.proj_in.weight": 0, "input_blocks.2.0.op.weight": 0, "input_blocks.3.0.x": 0}
    rules: list[Rule] = list(controlnet_rules({name: torch.zeros(0) for name in marks}))
    renamed, unmatched = KeyTable(rules).to_original(tensors)
    assert not unmatched
    return renamed


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, LatentDiffusion, Any, Path]:
    """A pipeline, our model, a ControlNet of diffusers, and the folder it was saved to."""
    folder = tmp_path_factory.mktemp("controlnets")
    pipeline = peers.sd()
    pipeline.register_modules(vae=peers.autoencoder(4))
    pipeline.vae_scale_factor = 8
    model = daguerre.load(peers.saved(pipeline, folder / "sd1"), device="cpu")
    network = reference(pipeline)
    network.save_pretrained(folder / "edges")
    return pipeline, model, network, folder


@torch.no_grad()
def test_the_residuals_equal_those_of_diffusers_in_both_layouts(sd1: Any):
    _, model, network, folder = sd1
    save_file(original_names(network.state_dict()), folder / "plain.safetensors")
    torch.save({f"control_model.{name}": tensor for name, tensor in original_names(network.state_dict()).items()}, folder / "old.pth")
    x, t, context, control_map = torch.randn(2, 4, 8, 8), torch.tensor([500, 20]), torch.randn(2, 77, 64), torch.rand(2, 3, 64, 64)
    down, mid = network(x, t, encoder_hidden_states=context, controlnet_cond=control_map, return_dict=False)
    for name in ("edges", "plain.safetensors", "old.pth"):
        loaded = load_controlnet(folder / name, model)
        ours = loaded.network(x, t, Conditioning(context), control_map)
        for residual, theirs in zip(ours, [*down, mid], strict=True):
            assert (residual - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())


@torch.no_grad()
def test_differences_are_added_to_the_unet(sd1: Any):
    _, model, network, folder = sd1
    own = model.unet.state_dict()
    stored = {name: tensor - own[name] if name in own else tensor for name, tensor in network.state_dict().items()}
    equal = "down_blocks.0.resnets.0.conv1.weight"  # left out, as it is equal
    stored.pop(equal)
    save_file(original_names(stored) | {"difference": torch.zeros(0)}, folder / "difference.safetensors")
    loaded = load_controlnet(folder / "difference.safetensors", model).network.state_dict()
    assert torch.equal(loaded.pop(equal), own[equal])
    for name, tensor in loaded.items():
        assert torch.allclose(tensor, network.state_dict()[name], atol=1e-5)


@pytest.mark.parametrize(("name", "config"), [("controlnet_sd1_diffusers", SD1), ("controlnet_xl_diffusers", SDXL)])
def test_the_names_of_published_networks(name: str, config: Any):
    with shapes_only():
        network = ControlNetModel(ControlNetConfig(config))
    stored = manifest(name)["tensors"]
    assert {key: list(tensor.shape) for key, tensor in network.state_dict().items()} == {key: shape for key, (_, shape) in stored.items()}
    if name == "controlnet_sd1_diffusers":
        original = {key.removeprefix("control_model."): torch.empty(shape, device="meta") for key, (_, shape) in
                    manifest("controlnet_sd1_lllyasviel")["tensors"].items()}  # fmt: skip
        renamed, unmatched = KeyTable(controlnet_rules(original)).to_canonical(original)
        assert not unmatched
        assert renamed.keys() == network.state_dict().keys()


PART = {"controlnet_conditioning_scale": 0.6, "control_guidance_start": 0.25, "control_guidance_end": 0.75}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "scaled part": ({"scale": 0.6, "start": 0.25, "end": 0.75}, PART),
    "guess mode": ({"scale": 0.8, "guess_mode": True}, {"controlnet_conditioning_scale": 0.8, "guess_mode": True}),
}


def same_image_latents(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_txt2img_equals_diffusers(sd1: Any, case: str):
    ours_settings, theirs_settings = CASES[case]
    pipeline, model, network, folder = sd1
    control = load_controlnet(folder / "edges", model).scaled(**{"scale": 1.0, **ours_settings})
    theirs = latents_of_diffusers(diffusers.StableDiffusionControlNetPipeline, pipeline, network, MAP, **theirs_settings)
    assert same_image_latents(latents(with_adapters(model, [control]), control_images=[MAP]), theirs)
    if case == "plain":
        assert not same_image_latents(latents(model), theirs)


def test_several_controlnets_equal_diffusers(sd1: Any):
    pipeline, model, network, folder = sd1
    second, other = reference(pipeline, 6), MAP.rotate(90)
    second.save_pretrained(folder / "second")
    both = [load_controlnet(folder / "edges", model).scaled(0.5), load_controlnet(folder / "second", model).scaled(1.2, end=0.5)]
    theirs = latents_of_diffusers(
        diffusers.StableDiffusionControlNetPipeline, pipeline, [network, second], [MAP, other],
        controlnet_conditioning_scale=[0.5, 1.2], control_guidance_end=[1.0, 0.5],
    )  # fmt: skip
    adapted = with_adapters(model, both)
    assert same_image_latents(latents(adapted, control_images=[MAP, other]), theirs)
    assert same_image_latents(latents(adapted, control_images=[MAP, other], low_memory=True), theirs)


HALF = Image.fromarray(np.repeat(np.uint8([[0] * 32 + [255] * 32]), 64, axis=0))
TASKS: dict[str, tuple[type, dict[str, Any], Any]] = {
    "img2img": (
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        {"image": MAP.rotate(180), "control_image": MAP, "strength": 0.75},
        ImageToImage(MAP.rotate(180), 0.75),
    ),
    "inpaint": (
        diffusers.StableDiffusionControlNetInpaintPipeline,
        {"image": MAP.rotate(180), "mask_image": HALF, "control_image": MAP, "strength": 0.75},
        Inpaint(MAP.rotate(180), HALF, 0.75),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_images_and_masks_equal_diffusers(sd1: Any, monkeypatch: pytest.MonkeyPatch, task: str):
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    pipeline, model, network, folder = sd1
    kind, settings, ours = TASKS[task]
    generator = torch.Generator().manual_seed(0)
    theirs = latents_of_diffusers(kind, pipeline, network, None, **settings, generator=generator, controlnet_conditioning_scale=0.7)
    adapted = with_adapters(model, [load_controlnet(folder / "edges", model).scaled(0.7)])
    assert same_image_latents(latents(adapted, control_images=[MAP], task=ours), theirs)
    assert not same_image_latents(latents(adapted, control_images=[MAP.rotate(90)], task=ours), theirs)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_equal_diffusers(tmp_path: Path, family: str):
    pipeline = peers.sd(prediction="v_prediction", second=True) if family == "sd2" else peers.sdxl()
    pipeline.register_modules(vae=peers.autoencoder(4))
    pipeline.vae_scale_factor = 8
    network = reference(pipeline)
    network.save_pretrained(tmp_path / "edges")
    kind = diffusers.StableDiffusionControlNetPipeline if family == "sd2" else diffusers.StableDiffusionXLControlNetPipeline
    theirs = latents_of_diffusers(kind, pipeline, network, MAP)
    model = daguerre.load(peers.saved(pipeline, tmp_path / family), device="cpu")
    adapted = with_adapters(model, [load_controlnet(tmp_path / "edges", model)])
    assert same_image_latents(latents(adapted, control_images=[MAP]), theirs)
    assert not same_image_latents(latents(model), theirs)


def latents_of_diffusers(kind: type, pipeline: Any, network: Any, control_map: Any, **settings: Any) -> Tensor:
    parts = {name: part for name, part in pipeline.components.items() if name != "scheduler"}
    scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    xl = isinstance(pipeline, diffusers.StableDiffusionXLPipeline)
    more = {"add_watermarker": False} if xl else {"requires_safety_checker": False}
    controlled = peers.quiet(kind(**parts, scheduler=scheduler, controlnet=network, **more))
    if control_map is not None:
        settings |= {"image": control_map, "latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    return controlled(
        **REQUEST, height=64, width=64, num_inference_steps=4, guidance_scale=5.0, output_type="latent", **settings
    ).images  # fmt: skip


def latents(model: LatentDiffusion, **fields: Any) -> Tensor:
    """The final latents of a request, of the noise that diffusers gets."""
    request = daguerre.Request(
        **REQUEST, width=64, height=64, steps=4, guidance_scale=5.0, sampler="euler", initial_noise="variance_preserving", seed=0, **fields
    )
    return [step.x for step in daguerre.stream(model, request)][-1]


@torch.no_grad()
def test_control_loras_are_added_to_the_unet(sd1: Any):
    _, model, network, folder = sd1
    own, generator = model.unet.state_dict(), torch.Generator().manual_seed(3)
    expected, stored = dict(network.state_dict()), original_names(network.state_dict())
    names = dict(zip(expected, original_names({name: torch.full((), float(i)) for i, name in enumerate(expected)}), strict=True))
    for name, tensor in network.state_dict().items():
        if name not in own or tensor.ndim < 2:
            continue
        up = torch.randn(len(tensor), 2, generator=generator)
        down = torch.randn(2, *tensor.shape[1:], generator=generator)
        expected[name] = own[name] + (up @ down.flatten(1)).reshape(tensor.shape)
        original = names[name].removesuffix(".weight")
        del stored[f"{original}.weight"]
        stored |= {f"{original}.up": up, f"{original}.down": down}
    save_file(stored | {"lora_controlnet": torch.zeros(0)}, folder / "control-lora.safetensors")
    loaded = load_controlnet(folder / "control-lora.safetensors", model).network.state_dict()
    assert all(torch.allclose(tensor, expected[name], atol=1e-5) for name, tensor in loaded.items())
    assert "a control-LoRA" in str(describe_adapter(folder / "control-lora.safetensors"))


def test_maps_of_another_size_are_resized_with_a_note(tiny_control: LatentDiffusion, caplog: pytest.LogCaptureFixture):
    daguerre.generate(tiny_control, prompt="a", steps=1, width=64, height=64, control_images=[MAP.resize((10, 20))])
    assert "has 10×20 pixels and is resized to 64×64" in caplog.text


@pytest.fixture(scope="module")
def tiny_control(sd1: Any) -> LatentDiffusion:
    return with_adapters(sd1[1], [load_controlnet(sd1[3] / "edges", sd1[1])])


def test_the_number_of_maps_must_fit(sd1: Any, tiny_control: LatentDiffusion):
    with pytest.raises(DaguerreError, match="'edges', which needs 1 images, and the request has 0"):
        daguerre.generate(tiny_control, prompt="a", steps=1)
    with pytest.raises(DaguerreError, match="no adapter with images, which needs 0 images, and the request has 1"):
        daguerre.generate(sd1[1], prompt="a", steps=1, control_images=[MAP])


def test_negative_rows_get_nothing_in_guess_mode(sd1: Any):
    control: ControlNet = load_controlnet(sd1[3] / "edges", sd1[1]).scaled(1.0, guess_mode=True)
    x, cond = torch.randn(2, 4, 8, 8), Conditioning(torch.randn(2, 77, 64))
    with torch.no_grad():
        residuals = control.residuals(x, torch.tensor([5.0, 5.0]), cond, torch.rand(1, 3, 64, 64), torch.tensor([1, 0]))
    assert all(residual[0].any() and not residual[1].any() for residual in residuals)


def test_other_kinds_and_families_are_refused(sd1: Any, tmp_path: Path):
    model = sd1[1]
    for name, kind in (
        ("task_embedding", "union"),
        ("lllite_unet_x.down.0.weight", "LLLite"),
        ("body.0.block1.weight", "T2I-Adapter"),
        ("image_proj.proj.weight", "IP-Adapter"),
        ("something", "is no ControlNet"),
    ):
        save_file({name: torch.ones(1)}, tmp_path / "x.safetensors")
        with pytest.raises(DaguerreError, match=kind):
            load_controlnet(tmp_path / "x.safetensors", model)
    wider = replace(model.unet.config, channels=(32, 64), context_width=64)
    save_file(
        {name: torch.zeros(t.shape) for name, t in ControlNetModel(ControlNetConfig(wider)).state_dict().items()},
        tmp_path / "y.safetensors",
    )
    with pytest.raises(DaguerreError, match=r"is for models with the channels \(32, 64\)"):
        load_controlnet(tmp_path / "y.safetensors", model)
    tensors = load_file(sd1[3] / "edges" / "diffusion_pytorch_model.safetensors")
    first = tensors["conv_in.weight"]
    save_file(tensors | {"conv_in.weight": torch.zeros(len(first), 9, 3, 3)}, tmp_path / "y.safetensors")
    with pytest.raises(DaguerreError, match="takes 9 channels, and the latents of"):
        load_controlnet(tmp_path / "y.safetensors", model)
    save_file(tensors | {"conv_in.weight": first * torch.nan}, tmp_path / "y.safetensors")
    with pytest.raises(DaguerreError, match="NaN or infinity"):
        load_controlnet(tmp_path / "y.safetensors", model)


def test_both_passes_of_hires_follow_the_map_and_attention_maps_change_nothing(tiny_control: LatentDiffusion):
    fields = {"prompt": "a", "steps": 2, "width": 64, "height": 64, "task": Hires(1.5, 0.5)}
    first, second = (daguerre.generate(tiny_control, **fields, control_images=[each])[0].image for each in (MAP, MAP.rotate(90)))
    assert first.size == (96, 96)
    assert first.tobytes() != second.tobytes()
    with record_attention(tiny_control):
        assert daguerre.generate(tiny_control, **fields, control_images=[MAP])[0].image.tobytes() == first.tobytes()
