"""Saved first stages and priors load identically, and diffusers opens the first stages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceKL
from diffusers.models.autoencoders.vq_model import VQModel as ReferenceVQ
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.weights import load_first_stage, load_prior, save_first_stage, save_prior
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_json, save_json
from tests.tolerance import NETWORK_TERMS, assert_rounded
from tests.weights import checkpoints

VQ = VQModelConfig(
    QuantizerConfig(16, 6), latent_channels=8, channels=(32, 64), blocks=1, attention_levels=(1,), norm_groups=8, scaling_factor=0.5
)
KL = AutoencoderKLConfig(channels=(32, 64), blocks=1, quant_conv=False, post_quant_conv=False, scaling_factor=0.7, shift_factor=0.1)


def random_image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def vq(config: VQModelConfig = VQ, seed: int = 0) -> VQModel:
    torch.manual_seed(seed)
    return VQModel(config).eval()


@pytest.mark.parametrize("kind", ["nearest", "ema", "gumbel"])
def test_a_saved_codebook_gives_the_same_codes_and_continues_to_train(tmp_path: Path, kind):
    network = vq(replace(VQ, quantizer=QuantizerConfig(16, 6, kind, "legacy", dead_code_threshold=0.0 if kind == "gumbel" else 0.1)))
    loaded = load_first_stage(save_first_stage(network, tmp_path / "vq", 32))
    assert isinstance(loaded, VQModel)
    assert loaded.config == network.config
    x = random_image(2, 3, 32, 32)
    codes = network.encode_codes(x)
    assert torch.equal(loaded.encode_codes(x), codes)
    assert torch.equal(loaded.decode_codes(codes), network.decode_codes(codes))
    assert network_hash(loaded) == network_hash(network)
    assert torch.isfinite(loaded.train()(x).loss)


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_diffusers_opens_a_codebook(tmp_path: Path, kind):
    network = vq(replace(VQ, quantizer=QuantizerConfig(16, 6, kind)))
    reference: Any = ReferenceVQ.from_pretrained(save_first_stage(network, tmp_path / "vq", 32))
    x = random_image(1, 3, 32, 32)
    with torch.no_grad():
        h = reference.encode(x).latents
        assert_rounded(h * network.config.scaling_factor, network.encode(x), NETWORK_TERMS)
        assert_rounded(reference.decode(h).sample, network.decode(network.encode(x)), NETWORK_TERMS)
    assert reference.config.sample_size == 32
    assert reference.config.scaling_factor == 0.5


def test_a_vq_model_saved_by_diffusers_opens(tmp_path: Path):
    torch.manual_seed(0)
    reference: Any = ReferenceVQ(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        num_vq_embeddings=32,
        vq_embed_dim=4,
    )
    reference.save_pretrained(tmp_path)
    network = load_first_stage(tmp_path)
    assert isinstance(network, VQModel)
    x = random_image(1, 3, 32, 32)
    with torch.no_grad():
        assert_rounded(reference(x).sample, network.decode(network.encode(x)), NETWORK_TERMS)


def test_a_saved_kl_autoencoder_loads_identically_and_opens_in_diffusers(tmp_path: Path):
    torch.manual_seed(0)
    network = AutoencoderKL(KL).eval()
    folder = save_first_stage(network, tmp_path / "kl", 32)
    loaded = load_first_stage(folder)
    reference: Any = ReferenceKL.from_pretrained(folder)
    assert loaded.config == KL
    x = random_image(1, 3, 32, 32)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        assert_rounded(loaded.encode(x), network.encode(x), NETWORK_TERMS)  # another memory layout
        assert_rounded(reference.encode(x).latent_dist.mean, network.posterior(x).mean, NETWORK_TERMS)


def test_load_first_stage_opens_published_files(tmp_path: Path):
    vq_model = load_first_stage(checkpoints.write(tmp_path / "vq.safetensors", checkpoints.vq_model(prefix="")))
    kl = load_first_stage(checkpoints.write(tmp_path / "kl.safetensors", checkpoints.autoencoder(prefix="")))
    whole = load_first_stage(checkpoints.write(tmp_path / "sd1.safetensors", checkpoints.sd1()))
    assert isinstance(vq_model, VQModel)
    assert vq_model.config.scaling_factor == 1
    assert isinstance(kl, AutoencoderKL)
    assert network_hash(kl) == network_hash(whole)


def test_wrong_folders_and_configs_are_rejected(tmp_path: Path):
    with pytest.raises(DaguerreError, match="is not a first stage"):
        load_first_stage(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("text")
    with pytest.raises(DaguerreError, match="not overwritten"):
        save_first_stage(vq(), tmp_path / "full")
    folder = save_first_stage(vq(), tmp_path / "vq")
    given = read_json(folder / "config.json")
    for change, message in (({"_class_name": "UNet2DModel"}, "holds a UNet2DModel"), ({"norm_type": "spatial"}, "norm_type"),
                          ({"_quantizer": {"speed": 1}}, "sets speed"), ({"num_vq_embeddings": 17}, "of another shape")):  # fmt: skip
        save_json(folder / "config.json", {**given, **change})
        with pytest.raises(DaguerreError, match=message):
            load_first_stage(folder)


PRIORS = (
    TransformerPrior(TransformerPriorConfig(codes=16, condition_codes=3, length=17, grid=(4, 4), width=32, layers=2, heads=2)),
    PixelCNN(PixelCNNConfig(codes=16, width=16, layers=2, classes=3)),
    PixelSNAIL(PixelSNAILConfig(codes=16, width=16, blocks=1, layers=1, heads=2, key_width=8, classes=3)),
)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_a_saved_prior_opens_only_with_its_own_first_stage(tmp_path: Path, prior):
    first_stage = vq()
    folder = save_prior(prior.eval(), tmp_path / "prior", first_stage)
    loaded = load_prior(folder, first_stage)
    assert type(loaded) is type(prior)
    assert loaded.config == prior.config
    codes, label = torch.randint(16, (2, 4, 4)), torch.tensor([[1], [2]])
    with torch.no_grad():
        assert torch.equal(loaded(codes, label), prior(codes, label))
    with pytest.raises(DaguerreError, match="codes of another first stage"):
        load_prior(folder, vq(seed=1))
    save_json(folder / "config.json", {**read_json(folder / "config.json"), "_class_name": "Gibbon"})
    with pytest.raises(DaguerreError, match="'Gibbon'; supported are 'TransformerPrior'"):
        load_prior(folder, first_stage)
