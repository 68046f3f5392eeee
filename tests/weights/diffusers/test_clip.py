"""A saved CLIP opens here and in transformers with the same embeddings."""

from pathlib import Path

import pytest
import torch
import transformers

from daguerre.conditioning import train_tokenizer
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from daguerre.weights import load_clip, save_clip
from tests.tolerance import NETWORK_TERMS, assert_rounded


def test_a_saved_clip_loads_identically_and_matches_transformers(tmp_path: Path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red apple", "a blue apple"] * 4, vocab_size=560, max_length=12)
    text = CLIPTextConfig(len(tokenizer), length=12, width=32, layers=2, heads=2, mlp_width=64, projection=24, eos=tokenizer.eos)
    vision = CLIPVisionConfig(size=16, patch=8, width=32, layers=2, heads=2, mlp_width=64, projection=24)
    clip = CLIP(CLIPConfig(text, vision)).eval()
    folder = save_clip(clip, tokenizer, tmp_path / "clip")

    loaded, loaded_tokenizer = load_clip(folder)
    assert loaded.config == clip.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in clip.state_dict().items())
    assert loaded_tokenizer.vocab == tokenizer.vocab

    ids, x = tokenizer(["a red apple", "a blue"]), torch.randn(3, 3, 16, 16)
    reference = transformers.CLIPModel.from_pretrained(folder)(input_ids=ids, pixel_values=x)
    assert_rounded(reference.logits_per_text, loaded(ids, x).logits, NETWORK_TERMS)

    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(DaguerreError, match="cut short"):
        load_clip(folder)
