"""Images from an autoregressive prior: sample codes row by row, then decode them (Esser et al. 2021, arXiv:2012.09841).

    prompt or map ─ prefix ─► tokens ─┐
    seed ─ uniforms in [0, 1) ──────► prior ─► codes, a row at a time ─► decode ─► images
    image to complete ─► its first rows ─┘

Images larger than those in training are sampled with a sliding window; of smaller ones a full window is sampled, and its middle kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from daguerre.data.images import to_image, to_tensor
from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import Sampling, uniform_noise
from daguerre.models.latent_prior import LatentPrior, PriorInputs
from daguerre.pipelines.capabilities import check_capability
from daguerre.pipelines.context import check_size
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.images.output import GeneratedImage, GeneratedImages
from daguerre.pipelines.images.preprocess import ImageSize, flatten_input, resize
from daguerre.pipelines.metadata.write import provenance_of
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import VQ_PRIOR, Completion, MapToImage, Task
from daguerre.runtime.dtype import without_autocast

DIFFUSION_ONLY: Mapping[str, tuple[object, ...]] = {  # fields without effect here, and values accepted other than the default
    "negative_prompt": (),
    "steps": (),
    "sampler": (VQ_PRIOR,),  # as the metadata of such images has it
    "spacing": (),
    "guidance_scale": (1.0,),
    "guidance_rescale": (),
    "guidance_interval": (),
    "cfg_plus_plus": (),
    "dynamic_threshold": (),
    "clip_skip": (),
    "eta": (),
    "initial_noise": (),
    "variation": (),
    "refiner_switch_at": (),
    "tiling": (),
    "fast": (),
}


@dataclass(frozen=True)
class CodeStep:
    """The state of a run after one row of codes.

    Attributes:
        index: of this row among those sampled, from 0.
        total: how many rows are sampled.
        codes: (B, h, w), 0 where nothing is sampled yet.
        images: the results at the last row, else None.
    """

    index: int
    total: int
    codes: Tensor
    images: GeneratedImages | None
    model: LatentPrior = field(repr=False)

    @without_autocast()
    @torch.no_grad()
    def decode(self, image: int = 0) -> Image.Image:
        """The image so far, with code 0 where nothing is sampled yet."""
        return to_image(self.model.autoencoder.decode_codes(self.codes[image : image + 1])[0])

    def preview(self, image: int = 0) -> Image.Image:
        """The image so far at 1/f of its size."""
        return self.decode(image).reduce(self.model.autoencoder.downsample_factor)


def stream_codes(model: LatentPrior, request: Request) -> Iterator[CodeStep]:
    """Sample the codes of a request's images row by row; the last step carries the images.

    Raises:
        DaguerreError: at once, for settings that the prior does not support.
    """
    check_capability(model, request.task)
    reject_diffusion_options(request)
    width, height = resolve_code_size(model, request)
    f = model.autoencoder.downsample_factor
    grid = height // f, width // f
    sampled = max(grid[0], model.min_grid[0]), max(grid[1], model.min_grid[1])
    if sampled != grid and isinstance(request.task, Completion | MapToImage):
        raise DaguerreError(
            f"For a map or a completion this prior needs {sampled[1] * f}×{sampled[0] * f} pixels or more; got {width}×{height}."
        )
    known = first_rows(model, request.task, (width, height)) if isinstance(request.task, Completion) else None
    condition_map = task_map(request.task)
    prompts = [prompt for prompt, _ in request.items]
    condition = model.prefix(PriorInputs(prompts, sampled, condition_map and to_tensor(flatten_input(condition_map))[None]))
    uniform = uniform_noise([torch.Generator().manual_seed(seed) for _, seed in request.items], sampled)
    rows = model.prior.sample(
        sampled,
        uniform.to(model.device),
        None if condition is None else condition.to(model.device),
        Sampling(request.temperature, request.top_k, request.top_p),
        None if known is None else known.expand(len(prompts), -1, -1),
    )
    total = sampled[0] - (0 if known is None else known.shape[1])
    return _decode_rows(model, replace(request, sampler=VQ_PRIOR, spacing=None), grid, rows, total)


def task_map(task: Task) -> InputImage | None:
    """The condition map of a task."""
    match task:
        case MapToImage():
            return task.image
        case Completion():
            return task.map
        case _:
            return None


def reject_diffusion_options(request: Request) -> None:
    """Raise DaguerreError if a request sets options that only diffusion models have."""
    default = Request()
    given = [name for name, accepted in DIFFUSION_ONLY.items() if getattr(request, name) not in (getattr(default, name), *accepted)]
    if given:
        raise DaguerreError(
            f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect on an autoregressive prior; leave that out. "
            "Supported: temperature, top_k, top_p."
        )


def resolve_code_size(model: LatentPrior, request: Request) -> ImageSize:
    """(width, height) in pixels: as requested, else the condition map's, else the model's own.

    Raises:
        DaguerreError: a side is not a multiple of f.
    """
    condition_map = task_map(request.task)
    own = (model.sample_size, model.sample_size) if condition_map is None else condition_map.pixels.size
    return check_size((request.width or own[0], request.height or own[1]), model.autoencoder.downsample_factor)


@torch.no_grad()
def first_rows(model: LatentPrior, task: Completion, size: ImageSize) -> Tensor:
    """The codes (1, r, w) of the rows of an image that stay: at least one row of codes, and not all."""
    x = to_tensor(resize(flatten_input(task.image), size, task.resize_mode))[None].to(model.device, model.dtype)
    codes = model.autoencoder.encode_codes(x)
    rows = codes.shape[1]
    if rows < 2:
        raise DaguerreError(f"An image of {size[0]}×{size[1]} pixels has one row of codes, so nothing is left to complete.")
    return codes[:, : min(max(round(task.keep * rows), 1), rows - 1)]


@torch.no_grad()
def _decode_rows(model: LatentPrior, request: Request, grid: tuple[int, int], rows: Iterator[Tensor], total: int) -> Iterator[CodeStep]:
    for index, sampled in enumerate(rows):
        codes = crop_middle(sampled, grid)
        yield CodeStep(index, total, codes, _decode_images(model, request, codes) if index + 1 == total else None, model)


def crop_middle(codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The middle (B, h, w) of codes (B, h', w')."""
    top, left = (codes.shape[1] - grid[0]) // 2, (codes.shape[2] - grid[1]) // 2
    return codes[:, top : top + grid[0], left : left + grid[1]]


def _decode_images(model: LatentPrior, request: Request, codes: Tensor) -> GeneratedImages:
    provenance = provenance_of(model, request)
    x = model.autoencoder.decode_codes(codes)  # (B, 3, H, W)
    return GeneratedImages(GeneratedImage(to_image(image), replace(provenance, index=i)) for i, image in enumerate(x))
