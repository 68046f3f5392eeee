"""Commands with an input image also take a folder of images: one request for each."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from daguerre.atomic_io import check_writable, free_path
from daguerre.cli.generation import check_outputs, generate_and_save, open_for, output_paths, warn_prompt, write_outputs
from daguerre.cli.options import GenerationOptions
from daguerre.cli.parsing import usage_errors
from daguerre.errors import DaguerreError, join_names
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS
from daguerre.pipelines.request import Request


def run_batch(options: GenerationOptions, source: Path, request: Callable[[Path], Request], suffix: str) -> None:
    """Run the request of an image, or of every image in a folder, and print the output paths.

    For a folder, --out is a folder; outputs keep the names of the inputs. An input that fails is reported and the others continue.

    Args:
        source: an image or a folder.
        request: the request of one input image.
        suffix: for the default output name, `<source>-<suffix>`.

    Raises:
        DaguerreError: the folder has no images, an option needs a single image, or some images failed.
    """
    if source.is_dir():
        _run_folder(options, source, request, options.output.out or free_path(source.with_name(f"{source.name}-{suffix}")))
    else:
        generate_and_save(options, lambda: request(source), Path(f"{source.stem}-{suffix}.png"))


def _run_folder(options: GenerationOptions, folder: Path, request: Callable[[Path], Request], out: Path) -> None:
    from daguerre.data.images import SUFFIXES, is_leftover
    from daguerre.pipelines.capabilities import check_capability

    with usage_errors():
        inputs = images_in(folder)
        others = sorted(path.name for path in folder.iterdir() if path not in inputs and not is_leftover(path))
        if not inputs:
            raise DaguerreError(f"There are no images in '{folder}'; supported files end in {', '.join(sorted(SUFFIXES))}.")
        if options.output.animation or options.output.preview or options.output.animation_content != "x0":
            raise DaguerreError("--animation and --preview need a single input image, and a folder was given; remove them.")
        if os.path.realpath(out) == os.path.realpath(folder) or out.suffix.lower() in OUTPUT_FORMATS:
            raise DaguerreError(f"--out '{out}' must be a folder for the results, and not the input folder.")
        check_writable(out / "image.png")
        first = request(next(filter(_is_readable, inputs), inputs[0]))  # an option that is wrong for one image is wrong for all
    if others:
        print(f"daguerre: not used in '{folder}': {join_names(others)}; only images directly in the folder are used.", file=sys.stderr)
    model = open_for(options, adapters=first.adapters)
    with usage_errors():
        check_capability(model, first.task)
    warn_prompt(model, first)
    stems, failed = [path.stem for path in inputs], []
    for path in inputs:
        target = out / f"{path.stem if stems.count(path.stem) == 1 else path.name}.png"
        try:
            wanted = request(path)
            check_outputs(output_paths(options, target), wanted)
            for written in write_outputs(model, options, wanted, target):
                print(written)
        except DaguerreError as error:
            print(f"daguerre: {path.name}: {error}", file=sys.stderr)
            failed.append(path.name)
    if failed:
        others = f"; the others are in '{out}'" if len(failed) < len(inputs) else ""
        raise DaguerreError(f"{len(failed)} of {len(inputs)} images failed: {', '.join(failed)}{others}.")


def matching_file(image: Path, source: Path, what: str) -> Path:
    """The file that belongs to an input image: `source` itself, or in a folder the file of the same name, preferably with its suffix.

    Raises:
        DaguerreError: the folder has no such file, or several; `what` names what is missing.
    """
    if not source.is_dir():
        return source
    found = [path for path in images_in(source) if path.stem == image.stem]
    found = [path for path in found if path.name == image.name] or found
    if len(found) != 1:
        has = " and ".join(path.name for path in found) or "none"
        raise DaguerreError(f"'{image.name}' needs one {what} in '{source}', which has {has}; name it '{image.name}'.")
    return found[0]


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by suffix, in order of their names; without hidden files."""
    from daguerre.data.images import SUFFIXES, is_leftover

    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file() and not is_leftover(path))


def _is_readable(path: Path) -> bool:
    from daguerre.data.images import decode_image

    try:
        decode_image(path)
    except DaguerreError:
        return False
    return True
