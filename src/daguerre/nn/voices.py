"""Guidance tells one network several things of the same pictures. Until it first looks at a text, all of that is one and computed once.

A batch of several voices holds the same pictures again for each of them, [a, b, a, b]. A network may begin with the first run alone,
(B, …); where the text comes in, and where states from before meet states from after, `repeated` makes the whole batch of it.
"""

from torch import Tensor


def repeat_to_batch(x: Tensor, batch: int) -> Tensor:
    """x (B, *) as often as makes `batch` rows, a multiple of B; x itself where it has them."""
    return x if len(x) == batch else x.repeat(batch // len(x), *[1] * (x.ndim - 1))
