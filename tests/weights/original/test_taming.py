"""Published files of VQGANs and their transformers open with the right prefix and give the outputs of the originals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import daguerre
from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, LayoutPrefix, MapPrefix
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.latent_prior import LatentPrior, PriorInputs
from daguerre.models.transformer_prior import TransformerPriorConfig, coordinate_codes
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.tasks import MapToImage
from daguerre.weights import load_first_stage
from daguerre.weights.inspect import inspect
from tests.tolerance import NETWORK_TERMS, assert_rounded
from tests.weights import checkpoints

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"
GPT = TransformerPriorConfig(codes=16, length=512, width=64, layers=1, heads=1)
DEPTH = {"cond_stage_model." + name: tensor + 0.01 for name, tensor in checkpoints.vq_model("").items()}
MAPS = replace(checkpoints.VQ_MODEL, in_channels=5, out_channels=5)


def opened(folder: Path, **tensors: Tensor) -> LatentPrior:
    path = checkpoints.write(folder / "model.safetensors", checkpoints.vq_model() | tensors)
    report = inspect(path)
    assert not report.unmatched_keys + report.missing_keys + report.wrong_shapes
    model = daguerre.load(path, device="cpu")
    assert isinstance(model, LatentPrior)
    assert (model.sample_size, model.name) == (32, "model")
    return model


def test_a_transformer_with_a_coordinate_prefix_opens(tmp_path: Path):
    model = opened(tmp_path, **checkpoints.gpt(GPT))
    assert isinstance(model.prefix, CoordinatePrefix)
    coordinates = model.prefix(PriorInputs([""], (16, 16)))
    assert torch.equal(coordinates, coordinate_codes(32, 32, codes=16, downsample_factor=2).clamp(max=15))
    (generated,) = daguerre.generate(model, seed=1, temperature=0.5)
    assert generated.image.size == (32, 32)


def test_a_transformer_with_a_class_prefix_opens(tmp_path: Path):
    model = opened(tmp_path, **checkpoints.gpt(replace(GPT, length=256)))
    assert isinstance(model.prefix, ClassPrefix)
    assert model.prefix(PriorInputs(["3"], (16, 16))).tolist() == [[3]]
    first, second = (daguerre.generate(model, prompt="3", seed=1)[0].image.tobytes() for _ in range(2))
    assert first == second
    with pytest.raises(DaguerreError, match="Unknown class '16'"):
        daguerre.generate(model, prompt="16")


def test_a_transformer_with_a_bounding_box_prefix_opens(tmp_path: Path):
    model = opened(tmp_path, **checkpoints.gpt(replace(GPT, length=256 + 92)))
    assert isinstance(model.prefix, LayoutPrefix)
    (row,) = model.prefix(PriorInputs(["3 0 0 0.5 1; 7 0.4 0 1 0.3"], (16, 16))).tolist()
    # 16 tokens are a grid of 4×4 positions in row-major order; 15 is no object; the crop is the whole image.
    assert row == [3, 0, 2 + 3 * 4, 7, 1, 3 + 1 * 4, *[15] * 84, 0, 15]
    (generated,) = daguerre.generate(model, prompt="3 0 0 0.5 1", seed=1)
    assert generated.image.size == (32, 32)
    loaded = daguerre.load(daguerre.save(model, tmp_path / "folder"), device="cpu")
    assert daguerre.generate(loaded, prompt="3 0 0 0.5 1", seed=1)[0].image.tobytes() == generated.image.tobytes()
    with pytest.raises(DaguerreError, match="not an object of a layout"):
        daguerre.generate(model, prompt="a fox")
    with pytest.raises(DaguerreError, match="31 objects; this model allows at most 30"):
        daguerre.generate(model, prompt=";".join(["3 0 0 1 1"] * 31))


def test_a_transformer_with_a_depth_map_prefix_opens(tmp_path: Path):
    model = opened(tmp_path, **checkpoints.gpt(GPT), **DEPTH)
    assert isinstance(model.prefix, MapPrefix)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(model.prefix(PriorInputs([""], (16, 16), x)), model.prefix.autoencoder.encode_codes(x))
    assert not torch.equal(model.prefix.autoencoder.quantize.embedding.weight, model.autoencoder.quantize.embedding.weight)
    with pytest.raises(DaguerreError, match=r"needs a condition map \(depth\)"):
        daguerre.generate(model)


def test_a_transformer_with_a_class_map_prefix_opens(tmp_path: Path):
    colours = {"cond_stage_model.colorize": torch.randn(3, 5, 1, 1)}  # only for display
    model = opened(tmp_path, **checkpoints.gpt(GPT), **checkpoints.vq_model("cond_stage_model.", MAPS), **colours)
    assert isinstance(model.prefix, MapPrefix)
    classes = np.random.default_rng(0).integers(0, 5, (32, 32), dtype=np.uint8)
    grey = torch.from_numpy(classes).expand(3, 32, 32)[None] / 127.5 - 1
    shares = F.one_hot(torch.from_numpy(classes).long()).movedim(-1, 0)[None].float()
    assert torch.equal(model.prefix(PriorInputs([""], (16, 16), grey)), model.prefix.autoencoder.encode_codes(shares))
    (generated,) = daguerre.generate(model, task=MapToImage(Image.fromarray(classes)), seed=1)
    assert generated.image.size == (32, 32)
    with pytest.raises(DaguerreError, match="class numbers from 0 to 4"):
        daguerre.generate(model, task=MapToImage(Image.fromarray(classes + 1)))


def test_missing_parts_and_unknown_prefixes_are_reported(tmp_path: Path):
    path = checkpoints.write(tmp_path / "a.safetensors", checkpoints.gpt(GPT))
    with pytest.raises(DaguerreError, match=r"holds only transformer; .* also has vae"):
        daguerre.load(path)
    path = checkpoints.write(tmp_path / "b.safetensors", checkpoints.vq_model() | checkpoints.gpt(replace(GPT, length=300)))
    with pytest.raises(DaguerreError, match="length 300 for 256 codes"):
        daguerre.load(path)
    path = checkpoints.write(tmp_path / "c.safetensors", checkpoints.autoencoder() | checkpoints.gpt(GPT))
    with pytest.raises(DaguerreError, match="without a codebook"):
        daguerre.load(path)


# Outputs of the originals, through `load_first_stage`.


def published(name: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    outputs = {key.removeprefix("io."): tensors.pop(key) for key in list(tensors) if key.startswith("io.")}
    return checkpoints.write(folder / f"{name}.safetensors", tensors), outputs


@torch.no_grad()
def test_the_vqgan_matches_the_original_implementation(tmp_path: Path):
    path, io = published("taming_vqgan_tiny", tmp_path)
    network = load_first_stage(path)
    assert isinstance(network, VQModel)
    assert torch.equal(network.encode_codes(io["x"]), io["indices"].long())
    assert_rounded(network.encode(io["x"]), io["h"], NETWORK_TERMS)
    assert_rounded(network.decode_codes(io["indices"].long()), io["decoded"], NETWORK_TERMS)


@torch.no_grad()
def test_the_kl_autoencoder_matches_the_original_implementation(tmp_path: Path):
    path, io = published("ldm_kl_autoencoder_tiny", tmp_path)
    network = load_first_stage(path, scaling_factor=1.0)
    assert isinstance(network, AutoencoderKL)
    posterior = network.posterior(io["x"])
    assert_rounded(torch.cat([posterior.mean, posterior.logvar], dim=1), io["moments"], NETWORK_TERMS)
    assert_rounded(network.decode(io["z"]), io["decoded"], NETWORK_TERMS)
