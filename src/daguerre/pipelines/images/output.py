"""Generated images with their provenance: saved one by one, as a labelled grid, or as an animation. Files are written atomically."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from daguerre.atomic_io import atomic_write, expand_user, numbered_paths
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS, Provenance, parameters, write_image_with_metadata

ANIMATION_FORMATS = {".webp": "WEBP", ".png": "PNG"}
FRAME_MS, LAST_FRAME_MS = 120, 1500


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image and its provenance. Notebooks show it."""

    image: Image.Image
    provenance: Provenance

    @property
    def parameters(self) -> str:
        """The request as the text that other programs read."""
        return parameters(self.provenance, self.image.size)

    def save(self, path: str | Path) -> Path:
        """Write the image with its metadata; the suffix selects the format.

        Raises:
            DaguerreError: an unknown format, or the file cannot be written.
        """
        path = check_suffix(path, OUTPUT_FORMATS)
        with atomic_write(path) as file:
            write_image_with_metadata(file, self.image, path.suffix.lower(), self.provenance)
        return path

    def _repr_png_(self) -> bytes:
        """The image for notebooks."""
        file = BytesIO()
        self.image.save(file, "PNG")
        return file.getvalue()


class GeneratedImages(tuple[GeneratedImage, ...]):
    """The images of one request, in order. Notebooks show them as a grid."""

    __slots__ = ()

    def save(self, path: str | Path) -> list[Path]:
        """Write one image to `path`, or several to `name-1.png`, `name-2.png`, … next to it; returns the paths.

        Raises:
            DaguerreError: an unknown format, or the file cannot be written.
        """
        return [image.save(file) for image, file in zip(self, numbered_paths(Path(path), len(self)), strict=True)]

    def grid(self) -> GeneratedImage:
        """All images in one grid above their prompts, with a row for each prompt if each has several images."""
        request = self[0].provenance.request
        image = labelled_grid(
            [generated.image for generated in self],
            [f"{prompt} · {seed}" if request.num_images > 1 else prompt for prompt, seed in request.items],
            columns=request.num_images if len(request.prompts) > 1 and request.num_images > 1 else None,
        )
        return GeneratedImage(image, replace(self[0].provenance, index=None))

    def _repr_png_(self) -> bytes | None:
        """The grid for notebooks."""
        return self.grid()._repr_png_() if self else None


def write_image(path: Path, image: Image.Image) -> None:
    """Write an image without metadata; the suffix, a key of `OUTPUT_FORMATS`, selects the format."""
    with atomic_write(path) as file:
        image.save(file, OUTPUT_FORMATS[path.suffix.lower()])


def save_animation(path: str | Path, frames: Sequence[Image.Image]) -> Path:
    """Write frames as an animation that pauses on the last one; WebP or animated PNG by the suffix.

    Raises:
        DaguerreError: an unknown format, or the file cannot be written.
    """
    path = check_suffix(path, ANIMATION_FORMATS)
    frames = [frame if frame.size == frames[-1].size else frame.resize(frames[-1].size) for frame in frames]  # a hires fix changes the size
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    with atomic_write(path) as file:
        frames[0].save(
            file, ANIMATION_FORMATS[path.suffix.lower()], save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=90
        )
    return path


def check_suffix(path: str | Path, formats: Sequence[str] | dict[str, str]) -> Path:
    """The path with `~` expanded, if its suffix is one of the formats. Raises DaguerreError with the list if not."""
    path = expand_user(path)
    if path.suffix.lower() not in formats:
        raise DaguerreError(f"'{path}' does not end in a supported format; use {', '.join(formats)}.")
    return path
