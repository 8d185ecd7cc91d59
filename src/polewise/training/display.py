"""Progress of a run: a moving bar on a terminal that can show one, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

_SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Shows how far a run is, its rate and the time that remains. A context manager."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console()
        self._bar: Progress | None = None
        self._last_line = float("-inf")

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                _StatusColumn(),
                console=self.console,
                transient=True,
            )
            self._row = self._bar.add_task(self.title, total=1.0, status="starting")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, share: float, status: str, remaining: float | None) -> None:
        """Show the share of the budget that is spent, the measures, and the seconds that remain."""
        left = None if remaining is None else f"{format_seconds(remaining)} left"
        if self._bar is not None:  # what a narrow terminal cuts off comes last
            status = f"{left or 'beginning'}, {status}"
            self._bar.update(self._row, completed=share, status=status)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            tail = "" if left is None else f", {left}"
            print_line(self.console, f"{self.title} {share:4.0%}  {status}{tail}")

    def note(self, text: str) -> None:
        """Print a line that stays."""
        print_line(self.console, f"{self.title}  {text}")


class _StatusColumn(ProgressColumn):
    """The one column that a narrow terminal shortens."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["status"], no_wrap=True, overflow="ellipsis")


def format_number(value: float) -> str:
    """Return a number in four digits, or as many as it has before the point."""
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:.4g}"


def print_line(console: Console, text: str = "") -> None:
    """Print a line as it stands; nothing more where nobody reads any more (`| head`)."""
    try:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    except (OSError, SystemExit):  # rich would exit
        console.quiet = True


def format_seconds(seconds: float) -> str:
    """Return a duration as 0:42, 12:05 or 1:02:03."""
    whole = max(round(seconds), 0)
    hours, minutes = divmod(whole // 60, 60)
    tail = f"{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
    return f"{hours}:{tail}" if hours else tail
