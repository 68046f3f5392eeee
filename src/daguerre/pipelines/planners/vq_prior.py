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

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import Sampling, uniforms
from daguerre.models.latent_prior import LatentPrior, Told
from daguerre.pipelines.capabilities import check_ability
from daguerre.pipelines.context import checked_size
from daguerre.pipelines.decode import to_image
from daguerre.pipelines.images.input import Given
from daguerre.pipelines.images.output import Picture, Pictures
from daguerre.pipelines.images.preprocess import Size, fitted, opaque, to_pixels
from daguerre.pipelines.metadata.origins import origin_of
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import CODE_BY_CODE, Complete, FromMap, Task

OF_NOISE: Mapping[str, tuple[object, ...]] = {  # what only diffusion heeds, with values beside the default that say nothing
    "negative": (),
    "steps": (),
    "sampler": (CODE_BY_CODE,),  # as pictures of priors have it
    "spacing": (),
    "guidance": (1.0,),
    "eta": (),
    "start": (),
    "variation": (),
    "refine_at": (),
    "seamless": (),
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
    pictures: Pictures | None
    model: LatentPrior = field(repr=False)

    @torch.no_grad()
    def decode(self, picture: int = 0) -> Image.Image:
        """The picture so far; where nothing is drawn yet it shows the first code."""
        return to_image(self.model.autoencoder.decode_codes(self.codes[picture : picture + 1])[0])

    def preview(self, picture: int = 0) -> Image.Image:
        """The picture so far at 1/f of its size."""
        return self.decode(picture).reduce(self.model.autoencoder.downsampling)


def code_steps(model: LatentPrior, request: Request) -> Iterator[CodeStep]:
    """Draw the codes of a request's pictures row by row; the last step carries the pictures.

    Raises:
        DaguerreError: at once, for what the prior cannot be told or does not draw.
    """
    check_ability(model, request.task)
    refuse_noise(request)
    width, height = code_picture_size(model, request)
    f = model.autoencoder.downsampling
    grid = height // f, width // f
    whole = max(grid[0], model.least[0]), max(grid[1], model.least[1])
    if whole != grid and isinstance(request.task, Complete | FromMap):
        raise DaguerreError(
            f"By a map, or to complete a picture, this prior draws {whole[1] * f}×{whole[0] * f} pixels or more, not {width}×{height}."
        )
    known = first_rows(model, request.task, (width, height)) if isinstance(request.task, Complete) else None
    map = map_of(request.task)
    prompts = [prompt for prompt, _ in request.each]
    condition = model.prefix(Told(prompts, whole, map and to_pixels(opaque(map))))
    u = uniforms([torch.Generator().manual_seed(seed) for _, seed in request.each], whole)
    rows = model.prior.sample(
        whole,
        u.to(model.device),
        None if condition is None else condition.to(model.device),
        Sampling(request.temperature, request.top_k, request.top_p),
        None if known is None else known.expand(len(prompts), -1, -1),
    )
    total = whole[0] - (0 if known is None else known.shape[1])
    return _decoded(model, replace(request, sampler=CODE_BY_CODE, spacing=None), grid, rows, total)


def map_of(task: Task) -> Given | None:
    """The map that a task tells the prior."""
    match task:
        case FromMap():
            return task.picture
        case Complete():
            return task.map
        case _:
            return None


def refuse_noise(request: Request) -> None:
    """Raise DaguerreError where a request says how noise is to be taken away, of which there is none here."""
    plain = Request()
    given = [name for name in OF_NOISE if getattr(request, name) not in (getattr(plain, name), *OF_NOISE[name])]
    if given:
        raise DaguerreError(
            f"A prior over codes draws them one by one and has no {' or '.join(name.replace('_', ' ') for name in given)}; leave that out. "
            "What it heeds is temperature, top_k and top_p."
        )


def code_picture_size(model: LatentPrior, request: Request) -> Size:
    """(width, height) in pixels: as the request says, else the map's, else the model's own.

    Raises:
        DaguerreError: a side is not a multiple of f.
    """
    map = map_of(request.task)
    own = (model.size, model.size) if map is None else map.opened.size
    return checked_size((request.width or own[0], request.height or own[1]), model.autoencoder.downsampling)


@torch.no_grad()
def first_rows(model: LatentPrior, task: Complete, size: Size) -> Tensor:
    """The codes of the rows of a picture that stay: (1, r, w), at least one row of codes, and not all."""
    x = to_pixels(fitted(opaque(task.picture), size, task.fit)).to(model.device, model.dtype)
    codes = model.autoencoder.codes(x)
    rows = codes.shape[1]
    if rows < 2:
        raise DaguerreError(f"A picture of {size[0]}×{size[1]} pixels has one row of codes, so that nothing is left to complete.")
    return codes[:, : min(max(round(task.keep * rows), 1), rows - 1)]


@torch.no_grad()
def _decoded(model: LatentPrior, request: Request, grid: tuple[int, int], rows: Iterator[Tensor], total: int) -> Iterator[CodeStep]:
    for index, codes in enumerate(rows):
        seen = middle(codes, grid)
        yield CodeStep(index, total, seen, _pictures(model, request, seen) if index + 1 == total else None, model)


def middle(codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The middle (B, h, w) of codes (B, h', w')."""
    top, left = (codes.shape[1] - grid[0]) // 2, (codes.shape[2] - grid[1]) // 2
    return codes[:, top : top + grid[0], left : left + grid[1]]


def _pictures(model: LatentPrior, request: Request, codes: Tensor) -> Pictures:
    origin = origin_of(model, request)
    x = model.autoencoder.decode_codes(codes)  # (B, 3, H, W)
    return Pictures(Picture(to_image(picture), replace(origin, picture=i)) for i, picture in enumerate(x))
