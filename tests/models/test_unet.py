"""The UNet against diffusers' two UNets at tiny random init: same names, same numbers, same gradients."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models import unet as presets
from daguerre.models.unet import UNet, UNetConfig
from tests.tolerance import NETWORK_TERMS, assert_rounded

MANIFESTS = Path(__file__).parents[1] / "fixtures" / "manifests"

TINY = UNetConfig(channels=(16, 32), blocks=1, depth=(1, 0), heads=(2, 4), context_width=12, norm_groups=4)
TINY_REFERENCE = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),  # diffusers' name for the number of heads
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
SDXL_REFERENCE = TINY_REFERENCE | {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}
TINY_SDXL = replace(
    TINY, channels=(16, 32, 32), depth=(0, 2, 3), mid_depth=3, heads=(2, 4, 4), linear_projection=True, vector_width=10 + 6 * 4
)
REFINER_REFERENCE = SDXL_REFERENCE | {
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 4, 4),
    "transformer_layers_per_block": 2,
    "projection_class_embeddings_input_dim": 10 + 5 * 4,
}
CONDITIONAL = {
    "sd1": (TINY, TINY_REFERENCE),
    "sd1 inpainting": (replace(TINY, in_channels=9), TINY_REFERENCE | {"in_channels": 9}),
    "sd2": (
        replace(TINY, linear_projection=True, heads=(1, 2)),
        TINY_REFERENCE | {"use_linear_projection": True, "attention_head_dim": (1, 2)},
    ),
    "sdxl": (TINY_SDXL, SDXL_REFERENCE),
    "refiner": (
        replace(TINY_SDXL, channels=(16, 32, 32, 32), depth=(0, 2, 2, 0), mid_depth=2, heads=(2, 4, 4, 4), vector_width=10 + 5 * 4),
        REFINER_REFERENCE,
    ),
    "upscaler": (
        replace(TINY, in_channels=7, classes=20, linear_projection=True, cross_only_levels=(0,)),
        TINY_REFERENCE | {"in_channels": 7, "num_class_embeds": 20, "use_linear_projection": True, "only_cross_attention": (True, False)},
    ),
    "classes and scale-shift": (
        replace(TINY, classes=7, scale_shift=True),
        TINY_REFERENCE | {"num_class_embeds": 7, "resnet_time_scale_shift": "scale_shift"},
    ),
}
TINY_PLAIN = UNetConfig(
    in_channels=3, out_channels=3, channels=(16, 32, 32), blocks=1, depth=(0, 1, 0), heads=(1, 1, 1), context_width=None
)
TINY_PLAIN = replace(TINY_PLAIN, norm_groups=4)
PLAIN_REFERENCE = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": None,
}
DDPM = {"norm_eps": 1e-6, "downsample_padding": 0}
PLAIN = {
    "ddpm": (
        replace(TINY_PLAIN, **DDPM, time_cos_first=False, time_frequency_shift=1),
        PLAIN_REFERENCE | DDPM | {"flip_sin_to_cos": False, "freq_shift": 1},
    ),
    "ldm unconditional": (replace(TINY_PLAIN, heads=(2, 4, 4)), PLAIN_REFERENCE | {"attention_head_dim": 8}),
    "ldm churches": (
        replace(TINY_PLAIN, scale_shift=True, resample="resblock"),
        PLAIN_REFERENCE
        | {
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 4,
        },
    ),
    "class-conditional": (replace(TINY_PLAIN, classes=5), PLAIN_REFERENCE | {"num_class_embeds": 5}),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load_reference(config: UNetConfig, reference: nn.Module) -> UNet:
    """A UNet with the weights of the reference; strict in both directions."""
    unet = UNet(config)
    unet.load_state_dict(reference.state_dict(), strict=True)
    reference.load_state_dict(unet.state_dict(), strict=True)
    return unet.eval()


def spread(reference: nn.Module) -> nn.Module:
    """Every weight random, so that no bias or norm is tested at its trivial value."""
    generator = torch.Generator().manual_seed(1)
    for parameter in reference.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = parameter.data * (parameter.ndim == 1) + scale * torch.randn(parameter.shape, generator=generator)
    return reference.eval()


def assert_same(output: Tensor, expected: Tensor, unet: UNet, reference: nn.Module, x: Tensor, x_reference: Tensor) -> None:
    """Outputs and the gradients of one random functional, with respect to the input and every parameter."""
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    weight = noise(*expected.shape, seed=9)
    (output * weight).mean().backward()
    (expected * weight).mean().backward()
    torch.testing.assert_close(x.grad, x_reference.grad, rtol=0, atol=1e-5)
    gradients = {name: p.grad for name, p in unet.named_parameters()}
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", CONDITIONAL)
def test_equals_the_conditional_reference(name: str):
    config, options = CONDITIONAL[name]
    reference = spread(UNet2DConditionModel(**options))
    unet = load_reference(config, reference)
    x, x_reference = (noise(2, config.in_channels, 8, 8).requires_grad_() for _ in range(2))
    t, context = torch.tensor([7.0, 801.0]), noise(2, 5, 12, seed=2)
    label = torch.tensor([1, 6]) if config.classes else None
    vector, added = None, None
    if config.vector_width:
        sizes = torch.tensor([[512.0, 64, 0, 3, 640, 512], [8.0, 1024, 5, 0, 768, 768]])[:, : (config.vector_width - 10) // 4]
        pooled = noise(2, 10, seed=3)
        waves = reference.add_time_proj(sizes.flatten()).reshape(2, -1)
        vector, added = torch.cat([pooled, waves], dim=1), {"text_embeds": pooled, "time_ids": sizes}
    output = unet(x[:, :4], t, Conditioning(context, vector, x[:, 4:] if config.in_channels > 4 else None, label))
    expected = reference(x_reference, t, context, class_labels=label, added_cond_kwargs=added).sample
    assert_same(output, expected, unet, reference, x, x_reference)


@pytest.mark.parametrize("name", PLAIN)
def test_equals_the_unconditional_reference(name: str):
    config, options = PLAIN[name]
    reference = spread(UNet2DModel(**options))
    unet = load_reference(config, reference)
    x, x_reference = (noise(2, 3, 8, 8).requires_grad_() for _ in range(2))
    t, label = torch.tensor([3.0, 999.0]), torch.tensor([4, 0]) if config.classes else None
    assert_same(
        unet(x, t, Conditioning(label=label)), reference(x_reference, t, class_labels=label).sample, unet, reference, x, x_reference
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])  # 7 is not a multiple of 2: the up blocks return to the sizes of the down blocks
def test_control_residuals_and_uneven_sizes_equal_the_reference(size: tuple[int, int]):
    reference = spread(UNet2DConditionModel(**TINY_REFERENCE))
    unet = load_reference(TINY, reference)
    H, W = size
    h, w = math.ceil(H / 2), math.ceil(W / 2)
    control = [
        noise(2, C, *side, seed=i) for i, (C, side) in enumerate([(16, (H, W)), (16, (H, W)), (16, (h, w)), (32, (h, w)), (32, (h, w))])
    ]
    x, t, context = noise(2, 4, H, W), torch.tensor([3.0, 500.0]), noise(2, 5, 12, seed=8)
    with torch.no_grad():
        output = unet(x, t, Conditioning(context), control=control)
        expected = reference(x, t, context, down_block_additional_residuals=control[:-1], mid_block_additional_residual=control[-1]).sample
        plain = unet(x, t, Conditioning(context))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    assert (output - plain).abs().max() > 0.1


@pytest.mark.parametrize("name", ["plain", "text", "text, none at the first level", "upscaler", "sdxl", "control"])
def test_sharing_the_first_layers_between_conditions_changes_nothing(name: str):
    """Three conditions for two images: layers before the first cross-attention run once if only the text differs."""
    config = {
        "plain": replace(TINY_PLAIN, in_channels=4),
        "text, none at the first level": replace(TINY, depth=(0, 1), mid_depth=0),
        "upscaler": CONDITIONAL["upscaler"][0],
        "sdxl": TINY_SDXL,
    }.get(name, TINY)
    unet = UNet(config).eval()
    spread(unet)
    x, t = noise(2, 4, 8, 8).repeat(3, 1, 1, 1), torch.tensor([7.0, 801.0]).repeat(3)
    cond = Conditioning(
        context=noise(6, 5, 12, seed=2) if config.context_width else None,
        vector=noise(6, config.vector_width, seed=3) if config.vector_width else None,
        concat=noise(6, 3, 8, 8, seed=4) if config.in_channels == 7 else None,
        label=torch.arange(6) if config.classes else None,
    )
    control = [noise(6, c, s, s, seed=c + s) for c, s in ((16, 8), (16, 8), (16, 4), (32, 4), (32, 4))] if name == "control" else None
    with torch.no_grad():
        separate, shared = unet(x, t, cond, control=control), unet(x, t, replace(cond, num_conditions=3), control=control)
    assert_rounded(shared, separate, NETWORK_TERMS)
    assert separate.std() > 0.1


def test_control_residuals_of_another_network_raise():
    unet = UNet(TINY)
    with pytest.raises(ValueError):
        unet(noise(1, 4, 8, 8), torch.zeros(1), Conditioning(noise(1, 5, 12)), control=[torch.zeros(1)] * 3)


@pytest.mark.parametrize(
    ("manifest", "config"),
    [
        ("sd1", presets.SD1),
        ("sd2", presets.SD2),
        ("sdxl_base", presets.SDXL),
        ("cin256", presets.LDM_IMAGENET),
        ("ffhq256", presets.LDM_FACES),
        ("inpainting_big", presets.LDM_INPAINTING),
        ("text2img256", presets.LDM_TEXT2IMG),
    ],
)
def test_presets_have_the_published_parameter_counts(manifest: str, config: UNetConfig):
    published = json.loads((MANIFESTS / f"{manifest}.json").read_text())
    count = sum(math.prod(shape) for name, (shape, _) in published.items() if name.startswith("model.diffusion_model."))
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet(config).parameters()) == count


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (presets.SDXL_REFINER, {"in": 4, "millions": 2259.5}),
        (presets.SD2_UPSCALER, {"in": 7, "millions": 473.4}),
        (presets.DDPM_CIFAR10, {"in": 3, "millions": 35.7}),
        (presets.DDPM_256, {"in": 3, "millions": 113.7}),
        (presets.LDM_CHURCHES, {"in": 4, "millions": 295.0}),
    ],
)
def test_presets_have_the_sizes_that_their_papers_report(config: UNetConfig, options: dict[str, float]):
    with torch.device("meta"):
        unet = UNet(config)
    assert config.in_channels == options["in"]
    assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6, 1) == options["millions"]


def test_new_network_returns_zeros_and_has_gradients():
    unet = UNet(TINY)
    out = unet(noise(1, 4, 8, 8), torch.zeros(1), Conditioning(noise(1, 5, 12)))
    assert not out.count_nonzero()
    (out - 1).square().mean().backward()
    assert unet.conv_out.weight.grad is not None
    assert unet.conv_out.weight.grad.abs().max() > 0


def test_half_precision_is_close_to_single_precision():
    reference = spread(UNet2DConditionModel(**TINY_REFERENCE))
    unet = load_reference(TINY, reference)
    x, t, cond = noise(2, 4, 8, 8), torch.tensor([3.0, 500.0]), Conditioning(noise(2, 5, 12))
    with torch.no_grad():
        exact = unet(x, t, cond)
        rounded = unet.bfloat16()(x.bfloat16(), t, cond.to(dtype=torch.bfloat16))
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize(
    ("config", "channels", "cond", "message"),
    [
        (TINY, 4, None, "context of width 12; got none"),
        (TINY, 4, Conditioning(context=torch.zeros(1, 5, 16)), "context of width 12; got one of width 16"),
        (replace(TINY, in_channels=9), 4, Conditioning(context=torch.zeros(1, 5, 12)), "takes 9 channels, .* have 4 in total"),
        (replace(TINY, vector_width=6), 4, Conditioning(context=torch.zeros(1, 5, 12)), "vector of width 6; got none"),
        (replace(TINY, classes=6), 4, Conditioning(context=torch.zeros(1, 5, 12)), "label below 6; got none"),
    ],
)
def test_wrong_conditioning_raises(config: UNetConfig, channels: int, cond: Conditioning | None, message: str):
    with pytest.raises(DaguerreError, match=message):
        UNet(config)(torch.zeros(1, channels, 8, 8), torch.zeros(1), cond)


@pytest.mark.parametrize(
    ("change", "message"), [({"heads": (2,)}, "2, 2 and 1"), ({"context_width": None, "mid_depth": 2}, "depth must be 0 or 1")]
)
def test_contradictory_config_raises(change: dict[str, object], message: str):
    with pytest.raises(DaguerreError, match=message):
        replace(TINY, **change)
