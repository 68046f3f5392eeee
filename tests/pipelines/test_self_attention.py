"""Self-attention maps of a position equal the formula, and recording changes nothing."""

import math

import pytest
import torch
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.attention import Attention, TransformerBlock
from daguerre.pipelines import Request, generate
from daguerre.pipelines.self_attention import record_self_attention


def test_a_map_is_the_mean_over_heads_layers_and_steps(tiny_model: LatentDiffusion):
    """Recomputed from the outputs of both projections of every layer: the row of softmax(QKᵀ/√d) of one position."""
    expected: dict[int, list[Tensor]] = {8: [], 4: []}
    layers = [block.attn1 for block in tiny_model.unet.modules() if isinstance(block, TransformerBlock)]
    queries: dict[Attention, Tensor] = {}
    hooks = []

    def keep(attention: Attention) -> None:
        def hook(_to_k, _inputs, k: Tensor) -> None:
            q, k = (y[:1].unflatten(-1, (attention.heads, -1)).transpose(1, 2).double() for y in (queries[attention], k))
            weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1).mean(1)[0]  # (H·W, H·W) of the prompt's row
            side = math.isqrt(len(weights))
            index = 13 * side // 32 * side + 21 * side // 32  # position (21, 13) of 32×32 pixels
            expected[side].append(weights[index].reshape(side, side))

        hooks.append(attention.to_q.register_forward_hook(lambda _to_q, _inputs, q: queries.update({attention: q})))
        hooks.append(attention.to_k.register_forward_hook(hook))

    for layer in layers:
        keep(layer)
    request = Request(prompt="a red apple", steps=3)
    try:
        with record_self_attention(tiny_model, (21, 13), (32, 32)) as record:
            images = generate(tiny_model, request)
    finally:
        for hook in hooks:
            hook.remove()
    mean, *single = record.maps()
    assert [each.text for each in (mean, *single)] == ["all layers", "8×8 map", "4×4 map"]
    assert [len(kept) for kept in expected.values()] == [3 * (len(layers) - 1), 3]  # the middle block has one layer, on 4×4 positions
    for found, kept in zip(single, expected.values(), strict=True):
        # The logits are sums of 32 products in float32, at most 8 here; an error δ of a logit changes its weight by the factor e^δ.
        assert (found.heatmap - torch.stack(kept).mean(0)).abs().max() < 32 * 8 * 2**-24
    assert mean.heatmap.sum().item() == pytest.approx(1, abs=64 * 2**-24)
    assert images[0].image.tobytes() == generate(tiny_model, request)[0].image.tobytes()


def test_each_image_of_a_batch_has_its_own_map(tiny_model: LatentDiffusion):
    with record_self_attention(tiny_model, (0, 31), (32, 32)) as record:
        generate(tiny_model, ["a red apple", "two cats"], steps=2)
    assert not torch.equal(record.maps(0)[1].heatmap, record.maps(1)[1].heatmap)
    assert record.maps(2) == []


def test_a_position_outside_is_refused(tiny_model: LatentDiffusion):
    with (
        pytest.raises(DaguerreError, match="outside the image: x is 0 to 31, y is 0 to 15"),
        record_self_attention(tiny_model, (3, 16), (32, 16)),
    ):
        pass
