"""TAESD: the networks of diffusers' `AutoencoderTiny` in all namings, `--vae`, and the previews of a model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

import daguerre
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig, TinyDecoder, TinyEncoder
from daguerre.pipelines import stream
from daguerre.pipelines.decode import LatentDecoder
from daguerre.weights import identity
from daguerre.weights.tensors.safetensors import save_safetensors
from daguerre.weights.tiny_autoencoder import is_tiny_autoencoder, load_tiny_autoencoder, save_tiny_decoder
from tests.tolerance import NETWORK_TERMS, assert_rounded

CONFIG = TinyAutoencoderConfig(latent_channels=6, width=8, blocks=1, levels=2)  # of the tiny model: f = 4


@pytest.fixture(scope="module")
def peer() -> AutoencoderTiny:
    torch.manual_seed(0)
    channels, blocks = (8, 8, 8), (1, 1, 1)
    return AutoencoderTiny(
        latent_channels=6,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    ).eval()


def original(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one network of diffusers under TAESD's own names."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{part}.layers."):
            number, rest = name.removeprefix(f"{part}.layers.").split(".", 1)
            found[f"{int(number) + (part == 'decoder')}.{rest}"] = tensor
    return found


@pytest.mark.parametrize("naming", ["folder", "comfyui", "two files"])
def test_every_naming_gives_the_networks_of_diffusers(peer: AutoencoderTiny, tmp_path: Path, naming: str):
    tensors, path = peer.state_dict(), tmp_path / "taesd.safetensors"
    if naming == "folder":
        peer.save_pretrained(path := tmp_path / "taesd")
    elif naming == "comfyui":
        parts = {part: original(tensors, part) for part in ("encoder", "decoder")}
        save_safetensors(path, {f"taesd_{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()})
    else:
        save_safetensors(path, original(tensors, "decoder"))
    assert is_tiny_autoencoder(path)
    decoder, encoder = load_tiny_autoencoder(path)
    x, z = torch.randn(1, 3, 16, 24).clamp(-1, 1), 2 * torch.randn(1, 6, 4, 6)
    with torch.no_grad():
        assert_rounded(decoder(z), peer.decode(z).sample, NETWORK_TERMS)
        if naming == "two files":
            assert encoder is None
        else:
            assert encoder is not None
            assert_rounded(encoder.encode(x), peer.encode(x).latents, NETWORK_TERMS)


def test_the_published_networks_have_their_sizes():
    decoder, encoder = TinyDecoder(TinyAutoencoderConfig()), TinyEncoder(TinyAutoencoderConfig())
    assert [sum(p.numel() for p in network.parameters()) for network in (encoder, decoder)] == [1_222_532, 1_222_531]
    assert {"1.weight", "3.conv.0.weight", "3.conv.4.bias", "7.weight", "19.bias"} < set(decoder.state_dict())


def test_other_files_are_refused(peer: AutoencoderTiny, tmp_path: Path, tiny_model: LatentDiffusion):
    save_safetensors(tmp_path / "encoder.safetensors", original(peer.state_dict(), "encoder"))
    with pytest.raises(DaguerreError, match="has only the encoder"):
        load_tiny_autoencoder(tmp_path / "encoder.safetensors")
    save_safetensors(tmp_path / "short.safetensors", {"1.weight": torch.zeros(8, 6, 3, 3)})
    with pytest.raises(DaguerreError, match="10 missing"):
        load_tiny_autoencoder(tmp_path / "short.safetensors")
    peer.save_pretrained(folder := tmp_path / "taesd")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"relu"', '"silu"'))
    with pytest.raises(DaguerreError, match="act_fn"):
        load_tiny_autoencoder(folder)
    model = daguerre.save(tiny_model, tmp_path / "model")
    save_tiny_decoder(other := tmp_path / "other.safetensors", TinyDecoder(replace(CONFIG, latent_channels=4)))
    with pytest.raises(DaguerreError, match="has 4 latent channels"):
        daguerre.load(model, vae=other)


def test_a_decoder_alone_keeps_the_models_encoder(tiny_model: LatentDiffusion, tmp_path: Path):
    model = daguerre.save(tiny_model, tmp_path / "model")
    save_tiny_decoder(file := tmp_path / "quick.safetensors", TinyDecoder(CONFIG))
    loaded = daguerre.load(model, vae=file)
    assert isinstance(loaded.autoencoder, TinyAutoencoder)
    assert loaded.name == "model + quick"
    assert file in loaded.files
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_rounded(loaded.autoencoder.encode(x), tiny_model.autoencoder.encode(x), NETWORK_TERMS)
    step = list(stream(loaded, steps=1))[-1]
    assert step.images is not None
    assert step.preview().size == step.images[0].image.size == (32, 32)


def test_a_tiny_autoencoder_replaces_both_networks(peer: AutoencoderTiny, tiny_model: LatentDiffusion, tmp_path: Path):
    model = daguerre.save(tiny_model, tmp_path / "model")
    peer.save_pretrained(tmp_path / "taesd")
    for options in ({}, {"prediction": "v"}):  # a folder of diffusers, and the path of single files
        autoencoder = daguerre.load(model, vae=tmp_path / "taesd", **options).autoencoder
        assert isinstance(autoencoder, TinyAutoencoder)
        assert isinstance(autoencoder.encoder, TinyEncoder)


def test_the_tiny_decoder_of_a_folder_makes_its_previews(make_tiny_model: Callable[..., LatentDiffusion], tmp_path: Path):
    decoder, plain = TinyDecoder(CONFIG).eval(), make_tiny_model()
    model = daguerre.load(daguerre.save(replace(plain, preview_decoder=decoder), tmp_path / "with"))
    assert identity(model) == identity(daguerre.load(daguerre.save(plain, tmp_path / "without")))
    z = torch.randn(1, 6, 8, 8)
    with torch.no_grad():
        assert_rounded(LatentDecoder(model).preview(z), decoder(z), NETWORK_TERMS)
    step = list(stream(model, steps=1))[-1]
    assert step.preview().size == (32, 32)
    assert step.images is not None
    assert step.images[0].image.tobytes() != step.preview().tobytes()
