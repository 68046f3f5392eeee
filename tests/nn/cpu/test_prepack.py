"""A prepacked network gives the results of the original, at every size and dtype, and follows changes of the original."""

import copy

import pytest
import torch
from torch import Tensor

import daguerre
from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.attention import FeedForward
from daguerre.nn.attention_hooks import capture_cross_attention
from daguerre.nn.circular import circular_padding
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import prepack, upcast_on_use
from daguerre.pipelines.planners import control
from tests.tolerance import assert_as_accurate

CONFIG = UNetConfig(channels=(16, 32), blocks=1, depth=(1, 2), heads=(2, 4), context_width=12, norm_groups=4, cross_only_levels=(0,))
X, T, COND = torch.randn(2, 4, 6, 10), torch.tensor([3.0, 700.0]), Conditioning(torch.randn(2, 5, 12))
needs_bfloat16 = pytest.mark.skipif(not cpu_linear.supports(torch.bfloat16), reason="torch has no oneDNN products in bfloat16 here")


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():  # the last layers of residual branches start at zero
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def check(packed: UNet, unet: UNet, x: Tensor = X, cond: Conditioning = COND) -> None:
    """Compare with the original in its own dtype and in float64."""
    dtype = unet.conv_in.weight.dtype
    truth = copy.deepcopy(unet).double()(x.double(), T.double(), cond.to(dtype=torch.float64))
    x, cond = x.to(dtype), cond.to(dtype=dtype)
    assert_as_accurate(packed(x, T, cond), unet(x, T, cond), truth)


@pytest.mark.parametrize("size", [(6, 10), (8, 8), (64, 64)])
@pytest.mark.parametrize("copies", [True, False])
def test_equals_the_original_at_every_call_and_size(unet: UNet, size: tuple[int, int], copies: bool):
    packed = prepack(unet, copies=copies)
    assert packed is not unet
    for _ in range(2):
        check(packed, unet, torch.randn(2, 4, *size))


def test_another_context_or_one_changed_in_place(unet: UNet):
    packed, context = prepack(unet), torch.randn(2, 5, 12)
    first = packed(X, T, Conditioning(context))
    check(packed, unet)
    context.mul_(2)
    check(packed, unet, cond=Conditioning(context))
    assert (packed(X, T, Conditioning(context)) - first).abs().max() > 1e-3


def test_the_original_is_unchanged_and_later_copies_have_its_later_weights(unet: UNet):
    before, packed = unet(X, T, COND), prepack(unet)
    packed(X, T, COND)
    assert torch.equal(unet(X, T, COND), before)
    unet.conv_in.weight.mul_(2)
    check(prepack(unet), unet)


@needs_bfloat16
@pytest.mark.parametrize("copies", [True, False])
def test_the_dtype_changes_between_calls(unet: UNet, copies: bool):
    """The guard against overflow converts the network to float32 for one call."""
    unet.bfloat16()
    packed = prepack(unet, copies=copies)
    half = X.bfloat16(), T, COND.to(dtype=torch.bfloat16)
    first = packed(*half)
    check(packed, unet)
    unet.float()
    check(packed, unet)
    unet.bfloat16()
    assert torch.equal(packed(*half), first)


def test_circular_padding_remains(unet: UNet):
    circular = circular_padding(unet, "both")
    truth = circular_padding(copy.deepcopy(unet).double(), "both")(X.double(), T.double(), COND.to(dtype=torch.float64))
    assert_as_accurate(prepack(circular)(X, T, COND), circular(X, T, COND), truth)


def test_cross_attention_is_captured_at_every_call(unet: UNet):
    truth: list[Tensor] = []
    exact = copy.deepcopy(unet).double()
    with capture_cross_attention(exact, lambda size, q, k: truth.append(k)):
        exact(X.double(), T.double(), COND.to(dtype=torch.float64))
    captured: list[Tensor] = []
    with capture_cross_attention(unet, lambda size, q, k: captured.append(k)):
        unet(X, T, COND)
        expected = [*captured]
        packed = prepack(unet)
        for _ in range(2):
            captured.clear()
            packed(X, T, COND)
            for found, reference, exact_k in zip(captured, expected, truth, strict=True):
                assert_as_accurate(found, reference, exact_k)


def test_a_float64_network_is_returned_as_it_is(unet: UNet):
    assert prepack(unet.double()) is unet


def test_without_copies_weights_changed_in_place_take_effect(unet: UNet):
    packed = prepack(unet, copies=False)
    check(packed, unet)
    for module in (unet.conv_in, unet.mid_block.attentions[0].transformer_blocks[0].ff.net[0].proj):  # type: ignore[index,union-attr]
        module.weight.mul_(2)  # type: ignore[union-attr,operator]
    check(packed, unet)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", [8, 64])
def test_half_precision_weights_are_converted_in_use(unet: UNet, stored: torch.dtype, side: int):
    packed, x = prepack(unet, copies=False), torch.randn(2, 4, side, side)
    half = {name: weight.to(stored) for name, weight in unet.state_dict().items() if name in upcast_on_use(packed)}
    assert len(half) > 30
    assert upcast_on_use(packed.mid_block) == upcast_on_use(packed)
    assert not upcast_on_use(unet)
    assert not upcast_on_use(prepack(unet))
    unet.load_state_dict(half, strict=False, assign=True)
    y = packed(x, T, COND)
    assert torch.equal(prepack(unet, copies=False)(x, T, COND), y)
    unet.float()
    assert_as_accurate(y, unet(x, T, COND), copy.deepcopy(unet).double()(x.double(), T.double(), COND.to(dtype=torch.float64)))


def test_layers_with_circular_padding_are_not_converted_in_use(unet: UNet):
    names = upcast_on_use(prepack(circular_padding(unet, "both"), copies=False))
    assert "conv_in.weight" not in names
    assert "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight" in names


def test_a_feed_forward_block_with_many_positions():
    block, x = FeedForward(8).requires_grad_(False), torch.randn(3, 30_000, 8)  # more rows than are computed at a time
    assert_as_accurate(prepack(block)(x), block(x), copy.deepcopy(block).double()(x.double()))


def test_a_request_gives_the_same_latents_without_prepacking(tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch):
    prompt = "[a red apple:a cat:2] AND a dog"  # the conditions change after two steps
    *_, packed = daguerre.stream(tiny_model, prompt=prompt, steps=4)
    *_, again = daguerre.stream(tiny_model, prompt=prompt, steps=4)
    monkeypatch.setattr(control, "prepack", lambda network, **_: network)
    *_, plain = daguerre.stream(tiny_model, prompt=prompt, steps=4)
    assert torch.equal(packed.x, again.x)
    torch.testing.assert_close(packed.x, plain.x, atol=1e-4, rtol=1e-4)  # rounding errors grow over the steps


def test_inference_mode_gives_the_same_image(tiny_model: LatentDiffusion):
    outside = daguerre.generate(tiny_model, prompt="a red circle", steps=2)[0]
    with torch.inference_mode():
        inside = daguerre.generate(tiny_model, prompt="a red circle", steps=2)[0]
    assert inside.image.tobytes() == outside.image.tobytes()
