"""Prepare input images for a model, and paste results back: sizes, resize modes, masks, feathering, compositing."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from daguerre.data import images
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.input import HIGH_BIT_MODES, InputImage
from daguerre.pipelines.tasks import ResizeMode
from daguerre.weights.diffusers.clip_config import IMAGE_MEAN, IMAGE_STD

MAX_ASPECT_RATIO = 8  # of an image's sides; models generate nothing coherent beyond it
NATIVE_AREA = 0.5, 2.0  # an image keeps its size if its area, relative to the training images, is in this range
MAX_ASPECT_DIFFERENCE = 0.02  # the relative difference allowed between the aspect ratios of an image and its mask or depth map

WHITE_VALUES = 1, 2**8 - 1, 2**16 - 1, 2**32 - 1  # of a mask

ImageSize = tuple[int, int]  # (width, height) in pixels


def flatten_input(source: InputImage) -> Image.Image:
    """An input image as RGB with 8 bits, on white if transparent; deep grey is scaled from 65535 (integers) or 1 (floats)."""
    return images.flatten_alpha(source.pixels)


def working_size(own: ImageSize, trained: int, multiple: int, width: int | None = None, height: int | None = None) -> ImageSize:
    """The size to process an image of size `own` at: the requested one, else its own if close to the training area `trained`², else one of
    its proportions with that area. Both sides are multiples of `multiple`.

    Raises:
        DaguerreError: the image is too long or too narrow.
    """
    if width is not None and height is not None:
        return width, height
    if max(own) > MAX_ASPECT_RATIO * min(own):
        raise DaguerreError(
            f"The image is {own[0]}×{own[1]}, one side more than {MAX_ASPECT_RATIO} times the other; crop it, or set width and height."
        )
    area = own[0] * own[1] / trained**2
    scale = 1.0 if NATIVE_AREA[0] <= area <= NATIVE_AREA[1] else area**-0.5
    if width is not None or height is not None:  # one side requested: the other follows
        scale = width / own[0] if width is not None else (height or 1) / own[1]
    sides = (max(round(side * scale / multiple), 1) * multiple for side in own)
    return tuple(requested or side for requested, side in zip((width, height), sides, strict=True))  # type: ignore[return-value]


def resize(image: Image.Image, size: ImageSize, mode: ResizeMode) -> Image.Image:
    """An RGB image at another size: "crop" cuts its middle, "pad" repeats its edge pixels, "stretch" distorts it."""
    if image.size == size:
        return image
    if mode == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    ratios = size[0] / image.width, size[1] / image.height
    scale = max(ratios) if mode == "crop" else min(ratios)
    inner = [min(side / scale, own) if mode == "crop" else own for side, own in zip(size, image.size, strict=True)]
    left, top = (image.width - inner[0]) / 2, (image.height - inner[1]) / 2
    if mode == "crop":
        return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + inner[0], top + inner[1]))
    small = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)), Image.Resampling.LANCZOS)
    left, top = (size[0] - small.width) // 2, (size[1] - small.height) // 2
    return pad_edges(small, (left, top, size[0] - small.width - left, size[1] - small.height - top))


def pad_edges(image: Image.Image, margins: tuple[int, int, int, int]) -> Image.Image:
    """An RGB image extended by (left, top, right, bottom) pixels that repeat its edges."""
    left, top, right, bottom = margins
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))


def prepare_mask(image: InputImage, mask: InputImage | None) -> Image.Image:
    """The mask as 8-bit grey of the image's size: 255 is generated, 0 is kept.

    Raises:
        DaguerreError: there is no mask, it has other proportions, or it is ambiguous or empty.
    """
    if mask is None and not image.has_alpha:
        raise DaguerreError("There is no mask, and no part of the image is transparent; give a mask that is white where to generate.")
    source = (mask or image).pixels
    if source.mode == "RGBA":
        layer = source.getchannel("A").point(lambda alpha: 255 - alpha)
        flat = not np.ptp(np.asarray(source)[..., :3], axis=(0, 1)).any()
        if mask is not None and not flat:
            raise DaguerreError(
                "The mask has both transparency and several colours, which is ambiguous: white on transparent, for example, is read as "
                "generate by some programs and as keep by others. Flatten it to white (generate) on black (keep), or use one colour with "
                "the part to generate transparent."
            )
    else:
        layer = _gray_mask(source)
    size = image.pixels.size
    ratios = [side / mask_side for side, mask_side in zip(size, layer.size, strict=True)]
    if abs(ratios[0] / ratios[1] - 1) > MAX_ASPECT_DIFFERENCE:
        raise DaguerreError(
            f"The mask is {layer.width}×{layer.height} and the image {size[0]}×{size[1]}; give a mask of the image's proportions."
        )
    layer = layer if layer.size == size else layer.resize(size, Image.Resampling.BILINEAR)
    if layer.getextrema()[1] == 0:
        raise DaguerreError("The mask is black all over, so nothing would be generated; make it white where to generate.")
    return layer


def _gray_mask(source: Image.Image) -> Image.Image:
    """A mask without transparency as 8-bit grey. White is the largest value of the data type that the brightest pixel suggests: 1, 255,
    65535 or 2³² − 1, as programs write masks of 0 and 1, or of 8 bits in larger integers. Of colours the brightest channel counts.
    """
    values = np.asarray(source if source.mode in HIGH_BIT_MODES else source.convert("RGB"), dtype=np.float64)
    values = np.nan_to_num(values.max(-1) if values.ndim == 3 else values)
    white = next((white for white in WHITE_VALUES if values.max() <= white), values.max())
    return Image.fromarray(np.uint8(np.rint((values / white).clip(0, 1) * 255)))


def latent_mask(mask: Image.Image, size: ImageSize, f: int = 1) -> Tensor:
    """A mask for latents of images of `size` (width, height), (1, 1, height/f, width/f): 1 where any pixel is generated, else 0."""
    values = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    return (F.adaptive_max_pool2d(values, (size[1] // f, size[0] // f)) > 0).float()


def feather(mask: Image.Image, width: int) -> Tensor:
    """Opacity of the generated pixels, (H, W, 1) in [0, 1]: 0 outside the mask, rising over `width` pixels from its border inwards.

    It rises as 6t⁵ − 15t⁴ + 10t³ (Perlin 2002), which is flat at both ends, so no step shows at the border. The image's own edges are not a
    border.
    """
    share = torch.from_numpy(np.array(mask, dtype=np.float32)) / 255
    depth = torch.from_numpy(_pixels_inside(np.array(mask) > 0, width))
    t = depth / (width + 1)
    return (share * t**3 * (t * (t * 6 - 15) + 10))[..., None]


def _pixels_inside(inside: np.ndarray, width: int) -> np.ndarray:
    """Distance of each pixel from outside the mask, up to width + 1, diagonal steps counting as one: (H, W) float32."""
    depth, left = np.zeros(inside.shape, dtype=np.float32), Image.fromarray(np.uint8(inside) * 255)
    for _ in range(width + 1):
        depth += np.asarray(left) > 0
        left = left.filter(ImageFilter.MinFilter(3))
    return depth


def mask_bbox(mask: Image.Image) -> tuple[int, int, int, int]:
    """The bounding box (left, top, right, bottom) of a mask, one pixel larger where possible."""
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    return max(left - 1, 0), max(top - 1, 0), min(right + 1, mask.width), min(bottom + 1, mask.height)


def padded_area(mask: Image.Image, padding: int, ratio: float | None) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of a mask with `padding` pixels around it, inside the image.

    ratio: width / height, to which the box is enlarged as far as the image allows.
    """
    left, top, right, bottom = mask_bbox(mask)
    sides = [min(right - left + 2 * padding, mask.width), min(bottom - top + 2 * padding, mask.height)]
    if ratio is not None:
        sides = [min(max(sides[0], round(sides[1] * ratio)), mask.width), min(max(sides[1], round(sides[0] / ratio)), mask.height)]
    starts = [
        min(max((low + high - side) // 2, 0), whole - side)
        for low, high, side, whole in zip((left, top), (right, bottom), sides, mask.size, strict=True)
    ]
    return starts[0], starts[1], starts[0] + sides[0], starts[1] + sides[1]


def composite(new: Image.Image, old: Image.Image, share: Tensor, box: tuple[int, int, int, int]) -> Image.Image:
    """The old image with the new one blended over it in a box by `share` (H, W, 1); where that is 0 every byte stays."""
    left, top, right, bottom = box
    across, down = new.width / old.width, new.height / old.height
    patch = new.resize((right - left, bottom - top), Image.Resampling.LANCZOS, (left * across, top * down, right * across, bottom * down))
    below, above = (torch.from_numpy(np.array(image, dtype=np.float32)) for image in (old.crop(box), patch))
    result = old.copy()
    result.paste(Image.fromarray(torch.lerp(below, above, share).round().to(torch.uint8).numpy()), (left, top))
    return result


def clip_pixels(image: Image.Image, side: int) -> Tensor:
    """The middle square of an RGB image, preprocessed for CLIP: (1, 3, side, side), of about zero mean and unit variance."""
    scale = side / min(image.size)
    width, height = (side if each == min(image.size) else int(each * scale) for each in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    values = (np.array(square, dtype=np.float32) / 255 - np.array(IMAGE_MEAN, dtype=np.float32)) / np.array(IMAGE_STD, dtype=np.float32)
    return torch.from_numpy(values).movedim(-1, 0)[None]
