"""`daguerre train RECIPE`: parse the options of a recipe and run it."""

from collections.abc import Sequence

from daguerre.cli.parsing import UsageError, parse_options
from daguerre.errors import nearest
from daguerre.runtime.allocator import tune_malloc
from daguerre.training.recipes import RECIPES

USAGE = "usage: daguerre train RECIPE [--help] [OPTIONS]"


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the first argument names, with the others as its options, and print the path of the result.

    Raises:
        UsageError: there is no such recipe, or no recipe is named.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print("\n  ".join([f"{USAGE}\n\nrecipes:", *(f"{name:<16}{recipe.summary}" for name, recipe in RECIPES.items())]))
        return
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"The first argument of train is the recipe; choose one of {', '.join(RECIPES)}. Example: daguerre train shapes.")
    name, *rest = arguments
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    recipe = parse_options(RECIPES[name].options, rest, f"train {name}")

    from daguerre.training.processes import is_distributed, rank, state

    tune_malloc()
    path = RECIPES[name].run(recipe)
    if rank() == 0:
        print(path)
    if is_distributed():
        state().destroy_process_group()
