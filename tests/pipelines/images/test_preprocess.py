"""Masks of every kind, feathering, interpolated noise, and samplers with an exact first step."""

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre import Request
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.context import GenerationContext, slerp
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.images.preprocess import composite, feather, latent_mask, mask_bbox, padded_area, prepare_mask

PICTURE = InputImage.from_any(Image.new("RGB", (32, 32), "red"))
RIGHT = np.zeros((32, 32), np.uint8)
RIGHT[:, 16:] = 255


def layered(colour: str, alpha: np.ndarray) -> Image.Image:
    image = Image.new("RGB", (32, 32), colour)
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(RIGHT),
        Image.fromarray(RIGHT).convert("1"),
        Image.fromarray(RIGHT).convert("P"),
        Image.fromarray(RIGHT).convert("CMYK"),
        Image.fromarray(RIGHT.astype(np.uint16) * 257),
        Image.fromarray(RIGHT.astype(np.uint16)),
        Image.fromarray(RIGHT.astype(np.int32)),
        Image.fromarray(RIGHT.astype(np.int32) // 255),
        Image.fromarray(RIGHT.astype(np.float32)),
        Image.fromarray(RIGHT // 255),
        Image.fromarray(np.stack([RIGHT, 0 * RIGHT, 0 * RIGHT], -1)),
        layered("white", 255 - RIGHT),
        layered("black", 255 - RIGHT),
        RIGHT,
        RIGHT[..., None].repeat(3, -1) / 255.0,
    ],
    ids=[
        "grey",
        "bilevel",
        "palette",
        "cmyk",
        "16 bits",
        "8 of 16 bits",
        "8 of 32 bits",
        "0 and 1 of 32 bits",
        "float 255",
        "0 and 1",
        "red channel",
        "alpha on white",
        "alpha on black",
        "array",
        "floats",
    ],
)
def test_all_kinds_of_masks_are_equivalent(mask: Image.Image | np.ndarray):
    found = np.asarray(prepare_mask(PICTURE, InputImage.from_any(mask)))
    assert np.array_equal(found > 127, RIGHT > 0)


def test_a_mask_of_another_size_is_resized():
    small = Image.fromarray(RIGHT).resize((16, 16), Image.Resampling.NEAREST)
    assert np.array_equal(
        np.asarray(prepare_mask(PICTURE, InputImage.from_any(small)))[:, [0, 14, 17, 31]], np.uint8([[0, 0, 255, 255]] * 32)
    )


def test_the_transparent_part_of_an_image_is_its_mask():
    assert np.array_equal(np.asarray(prepare_mask(InputImage.from_any(layered("red", 255 - RIGHT)), None)), RIGHT)


def test_a_latent_is_masked_if_any_of_its_pixels_is():
    mask = np.zeros((32, 32), np.uint8)
    mask[9, 17] = 1
    free = latent_mask(Image.fromarray(mask), (32, 32), 4)
    assert free.nonzero().tolist() == [[0, 0, 2, 4]]


def test_feathering_rises_inwards_from_the_mask_border_only():
    share = feather(Image.fromarray(RIGHT), 4)[..., 0]
    assert share[:, :16].max() == 0
    row = share[5, 16:].tolist()
    assert row == sorted(row)
    assert 0 < row[0] < 0.07
    assert row[4:] == [1.0] * 12
    assert torch.equal(share, share[:1].expand(32, -1))  # the upper and lower edges are none
    assert torch.equal(feather(Image.fromarray(RIGHT), 0)[..., 0], torch.from_numpy(RIGHT / 255).float())


def test_the_bounding_box_of_a_mask():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:60] = 255
    box = mask_bbox(Image.fromarray(mask))
    assert box == (29, 9, 60, 21)
    old, new = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (30, 20), "blue")
    after = np.asarray(composite(new, old, feather(Image.fromarray(mask).crop(box), 0), box))
    assert (after[mask == 0] == [255, 0, 0]).all()
    assert (after[mask == 255] == [0, 0, 255]).all()


@pytest.mark.parametrize(
    ("padding", "ratio", "expected"),
    [
        (0, None, (9, 9, 21, 16)),
        (5, None, (4, 4, 26, 21)),
        (100, None, (0, 0, 40, 30)),
        (0, 1.0, (9, 6, 21, 18)),  # higher, to be a square
        (5, 2.0, (0, 4, 34, 21)),  # wider, moved into the image
        (0, 8.0, (0, 9, 40, 16)),  # as wide as the image allows
    ],
)
def test_the_area_around_a_mask(padding: int, ratio: float | None, expected: tuple[int, int, int, int]):
    mask = Image.new("L", (40, 30))
    mask.paste(255, (10, 10, 20, 15))
    assert padded_area(mask, padding, ratio) == expected


def test_interpolated_noise_stays_normal():
    a, b = torch.randn(2, 3, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    for weight in (0.0, 0.25, 0.5, 1.0):
        between = slerp(a, b, weight)
        assert between.flatten(1).std(1).sub(1).abs().max() < 0.02
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.5), a)


@pytest.mark.parametrize(
    ("sampler", "apart"), [("heun", True), ("pndm_prk", True), ("DPM-Solver-2", True), ("dpmpp_2m", False), ("euler", False)]
)
def test_samplers_with_an_exact_first_step(tiny_model: LatentDiffusion, sampler: str, apart: bool):
    stage = GenerationContext.of(tiny_model, Request(sampler=sampler, spacing="trailing", steps=8))
    assert stage.sigmas()[0].isinf().item() == apart
    assert stage.sigmas(0.5)[0].isfinite()
    assert len(stage.sigmas(0.5)) == 5
