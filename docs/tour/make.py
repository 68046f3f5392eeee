"""Run the pages of the tour and keep the images they make: `python docs/tour/make.py`, or with the names of some pages."""

import os
import re
import sys
import tempfile
from pathlib import Path

TOUR = Path(__file__).parent


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(page: Path) -> dict[str, object]:
    """Run the blocks of a page in order, in the current folder; returns their variables."""
    variables: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), variables)
    return variables


if __name__ == "__main__":
    pages = [TOUR / name for name in sys.argv[1:]] or sorted(TOUR.glob("[0-9]*.md"))
    for page in pages:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            run(page)
            for image in Path(folder).glob("*.png"):
                image.replace(TOUR / image.name)
