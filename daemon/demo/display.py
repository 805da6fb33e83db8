"""Where the demo is shown: a live screen on a terminal, plain lines elsewhere. Used by the main thread."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from daemon.demo.story import Picture
from daemon.demo.view import plain, plain_event, screen

PLAIN_EVERY_SECONDS = 5.0

Show = Callable[[Picture], None]


@contextmanager
def display(console: Console, *, sources: Sequence[str], broker: str) -> Iterator[Show]:
    """A function to call with a new picture a few times a second."""
    if not console.is_terminal:
        yield PlainLines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)).show
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda picture: live.update(screen(picture, sources=sources, broker=broker), refresh=True)


class PlainLines:
    """A line for each new event, and one every few seconds for how things stand."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told = 0
        self._next = 0.0

    def show(self, picture: Picture) -> None:
        for event in picture.events[self._told :]:
            self._write(plain_event(event))
        self._told = len(picture.events)
        if picture.seconds >= self._next:
            self._write(plain(picture))
            self._next = picture.seconds + PLAIN_EVERY_SECONDS
