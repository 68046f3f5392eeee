"""What long jobs show while they run: on stderr, so that stdout holds results alone, and only where someone looks on."""

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
    """A bar with how much is done, the speed and the time that is left, then `more`."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn(), *more
    return Progress(*columns, console=console, transient=transient, disable=not (shown and console.is_terminal))


def track(items: Iterable[T], description: str, total: int | None = None, *, shown: bool = True) -> Iterator[T]:
    """Pass items on while showing how many of `total`, which is their number if not given, are done."""
    with progress(shown=shown) as bar:
        yield from bar.track(items, total=total, description=description)


class Counted(Protocol):
    """A step that knows its place: index counts from 0, total is None where it is not known."""

    @property
    def index(self) -> int: ...
    @property
    def total(self) -> int | None: ...


S = TypeVar("S", bound=Counted)


def track_steps(steps: Iterable[S], description: str) -> Iterator[S]:
    """Pass steps on while showing how many are done, the speed and the time that is left."""
    with progress() as bar:
        task = bar.add_task(description, total=None)
        for step in steps:
            bar.update(task, completed=step.index + 1, total=step.total)
            yield step


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """Show that something of unknown length goes on."""
    console = Console(stderr=True)
    with console.status(description) if console.is_terminal else nullcontext():
        yield
