"""Pictures and captions in, batches out; the order is a pure function of (seed, step). Knows nothing of models."""

from daguerre.data.batches import Batch, Batches
from daguerre.data.emoji import EmojiMix, EmojiSource
from daguerre.data.folder import FolderSource
from daguerre.data.pictures import fit, open_picture
from daguerre.data.shape_trials import shape_trials
from daguerre.data.shapes import ShapesMix, ShapesSource
from daguerre.data.source import Sample, Source, held_out
from daguerre.data.trials import WHOLE, Box, Claim, Trial, held_out_trials, known_trials

__all__ = [
    "WHOLE",
    "Batch",
    "Batches",
    "Box",
    "Claim",
    "EmojiMix",
    "EmojiSource",
    "FolderSource",
    "Sample",
    "ShapesMix",
    "ShapesSource",
    "Source",
    "Trial",
    "fit",
    "held_out",
    "held_out_trials",
    "known_trials",
    "open_picture",
    "shape_trials",
]
