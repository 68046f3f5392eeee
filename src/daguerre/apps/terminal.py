"""What long jobs show while they run: on stderr, so that stdout holds results alone, and only where someone looks on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Pass items on while showing how many of `total` are done, the speed and the time that is left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def busy(description: str) -> Iterator[None]:
    """Show that something of unknown length goes on."""
    console = Console(stderr=True)
    with console.status(description) if console.is_terminal else nullcontext():
        yield
