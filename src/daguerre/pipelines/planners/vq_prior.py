"""From a request to a picture by a prior over codes: codes are drawn row by row, then decoded (Esser et al. 2021, arXiv:2012.09841).

    prompt or map ─ prefix ─► tokens ─┐
    seed ─ uniforms in [0, 1) ──────► prior ─► codes, a row at a time ─► decode ─► pictures
    picture to complete ─► its first rows ─┘

Pictures larger than those trained on are drawn in a window that slides; of smaller ones the middle of a whole window is kept.
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

DIFFUSION_ONLY: Mapping[str, tuple[object, ...]] = {  # what only diffusion heeds, with values beside the default that say nothing
    "negative_prompt": (),
    "steps": (),
    "sampler": (VQ_PRIOR,),  # as pictures of priors have it
    "spacing": (),
    "guidance_scale": (1.0,),
    "eta": (),
    "initial_noise": (),
    "variation": (),
    "refiner_switch_at": (),
    "tiling": (),
}


@dataclass(frozen=True)
class CodeStep:
    """Where the drawing is after one row.

    Attributes:
        index: of this row, from 0, counted from the first that is drawn.
        total: how many rows are drawn.
        codes: (B, h, w), 0 where nothing is drawn yet.
        pictures: at the last row, else None.
    """

    index: int
    total: int
    codes: Tensor
    images: GeneratedImages | None
    model: LatentPrior = field(repr=False)

    @torch.no_grad()
    def decode(self, picture: int = 0) -> Image.Image:
        """The picture so far; where nothing is drawn yet it shows the first code."""
        return to_image(self.model.autoencoder.decode_codes(self.codes[picture : picture + 1])[0])

    def preview(self, picture: int = 0) -> Image.Image:
        """The picture so far at 1/f of its size."""
        return self.decode(picture).reduce(self.model.autoencoder.downsample_factor)


def stream_codes(model: LatentPrior, request: Request) -> Iterator[CodeStep]:
    """Draw the codes of a request's pictures row by row; the last step carries the pictures.

    Raises:
        DaguerreError: at once, for what the prior cannot be told or does not draw.
    """
    check_capability(model, request.task)
    reject_diffusion_options(request)
    width, height = resolve_code_size(model, request)
    f = model.autoencoder.downsample_factor
    grid = height // f, width // f
    whole = max(grid[0], model.min_grid[0]), max(grid[1], model.min_grid[1])
    if whole != grid and isinstance(request.task, Completion | MapToImage):
        raise DaguerreError(
            f"By a map, or to complete a picture, this prior draws {whole[1] * f}×{whole[0] * f} pixels or more, not {width}×{height}."
        )
    known = first_rows(model, request.task, (width, height)) if isinstance(request.task, Completion) else None
    map = task_map(request.task)
    prompts = [prompt for prompt, _ in request.items]
    condition = model.prefix(PriorInputs(prompts, whole, map and to_tensor(flatten_input(map))[None]))
    u = uniform_noise([torch.Generator().manual_seed(seed) for _, seed in request.items], whole)
    rows = model.prior.sample(
        whole,
        u.to(model.device),
        None if condition is None else condition.to(model.device),
        Sampling(request.temperature, request.top_k, request.top_p),
        None if known is None else known.expand(len(prompts), -1, -1),
    )
    total = whole[0] - (0 if known is None else known.shape[1])
    return _decoded(model, replace(request, sampler=VQ_PRIOR, spacing=None), grid, rows, total)


def task_map(task: Task) -> InputImage | None:
    """The map that a task tells the prior."""
    match task:
        case MapToImage():
            return task.image
        case Completion():
            return task.map
        case _:
            return None


def reject_diffusion_options(request: Request) -> None:
    """Raise DaguerreError where a request says how noise is to be taken away, of which there is none here."""
    plain = Request()
    given = [name for name in DIFFUSION_ONLY if getattr(request, name) not in (getattr(plain, name), *DIFFUSION_ONLY[name])]
    if given:
        raise DaguerreError(
            f"A prior over codes draws them one by one and has no {' or '.join(name.replace('_', ' ') for name in given)}; leave that out. "
            "What it heeds is temperature, top_k and top_p."
        )


def resolve_code_size(model: LatentPrior, request: Request) -> ImageSize:
    """(width, height) in pixels: as the request says, else the map's, else the model's own.

    Raises:
        DaguerreError: a side is not a multiple of f.
    """
    map = task_map(request.task)
    own = (model.sample_size, model.sample_size) if map is None else map.pixels.size
    return check_size((request.width or own[0], request.height or own[1]), model.autoencoder.downsample_factor)


@torch.no_grad()
def first_rows(model: LatentPrior, task: Completion, size: ImageSize) -> Tensor:
    """The codes of the rows of a picture that stay: (1, r, w), at least one row of codes, and not all."""
    x = to_tensor(resize(flatten_input(task.image), size, task.resize_mode))[None].to(model.device, model.dtype)
    codes = model.autoencoder.encode_codes(x)
    rows = codes.shape[1]
    if rows < 2:
        raise DaguerreError(f"A picture of {size[0]}×{size[1]} pixels has one row of codes, so that nothing is left to complete.")
    return codes[:, : min(max(round(task.keep * rows), 1), rows - 1)]


@torch.no_grad()
def _decoded(model: LatentPrior, request: Request, grid: tuple[int, int], rows: Iterator[Tensor], total: int) -> Iterator[CodeStep]:
    for index, codes in enumerate(rows):
        seen = fill_with_middle_code(codes, grid)
        yield CodeStep(index, total, seen, _pictures(model, request, seen) if index + 1 == total else None, model)


def fill_with_middle_code(codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The middle (B, h, w) of codes (B, h', w')."""
    top, left = (codes.shape[1] - grid[0]) // 2, (codes.shape[2] - grid[1]) // 2
    return codes[:, top : top + grid[0], left : left + grid[1]]


def _pictures(model: LatentPrior, request: Request, codes: Tensor) -> GeneratedImages:
    origin = provenance_of(model, request)
    x = model.autoencoder.decode_codes(codes)  # (B, 3, H, W)
    return GeneratedImages(GeneratedImage(to_image(picture), replace(origin, index=i)) for i, picture in enumerate(x))
