"""A small vocabulary and a text encoder with a few thousand weights."""

import pytest
import torch

from daguerre.conditioning.tokenizer import Tokenizer, train_tokenizer
from daguerre.models.clip import CLIPText, CLIPTextConfig

CAPTIONS = [
    f"{lead} {colour} {thing}{tail}"
    for lead in ("a", "one", "a picture of a", "an icon of the")
    for colour in ("red", "blue", "Green", "orange")
    for thing in ("apple", "pizza", "cat’s face", "flag: Côte d’Ivoire", "keycap: 10", "1st place medal", "🍎 emoji")
    for tail in ("", " on a white background", ", to the left of a house")
]


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """At most 700 tokens, 30 per chunk plus begin and end."""
    return train_tokenizer(CAPTIONS, 700, 32)


@pytest.fixture(scope="session")
def clip() -> Tokenizer:
    return Tokenizer.clip()


@pytest.fixture(scope="session")
def tower(small) -> CLIPText:
    """A text encoder for the small vocabulary, with every parameter moved from its initial value."""
    torch.manual_seed(0)
    config = CLIPTextConfig(len(small), length=32, width=32, layers=3, heads=2, mlp_width=64, projection=24, eos=small.eos)
    encoder = CLIPText(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder.requires_grad_(False).eval()
