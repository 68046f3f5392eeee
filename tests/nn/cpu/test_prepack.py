"""A packed twin answers as the network does, whatever is asked of it, and notices what changes."""

import pytest
import torch

import daguerre
from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.attention import FeedForward
from daguerre.nn.attention_hooks import capture_cross_attention
from daguerre.nn.circular import circular_padding
from daguerre.nn.cpu import prepack as prepack_module
from daguerre.nn.cpu.prepack import memoize_last_input, prepack, upcast_on_use
from daguerre.pipelines import generation

CONFIG = UNetConfig(channels=(16, 32), blocks=1, depth=(1, 2), heads=(2, 4), context_width=12, norm_groups=4, cross_only_levels=(0,))
X, T, COND = torch.randn(2, 4, 6, 10), torch.tensor([3.0, 700.0]), Conditioning(torch.randn(2, 5, 12))


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():  # a fresh network's branches end in zeros
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


def test_the_twin_answers_as_the_network_at_every_call_and_every_size(unet: UNet):
    twin = prepack(unet)
    assert twin is not unet
    for x in (X, X, torch.randn(2, 4, 8, 8), torch.randn(2, 4, 64, 64)):
        torch.testing.assert_close(twin(x, T, COND), unet(x, T, COND), atol=1e-5, rtol=1e-5)


def test_a_new_context_is_heard_and_so_is_one_that_was_changed_in_place(unet: UNet):
    twin, context = prepack(unet), torch.randn(2, 5, 12)
    answers = [twin(X, T, Conditioning(context))]
    torch.testing.assert_close(twin(X, T, COND), unet(X, T, COND), atol=1e-5, rtol=1e-5)
    context.mul_(2)
    answers.append(twin(X, T, Conditioning(context)))
    torch.testing.assert_close(answers[1], unet(X, T, Conditioning(context)), atol=1e-5, rtol=1e-5)
    assert (answers[1] - answers[0]).abs().max() > 1e-3


def test_the_same_tensor_is_asked_once():
    asked = []
    call = memoize_last_input(lambda x: asked.append(x) or x + 1)
    a, b = torch.zeros(3), torch.zeros(3)
    assert torch.equal(call(a), call(a))
    assert len(asked) == 1
    call(b)
    call(a)
    assert len(asked) == 3


def test_the_network_stays_as_it_is_and_a_later_twin_has_its_later_weights(unet: UNet):
    before, twin = unet(X, T, COND), prepack(unet)
    twin(X, T, COND)
    assert torch.equal(unet(X, T, COND), before)
    unet.conv_in.weight.mul_(2)
    torch.testing.assert_close(prepack(unet)(X, T, COND), unet(X, T, COND), atol=1e-5, rtol=1e-5)


def test_half_precision_and_back_as_the_guard_against_overflow_does_it(unet: UNet):
    narrow, wide = (X.bfloat16(), T, COND.to(dtype=torch.bfloat16)), (X, T, COND)
    unet.bfloat16()
    twin = prepack(unet)
    first = twin(*narrow)
    unet.float()
    torch.testing.assert_close(twin(*wide), unet(*wide), atol=1e-5, rtol=1e-5)
    unet.bfloat16()
    assert torch.equal(twin(*narrow), first)


def test_a_torus_stays_one_and_watchers_see_every_call(unet: UNet):
    torus = circular_padding(unet, "both")
    torch.testing.assert_close(prepack(torus)(X, T, COND), torus(X, T, COND), atol=1e-5, rtol=1e-5)
    seen: list[torch.Tensor] = []
    with capture_cross_attention(unet, lambda size, q, k: seen.append(k)):
        unet(X, T, COND)
        expected, seen = seen, []
        twin = prepack(unet)
        for _ in range(2):
            seen.clear()
            twin(X, T, COND)
            for k, known in zip(seen, expected, strict=True):
                torch.testing.assert_close(k, known, atol=1e-5, rtol=1e-5)


def test_what_is_not_for_onednn_is_left_alone(unet: UNet):
    assert prepack(unet.double()) is unet


@pytest.mark.parametrize(("most", "copies"), [(0, True), (1 << 28, False)])
def test_the_weights_of_a_large_network_are_not_copied_but_read_as_they_are(
    unet: UNet, monkeypatch: pytest.MonkeyPatch, most: int, copies: bool
):
    monkeypatch.setattr(prepack_module, "MOST_BYTES", most)
    twin = prepack(unet, copies=copies)
    assert twin is not unet
    for _ in range(2):
        torch.testing.assert_close(twin(X, T, COND), unet(X, T, COND), atol=1e-5, rtol=1e-5)
        for module in (unet.conv_in, unet.mid_block.attentions[0].transformer_blocks[0].ff.net[0].proj):  # type: ignore[index,union-attr]
            module.weight.mul_(2)  # type: ignore[union-attr,operator]
    narrow = X.bfloat16(), T, COND.to(dtype=torch.bfloat16)
    torch.testing.assert_close(prepack(unet.bfloat16(), copies=copies)(*narrow), unet(*narrow), atol=0.05, rtol=0.05)


def test_the_same_request_gives_the_same_picture_with_and_without(tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch):
    prompt = "[a red apple:a cat:2] AND a dog"  # what is said changes half-way
    *_, with_it = daguerre.stream(tiny_model, prompt=prompt, steps=4)
    *_, again = daguerre.stream(tiny_model, prompt=prompt, steps=4)
    monkeypatch.setattr(generation, "prepack", lambda network, **_: network)
    *_, without = daguerre.stream(tiny_model, prompt=prompt, steps=4)
    assert torch.equal(with_it.x, again.x)
    torch.testing.assert_close(with_it.x, without.x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", [8, 64])
def test_weights_in_half_precision_are_converted_where_they_are_used(unet: UNet, stored: torch.dtype, side: int):
    twin, x = prepack(unet, copies=False), torch.randn(2, 4, side, side)
    narrow = {name: weight.to(stored) for name, weight in unet.state_dict().items() if name in upcast_on_use(twin)}
    assert len(narrow) > 30
    assert upcast_on_use(twin.mid_block) == upcast_on_use(twin)
    assert not upcast_on_use(unet)
    assert not upcast_on_use(prepack(unet))
    unet.load_state_dict(narrow, strict=False, assign=True)
    answer = twin(x, T, COND)
    assert torch.equal(prepack(unet, copies=False)(x, T, COND), answer)
    torch.testing.assert_close(answer, unet.float()(x, T, COND), atol=1e-5, rtol=1e-5)


def test_what_has_a_way_of_its_own_is_not_converted(unet: UNet):
    ringed = upcast_on_use(prepack(circular_padding(unet, "both"), copies=False))
    assert "conv_in.weight" not in ringed
    assert "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight" in ringed


def test_a_feed_forward_block_goes_by_rows_where_there_are_many(monkeypatch: pytest.MonkeyPatch):
    block, x = FeedForward(8).requires_grad_(False), torch.randn(3, 7, 8)
    monkeypatch.setattr(prepack_module, "CONVERT_ELEMENTS", 1)
    monkeypatch.setattr(prepack_module, "FEW_ROWS", 4)
    seen: list[int] = []
    block.net[2].register_forward_hook(lambda _module, _given, answer: seen.append(len(answer)))
    torch.testing.assert_close(prepack(block)(x), block(x), atol=1e-6, rtol=1e-6)
    assert seen == [4, 4, 4, 4, 4, 1, 3]


def test_inference_mode_draws_the_same_picture(tiny_model: LatentDiffusion):
    outside = daguerre.generate(tiny_model, prompt="a red circle", steps=2)[0]
    with torch.inference_mode():
        inside = daguerre.generate(tiny_model, prompt="a red circle", steps=2)[0]
    assert inside.image.tobytes() == outside.image.tobytes()
