"""The vector-quantised autoencoder against the original's output and diffusers' class, and as a first stage of diffusion."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from daguerre.errors import DaguerreError
from daguerre.models import vq_model
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.weights.original.key_map import KeyTable, autoencoder_rules
from tests.models.test_goldens import named, read
from tests.tolerance import NETWORK_TERMS, assert_rounded

TINY = VQModelConfig(
    QuantizerConfig(codes=12, width=4), latent_channels=6, channels=(8, 16), blocks=1, attention_levels=(1,), norm_groups=4
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny(seed: int = 0, config: VQModelConfig = TINY) -> VQModel:
    torch.manual_seed(seed)
    model = VQModel(config)
    torch.nn.init.normal_(model.quantize.get_parameter("embedding.weight"), std=0.3)  # codes far enough apart to matter
    return model.eval()


def test_the_vqgan_gives_the_original_codes_and_image():
    weights, io, original = read("taming_vqgan_tiny")
    shape = original["ddconfig"]
    sides = [shape["resolution"] // 2**level for level in range(len(shape["ch_mult"]))]
    config = VQModelConfig(
        # The original's loss has β on the other term.
        QuantizerConfig(original["n_embed"], original["embed_dim"], beta=original["beta"], loss="legacy"),
        latent_channels=shape["z_channels"],
        channels=tuple(shape["ch"] * m for m in shape["ch_mult"]),
        blocks=shape["num_res_blocks"],
        attention_levels=tuple(level for level, side in enumerate(sides) if side in shape["attn_resolutions"]),
    )
    model = VQModel(config).eval()
    model.load_state_dict(named(weights, "", KeyTable(autoencoder_rules(len(config.channels), config.blocks + 1))), strict=True)
    with torch.no_grad():
        h = model.encode(io["x"])
        torch.testing.assert_close(h, io["h"], rtol=0, atol=1e-5)
        assert torch.equal(model.encode_codes(io["x"]), io["indices"])
        quantized = model.quantize(h)
        torch.testing.assert_close(quantized.z, io["z_q"], rtol=0, atol=1e-5)
        torch.testing.assert_close(quantized.loss, io["codebook_loss"][0], rtol=1e-5, atol=0)
        torch.testing.assert_close(model.decode_codes(io["indices"]), io["decoded"], rtol=0, atol=1e-5)


def test_output_and_gradients_equal_the_reference():
    # Its class, too, keeps the original's slip about β.
    model = tiny(config=replace(TINY, quantizer=replace(TINY.quantizer, loss="legacy")))
    reference = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=6,
        num_vq_embeddings=12,
        norm_num_groups=4,
        vq_embed_dim=4,
    )
    reference.load_state_dict(model.state_dict(), strict=True)
    x, x_reference = (noise(2, 3, 16, 16).requires_grad_() for _ in range(2))
    out, expected = model(x), reference(x_reference)
    torch.testing.assert_close(out.x, expected.sample, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.loss, expected.commit_loss.mean(), rtol=1e-5, atol=1e-7)
    assert len(out.codes.unique()) > 3
    (out.x.square().mean() + out.loss).backward()
    (expected.sample.square().mean() + expected.commit_loss.mean()).backward()
    assert x.grad is not None
    assert x_reference.grad is not None
    assert_rounded(x.grad, x_reference.grad, NETWORK_TERMS)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_codes_are_the_same_after_save_and_load(tmp_path: Path):
    model, x = tiny(), noise(3, 3, 16, 16, seed=1)
    save_file(model.state_dict(), tmp_path / "vq.safetensors")
    loaded = tiny(seed=5)
    loaded.load_state_dict(load_file(tmp_path / "vq.safetensors"), strict=True)
    with torch.no_grad():
        assert torch.equal(model.encode_codes(x), loaded.encode_codes(x))
        torch.testing.assert_close(model.decode_codes(model.encode_codes(x)), model(x).x, rtol=0, atol=0)


def test_decode_quantizes_continuous_latents():
    model, x = tiny(config=replace(TINY, scaling_factor=0.5)), noise(1, 3, 16, 16, seed=1)
    with torch.no_grad():
        z = model.encode(x)
        codes = model.encode_codes(x)
        torch.testing.assert_close(model.decode(z), model.decode_codes(codes), rtol=0, atol=0)
        torch.testing.assert_close(model.quantize.nearest(2 * z), codes, rtol=0, atol=0)
    assert model.downsample_factor == 2


def test_rejects_image_sides_that_are_not_multiples_of_f():
    with pytest.raises(DaguerreError, match=r"18×15.*multiples of 2"):
        tiny().encode_codes(torch.zeros(1, 3, 15, 18))


@pytest.mark.parametrize(
    ("preset", "millions"),
    # VQ-f4 as in diffusers' copy of the published weights; f16 as in the manifest of the faces model.
    [("VQ_F4", 55.3), ("VQGAN_F16_1024", None)],
)
def test_presets_have_the_published_sizes(preset: str, millions: float | None):
    with torch.device("meta"):
        model = VQModel(getattr(vq_model, preset))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    expected = millions or published_parameters("taming_faceshq_vqgan")
    assert count == pytest.approx(expected, abs=0.05)


def published_parameters(manifest: str) -> float:
    path = Path(__file__).parents[1] / "fixtures" / "manifests" / f"{manifest}.json"
    shapes = json.loads(path.read_text())
    return sum(torch.Size(shape).numel() for name, (shape, _) in shapes.items() if not name.startswith("loss.")) / 1e6
