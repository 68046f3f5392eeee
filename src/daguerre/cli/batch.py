"""One picture or a folder of them: what every command that is given a picture does with it."""

import sys
from collections.abc import Callable
from pathlib import Path

from daguerre.atomic_io import check_writable
from daguerre.cli.generation import GenerationOptions, check_outputs, generate_and_save, open_for, output_paths, warn_prompt, write_outputs
from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS
from daguerre.pipelines.request import Request


def run_batch(options: GenerationOptions, given: Path, request: Callable[[Path], Request], ending: str) -> None:
    """Make the request of a picture, or of every picture of a folder, and print where the results are.

    Those of a folder go to the folder --out under the names of the pictures; one that cannot be read or worked on is told, and the others
    are made.

    ending: goes after the name of what is given, where --out says no place: of a folder, and of a picture whose prompt has no words.

    Raises:
        DaguerreError: what `make` raises; or there is no picture in the folder, the options want one file, or some pictures failed.
    """
    if given.is_dir():
        _make_all(options, given, request, options.out or given.with_name(f"{given.name}-{ending}"))
    else:
        generate_and_save(options, request(given), Path(f"{given.stem}-{ending}.png"))


def _make_all(options: GenerationOptions, folder: Path, request: Callable[[Path], Request], out: Path) -> None:
    from daguerre.data.images import SUFFIXES
    from daguerre.pipelines.capabilities import check_capability

    pictures = images_in(folder)
    if not pictures:
        raise DaguerreError(f"There is no picture in '{folder}'; files ending in {', '.join(sorted(SUFFIXES))} are looked for.")
    if options.animation or options.preview:
        raise DaguerreError("--film and --preview show one picture, and a folder was given; leave them out.")
    if out.resolve() == folder.resolve() or out.suffix.lower() in OUTPUT_FORMATS:
        raise DaguerreError(f"--out '{out}' must be a folder for the results, another than that of the pictures.")
    check_writable(out / "one.png")
    first = request(next(filter(_readable, pictures), pictures[0]))  # options that are wrong with one picture are so with all
    model = open_for(options)
    check_capability(model, first.task)
    warn_prompt(model, first)
    stems, failed = [path.stem for path in pictures], []
    for path in pictures:
        place = out / f"{path.stem if stems.count(path.stem) == 1 else path.name}.png"
        try:
            wanted = request(path)
            check_outputs(output_paths(options, place), wanted)
            for written in write_outputs(model, options, wanted, place):
                print(written)
        except DaguerreError as error:
            print(f"daguerre: {path.name}: {error}", file=sys.stderr)
            failed.append(path.name)
    if failed:
        others = f"; the others are in '{out}'" if len(failed) < len(pictures) else ""
        raise DaguerreError(f"{len(failed)} of {len(pictures)} pictures could not be made: {', '.join(failed)}{others}.")


def matching_file(picture: Path, place: Path, what: str) -> Path:
    """What belongs to a picture: the file at `place`, or of a folder there the one of the picture's name, best with its suffix, too.

    Raises:
        DaguerreError: the folder has none, or several; `what` says what is looked for.
    """
    if not place.is_dir():
        return place
    found = [path for path in images_in(place) if path.stem == picture.stem]
    found = [path for path in found if path.name == picture.name] or found
    if len(found) != 1:
        has = " and ".join(path.name for path in found) or "none"
        raise DaguerreError(f"Of '{picture.name}' one {what} is looked for in '{place}', and there is {has}; call it '{picture.name}'.")
    return found[0]


def images_in(folder: Path) -> list[Path]:
    """The files of a folder that are called as pictures are, by name."""
    from daguerre.data.images import SUFFIXES

    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _readable(path: Path) -> bool:
    from daguerre.data.images import decode_image

    try:
        decode_image(path)
    except DaguerreError:
        return False
    return True
