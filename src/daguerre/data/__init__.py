"""Pictures and captions in, batches out; the order is a pure function of (seed, step). Knows nothing of models."""

from daguerre.data.dataset import Sample, Source, held_out
from daguerre.data.emoji.dataset import EmojiMix, EmojiSource
from daguerre.data.folder import FolderSource
from daguerre.data.images import fit, open_picture
from daguerre.data.loader import Batch, Batches
from daguerre.data.shapes import ShapesMix, ShapesSource

__all__ = [
    "Batch",
    "Batches",
    "EmojiMix",
    "EmojiSource",
    "FolderSource",
    "Sample",
    "ShapesMix",
    "ShapesSource",
    "Source",
    "fit",
    "held_out",
    "open_picture",
]
