"""Cached codes equal the first stage's own and are read back instead of encoded again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from daguerre.data import BatchLoader, ShapesDataset
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.datasets.latents import cache_codes

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
