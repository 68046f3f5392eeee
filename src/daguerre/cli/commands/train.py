"""`daguerre train RECIPE`: a recipe's own options, then its run."""

import sys
from collections.abc import Sequence

import tyro

from daguerre.errors import DaguerreError, nearest
from daguerre.runtime.allocator import tune_malloc
from daguerre.training.recipes import RECIPES

PROCESSES = "--processes"
USAGE = "usage: daguerre train RECIPE [--help] [--processes N] [OPTIONS]"


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the first argument names, with the others as fields of its dataclass, and print where the result is.

    Raises:
        DaguerreError: there is no such recipe.
        SystemExit: no recipe is named.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print("\n  ".join([f"{USAGE}\n\nrecipes:", *(f"{name:<16}{recipe.summary}" for name, recipe in RECIPES.items())]))
        return
    if not arguments or arguments[0].startswith("-"):
        print(f"daguerre: No recipe is named first; there are {', '.join(RECIPES)}.\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    name, *rest = arguments
    if name not in RECIPES:
        raise DaguerreError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    processes, rest = _take_processes(rest)
    recipe = tyro.cli(RECIPES[name].options, args=rest, prog=f"daguerre train {name}")

    from daguerre.training.processes import is_distributed, launch, rank

    tune_malloc()
    run = RECIPES[name].run
    path = run(recipe) if processes == 1 or is_distributed() else launch(processes, run, recipe)
    if rank() == 0:
        print(path)


def _take_processes(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Take `--processes N` out of the arguments: it is about how a recipe is run, not about the recipe."""
    rest = [part for argument in arguments for part in (argument.split("=", 1) if argument.startswith(f"{PROCESSES}=") else [argument])]
    if PROCESSES not in rest:
        return 1, rest
    place = rest.index(PROCESSES)
    given = rest[place + 1] if place + 1 < len(rest) else ""
    if not given.isdecimal():
        raise DaguerreError(f"{PROCESSES} is {given!r}; it takes a whole number, such as 2, for as many processes that train together.")
    return int(given), rest[:place] + rest[place + 2 :]
