"""`daguerre train RECIPE`: a recipe's own options, then its run."""

from collections.abc import Sequence

import tyro

from daguerre.errors import DaguerreError, nearest

PROCESSES = "--processes"


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the first argument names, with the others as fields of its dataclass, and print where the result is.

    Raises:
        DaguerreError: there is no such recipe.
    """
    from daguerre.training.processes import inside, rank, together
    from daguerre.training.recipes import RECIPES

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: daguerre train RECIPE [--help] [--processes N] [OPTIONS]\n\nrecipes:")
        for name, (options, _) in RECIPES.items():
            print(f"  {name:<16}{(options.__doc__ or '').strip().splitlines()[0]}")
        return
    name, *rest = arguments
    if name not in RECIPES:
        raise DaguerreError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    options, run = RECIPES[name]
    processes, rest = _take_processes(rest)
    recipe = tyro.cli(options, args=rest, prog=f"daguerre train {name}")
    path = run(recipe) if processes == 1 or inside() else together(processes, run, recipe)
    if rank() == 0:
        print(path)


def _take_processes(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Take `--processes N` out of the arguments: it is about how a recipe is run, not about the recipe."""
    rest = list(arguments)
    if PROCESSES not in rest:
        return 1, rest
    place = rest.index(PROCESSES)
    given = rest[place + 1] if place + 1 < len(rest) else ""
    if not given.isdecimal():
        raise DaguerreError(f"{PROCESSES} is {given!r}; it takes a whole number, such as 2, for as many processes that train together.")
    return int(given), rest[:place] + rest[place + 2 :]
