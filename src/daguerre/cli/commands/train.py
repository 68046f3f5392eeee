"""`daguerre train RECIPE`: parse the options of a recipe and run it."""

import shlex
import sys
from collections.abc import Sequence

from daguerre.cli.model_loading import choose_threads
from daguerre.cli.parsing import UsageError, is_image_source, parse_options, usage_errors
from daguerre.errors import nearest
from daguerre.runtime.allocator import tune_malloc
from daguerre.training.recipes import RECIPES

BUILT_IN_DATA = ("shapes", "emoji", "emoji-faces")  # as in `data.catalog`, which imports numpy
USAGE = "usage: daguerre train RECIPE [--help] [OPTIONS]"


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the first argument names, with the others as its options; print the path of the result and a command to try.

    Raises:
        UsageError: there is no such recipe, or no recipe is named, or its data does not exist.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print("\n  ".join([f"{USAGE}\n\nrecipes:", *(f"{name:<16}{recipe.summary}" for name, recipe in RECIPES.items())]))
        return
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"The first argument of train is the recipe; choose one of {', '.join(RECIPES)}. Example: daguerre train shapes.")
    name, *rest = arguments
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    recipe = RECIPES[name]
    options = parse_options(recipe.options, rest, f"train {name}")
    data = getattr(options, "data", None)
    if data is not None and str(data) not in BUILT_IN_DATA and not is_image_source(data):
        raise UsageError(f"There is no directory '{data}'; give --data a directory of images, or {' or '.join(BUILT_IN_DATA)}.")

    with usage_errors():
        options.machine.apply()
    choose_threads(options.machine.threads)

    from daguerre.training.distributed.processes import is_distributed, rank, state

    tune_malloc()
    path = recipe.run(options)
    if rank() == 0:
        print(path)
        fields = {"path": path} | {field: getattr(options, field, "") for field in ("data", "resolution")}
        if command := recipe.next_command.format_map({field: shlex.quote(str(value)) for field, value in fields.items()}):
            print(f"Try it: daguerre {command}", file=sys.stderr)
    if is_distributed():
        state().destroy_process_group()
