"""Input images: read from files for a request, and found again when a request is repeated."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from daguerre.errors import DaguerreError
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.request import Request

INPUT_OPTIONS = {"image": "input"}  # `daguerre reproduce` already has an argument IMAGE


def read_input(path: str | Path) -> InputImage:
    """Read an image file; of an animation, the first frame, with a note on stderr.

    Raises:
        DaguerreError: there is no such file, or it is not a complete image.
    """
    from daguerre.data.images import decode_image

    image, frames = decode_image(Path(path))
    if frames > 1:
        print(f"daguerre: '{path}' is animated; only its first frame is used.", file=sys.stderr)
    return InputImage.from_any(image, str(path))


def reopen_inputs(request: Request, source: Path, replacements: Mapping[str, Path]) -> Request:
    """A request from a saved image, with its input images read again.

    Args:
        source: the saved image; missing inputs are also searched in its folder.
        replacements: files to use instead, by field ("image", "mask"); for "control_images" a folder that has them.

    Raises:
        DaguerreError: an input is missing, or its content has changed.
    """
    task = request.task
    if request.control_images:
        names = [f"control image {number}" for number, _ in enumerate(request.control_images, 1)]
        given = replacements.get("control_images")
        reopened = [_reopen(name, image, source, given, folder=True) for name, image in zip(names, request.control_images, strict=True)]
        request = replace(request, control_images=tuple(reopened))
    opened = {name: _reopen(name, image, source, replacements.get(name)) for name, image in task.input_images.items()}
    return replace(request, task=task.with_input_images(opened)) if opened else request


def _reopen(name: str, image: InputImage, source: Path, replacement: Path | None, *, folder: bool = False) -> InputImage:
    option = "--adapters FOLDER" if folder else f"--{INPUT_OPTIONS.get(name, name)}"
    if folder and replacement is not None:
        named = replacement / Path(image.path or "").name
        replacement = named if named.is_file() else None
    if replacement is None and image.path is None:
        raise DaguerreError(f"The input {name} of '{source}' came from a program, not from a file; give its file with {option}.")
    path = Path(replacement or image.path or "")
    candidates = [path] if replacement else [path, source.parent / path, source.parent / path.name]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise DaguerreError(f"The input {name} '{path}' of '{source}' does not exist any more; give its file with {option}.")
    again = read_input(found)
    if again.sha256 != image.sha256:
        raise DaguerreError(f"The input {name} '{found}' has changed since '{source}' was generated; give the original with {option}.")
    return replace(again, path=image.path)
