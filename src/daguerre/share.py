"""A share `INDEX/COUNT` of work that several processes split: the items INDEX, INDEX + COUNT, …"""

import re

from daguerre.errors import DaguerreError


def parse_shard(text: str | None) -> tuple[int, int]:
    """(index, count) of `--shard INDEX/COUNT`, with indices from 0; (0, 1) if it is not given.

    Raises:
        DaguerreError: the text is no share.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", "0/1" if text is None else text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise DaguerreError(f"--shard is {text!r}; it is INDEX/COUNT with indices from 0, such as 0/4, 1/4, 2/4 and 3/4 for four shares.")
    return int(match[1]), int(match[2])


def in_shard(number: int, shard: tuple[int, int]) -> bool:
    """Whether an item belongs to the share (index, count); numbers count from 0."""
    index, count = shard
    return number % count == index
