"""T2I-Adapters and IP-Adapters equal diffusers: their networks, and images with scale and a part of the steps."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import daguerre
from daguerre.adapters import load_controlnet, load_ip_adapter, load_t2i_adapter, with_adapters
from daguerre.adapters.ip_adapter import cross_attention_paths, ip_adapter_kind
from daguerre.adapters.t2i_adapter import canonical_tensors, t2i_config
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.t2i_adapter import T2IAdapterConfig, T2IAdapterModel
from daguerre.models.unet import SD1, SDXL, UNet
from daguerre.nn.meta import shapes_only
from daguerre.pipelines.attention_maps import record_attention
from tests.adapters.files import manifest
from tests.families import peers

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
OTHER = IMAGE.rotate(90)
REQUEST = {"prompt": "a red apple", "negative_prompt": "blue"}
SETTINGS = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, LatentDiffusion, Path]:
    """A pipeline of diffusers with latents of 1/8, our model, and a folder."""
    folder = tmp_path_factory.mktemp("image-adapters")
    pipeline = peers.sd()
    pipeline.register_modules(vae=peers.autoencoder(4))
    pipeline.vae_scale_factor = 8
    return pipeline, daguerre.load(peers.saved(pipeline, folder / "sd1"), device="cpu"), folder


def latents(model: LatentDiffusion, **fields: Any) -> Tensor:
    """The final latents of a request, of the noise that diffusers gets."""
    request = daguerre.Request(
        **REQUEST, width=64, height=64, steps=4, guidance_scale=5.0, sampler="euler", initial_noise="variance_preserving", **fields
    )
    return [step.x0 for step in daguerre.stream(model, request)][-1]


def noise() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def ddim(pipeline: Any) -> Any:
    return diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )


def close(ours: Tensor, theirs: Tensor, bound: float = 1e-4) -> bool:
    return bool((ours - theirs).abs().max() < bound * max(1, theirs.abs().max()))


# T2I-Adapter

T2I_CASES = {
    "full": {"adapter_type": "full_adapter", "in_channels": 3, "num_res_blocks": 2},
    "grey": {"adapter_type": "full_adapter", "in_channels": 1, "num_res_blocks": 2},
    "light": {"adapter_type": "light_adapter", "in_channels": 3, "num_res_blocks": 3},
}


def t2i_of_diffusers(case: str) -> Any:
    return peers.randomized(diffusers.T2IAdapter(channels=[64, 128], downscale_factor=8, **T2I_CASES[case]), 4)


@pytest.mark.parametrize("case", T2I_CASES)
@torch.no_grad()
def test_the_features_equal_those_of_diffusers(case: str):
    theirs = t2i_of_diffusers(case)
    tensors = canonical_tensors(theirs.state_dict(), Path("x"))
    network = T2IAdapterModel(t2i_config(tensors, Path("x")))
    network.load_state_dict(tensors)
    control_map = torch.rand(2, T2I_CASES[case]["in_channels"], 64, 64)
    for ours, feature in zip(network(control_map), theirs(control_map), strict=True):
        assert close(ours, feature, 1e-5)


def test_t2i_images_equal_diffusers(sd1: Any):
    pipeline, model, folder = sd1
    theirs = t2i_of_diffusers("full")
    theirs.save_pretrained(folder / "t2i")
    parts = {name: part for name, part in pipeline.components.items() if name not in ("scheduler", "image_encoder")}
    controlled = peers.quiet(
        diffusers.StableDiffusionAdapterPipeline(**parts, adapter=theirs, scheduler=ddim(pipeline), requires_safety_checker=False)
    )
    expected = controlled(
        **REQUEST, **SETTINGS, image=IMAGE, height=64, width=64, latents=noise(), adapter_conditioning_scale=0.8
    ).images  # fmt: skip
    adapter = load_t2i_adapter(folder / "t2i", model).scaled(0.8)
    adapted = with_adapters(model, [adapter])
    assert close(latents(adapted, control_images=[IMAGE]), expected)
    assert close(latents(adapted, control_images=[IMAGE], low_memory=True), expected)
    assert not close(latents(adapted, control_images=[OTHER]), expected)
    assert torch.equal(latents(with_adapters(model, [adapter.scaled(0.8, end=0.1)]), control_images=[IMAGE]), latents(model))


@torch.no_grad()
def test_sdxl_takes_the_features_after_its_first_level_and_in_the_middle(tmp_path: Path):
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    options = {"down_block_types": down, "up_block_types": up, "block_out_channels": (32, 64, 64), "attention_head_dim": (1, 2, 2)}
    pipeline = peers.sdxl(**options, transformer_layers_per_block=1)
    unet = daguerre.load(peers.saved(pipeline, tmp_path / "xl"), device="cpu").unet
    theirs = peers.randomized(
        diffusers.T2IAdapter(3, channels=[32, 64, 64, 64], num_res_blocks=2, downscale_factor=16, adapter_type="full_adapter_xl"), 4
    )
    tensors = canonical_tensors(theirs.state_dict(), tmp_path)
    network = T2IAdapterModel(t2i_config(tensors, tmp_path))
    network.load_state_dict(tensors)
    control_map, x, t = torch.rand(1, 3, 128, 128), torch.randn(1, 4, 16, 16), torch.tensor([500])
    width, count = pipeline.unet.config.cross_attention_dim, pipeline.unet.config.projection_class_embeddings_input_dim - 6 * 256
    context, pooled, ids = torch.randn(1, 77, width), torch.randn(1, count), torch.tensor([[128.0, 128, 0, 0, 128, 128]])
    features = theirs(control_map)
    expected = pipeline.unet(
        x, t, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}, down_intrablock_additional_residuals=[*features],
        return_dict=False,
    )[0]  # fmt: skip
    sizes = pipeline.unet.add_time_proj(ids.flatten()).reshape(1, -1)
    cond = Conditioning(context, vector=torch.cat([pooled, sizes], dim=1))
    assert close(unet(x, t.float(), cond, features=network(control_map)), expected, 1e-5)
    assert not close(unet(x, t.float(), cond), expected, 1e-2)


@pytest.mark.parametrize("name", ["t2i_adapter_sd1_full", "t2i_adapter_sd1_full_diffusers"])
def test_the_names_of_published_t2i_adapters(name: str):
    stored = {key: torch.empty(shape, device="meta") for key, (_, shape) in manifest(name)["tensors"].items()}
    tensors = canonical_tensors(stored, Path("x"))
    config = t2i_config(tensors, Path("x"))
    assert config == T2IAdapterConfig()
    with shapes_only():
        network = T2IAdapterModel(config)
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == {key: tensor.shape for key, tensor in tensors.items()}


# IP-Adapter

KINDS = ("plain", "plus", "full")


def image_encoder(width: int = 64, projection: int = 32) -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14,
        projection_dim=projection, hidden_act="gelu",
    )  # fmt: skip
    return peers.randomized(transformers.CLIPVisionModelWithProjection(config), 8)


def ip_tensors(kind: str, unet: UNet) -> dict[str, Tensor]:
    """The tensors of an IP-Adapter with random weights, under the names of the published files."""
    generator, D = torch.Generator().manual_seed(9), 64

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + random(D), f"{name}.bias": random(D)}

    tensors: dict[str, Tensor] = {}
    if kind == "plain":
        tensors = {"proj.weight": random(4 * D, 32), "proj.bias": random(4 * D), **norm("norm")}
    elif kind == "full":
        tensors = {"proj.0.weight": random(D, D), "proj.0.bias": random(D), "proj.2.weight": random(D, D), "proj.2.bias": random(D)}
        tensors |= norm("proj.3")
    else:
        tensors = {"latents": random(1, 6, D), **norm("norm_out")}
        tensors |= {f"proj_{end}.{part}": random(*[D] * n) for end in ("in", "out") for part, n in (("weight", 2), ("bias", 1))}
        for layer in (f"layers.{number}" for number in range(4)):
            tensors |= {f"{layer}.0.{name}.weight": random(D, D) for name in ("to_q", "to_out")}
            tensors |= {f"{layer}.0.to_kv.weight": random(2 * D, D), **norm(f"{layer}.0.norm1"), **norm(f"{layer}.0.norm2")}
            tensors |= {**norm(f"{layer}.1.0"), f"{layer}.1.1.weight": random(4 * D, D), f"{layer}.1.3.weight": random(D, 4 * D)}
    tensors = {f"image_proj.{name}": tensor for name, tensor in tensors.items()}
    for number, path in enumerate(cross_attention_paths(unet)):
        width = len(unet.get_submodule(path).to_q.weight)
        tensors |= {f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight": random(width, D) for part in "kv"}
    return tensors


@pytest.fixture(scope="module")
def ip_folder(sd1: Any) -> Path:
    _, model, folder = sd1
    image_encoder().save_pretrained(folder / "image_encoder")
    for kind in KINDS:
        save_file(ip_tensors(kind, model.unet), folder / f"{kind}.safetensors")
    return folder


def ip_latents_of_diffusers(pipeline: Any, folder: Path, kind: str, images: list[Image.Image], scale: float) -> Tensor:
    parts = {name: part for name, part in pipeline.components.items() if name not in ("scheduler", "image_encoder", "feature_extractor")}
    size = {"shortest_edge": 28}
    extractor = transformers.CLIPImageProcessor(size=size, crop_size={"height": 28, "width": 28})
    adapted = peers.quiet(
        diffusers.StableDiffusionPipeline(
            **parts, scheduler=ddim(pipeline), image_encoder=image_encoder(), feature_extractor=extractor, requires_safety_checker=False
        )
    )
    adapted.load_ip_adapter(
        str(folder), subfolder="", weight_name=f"{kind}.safetensors", image_encoder_folder=None, low_cpu_mem_usage=False
    )
    adapted.set_ip_adapter_scale(scale)
    try:
        return adapted(**REQUEST, **SETTINGS, height=64, width=64, latents=noise(), ip_adapter_image=[images]).images
    finally:
        adapted.unload_ip_adapter()


@pytest.mark.parametrize("kind", KINDS)
def test_ip_adapters_equal_diffusers(sd1: Any, ip_folder: Path, kind: str):
    pipeline, model, _ = sd1
    images = [IMAGE, OTHER] if kind == "plain" else [IMAGE]
    expected = ip_latents_of_diffusers(pipeline, ip_folder, kind, images, 0.7)
    adapter = load_ip_adapter(ip_folder / f"{kind}.safetensors", model).scaled(0.7).with_images(len(images))
    adapted = with_adapters(model, [adapter])
    # The resized image of 28 × 28 pixels may differ by one grey level of 255 from that of the reference.
    assert close(latents(adapted, control_images=images), expected, 1e-3)
    plain = latents(model)
    assert not close(latents(adapted, control_images=images), plain, 1e-2)
    assert torch.equal(latents(with_adapters(model, [adapter.scaled(0).with_images(len(images))]), control_images=images), plain)
    assert torch.equal(latents(with_adapters(model, [adapter.scaled(0.7, end=0.1).with_images(len(images))]), control_images=images), plain)


def test_nested_files_and_encoders_in_one_file(sd1: Any, ip_folder: Path):
    _, model, _ = sd1
    flat = load_file(ip_folder / "plain.safetensors")
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        nested[part][rest] = tensor
    torch.save(nested, ip_folder / "plain.bin")
    adapter = load_ip_adapter(ip_folder / "plain.bin", model, encoder=ip_folder / "image_encoder" / "model.safetensors")
    first = load_ip_adapter(ip_folder / "plain.safetensors", model)
    assert all(torch.equal(*pair) for a, b in zip(adapter.keys, first.keys, strict=True) for pair in zip(a, b, strict=True))
    assert adapter.encoder.config.layers == 3
    assert adapter.encoder.config.projection == 32


@pytest.mark.parametrize(("name", "kind"), [("ip_adapter_sd1", "plain"), ("ip_adapter_sd1_plus", "plus")])
def test_the_names_of_published_ip_adapters(name: str, kind: str):
    stored = {key: torch.empty(shape, device="meta") for key, (_, shape) in manifest(name)["tensors"].items()}
    assert ip_adapter_kind(stored) == kind
    with shapes_only():
        paths = cross_attention_paths(UNet(SD1))
        assert len(cross_attention_paths(UNet(SDXL))) == 70
    assert {f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight" for i in range(len(paths)) for part in "kv"} == {
        key for key in stored if key.startswith("ip_adapter.")
    }


def test_all_adapters_work_together(sd1: Any, ip_folder: Path):
    """ControlNets get the text alone, maps of attention the words, and one condition at a time gives the same images."""
    pipeline, model, _ = sd1
    peers.randomized(diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(16, 32, 96, 256)), 5
                     ).save_pretrained(ip_folder / "edges")  # fmt: skip
    t2i_of_diffusers("full").save_pretrained(ip_folder / "t2i")
    adapters = [
        load_controlnet(ip_folder / "edges", model).scaled(0.5),
        load_t2i_adapter(ip_folder / "t2i", model).scaled(0.5, end=0.5),
        load_ip_adapter(ip_folder / "plain.safetensors", model).scaled(0.5, start=0.5),
        load_ip_adapter(ip_folder / "plus.safetensors", model).scaled(0.5),
    ]
    adapted, images = with_adapters(model, adapters), [IMAGE, OTHER, IMAGE, OTHER]
    expected = latents(adapted, control_images=images)
    assert close(latents(adapted, control_images=images, low_memory=True), expected)
    with record_attention(adapted) as record:
        assert torch.equal(latents(adapted, control_images=images), expected)
    assert record
    both = daguerre.Request(**REQUEST, num_images=2, width=64, height=64, steps=1, control_images=tuple(images))
    alone = daguerre.Request(**REQUEST, seed=1, width=64, height=64, steps=1, control_images=tuple(images))
    pair, single = (list(daguerre.stream(adapted, each))[-1].x0 for each in (both, alone))
    assert close(pair[1:], single)


def test_other_kinds_and_families_are_refused(sd1: Any, ip_folder: Path, tmp_path: Path):
    _, model, _ = sd1
    tensors = load_file(ip_folder / "plain.safetensors")
    wide = {name: torch.zeros(len(tensor), 96) if name.startswith("ip_adapter.") else tensor for name, tensor in tensors.items()}
    narrow = {**tensors, "image_proj.proj.weight": torch.zeros(256, 48)}
    for content, message in (
        ({"image_proj.proj.0.weight": torch.ones(1), "ip_adapter.0.to_q_lora.down.weight": torch.ones(1)}, "FaceID"),
        ({"something": torch.ones(1)}, "is no IP-Adapter"),
        (wide, "text width 96"),
        (narrow, "needs an image encoder whose embeddings have the width 48, and '.*' gives 32"),
    ):
        save_file(content, ip_folder / "x.safetensors")
        with pytest.raises(DaguerreError, match=message):
            load_ip_adapter(ip_folder / "x.safetensors", model)
    save_file(tensors, tmp_path / "alone.safetensors")
    with pytest.raises(DaguerreError, match="--image-encoder"):
        load_ip_adapter(tmp_path / "alone.safetensors", model)
    for content, message in (
        ({"style_embedding": torch.ones(1)}, "style adapter"),
        ({"something": torch.ones(1)}, "is no T2I-Adapter"),
        ({"body.0.block1.weight": torch.ones(1)}, "of a known form"),
        (diffusers.T2IAdapter(3, [32, 64], 2, 8, "full_adapter").state_dict(), r"channels \(32, 64\)"),
    ):
        save_file(content, tmp_path / "y.safetensors")
        with pytest.raises(DaguerreError, match=message):
            load_t2i_adapter(tmp_path / "y.safetensors", model)
