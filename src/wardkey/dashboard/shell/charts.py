"""Bar charts of daily counts as SVG paths; macros.html draws them and adds a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wardkey.actions.keys.usage import DayCounts
from wardkey.dashboard.shell.rendering import day

_UNITS = ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k"))


@dataclass(frozen=True, slots=True)
class Mark:
    """A grid line or a tick: its position in SVG units and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of allowed and denied counts, the denied ones on top; lengths in SVG units."""

    width: int
    height: int
    left: int
    allowed: str
    denied: str
    summary: str
    days: tuple[DayCounts, ...]
    total_allowed: int
    total_denied: int
    lines: tuple[Mark, ...] = ()
    ticks: tuple[Mark, ...] = ()


def spark(days: Sequence[DayCounts]) -> Chart:
    """Return a chart without axes, for a table cell."""
    top = max((item.allowed + item.denied for item in days), default=0)
    allowed, denied = _bar_paths(days, top, 0, 84, 24, 0.7)
    return _chart(days, (84, 24, 0), allowed, denied)


def bars(days: Sequence[DayCounts]) -> Chart:
    """Return a chart with a scale and dates."""
    width, height, left, bottom = 960, 170, 44, 22
    step = _scale_step(max((item.allowed + item.denied for item in days), default=0))
    top = step * 3
    plot_height = height - bottom - 8
    allowed, denied = _bar_paths(days, top, left, width, plot_height, 0.6, 8)
    lines = tuple(
        Mark(round(8 + plot_height * (1 - level / 3), 1), _abbreviate(step * level))
        for level in range(4)
    )
    slot = (width - left) / max(1, len(days))
    every = max(3, len(days) // 10)
    ticks = tuple(
        Mark(round(left + slot * (index + 0.5), 1), day(item.at).partition(",")[0])
        for index, item in enumerate(days)
        if index % every == 1
    )
    return _chart(days, (width, height, left), allowed, denied, lines, ticks)


def _chart(  # noqa: PLR0917 - the parts of a chart
    days: Sequence[DayCounts],
    size: tuple[int, int, int],
    allowed: str,
    denied: str,
    lines: tuple[Mark, ...] = (),
    ticks: tuple[Mark, ...] = (),
) -> Chart:
    total_allowed = sum(item.allowed for item in days)
    total_denied = sum(item.denied for item in days)
    summary = f"{total_allowed:,} allowed and {total_denied:,} denied in {len(days)} days"
    totals = (total_allowed, total_denied)
    return Chart(*size, allowed, denied, summary, tuple(days), *totals, lines, ticks)


def _bar_paths(  # noqa: PLR0917 - the data and the box to draw it in
    days: Sequence[DayCounts],
    top: int,
    left: float,
    width: float,
    plot_height: float,
    fill: float,
    offset: float = 0,
) -> tuple[str, str]:
    slot = (width - left) / max(1, len(days))
    bar = round(slot * fill, 2)
    allowed: list[str] = []
    denied: list[str] = []
    for index, item in enumerate(days):
        if not item.allowed and not item.denied:
            continue
        x = round(left + slot * index + (slot - bar) / 2, 2)
        base = offset + plot_height
        for count, paths in ((item.allowed, allowed), (item.denied, denied)):
            if count:
                # A single denial must stay visible next to a million requests.
                length = max(1.5, plot_height * count / top)
                base = max(offset, base - length)
                paths.append(f"M{x:g} {base:.1f}h{bar:g}v{length:.1f}h-{bar:g}z")
    return "".join(allowed), "".join(denied)


def _scale_step(most: int) -> int:
    """Return a third of the smallest round number that is at least `most`."""
    unit = 1
    while True:
        for tenths in (10, 15, 20, 30, 50):
            if unit * tenths // 10 * 3 >= most:
                return unit * tenths // 10
        unit *= 10


def _abbreviate(count: int) -> str:
    for unit, letter in _UNITS:
        if count >= unit:
            return f"{count / unit:g}{letter}"
    return str(count)
