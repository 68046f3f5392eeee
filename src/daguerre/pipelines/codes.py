"""From a request to a picture by a prior over codes: codes are drawn row by row, then decoded (Esser et al. 2021, arXiv:2012.09841).

    prompt or map ─ prefix ─► tokens ─┐
    seed ─ uniforms in [0, 1) ──────► prior ─► codes, a row at a time ─► decode ─► pictures

Pictures larger than those trained on are drawn in a window that slides; of smaller ones the middle of a whole window is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.codes import Sampling, uniforms
from daguerre.models.latent_prior import LatentPrior, Told
from daguerre.pipelines.develop import to_image
from daguerre.pipelines.metadata import CODE_BY_CODE, Origin
from daguerre.pipelines.picture import Picture, Pictures
from daguerre.pipelines.request import Request
from daguerre.version import VERSION


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
        """The picture so far; what is not drawn yet shows the first code."""
        return to_image(self.model.autoencoder.decode_codes(self.codes[picture : picture + 1])[0])

    def preview(self, picture: int = 0) -> Image.Image:
        """The picture so far at 1/f of its size."""
        return self.decode(picture).reduce(self.model.autoencoder.downsampling)


def code_steps(
    model: LatentPrior, request: Request, grid: tuple[int, int], *, map: Tensor | None = None, known: Tensor | None = None
) -> Iterator[CodeStep]:
    """Draw the codes of a request's pictures row by row; the last step carries the pictures.

    Args:
        grid: rows and columns of codes.
        map: for priors that are told by one, (1, 3, H, W) in [−1, 1], of the pictures' size.
        known: the first rows of codes (1, r, w), to be completed.

    Raises:
        DaguerreError: at once, for what the prior cannot be told or does not draw.
    """
    whole = max(grid[0], model.least[0]), max(grid[1], model.least[1])
    if whole != grid and (map is not None or known is not None):
        f = model.autoencoder.downsampling
        raise DaguerreError(
            f"With a map or a picture to complete this prior draws {whole[1] * f}×{whole[0] * f} pixels or more, not "
            f"{grid[1] * f}×{grid[0] * f}."
        )
    prompts = [prompt for prompt, _ in request.each]
    condition = model.prefix(Told(prompts, whole, map))
    sources = [torch.Generator().manual_seed(seed) for _, seed in request.each]
    u = uniforms(sources, whole).to(model.device)
    how = Sampling(request.temperature, request.top_k, request.top_p)
    rows = model.prior.sample(
        whole,
        u,
        None if condition is None else condition.to(model.device),
        how,
        None if known is None else known.to(model.device).expand(len(prompts), -1, -1),
    )
    drawn = whole[0] - (0 if known is None else known.shape[1])
    if drawn < 1:
        raise DaguerreError("All rows of the picture are known, so that there is nothing to complete; keep fewer of them.")
    return _decoded(model, replace(request, sampler=CODE_BY_CODE, spacing=None), grid, rows, drawn)


@torch.no_grad()
def _decoded(model: LatentPrior, request: Request, grid: tuple[int, int], rows: Iterator[Tensor], total: int) -> Iterator[CodeStep]:
    for index, codes in enumerate(rows):
        codes = middle(codes, grid)
        pictures = _pictures(model, request, codes) if index + 1 == total else None
        yield CodeStep(index, total, codes, pictures, model)


def middle(codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The middle (B, h, w) of codes (B, h', w')."""
    top, left = (codes.shape[1] - grid[0]) // 2, (codes.shape[2] - grid[1]) // 2
    return codes[:, top : top + grid[0], left : left + grid[1]]


def _pictures(model: LatentPrior, request: Request, codes: Tensor) -> Pictures:
    x = model.autoencoder.decode_codes(codes)  # (B, 3, H, W)
    return Pictures(
        Picture(
            to_image(picture),
            Origin(
                request=request,
                picture=i,
                model=model.name,
                version=VERSION,
                torch=torch.__version__,
                device=model.device.type,
                dtype=str(model.dtype).removeprefix("torch."),
            ),
        )
        for i, picture in enumerate(x)
    )
