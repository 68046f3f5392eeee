"""Datasets of images with captions, and a loader whose batches are a pure function of (seed, step)."""

from daguerre.data.dataset import Dataset, Sample, is_held_out
from daguerre.data.emoji.dataset import EmojiDataset, EmojiMix
from daguerre.data.folders.dataset import FolderDataset
from daguerre.data.images import open_image, resize_and_crop, to_image, to_tensor
from daguerre.data.loader import Batch, BatchLoader
from daguerre.data.shapes import ShapesDataset, ShapesMix

__all__ = [
    "Batch", "BatchLoader", "Dataset", "EmojiDataset", "EmojiMix", "FolderDataset", "Sample", "ShapesDataset", "ShapesMix",
    "is_held_out", "open_image", "resize_and_crop", "to_image", "to_tensor",
]  # fmt: skip
