"""Cached latents, codes and conditions equal the network's own, and are read back instead of encoded again until something changes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from daguerre.data import BatchLoader, FolderDataset, ShapesDataset
from daguerre.diffusion import Conditioning
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.config import LoopConfig
from daguerre.training.datasets import encoded
from daguerre.training.datasets import latents as latents_module
from daguerre.training.datasets.latents import CachedCaptions, CachedLatents, FolderEncoder, cache_codes, cache_latents
from daguerre.weights.tensors.safetensors import read_safetensors

CONFIG = VQModelConfig(
    QuantizerConfig(codes=40, width=4), latent_channels=4, channels=(8, 16), blocks=1, attention_levels=(), norm_groups=4
)


def first_stage(codes: int = 40) -> VQModel:
    torch.manual_seed(0)
    model = VQModel(replace(CONFIG, quantizer=QuantizerConfig(codes=codes, width=4)))
    torch.nn.init.normal_(model.quantize.get_parameter("embedding.weight"), std=0.3)
    return model.eval()


def test_cached_codes_and_captions_match_direct_encoding(tmp_path: Path):
    model, batches = first_stage(), BatchLoader(ShapesDataset(16), 4, seed=3)
    codes, captions = cache_codes(batches, model, 8, tmp_path, "key")
    expected = [batches.batch(step) for step in range(2)]
    with torch.no_grad():
        assert torch.equal(codes.long(), model.encode_codes(torch.cat([batch.x for batch in expected])))
    assert captions == expected[0].captions + expected[1].captions
    assert codes.dtype == torch.int16
    assert len(codes.unique()) > 2


def test_the_second_call_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, batches = first_stage(), BatchLoader(ShapesDataset(16), 4, seed=3)
    once = cache_codes(batches, model, 8, tmp_path, "key")
    monkeypatch.setattr(VQModel, "encode_codes", lambda *_: pytest.fail("encoded again"))
    again = cache_codes(batches, model, 8, tmp_path, "key")
    assert torch.equal(once[0], again[0])
    assert once[1] == again[1]


def test_a_large_codebook_uses_32_bit_codes(tmp_path: Path):
    model = first_stage(codes=40_000)
    codes, _ = cache_codes(BatchLoader(ShapesDataset(16), 2, seed=0), model, 2, tmp_path, "key")
    assert codes.dtype == torch.int32


def autoencoder(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(AutoencoderKLConfig(latent_channels=2, channels=(4, 8), blocks=1, mid_attention=False, norm_groups=2)).eval()


@torch.no_grad()
def test_an_encoding_that_was_killed_continues_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoded, "FILE_SAMPLES", 6)
    model, batches, calls = autoencoder(), BatchLoader(ShapesDataset(16), 3, seed=0), list[int]()

    def encode(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return model.encode(x)

    with pytest.raises(KeyboardInterrupt):
        cache_latents(batches, model, 14, tmp_path, "key", encode=encode)
    assert [path.name for path in sorted((tmp_path / "key-14-6").iterdir())] == ["000000.safetensors", "000001.safetensors"]
    latents, captions = cache_latents(batches, model, 14, tmp_path, "key", encode=encode)
    assert len(calls) == 5 + 1  # the last of five batches
    whole, same = cache_latents(batches, model, 14, tmp_path, "whole")
    assert torch.equal(latents.joined(), whole.joined())
    assert captions == same
    assert [len(block) for block in latents.blocks] == [6, 6, 3]
    expected = torch.cat([model.encode(batches.batch(step).x) for step in range(5)])  # without a cache
    assert torch.equal(whole.joined(), expected.half())
    assert torch.equal(torch.stack([whole[i] for i in range(15)]), torch.stack(list(whole)))
    assert [(len(whole.first(n)), torch.equal(whole.first(n).joined(), expected[:n].half())) for n in (1, 6, 13)] == [
        (1, True),
        (6, True),
        (13, True),
    ]
    assert whole.nbytes == expected.half().nbytes
    assert torch.equal(CachedLatents(whole, captions, 4, 1).batch(3).x, CachedLatents(expected.half(), captions, 4, 1).batch(3).x)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_named_and_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, damage: str):
    monkeypatch.setattr(encoded, "FILE_SAMPLES", 4)
    model, batches = autoencoder(), BatchLoader(ShapesDataset(16), 4, seed=0)
    once, captions = cache_latents(batches, model, 12, tmp_path, "key")
    before, file = once.joined(), tmp_path / "key-12-4" / "000001.safetensors"
    content = file.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    file.write_bytes({"flipped": flipped, "cut": content[:-30], "empty": b""}[damage])
    again, same = cache_latents(batches, model, 12, tmp_path, "key")
    assert capsys.readouterr().err.count(f"{file} is damaged; its images are encoded again\n") == 1
    assert torch.equal(before, again.joined())
    assert captions == same
    assert torch.equal(read_safetensors(file)["samples"], before[4:8])


def test_whatever_changes_the_latents_invalidates_them(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (26, 16), (9, len(name), 0)).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.txt").write_text(name)
    loop, found = LoopConfig(batch_size=2, log_every=1), set[str]()

    def encode_new(model: AutoencoderKL, loop: LoopConfig = loop, size: int = 16, **options: Any) -> int:
        """The number of new files."""
        before = len(found)
        FolderEncoder(model, tmp_path / "cache", loop)(FolderDataset(tmp_path / "images", size, **options), 1)
        found.update(str(path) for path in (tmp_path / "cache").rglob("*.safetensors"))
        return len(found) - before

    first = autoencoder()
    assert [encode_new(first), encode_new(first), encode_new(autoencoder())] == [1, 0, 0]  # equal weights
    assert encode_new(autoencoder(seed=1)) == 1
    assert [encode_new(first, crop="center"), encode_new(first, mirror=True), encode_new(first, size=8)] == [1, 1, 1]
    assert [encode_new(first, crop="bucket", bucket_step=4), encode_new(first, crop="bucket", bucket_step=8)] == [1, 1]
    assert encode_new(first, replace(loop, seed=1)) == 1
    (tmp_path / "images" / "a.txt").write_text("another caption")
    assert encode_new(first) == 1
    Image.new("RGB", (26, 16), "teal").save(tmp_path / "images" / "a.png")
    assert encode_new(first) == 1


def test_captions_above_the_limit_are_encoded_again(monkeypatch: pytest.MonkeyPatch):
    calls = list[str]()

    def encode(captions: Sequence[str]) -> Conditioning:
        calls.extend(captions)
        return Conditioning(context=torch.tensor([[[float(len(c))]] for c in captions]))

    monkeypatch.setattr(latents_module, "MAX_CAPTION_BYTES", 8)
    conditions = CachedCaptions(encode)
    for _ in range(2):
        context = conditions(["a", "bb", "ccc", "a", "ccc"]).context
        assert context is not None
        assert context.flatten().tolist() == [1, 2, 3, 1, 3]
    assert calls == ["a", "bb", "ccc", "ccc"]
