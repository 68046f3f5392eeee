"""Metrics of images, of sets of images, and of images with texts. They take tensors, so any feature network can be used.

`images` compares image pairs, `distributions` sets of images, `retrieval` images with texts, `neighbours` generated with training images;
`codecs` compresses images with JPEG and WebP as a baseline; `intervals` gives confidence intervals.
"""

from daguerre.metrics.distributions import KID, ClassSums, Gaussian, Moments, frechet, frechet_distance, kernel_distance, squared_mmd
from daguerre.metrics.images import psnr, ssim
from daguerre.metrics.intervals import Interval, bootstrap, proportion
from daguerre.metrics.neighbours import Copying, Neighbours, copying, nearest_neighbours, precision_recall
from daguerre.metrics.retrieval import clip_score, cosine, ranks, recall_at

__all__ = [
    "KID", "ClassSums", "Copying", "Gaussian", "Interval", "Moments", "Neighbours", "bootstrap", "clip_score", "copying", "cosine",
    "frechet", "frechet_distance", "kernel_distance", "nearest_neighbours", "precision_recall", "proportion", "psnr", "ranks",
    "recall_at", "squared_mmd", "ssim",
]  # fmt: skip
