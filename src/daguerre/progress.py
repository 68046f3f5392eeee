"""Progress bars of long jobs, on stderr and only in a terminal, so that stdout has nothing but results."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


def progress(*more: ProgressColumn, transient: bool = True, shown: bool = True) -> Progress:
    """A bar with the count, the speed and the remaining time, then the columns `more`."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn(), *more
    return Progress(*columns, console=console, transient=transient, disable=not (shown and console.is_terminal))


def track(items: Iterable[T], description: str, total: int | None = None, *, shown: bool = True) -> Iterator[T]:
    """Yield items and show how many of `total` are done. Default: the length of items."""
    with progress(shown=shown) as bar:
        yield from bar.track(items, total=total, description=description)


class Counted(Protocol):
    """A step with its index, from 0, and the total number of steps if it is known."""

    @property
    def index(self) -> int: ...
    @property
    def total(self) -> int | None: ...


S = TypeVar("S", bound=Counted)


def track_steps(steps: Iterable[S], description: str) -> Iterator[S]:
    """Yield steps and show the count, the speed and the remaining time."""
    with progress() as bar:
        task = bar.add_task(description, total=None)
        for step in steps:
            bar.update(task, completed=step.index + 1, total=step.total)
            yield step


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """Show that a job of unknown length is running."""
    console = Console(stderr=True)
    with console.status(description) if console.is_terminal else nullcontext():
        yield
