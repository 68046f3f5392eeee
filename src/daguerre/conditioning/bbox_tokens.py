"""Boxes of objects as tokens, as models of layouts are told them (taming-transformers' scenes; Esser et al. 2021, arXiv:2012.09841).

    "25 0.1 0.3 0.6 1; 7 0.5 0 1 0.4"        CLASS LEFT TOP RIGHT BOTTOM; …   in shares of the picture's sides

Each object is three tokens, its class and two corners on a square grid of as many places as there are tokens. The last token of all stands
for no object; the last two of a row are the corners of the crop, here of the whole picture.
"""

import math

from daguerre.errors import DaguerreError


def layout_tokens(text: str, length: int, vocabulary: int) -> list[int]:
    """The `length` tokens, below `vocabulary`, of a list of objects, which may be empty.

    Raises:
        DaguerreError: it is no list of objects, or there are too many.
    """
    objects = [_object(entry, vocabulary) for entry in text.replace("\n", ";").split(";") if entry.strip()]
    if len(objects) > (most := (length - 2) // 3):
        raise DaguerreError(f"The layout has {len(objects)} objects; this model is told at most {most}.")
    padding = [vocabulary - 1] * (length - 2 - 3 * len(objects))
    return [*(token for each in objects for token in each), *padding, _place(0, 0, vocabulary), _place(1, 1, vocabulary)]


def _object(entry: str, vocabulary: int) -> tuple[int, int, int]:
    try:
        number, left, top, right, bottom = map(float, entry.replace(",", " ").split())
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1 and number in range(vocabulary - 1)):
            raise ValueError
    except ValueError:
        raise DaguerreError(
            f"{entry.strip()[:60]!r} is no object of a layout; write CLASS LEFT TOP RIGHT BOTTOM, a class number and four shares of "
            "the picture's sides from 0 to 1, such as '25 0.1 0.3 0.6 1', and ';' between objects."
        ) from None
    return int(number), _place(left, top, vocabulary), _place(right, bottom, vocabulary)


def _place(x: float, y: float, vocabulary: int) -> int:
    side = math.isqrt(vocabulary)
    return round(y * (side - 1)) * side + round(x * (side - 1))
