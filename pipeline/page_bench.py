"""The run times in `report.html`: a table, and a plot of latency against throughput. Every text is escaped here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from pipeline.bench.records import STITCHED, Bench, size_text, throughput
from pipeline.bench.table import warning
from pipeline.page_sections import table, tile

_WIDTH, _HEIGHT = 660, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 40, 24, 48
_MARKS = (
    '<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
    '<rect x="{a:.1f}" y="{b:.1f}" width="9" height="9"/>',
    '<path d="M{x:.1f} {b:.1f}l5.5 10h-11z"/>',
)
"""One shape a peer, so that colour is not needed to tell them apart."""


def speed_tile(bench: Bench | None) -> str:
    """A tile for the summary, of the largest size that was measured; empty where there is nothing to compare."""
    stitched = bench.peer(STITCHED) if bench else None
    if bench is None or stitched is None:
        return ""
    found = [(i, ratios) for i in range(len(bench.sizes)) if (ratios := bench.ratios(stitched, i))]
    if not found:
        return ""
    index, (latency, through) = found[-1]
    trouble = warning(stitched, stitched.measured[index])
    words = f"TensorFlow's throughput, {latency:.2f} × by latency, at {size_text(bench.sizes[index])} on {bench.device}"
    return tile("Measured speed", f"{through:.2f} ×", f"{trouble}; {words}" if trouble else words)


def run_times(bench: Bench | None) -> str:
    """What `graftrt bench` measured."""
    if bench is None:
        return '<p class="note">Not measured: <code>graftrt bench</code> with this folder does that, and writes it here.</p>'
    return "".join(
        (
            f"<p>{escape(f'{bench.date} on {bench.device}; engines: ' + (', '.join(bench.engines) or 'none'))}</p>",
            plot(bench),
            table(_HEADS, _rows(bench), "Run times by size"),
            "<ul>" + "".join(f"<li>{text}</li>" for text in _remarks(bench)) + "</ul>",
        )
    )


_HEADS = (
    "size",
    "",
    "#latency ms",
    "#p99 ms",
    "#pipelined ms",
    "#items/s",
    "#latency ×",
    "#throughput ×",
    "#error",
    "",
)


def _rows(bench: Bench) -> list[list[str]]:
    rows = []
    for index, size in enumerate(bench.sizes):
        for peer in bench.peers:
            measured = peer.measured[index]
            cells = [escape(size_text(size)), escape(peer.name)]
            if measured.timing is None:
                rows.append([*cells, *[""] * 7, escape(f"not measured: {measured.failed}")])
                continue
            timing, ratios = measured.timing, bench.ratios(peer, index)
            trouble = warning(peer, measured)
            cells += [f"{timing.synchronous:.2f}", f"{timing.synchronous_p99:.2f}", f"{timing.pipelined:.2f}"]
            cells += [f"{throughput(size, timing):,.1f}"]
            cells += ["", ""] if ratios is None else [f"{ratios[0]:.2f}", f"{ratios[1]:.2f}"]
            cells += ["" if measured.max_rel_error is None else f"{measured.max_rel_error:.1e}"]
            rows.append([*cells, f'<span class="bad">{escape(trouble)}</span>' if trouble else ""])
    return rows


def _remarks(bench: Bench) -> list[str]:
    runs = [m.timing.runs for peer in bench.peers for m in peer.measured if m.timing]
    remarks = [escape(f"{peer.name}: {peer.what}") for peer in bench.peers]
    remarks += [escape(note) for note in bench.notes]
    count = f"medians of {min(runs)} to {max(runs)} warm calls" if runs else "nothing could be measured"
    return [
        *remarks,
        f"Each in a process of its own; latency is the time of a call whose results are fetched ({count}), pipelined that "
        "of calls that follow one another. × is how many times as fast as TensorFlow, error the largest relative one.",
    ]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A logarithmic axis from `low` to `high`, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 300 else (1,)
        return [step * 10.0**d for d in decades for step in steps if self.low <= step * 10.0**d <= self.high]


def _axis(values: list[float], start: float, end: float) -> _Axis:
    return _Axis(min(values) / 1.6, max(values) * 1.6, start, end)


def plot(bench: Bench) -> str:
    """Every peer's sizes as a line: the further up and to the left, the better."""
    points = [
        [
            (m.timing.synchronous, throughput(size, m.timing), size.batch)
            for size, m in zip(bench.sizes, peer.measured, strict=True)
            if m.timing
        ]
        for peer in bench.peers
    ]
    every = [point for line in points for point in line]
    if not every:
        return ""
    x = _axis([point[0] for point in every], _LEFT, _WIDTH - _RIGHT)
    y = _axis([point[1] for point in every], _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x, y)]
    for number, line in enumerate(points):
        places = [(x.at(latency), y.at(rate), latency, rate, batch) for latency, rate, batch in line]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, *_ in places)
        name = bench.peers[number].name
        marks = "".join(
            f"<g><title>{escape(f'{name}, batch {batch}: {latency:.2f} ms, {rate:,.1f} items/s')}</title>"
            + _MARKS[number % len(_MARKS)].format(x=a, y=b, a=a - 4.5, b=b - (4.5 if number == 1 else 6))
            + (f'<text x="{a:.1f}" y="{b - 9:.1f}" text-anchor="middle">{batch}</text>' if batch else "")
            + "</g>"
            for a, b, latency, rate, batch in places
        )
        parts.append(f'<g class="peer p{number % len(_MARKS)}"><polyline points="{path}"/>{marks}</g>')
    label = "Latency against throughput; the same figures are in the table below"
    key = "".join(
        f'<span><svg class="key" viewBox="0 0 14 14" aria-hidden="true"><g class="peer p{n % len(_MARKS)}">'
        f"{_MARKS[n % len(_MARKS)].format(x=7, y=7, a=2.5, b=2.5)}</g></svg>{escape(peer.name)}</span>"
        for n, peer in enumerate(bench.peers)
        if points[n]
    )
    batches = " Numbers are batch sizes." if any(size.batch for size in bench.sizes) else ""
    return (
        f'<figure class="plot"><figcaption>Latency against throughput: up and to the left is better.{batches}</figcaption>'
        f'<p class="keys">{key}</p>'
        f'<div class="scroll" tabindex="0" role="group" aria-label="Plot"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg></div></figure>'
    )


def _grid(x: _Axis, y: _Axis) -> str:
    bottom, left = _HEIGHT - _BOTTOM, _LEFT
    lines = [
        f'<path d="M{x.at(v):.1f} {_TOP}V{bottom}"/><text x="{x.at(v):.1f}" y="{bottom + 16}" '
        f'text-anchor="middle">{_number(v)}</text>'
        for v in x.ticks()
    ]
    lines += [
        f'<path d="M{left} {y.at(v):.1f}H{_WIDTH - _RIGHT}"/><text x="{left - 6}" y="{y.at(v) + 4:.1f}" '
        f'text-anchor="end">{_number(v)}</text>'
        for v in y.ticks()
    ]
    names = (
        f'<text x="{(left + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">latency, ms</text>'
        f'<text transform="translate(14 {(bottom + _TOP) / 2}) rotate(-90)" text-anchor="middle">items a second</text>'
    )
    return f'<g class="grid">{"".join(lines)}{names}</g>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
