"""From anyone's picture to the canvas that a model works on, and back: sizes, fits, masks, feathers and what is kept byte by byte."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from daguerre.data import images
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.tasks import ResizeMode

MAX_WORKING_SIDE = 8  # times the shorter side; of longer pictures a model draws nothing that holds together
NEAR = 0.5, 2.0  # a picture is worked on in its own size if its area is so many times the one that the model was trained on
MAX_ASPECT_DIFFERENCE = 0.02  # the share by which a mask's sides may differ from the picture's, scaled

ImageSize = tuple[int, int]  # (width, height) in pixels


def flatten_input(given: InputImage) -> Image.Image:
    """A given picture as RGB, on white where it is transparent; deep grey (integers are shares of 65535, floats of 1) in 8 bits."""
    return images.flatten_alpha(given.pixels)


def working_size(own: ImageSize, trained: int, multiple: int, width: int | None = None, height: int | None = None) -> ImageSize:
    """The size to work in on a picture of size `own`: the wanted one, else its own where a model trained on pictures of `trained`² can,
    else one of its shape with the trained area. Both sides are multiples of `multiple`.

    Raises:
        DaguerreError: the picture is too long for its width, or the reverse.
    """
    if width is not None and height is not None:
        return width, height
    if max(own) > MAX_WORKING_SIDE * min(own):
        raise DaguerreError(
            f"The canvas is {own[0]}×{own[1]}, one side more than {MAX_WORKING_SIDE} times the other; cut it, or name the size to work in."
        )
    area = own[0] * own[1] / trained**2
    scale = 1.0 if NEAR[0] <= area <= NEAR[1] else area**-0.5
    if width is not None or height is not None:  # one side wanted: the other follows
        scale = width / own[0] if width is not None else (height or 1) / own[1]
    sides = (max(round(side * scale / multiple), 1) * multiple for side in own)
    return tuple(wanted or side for wanted, side in zip((width, height), sides, strict=True))  # type: ignore[return-value]


def resize(image: Image.Image, size: ImageSize, how: ResizeMode) -> Image.Image:
    """An RGB picture in another size: its middle ("crop"), all of it with its edges drawn out ("pad"), or stretched."""
    if image.size == size:
        return image
    if how == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    ratios = size[0] / image.width, size[1] / image.height
    scale = max(ratios) if how == "crop" else min(ratios)
    inner = [min(side / scale, own) if how == "crop" else own for side, own in zip(size, image.size, strict=True)]
    left, top = (image.width - inner[0]) / 2, (image.height - inner[1]) / 2
    if how == "crop":
        return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + inner[0], top + inner[1]))
    small = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)), Image.Resampling.LANCZOS)
    left, top = (size[0] - small.width) // 2, (size[1] - small.height) // 2
    return pad_edges(small, (left, top, size[0] - small.width - left, size[1] - small.height - top))


def pad_edges(image: Image.Image, margins: tuple[int, int, int, int]) -> Image.Image:
    """An RGB picture on a larger canvas, (left, top, right, bottom) pixels larger, its edges drawn out."""
    left, top, right, bottom = margins
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))


def prepare_mask(picture: InputImage, mask: InputImage | None) -> Image.Image:
    """What shall be drawn anew, 8 bits of grey in the picture's size: 255 anew, 0 kept.

    Raises:
        DaguerreError: there is no mask, it has another shape, or it says nothing.
    """
    if mask is None and not picture.has_alpha:
        raise DaguerreError("There is no mask, and no part of the picture is transparent; give a mask that is white where to draw.")
    source = (mask or picture).pixels
    if source.mode == "RGBA":
        layer = source.getchannel("A").point(lambda alpha: 255 - alpha)
        flat = not np.ptp(np.asarray(source)[..., :3], axis=(0, 1)).any()
        if mask is not None and not flat:
            raise DaguerreError(
                "The mask is partly transparent and has different colours, so that it says two things; make it black and white, or one "
                "colour with the part to draw anew transparent."
            )
    else:
        layer = images.flatten_alpha(source).convert("L")
    size = picture.pixels.size
    ratios = [ours / theirs for ours, theirs in zip(size, layer.size, strict=True)]
    if abs(ratios[0] / ratios[1] - 1) > MAX_ASPECT_DIFFERENCE:
        raise DaguerreError(
            f"The mask is {layer.width}×{layer.height} and the picture {size[0]}×{size[1]}; give a mask of the picture's shape."
        )
    layer = layer if layer.size == size else layer.resize(size, Image.Resampling.BILINEAR)
    if layer.getextrema()[1] == 0:
        raise DaguerreError("The mask is black all over, so that nothing would be drawn; make it white where to draw anew.")
    return layer


def latent_mask(mask: Image.Image, size: ImageSize, f: int = 1) -> Tensor:
    """A mask for latents of pictures of `size` (width, height), (1, 1, height/f, width/f): 1 where any pixel there is to be drawn anew,
    else 0."""
    values = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    return (F.adaptive_max_pool2d(values, (size[1] // f, size[0] // f)) > 0).float()


def feather(mask: Image.Image, width: int) -> Tensor:
    """How much of the new shows, (H, W, 1) in [0, 1]: 0 outside the mask, and rising over `width` pixels from its border inwards.

    The rise is 6t⁵ − 15t⁴ + 10t³ (Perlin 2002), so flat at both ends that the step at the border itself is next to none. Edges of the
    picture are no border.
    """
    share = torch.from_numpy(np.array(mask, dtype=np.float32)) / 255
    depth = torch.from_numpy(_depth(np.array(mask) > 0, width))
    t = depth / (width + 1)
    return (share * t**3 * (t * (t * 6 - 15) + 10))[..., None]


def _depth(inside: np.ndarray, width: int) -> np.ndarray:
    """How many pixels deep in the mask each is, up to width + 1, counted over corners, too: (H, W) float32."""
    depth, left = np.zeros(inside.shape, dtype=np.float32), Image.fromarray(np.uint8(inside) * 255)
    for _ in range(width + 1):
        depth += np.asarray(left) > 0
        left = left.filter(ImageFilter.MinFilter(3))
    return depth


def mask_bbox(mask: Image.Image) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) that holds all of a mask, and one pixel more where there is one."""
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    return max(left - 1, 0), max(top - 1, 0), min(right + 1, mask.width), min(bottom + 1, mask.height)


def composite(new: Image.Image, old: Image.Image, share: Tensor, box: tuple[int, int, int, int]) -> Image.Image:
    """The old picture, with the new one over it in a box by its share (H, W, 1) there; where that is 0 each byte is the old one's."""
    left, top, right, bottom = box
    across, down = new.width / old.width, new.height / old.height
    patch = new.resize((right - left, bottom - top), Image.Resampling.LANCZOS, (left * across, top * down, right * across, bottom * down))
    below, above = (torch.from_numpy(np.array(image, dtype=np.float32)) for image in (old.crop(box), patch))
    result = old.copy()
    result.paste(Image.fromarray(torch.lerp(below, above, share).round().to(torch.uint8).numpy()), (left, top))
    return result
