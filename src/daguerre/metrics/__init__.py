"""Measures of images, of sets of images, and of images with their texts. They see tensors alone: any feature network will do.

`images` compares an image with an image, `distributions` a set with a set, `retrieval` images with texts, `neighbours` generated
images with training images, `codecs` gives JPEG and WebP of a given size to compare with, and `intervals` says how sure each number is.
"""

from daguerre.metrics.distributions import (
    KID,
    Gaussian,
    features_of,
    frechet,
    frechet_distance,
    kernel_distance,
    split_half_distance,
    squared_mmd,
)
from daguerre.metrics.images import psnr, ssim
from daguerre.metrics.intervals import Interval, bootstrap, proportion
from daguerre.metrics.neighbours import Copying, Neighbours, copying, nearest_neighbours
from daguerre.metrics.retrieval import clip_score, cosine, ranks, recall_at

__all__ = [
    "KID",
    "Copying",
    "Gaussian",
    "Interval",
    "Neighbours",
    "bootstrap",
    "clip_score",
    "copying",
    "cosine",
    "features_of",
    "frechet",
    "frechet_distance",
    "kernel_distance",
    "nearest_neighbours",
    "proportion",
    "psnr",
    "ranks",
    "recall_at",
    "split_half_distance",
    "squared_mmd",
    "ssim",
]
