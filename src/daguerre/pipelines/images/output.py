"""Pictures that were made: pixels with their origin, saved whole or not at all, one by one, as a labelled grid or as a film."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS, Provenance, parameters, write_image_with_metadata

ANIMATION_FORMATS = {".webp": "WEBP", ".png": "PNG"}
FRAME_MS, LAST_FRAME_MS = 120, 1500


@dataclass(frozen=True)
class GeneratedImage:
    """One picture and where it comes from."""

    image: Image.Image
    provenance: Provenance

    @property
    def parameters(self) -> str:
        """Its request as the text that other programs read."""
        return parameters(self.provenance, self.image.size)

    def save(self, path: str | Path) -> Path:
        """Write the picture with its request inside; the suffix names the format.

        Raises:
            DaguerreError: no such format, or the place cannot be written.
        """
        path = check_suffix(path, OUTPUT_FORMATS)
        with atomic_write(path) as file:
            write_image_with_metadata(file, self.image, path.suffix.lower(), self.provenance)
        return path


class GeneratedImages(tuple[GeneratedImage, ...]):
    """The pictures of one request, in order."""

    __slots__ = ()

    def save(self, path: str | Path) -> list[Path]:
        """Write one picture to `path`, or several to `name-1.png`, `name-2.png`, … beside it; returns where.

        Raises:
            DaguerreError: no such format, or the place cannot be written.
        """
        return [picture.save(place) for picture, place in zip(self, numbered_paths(Path(path), len(self)), strict=True)]

    def grid(self) -> GeneratedImage:
        """All of them on one sheet, each over its prompt: a row for each prompt where there are several of each."""
        request = self[0].provenance.request
        image = labelled_grid(
            [picture.image for picture in self],
            [f"{prompt} · {seed}" if request.num_images > 1 else prompt for prompt, seed in request.items],
            columns=request.num_images if len(request.prompts) > 1 and request.num_images > 1 else None,
        )
        return GeneratedImage(image, replace(self[0].provenance, index=None))


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Where so many pictures go that are saved to one path: there if it is one, else to `name-1.png`, `name-2.png`, … beside it."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]


def write_image(path: Path, image: Image.Image) -> None:
    """Write a bare picture, whole or not at all; the suffix, a key of `FORMATS`, names the format."""
    with atomic_write(path) as file:
        image.save(file, OUTPUT_FORMATS[path.suffix.lower()])


def save_animation(path: str | Path, frames: Sequence[Image.Image]) -> Path:
    """Write frames as an animation that holds its last one; WebP or animated PNG by the suffix.

    Raises:
        DaguerreError: no such format, or the place cannot be written.
    """
    path = check_suffix(path, ANIMATION_FORMATS)
    frames = [frame if frame.size == frames[-1].size else frame.resize(frames[-1].size) for frame in frames]  # a hires fix grows
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    with atomic_write(path) as file:
        frames[0].save(
            file, ANIMATION_FORMATS[path.suffix.lower()], save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=90
        )
    return path


def check_suffix(path: str | Path, formats: Sequence[str] | dict[str, str]) -> Path:
    """The path, if its suffix names a format that is written. Raises DaguerreError with the list where it does not."""
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise DaguerreError(f"'{path}' does not end in a format that is written here; end it in {' or '.join(formats)}.")
    return path
