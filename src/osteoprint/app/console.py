"""What a command says: one JSON object or a few lines; progress and errors apart from it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)
# A bar appears only for what takes longer than this, so that quick commands stay quiet.
PATIENCE_S = 2.0


def answer(values: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Print the result: one JSON object on standard output, or lines for people."""
    if as_json:
        sys.stdout.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
        return
    for line in lines:
        OUT.print(line, markup=False)


def say(line: str) -> None:
    """A remark on standard error."""
    ERR.print(line, markup=False)


class Steps:
    """Progress of a command with several steps, each a bar of its own.

    Call it with (what it does, done, of how many); the words before a bracket name the step.
    """

    def __init__(self, bar: Progress, patience_s: float) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}
        self._started = time.monotonic()
        self._patience_s = patience_s
        self._shown = False

    def __call__(self, what: str, done: float, total: float) -> None:
        """Move the bar of this step."""
        step = what.split(" (")[0]
        if step not in self._tasks:
            self._tasks[step] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[step], description=what, completed=done, total=total)
        late = time.monotonic() - self._started > self._patience_s
        if late and not self._shown and ERR.is_terminal:
            self._bar.start()
            self._shown = True

    def stop(self) -> None:
        """Take the bars away; nothing is printed where none were shown."""
        if self._shown:
            self._bar.stop()


@contextmanager
def steps() -> Iterator[Steps]:
    """Progress bars on standard error from the third second on, where a person can see them."""
    bar = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=36),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=ERR,
        transient=True,
    )
    shown = Steps(bar, PATIENCE_S)
    try:
        yield shown
    finally:
        shown.stop()
