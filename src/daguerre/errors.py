"""The error that users see: what was given, what is allowed, what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 8  # how many names of one kind an error message shows


class DaguerreError(Exception):
    """A mistake that the user can fix. The command line prints only its message, without a traceback, and exits with 1."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest allowed name, or `""` if none is close. Of equal names, the first one counts."""
    by_folded = {candidate.casefold(): candidate for candidate in reversed([*allowed])}
    close = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean {by_folded[close[0]]!r}?" if close else ""


def join_names(names: Iterable[str]) -> str:
    """Join names for an error message: the first few by name, the rest as a count."""
    ordered = sorted(names)
    more = f", and {len(ordered) - MAX_LISTED} more" if len(ordered) > MAX_LISTED else ""
    return ", ".join(ordered[:MAX_LISTED]) + more
