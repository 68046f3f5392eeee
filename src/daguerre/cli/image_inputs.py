"""Pictures from files, as requests take them, and again when a request is repeated."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from daguerre.errors import DaguerreError
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.request import Request

INPUT_OPTIONS = {"image": "input"}  # of `daguerre reproduce`, where a field's own name is taken


def read_input(path: str | Path) -> InputImage:
    """A picture from a file; of an animation the first frame, which is said.

    Raises:
        DaguerreError: there is no such file, or it is no whole picture.
    """
    from daguerre.data.images import decode_image

    image, frames = decode_image(Path(path))
    if frames > 1:
        print(f"daguerre: '{path}' is animated; its first frame is taken.", file=sys.stderr)
    return InputImage.from_any(image, str(path))


def reopen_inputs(request: Request, beside: Path, named: Mapping[str, Path]) -> Request:
    """A request read from a picture, its own pictures opened.

    Args:
        beside: the picture that carried the request; what is not found where it was is looked for there.
        named: files to take instead, by the field that they stand in ("image", "mask").

    Raises:
        DaguerreError: a picture is missing, or is another than it was.
    """
    task = request.task
    opened = {name: _reopened(name, given, beside, named.get(name)) for name, given in task.input_images.items()}
    return replace(request, task=task.with_input_images(opened)) if opened else request


def _reopened(name: str, given: InputImage, beside: Path, named: Path | None) -> InputImage:
    option = f"--{INPUT_OPTIONS.get(name, name)}"
    if named is None and given.path is None:
        raise DaguerreError(f"The {name} that '{beside}' was made of came from a program, not from a file; name its file with {option}.")
    path = Path(named or given.path or "")
    places = [path] if named else [path, beside.parent / path, beside.parent / path.name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DaguerreError(f"The {name} '{path}' that '{beside}' was made of is not there any more; name its file with {option}.")
    again = read_input(found)
    if again.sha256 != given.sha256:
        raise DaguerreError(f"The {name} '{found}' has changed since '{beside}' was made of it; name the file as it was with {option}.")
    return replace(again, path=given.path)
