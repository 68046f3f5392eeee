"""Encode bounding boxes of objects as tokens for layout-to-image models (taming-transformers; Esser et al. 2021, arXiv:2012.09841).

    "25 0.1 0.3 0.6 1; 7 0.5 0 1 0.4"        CLASS LEFT TOP RIGHT BOTTOM; …   as fractions of the image's sides

Each object is three tokens: its class and two corners, which are positions on a square grid with as many cells as there are tokens. The
last token of the vocabulary is padding. The last two tokens of a row are the corners of the crop, here the whole image.
"""

import math
from collections.abc import Sequence

from daguerre.errors import DaguerreError, join_names


def layout_tokens(text: str, length: int, vocabulary: int, names: Sequence[str] = ()) -> list[int]:
    """The `length` tokens of a list of objects, which may be empty; `vocabulary` is the number of tokens. `names`: of the classes.

    Raises:
        DaguerreError: the text is not a list of objects, or has too many.
    """
    objects = [_object(entry, vocabulary, names) for entry in text.replace("\n", ";").split(";") if entry.strip()]
    if len(objects) > (limit := (length - 2) // 3):
        raise DaguerreError(f"The layout has {len(objects)} objects; this model allows at most {limit}.")
    padding = [vocabulary - 1] * (length - 2 - 3 * len(objects))
    return [*(token for each in objects for token in each), *padding, _grid_cell(0, 0, vocabulary), _grid_cell(1, 1, vocabulary)]


def _object(entry: str, vocabulary: int, names: Sequence[str]) -> tuple[int, int, int]:
    try:
        *words, left, top, right, bottom = entry.replace(",", " ").split()
        name = " ".join(words)
        number = float(names.index(name) if name in names else name)
        left, top, right, bottom = map(float, (left, top, right, bottom))
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1 and number in range(len(names) or vocabulary - 1)):
            raise ValueError
    except ValueError:
        raise DaguerreError(
            f"{entry.strip()[:60]!r} is not an object of a layout; write CLASS LEFT TOP RIGHT BOTTOM, a class number and four fractions of "
            f"the image's sides from 0 to 1, such as '{names[0] if names else 25} 0.1 0.3 0.6 1', with ';' between objects."
            f"{f' The classes are 0 to {len(names) - 1}: {join_names(names)}.' if names else ''}"
        ) from None
    return int(number), _grid_cell(left, top, vocabulary), _grid_cell(right, bottom, vocabulary)


def _grid_cell(x: float, y: float, vocabulary: int) -> int:
    side = math.isqrt(vocabulary)
    return round(y * (side - 1)) * side + round(x * (side - 1))
