"""Training images of a folder: the validation part, latents of several sizes, and options that rendered images do not have."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.training.config import LoopConfig
from daguerre.training.datasets.images import open_training_images, validation_batches
from daguerre.training.datasets.latents import CachedLatents, FolderEncoder, one_size_batches
from daguerre.training.options.images import BucketedTrainingImageOptions, TrainingImageOptions

SHAPE = {"latent_channels": 2, "channels": (4, 4), "blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 2}
LOOP = LoopConfig(batch_size=3, workers=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 square images, 8 wide and 4 tall ones, each of its own colour."""
    (tmp_path / "images").mkdir()
    for i in range(24):
        size = (16, 16) if i < 12 else (32, 16) if i < 20 else (16, 32)
        Image.new("RGB", size, (10 * i, 0, 99)).save(tmp_path / "images" / f"{i:02d}.png")
        (tmp_path / "images" / f"{i:02d}.txt").write_text(f"colour {i}")
    return tmp_path / "images"


@torch.no_grad()
def test_latents_of_buckets_are_cached_and_batched(folder: Path, tmp_path: Path):
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(AutoencoderKLConfig(**SHAPE)).eval()
    options = BucketedTrainingImageOptions(crop="bucket", validation_fraction=0.3)
    images = open_training_images(str(folder), 16, options, captioned=True, bucket_step=4)
    encode = FolderEncoder(autoencoder, tmp_path / "cache", LOOP)
    latents, captions = encode(images.trained, 2)
    assert len(latents) == len(captions) == 2 * len(images.trained)
    assert len({z.shape for z in latents}) == 3
    assert sorted(captions) == sorted(2 * [item.caption for item in images.trained.items])
    for z, caption in zip(latents, captions, strict=True):  # each latent is that of its caption's image
        x = torch.tensor([10 * int(caption.split()[1]), 0, 99]).view(1, 3, 1, 1) / 127.5 - 1
        expected = autoencoder.encode(x.expand(-1, -1, z.shape[1] * 2, z.shape[2] * 2))[0]
        assert torch.allclose(z.float(), expected, atol=2**-9 * (1 + float(expected.abs().max())))  # float16 has 11 bits
    batches = CachedLatents(latents, captions, 4, seed=1)
    seen = [batches.batch(step) for step in range(len(latents))]
    assert len({tuple(batch.x.shape) for batch in seen}) == 3
    counts = {caption: sum(batch.captions.count(caption) for batch in seen) for caption in captions}
    assert set(counts.values()) == {8}  # two latents, four times each
    files = {path.name for path in (tmp_path / "cache").iterdir()}
    encode(images.trained, 2)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == files
    assert images.held_out is not None
    held_out = one_size_batches(*encode(images.held_out, 1), 3)
    assert sorted(c for batch in held_out for c in batch.captions) == sorted(item.caption for item in images.held_out.items)
    assert all(batch.latent and len(batch) <= 3 for batch in held_out)


def test_validation_batches_have_every_image_once(folder: Path):
    options = BucketedTrainingImageOptions(crop="bucket", validation_fraction=0.4)
    images = open_training_images(str(folder), 16, options, captioned=True, bucket_step=4)
    batches = validation_batches(images, 3, seed=2)
    assert images.held_out is not None
    first, second = list(batches), list(batches)
    assert sorted(c for batch in first for c in batch.captions) == sorted(item.caption for item in images.held_out.items)
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))
    assert not {c for batch in first for c in batch.captions} & {item.caption for item in images.trained.items}
    assert validation_batches(open_training_images(str(folder), 16, TrainingImageOptions()), 3, 0) == ()


def test_rendered_images_have_no_folder_options():
    assert open_training_images("shapes", 16, TrainingImageOptions()).held_out is None
    for options in (TrainingImageOptions(mirror=True), TrainingImageOptions(validation_fraction=0.1), TrainingImageOptions(crop="pad")):
        with pytest.raises(DaguerreError, match="apply to image files"):
            open_training_images("shapes", 16, options)
    with pytest.raises(DaguerreError, match=r"validation_fraction is 1; it must be at least 0 and below 1"):
        TrainingImageOptions(validation_fraction=1)
