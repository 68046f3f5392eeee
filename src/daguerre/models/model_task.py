"""What a model was trained for, as its stored condition or the number of its input channels shows."""

from collections.abc import Mapping
from typing import Literal

ModelTask = Literal[
    "text-to-image", "inpainting", "semantic", "map", "layout", "colorization", "image-variation", "instruct-pix2pix", "depth", "upscaling",
    "vq-prior",
]  # fmt: skip
# The task of a model trained here on a concatenated image, by `ConcatConditioner.kind`.
CONCAT_TASKS: Mapping[str, ModelTask] = {
    "low-res": "upscaling", "masked": "inpainting", "grey": "colorization", "map": "map", "semantic": "map",
}  # fmt: skip


def task_by_channels(in_channels: int, out_channels: int) -> ModelTask | None:
    """The task of a UNet whose output has Z = `out_channels`; None where no known task has this many input channels.

    The channels after the Z noisy ones are a small RGB image (3), a depth map (1), a mask and a masked image (1 + Z), or an image (Z).
    With Z = 3, three more channels are the small image of an upscaler.
    """
    extra = in_channels - out_channels
    if extra == 0:
        return "text-to-image"
    if extra == 3:
        return "upscaling"
    if extra == 1:
        return "depth"
    if extra == out_channels:
        return "instruct-pix2pix"
    return "inpainting" if extra == out_channels + 1 else None
