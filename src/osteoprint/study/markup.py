"""Pieces of a report's page: figures, films, controls, and JSON that may stand in a page.

Every figure is a ``<data>`` element that says where in ``report.json`` it stands and how it
is rounded, so that page and file cannot tell different stories. Every text that comes from
a bank is escaped.
"""

from __future__ import annotations

import json
import math
from html import escape
from typing import Any

Json = dict[str, Any]


class Figures:
    """Writes figures of the report as HTML.

    Parameters
    ----------
    values : the report, as in ``report.json``.
    """

    def __init__(self, values: Json) -> None:
        self.values = values

    def at(self, path: str) -> Any:
        """The value at a path such as ``summary/rms_mm`` or ``bones/3/length_mm``."""
        value: Any = self.values
        for key in path.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value

    def __call__(self, path: str, form: str = ".2f") -> str:
        """The figure at a path, rounded by a format specification; a dash where there is none."""
        value = self.at(path)
        if value is None:
            return "–"
        return (
            f'<data value="{value!r}" data-at="{escape(path)}" data-form="{form}">'
            f"{format(value, form)}</data>"
        )


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever its texts contain."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def gradient(colours: list[list[int]]) -> str:
    """A CSS gradient through a table of RGB colours."""
    return "linear-gradient(90deg," + ",".join("rgb({} {} {})".format(*c) for c in colours) + ")"


def film(source: str, alt: str, lazy: str = ' loading="lazy"') -> str:
    """A film pair on black, its two halves named."""
    return (
        f'<div class="film"><img src="{source}" alt="{escape(alt)}"{lazy}>'
        '<i aria-hidden="true">AP</i><i aria-hidden="true">ML</i></div>'
    )


def choice(legend: str, name: str, options: list[tuple[str, str]]) -> str:
    """Radio buttons that look like one control; the first is chosen."""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if not i else ""}>'
        f"<span>{escape(words)}</span></label>"
        for i, (value, words) in enumerate(options)
    )
    return f"<fieldset><legend>{escape(legend)}</legend>{buttons}</fieldset>"


def label(name: str) -> str:
    """A bone's name; a short one is not broken at its hyphens."""
    return f'<span class="name">{escape(name)}</span>' if len(name) <= 20 else escape(name)


def ticks(top: float) -> str:
    """Round marks along an axis from 0 to ``top``."""
    power = 10.0 ** math.floor(math.log10(top))
    step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if top / (s * power) <= 6.5)
    marks = [i * step for i in range(int(top / step + 1e-9) + 1)]
    spans = "".join(f'<span style="left:{100 * m / top:.2f}%">{m:g}</span>' for m in marks)
    return f'<div class="axis" aria-hidden="true">{spans}</div>'
