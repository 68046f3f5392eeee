"""Emoji that show one face each and differ clearly, with their names as captions: few enough for a model of pixels that trains on a CPU."""

import numpy as np

from daguerre.data.dataset import Sample, Subset
from daguerre.data.emoji.dataset import EmojiDataset, EmojiScene, PlacedThing

FACES = (
    "dog face", "cat face", "tiger face", "cow face", "pig face", "mouse face", "rabbit face", "fox", "lion", "unicorn", "bear", "koala",
    "panda", "frog", "monkey face", "chicken", "skull", "robot", "alien", "clown face", "ghost", "pile of poo", "smiling face with horns",
    "grinning face with big eyes", "smiling face with sunglasses", "smiling face with heart-eyes", "face with tears of joy",
    "enraged face", "nauseated face", "cold face", "cowboy hat face", "face with medical mask",
)  # fmt: skip
_VERSION = 1  # increase it when the same (index, rng) gives another sample


def emoji_faces(size: int) -> Subset:
    """Faces on white, one index for each, slightly moved and scaled, half of them mirrored. Raises DaguerreError for sizes under 16."""
    emoji = EmojiDataset(size)

    def sample(index: int, rng: np.random.Generator) -> Sample:
        thing, side = emoji.things[index], rng.uniform(0.88, 0.98)
        free = (1 - side) / 2
        x, y = 0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-free, free)
        placed = PlacedThing(thing, x, y, side, mirrored=thing.mirrorable and bool(rng.random() < 0.5))
        return Sample(emoji.render(EmojiScene("single", (placed,), thing.name)), thing.name)

    return Subset(size, f"faces {_VERSION} of {emoji.key}", sample, [thing.index for thing in emoji.things if thing.name in FACES])
