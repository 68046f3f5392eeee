"""`daguerre train RECIPE`: parse the recipe's options, then run it."""

import sys
from collections.abc import Sequence

import tyro

from daguerre.errors import DaguerreError, nearest
from daguerre.runtime.allocator import tune_malloc
from daguerre.training.recipes import RECIPES

USAGE = "usage: daguerre train RECIPE [--help] [OPTIONS]"


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the first argument names, with the other arguments as its options, and print the directory of the result.

    Raises:
        DaguerreError: there is no such recipe.
        SystemExit: no recipe is given.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print("\n  ".join([f"{USAGE}\n\nrecipes:", *(f"{name:<16}{recipe.summary}" for name, recipe in RECIPES.items())]))
        return
    if not arguments or arguments[0].startswith("-"):
        print(f"daguerre: The first argument must be a recipe: {', '.join(RECIPES)}.\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    name, *rest = arguments
    if name not in RECIPES:
        raise DaguerreError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    recipe = tyro.cli(RECIPES[name].options, args=rest, prog=f"daguerre train {name}")

    from daguerre.training.processes import is_distributed, rank, state

    tune_malloc()
    path = RECIPES[name].run(recipe)
    if rank() == 0:
        print(path)
    if is_distributed():
        state().destroy_process_group()
