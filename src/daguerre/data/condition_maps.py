"""Condition maps of images, from the same (index, rng) as the images, so that batches of both correspond.

    semantic    the class of each pixel, as a colour of a palette
    depth       the depth of each pixel
    pose        the joints of people, or any other map that is an image
    edges       the gradient of the brightness
    small       the image, downsampled to 1/8 of its sides and enlarged again

Semantic maps of shapes are computed; semantic, depth and pose maps of a folder's images are read from files. Inpainting has holes instead.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from daguerre.data.captions import plural
from daguerre.data.dataset import Dataset, Sample, Subset
from daguerre.data.folders.dataset import FolderDataset
from daguerre.data.folders.files import file_digest
from daguerre.data.images import open_image
from daguerre.data.shapes import SHAPES, ShapesDataset, ShapesScene
from daguerre.errors import DaguerreError

MapKind = Literal["semantic", "depth", "edges", "small"]  # of a prior
FILE_KINDS = ("semantic", "depth", "pose")  # of a folder
RGBColour = tuple[int, int, int]
SHRINK = 8
SHAPES_PALETTE: tuple[RGBColour, ...] = (  # the background, then SHAPES in order
    (0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200),
    (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230), (250, 250, 250),
)  # fmt: skip
# The index in SHAPES_PALETTE of each noun.
SHAPES_NOUNS: Mapping[str, int] = {noun: i for i, shape in enumerate(SHAPES, 1) for noun in (shape, plural(shape))}
MAX_MAP_COLOURS = 256  # of a folder's semantic maps


class ConditionMaps(NamedTuple):
    """source: a dataset of the maps, with the indices of the images and without captions. palette: their colours, if limited."""

    source: Subset
    palette: tuple[RGBColour, ...] = ()


def load_condition_maps(
    source: Dataset, kind: str, folder: Path | None = None, computed: Mapping[str, Callable[[Image.Image], Image.Image]] | None = None
) -> ConditionMaps:
    """The condition maps of a dataset. `folder` has semantic, depth or pose maps of a `FolderDataset`, with the names and sizes of its
    images. `computed`: the kinds that are computed from an image; the default is edges and small.

    Raises:
        DaguerreError: there are no such maps of this dataset; a map is missing or has another size than its image; a semantic map has too
            many colours.
    """
    if folder is not None:
        if isinstance(source, FolderDataset) and kind in FILE_KINDS:
            return _from_folder(source, kind, folder)
        raise DaguerreError(f"{kind!r} maps of these images are computed, not read from files; leave out --maps.")
    if kind == "semantic" and isinstance(source, ShapesDataset):
        semantic = _subset(source, lambda i, rng: shapes_map(source, source.scene(i, rng)), f"semantic of {source.key}")
        return ConditionMaps(semantic, SHAPES_PALETTE)
    computed = computed or {"edges": edges, "small": downsample}
    if (transform := computed.get(kind)) is not None:
        return ConditionMaps(_subset(source, lambda index, rng: transform(source.sample(index, rng).image), f"{kind} of {source.key}"))
    raise DaguerreError(
        f"There are no {kind!r} maps of these images. For a folder of images, give the folder of their {', '.join(FILE_KINDS)} maps "
        f"with --maps; for shapes, use semantic; for any images, use {' or '.join(computed)}."
    )


def with_maps(source: Dataset, maps: Dataset) -> Subset:
    """Each image of a dataset with its map on the right, as one wide image, so that loaders treat both alike. Both are made from equal
    generators, so that a map is cropped as its image."""

    def sample(index: int, rng: np.random.Generator) -> Sample:
        image, condition_map = source.sample(index, deepcopy(rng)), maps.sample(index, rng)
        return Sample(side_by_side(image.image, condition_map.image), image.caption)

    return Subset(source.size, f"{source.key} with {maps.key}", sample, range(len(source)), source.rendered)


def side_by_side(first: Image.Image, second: Image.Image) -> Image.Image:
    """Two images of one height as one."""
    return Image.fromarray(np.concatenate([np.asarray(first), np.asarray(second)], axis=1))


def edges(image: Image.Image) -> Image.Image:
    """The magnitude of the brightness gradient of an RGB image, white on black."""
    down, right = np.gradient(np.asarray(ImageOps.grayscale(image), dtype=np.float32))
    return Image.fromarray((2 * np.hypot(down, right)).clip(0, 255).astype(np.uint8)).convert("RGB")


def downsample(image: Image.Image) -> Image.Image:
    """The image, downsampled to 1/8 of its sides and enlarged again with nearest-neighbour interpolation."""
    small = image.resize([max(1, side // SHRINK) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def shapes_map(source: ShapesDataset, scene: ShapesScene) -> Image.Image:
    """The shape that covers at least half of each pixel of a scene, in the colours of SHAPES_PALETTE."""
    classes = np.zeros((source.size, source.size), dtype=np.int64)
    for drawn, mask in zip(scene.shapes, source.masks(scene), strict=True):
        classes[mask > 0.5] = 1 + SHAPES.index(drawn.shape)
    return Image.fromarray(np.array(SHAPES_PALETTE, dtype=np.uint8)[classes])


def random_hole(size: int, rng: np.random.Generator) -> Image.Image:
    """A random hole for inpainting, white on black, RGB (size, size): up to three boxes, or strokes of a thick brush."""
    hole = Image.new("L", (size, size))
    canvas = ImageDraw.Draw(hole)
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.5:
            sides = rng.uniform(0.2, 0.6, 2) * size
            corner = rng.uniform(0, 1, 2) * (size - sides)
            canvas.rectangle([*corner.round(), *(corner + sides).round()], fill=255)
        else:
            points = np.cumsum([rng.uniform(0, size, 2), *rng.normal(0, size / 4, (4, 2))], axis=0).clip(0, size)
            canvas.line([tuple(point) for point in points], fill=255, width=round(rng.uniform(0.1, 0.25) * size), joint="curve")
    return hole.convert("RGB")


def _from_folder(source: FolderDataset, kind: str, folder: Path) -> ConditionMaps:
    """Read maps from files: `folder/a/b.png` belongs to the image `a/b.jpg`."""
    if kind == "semantic" and source.crop == "pad":
        raise DaguerreError("Semantic maps cannot be padded, because their colours are classes; use another --crop.")
    paths = [folder / source.relative_path(item).with_suffix(".png") for item in source.items]
    colours: set[RGBColour] = set()
    for path, item in zip(paths, source.items, strict=True):
        if not path.is_file():
            raise DaguerreError(f"There is no map '{path}' for the image '{item.path}'; each image needs a PNG map of the same name.")
        condition_map = open_image(path)
        if condition_map.size != item.original_size()[::-1]:
            raise DaguerreError(
                f"'{path}' has {condition_map.width}×{condition_map.height} pixels; it must have the size of its image '{item.path}'."
            )
        if kind == "semantic":
            colours |= _classes(condition_map, path)
    if len(colours) > MAX_MAP_COLOURS:
        raise _too_many(folder)
    resample = Image.Resampling.NEAREST if kind == "semantic" else Image.Resampling.LANCZOS

    def read(index: int, rng: np.random.Generator) -> Image.Image:
        return source.fit(open_image(paths[index]), index, rng, resample)

    palette, files = tuple(sorted(colours)), [(path.relative_to(folder).as_posix(), file_digest(path)) for path in paths]
    digest = hashlib.sha256(json.dumps([palette, files]).encode()).hexdigest()[:16]
    return ConditionMaps(_subset(source, read, f"{kind} {digest} of {source.key}"), palette)


def _classes(condition_map: Image.Image, path: Path) -> set[RGBColour]:
    found = condition_map.getcolors(MAX_MAP_COLOURS)
    if found is None:
        raise _too_many(path)
    return {cast(RGBColour, colour) for _, colour in found}


def _subset(source: Dataset, make_map: Callable[[int, np.random.Generator], Image.Image], key: str) -> Subset:
    return Subset(source.size, key, lambda index, rng: Sample(make_map(index, rng), ""), range(len(source)), source.rendered)


def _too_many(path: Path) -> DaguerreError:
    return DaguerreError(
        f"The semantic maps in '{path}' have more than {MAX_MAP_COLOURS} colours; use one colour per class, PNG and no smoothing."
    )
