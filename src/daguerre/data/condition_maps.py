"""Maps of images, drawn from the same (index, rng) as the images themselves, so that batches of both lie side by side.

    semantic    which class each pixel shows, as a colour of a palette
    depth       how far away each pixel is
    edges       how much the brightness changes
    small       the image with an eighth of its sides, enlarged again

Semantic maps are known of drawn shapes; those of a folder's images, and maps of depth, are read from files.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps

from daguerre.data.captions import plural
from daguerre.data.dataset import Dataset, Sample, Subset
from daguerre.data.folder import FolderDataset
from daguerre.data.images import open_image, resize_and_crop
from daguerre.data.shapes import SHAPES, ShapesDataset, ShapesScene
from daguerre.errors import DaguerreError

MapKind = Literal["semantic", "depth", "edges", "small"]
RGBColour = tuple[int, int, int]
SHRINK = 8
SHAPES_PALETTE: tuple[RGBColour, ...] = (  # the background, then SHAPES in order
    (0, 0, 0),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (250, 250, 250),
)
SHAPES_NOUNS: Mapping[str, int] = {noun: SHAPES.index(shape) + 1 for shape in SHAPES for noun in (shape, plural(shape))}  # -> place there
MOST_CLASSES = 256  # of a folder's semantic maps


class ConditionMaps(NamedTuple):
    """source: the maps, sample for sample, without captions. palette: the only colours that they have, where that is so."""

    source: Subset
    palette: tuple[RGBColour, ...] = ()


def load_condition_maps(source: Dataset, kind: MapKind, folder: Path | None = None) -> ConditionMaps:
    """The maps of a source; semantic and depth maps of a folder's images lie in `folder`, under the images' names and of their sizes.

    Raises:
        DaguerreError: nobody knows such maps of this source, a map is missing, of another size than its image, or, where it is semantic,
            of too many colours.
    """
    if folder is not None:
        if isinstance(source, FolderDataset) and kind in ("semantic", "depth"):
            return _from_folder(source, kind, folder)
        raise DaguerreError(f"Maps of kind {kind!r} of such images are not read from files; leave out the folder of maps.")
    if kind == "semantic" and isinstance(source, ShapesDataset):
        drawn = _view(source, lambda i, rng: shapes_map(source, source.scene(i, rng)), f"semantic of {source.key}")
        return ConditionMaps(drawn, SHAPES_PALETTE)
    if kind in ("edges", "small"):
        change = edges if kind == "edges" else downsample
        return ConditionMaps(_view(source, lambda index, rng: change(source.sample(index, rng).image), f"{kind} of {source.key}"))
    raise DaguerreError(
        f"The {kind} maps of these images are not known: of a folder's images give the folder of their maps with --maps; of drawn "
        "shapes there are semantic ones, of any images edges or small."
    )


def edges(image: Image.Image) -> Image.Image:
    """How much the brightness changes at each pixel of an RGB image, white on black."""
    down, right = np.gradient(np.asarray(ImageOps.grayscale(image), dtype=np.float32))
    return Image.fromarray((2 * np.hypot(down, right)).clip(0, 255).astype(np.uint8)).convert("RGB")


def downsample(image: Image.Image) -> Image.Image:
    """The image with an eighth of its sides, enlarged again pixel by pixel."""
    small = image.resize([max(1, side // SHRINK) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def shapes_map(source: ShapesDataset, scene: ShapesScene) -> Image.Image:
    """Which shape covers most of each pixel of a scene, in the colours of SHAPES_PALETTE."""
    classes = np.zeros((source.size, source.size), dtype=np.int64)
    for drawn, mask in zip(scene.shapes, source.masks(scene), strict=True):
        classes[mask > 0.5] = 1 + SHAPES.index(drawn.shape)
    return Image.fromarray(np.array(SHAPES_PALETTE, dtype=np.uint8)[classes])


def _from_folder(source: FolderDataset, kind: MapKind, folder: Path) -> ConditionMaps:
    """Maps in files: `folder/a/b.png` is that of the image `a/b.jpg`."""
    paths = [folder / path.relative_to(source.folder).with_suffix(".png") for path, _ in source.items]
    colours: set[RGBColour] = set()
    for path, (image, _) in zip(paths, source.items, strict=True):
        if not path.is_file():
            raise DaguerreError(f"There is no map '{path}' of the image '{image}'; each image needs one, a PNG of the same name.")
        image = open_image(path)
        with Image.open(image) as original:
            if image.size != ImageOps.exif_transpose(original).size:
                raise DaguerreError(f"'{path}' is {image.width}×{image.height}, not the size of its image '{image}'.")
        if kind == "semantic":
            colours |= _classes(image, path)
    if len(colours) > MOST_CLASSES:
        raise _too_many(folder)
    resample = Image.Resampling.NEAREST if kind == "semantic" else Image.Resampling.LANCZOS

    def draw(index: int, rng: np.random.Generator) -> Image.Image:
        along = rng.random() if source.crop == "random" else 0.5  # as the image is cut
        return resize_and_crop(open_image(paths[index]), source.size, along, resample)

    palette, files = tuple(sorted(colours)), [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
    digest = hashlib.sha256(json.dumps([palette, files]).encode()).hexdigest()[:16]
    return ConditionMaps(_view(source, draw, f"{kind} {digest} of {source.key}"), palette)


def _classes(map: Image.Image, path: Path) -> set[RGBColour]:
    found = map.getcolors(MOST_CLASSES)
    if found is None:
        raise _too_many(path)
    return {cast(RGBColour, colour) for _, colour in found}


def _view(source: Dataset, draw: Callable[[int, np.random.Generator], Image.Image], key: str) -> Subset:
    return Subset(source.size, key, lambda index, rng: Sample(draw(index, rng), ""), range(len(source)))


def _too_many(where: Path) -> DaguerreError:
    return DaguerreError(
        f"The semantic maps in '{where}' have more than {MOST_CLASSES} colours; each class is one colour, saved as PNG without smoothing."
    )
