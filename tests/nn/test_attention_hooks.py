"""Capturing attention gives queries, keys and the size of the feature map, and changes no result."""

from dataclasses import replace

import torch

from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.attention_hooks import capture_cross_attention, capture_self_attention

CONFIG = UNetConfig(channels=(16, 32), blocks=1, depth=(1, 2), heads=(2, 4), context_width=12, norm_groups=4, cross_only_levels=(0,))


def test_every_cross_attention_is_captured_once_and_results_stay_equal():
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval()
    torch.nn.init.normal_(unet.conv_out.weight)
    x, t, cond = torch.randn(2, 4, 6, 10), torch.tensor([3.0, 700.0]), Conditioning(torch.randn(2, 5, 12))
    captured = []
    with torch.no_grad():
        before = unet(x, t, cond)
        with capture_cross_attention(unet, lambda size, q, k: captured.append((size, tuple(q.shape), tuple(k.shape)))):
            during = unet(x, t, cond)
        after = unet(x, t, cond)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    # Each level has 1 + 2 transformers of one or two blocks; at level 0 both attentions of a block are cross-attention.
    fine, coarse = ((6, 10), (2, 2, 60, 8), (2, 2, 5, 8)), ((3, 5), (2, 4, 15, 8), (2, 4, 5, 8))
    middle = [coarse]
    assert captured == [*[fine] * 2, *[coarse] * 2, *middle, *[coarse] * 4, *[fine] * 4]


def test_every_self_attention_is_captured_once_with_and_without_a_context():
    x, t, cond = torch.randn(2, 4, 6, 10), torch.tensor([3.0, 700.0]), Conditioning(torch.randn(2, 5, 12))
    fine, coarse = ((6, 10), (2, 2, 60, 8), (2, 2, 60, 8)), ((3, 5), (2, 4, 15, 8), (2, 4, 15, 8))
    plain = replace(CONFIG, context_width=None, depth=(1, 1), cross_only_levels=())
    for config, expected in (
        (CONFIG, [*[coarse] * 2, coarse, *[coarse] * 4]),  # at level 0 both attentions of a block are cross-attention
        (plain, [fine, coarse, coarse, *[coarse] * 2, *[fine] * 2]),
    ):
        torch.manual_seed(0)
        unet = UNet(config).eval()
        torch.nn.init.normal_(unet.conv_out.weight)
        captured = []
        with torch.no_grad():
            before = unet(x, t, cond)
            with capture_self_attention(unet, lambda size, q, k, found=captured: found.append((size, tuple(q.shape), tuple(k.shape)))):
                during = unet(x, t, cond)
        assert torch.equal(before, during)
        assert captured == expected
