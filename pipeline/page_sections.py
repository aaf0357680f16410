"""The parts of `report.html` that need no script: figures and tables, as HTML. Every text is escaped here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from pipeline.picture import Picture
from pipeline.report import Report
from stages.artifacts import LeftOp

_ROWS = 100
"""Rows of a table that are shown at once; the rest is folded away."""


def facts(report: Report) -> str:
    """One line: what was converted, and how it ended."""
    verdict = {
        True: '<span class="good">✓ verified against TensorFlow</span>',
        False: '<span class="bad">✗ differs from TensorFlow</span>',
        None: '<span class="bad">not verified</span>',
    }[report.verification.passed]
    words = f"signature {report.signature}, {report.precision}, split by {report.backend}"
    return f'<p class="facts">{escape(words)} · {verdict}</p>'


def summary(report: Report, picture: Picture, speed: str = "") -> str:
    """Tiles with the figures that matter; `speed` is one more."""
    inside = {name for region in report.regions for name in region.ops}
    flops = sum(node.flops for node in picture.nodes)
    flops_inside = sum(node.flops for node in picture.nodes if node.name in inside)
    sizes = ", ".join(f"{name.split(':')[0]} {_size(shape)}" for name, shape in picture.sizes.items())
    check = report.verification
    error = max((output.measured for output in check.outputs), default=None)
    plans: Counter[str] = Counter()
    for region in report.regions:
        for engine in region.engines:
            plans[engine.backend] += engine.bytes
    seconds = sum(stage.seconds for stage in report.stages)
    tiles = [
        tile(
            "Ops in engines",
            _percent(report.ops_in_engines, report.ops_total),
            f"{report.ops_in_engines:,} of {report.ops_total:,} in {_count(len(report.regions), 'engine')}",
            (report.ops_in_engines, report.ops_total),
        ),
        tile(
            "Estimated work in engines",
            _percent(flops_inside, flops),
            f"of {quantity(flops, 'FLOP')} at {sizes}",
            (flops_inside, flops),
        ),
        tile(
            f"Largest {check.metric} error",
            "not verified" if error is None else f"{error:.1e}",
            ""
            if check.tolerance is None
            else f"allowed {check.tolerance:.0e}, the worst of {_count(len(check.inputs), 'run')}",
        ),
        tile(
            "Plans",
            quantity(sum(plans.values()), "B"),
            ", ".join(f"{backend} {quantity(size, 'B')}" for backend, size in plans.items()),
        ),
        speed,
        tile("Conversion", f"{seconds:.1f} s", ", ".join(f"{s.name} {s.seconds:.1f}" for s in report.stages)),
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def picture_note(picture: Picture) -> str:
    """What the picture leaves out."""
    return f"{len(picture.nodes):,} ops; {picture.hidden:,} constants and ops that fold into them are not drawn."


def regions(report: Report) -> str:
    """One row for each engine, with a link that shows its region."""
    rows = []
    for region in report.regions:
        for engine in region.engines:
            link = f'<a href="#{escape(region.name)}">{escape(region.name)}</a>'
            told = f"{engine.verified}; {engine.note}" if engine.note else engine.verified
            if engine.types is not None and engine.types.confirmed is False:
                told += f"; ERROR: {engine.types.why_not}"
            higher = len(region.kept_higher) if engine.precision in region.precisions else 0
            precision = f"{engine.precision}, {_count(higher, 'layer')} higher" if higher else engine.precision
            error = "" if region.max_rel_error is None else f"{region.max_rel_error:.1e}"
            size, seconds = quantity(engine.bytes, "B"), f"{engine.build_seconds:.1f}"
            rows.append(
                [
                    link,
                    f"{len(region.ops):,}",
                    escape(engine.backend),
                    escape(precision),
                    size,
                    seconds,
                    error,
                    escape(told),
                ]
            )
    if not rows:
        return "<p>No region has an engine: everything runs in TensorFlow.</p>"
    heads = ("region", "#ops", "back end", "precision", "#plan", "#built in s", "#relative error", "here")
    return table(heads, rows, "Regions and their engines")


def left_in_tensorflow(report: Report) -> str:
    """One row for each layer, reason and detail, in the order of the graph."""
    groups: dict[tuple[str, str, str], list[LeftOp]] = {}
    for op in report.left_in_tensorflow:
        groups.setdefault((op.layer, op.reason.value, op.detail), []).append(op)
    if not groups:
        return "<p>Nothing: every op that computes is in an engine.</p>"
    total = Counter(op.reason.value for op in report.left_in_tensorflow)
    reasons = "; ".join(f"{number:,} × {escape(reason)}" for reason, number in total.most_common())
    rows = [
        [
            f'<a href="#op/{quote(ops[0].node)}"><code>{escape(layer)}</code></a>',
            escape(_types(Counter(op.op for op in ops))),
            escape(reason),
            escape(detail),
        ]
        for (layer, reason, detail), ops in groups.items()
    ]
    return f"<p>{reasons}</p>" + table(("layer", "ops", "reason", "detail"), rows, "Ops left in TensorFlow by layer")


def verification(report: Report) -> str:
    """One row for each output, and the fallbacks."""
    check = report.verification
    if check.passed is None:
        return "<p>The stitched model was not run (--no-verify).</p>"
    fallbacks = sum(number for reasons in check.fallbacks.values() for number in reasons.values())
    runs = "; ".join(", ".join(f"{name} {_size(shape)}" for name, shape in run.items()) for run in check.inputs)
    rows = [
        [
            f"<code>{escape(o.name)}</code>",
            f"{o.max_abs_error:.1e}",
            f"{o.max_rel_error:.1e}",
            *([] if check.metric == "relative" else [f"{o.measured:.1e}"]),
            escape(o.why),
        ]
        for o in check.outputs
    ]
    words = f"{_count(check.engines_run, 'engine call')}, {_count(fallbacks, 'fallback')}; run with {runs}"
    other = () if check.metric == "relative" else (f"#{check.metric} error",)
    heads = ("output", "#absolute error", "#relative error", *other, "")
    return f"<p>{escape(words)}</p>" + table(heads, rows, "Errors by output")


def times(report: Report) -> str:
    """Seconds by stage. What was not measured is said, not guessed."""
    total = sum(stage.seconds for stage in report.stages) or 1.0
    rows = [
        [
            escape(stage.name),
            f"{stage.seconds:.2f}",
            _bar(stage.seconds, total, f"{stage.name}, share of the time"),
        ]
        for stage in report.stages
    ]
    return table(("stage", "#seconds", "share"), rows, "Seconds by stage") + (
        '<p class="note">Wall-clock seconds of this conversion; the time to build each plan is with its region.</p>'
    )


def quantity(value: float, unit: str) -> str:
    """`7.76 GFLOP`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:g} {unit}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def tile(name: str, figure: str, words: str, share: tuple[int, int] | None = None) -> str:
    """One figure with words about it, and a bar for a share."""
    bar = _bar(*share, name) if share is not None and share[1] else ""
    said = f'<span class="big">{escape(figure)}</span>{bar}<small>{escape(words)}</small>'
    return f"<div><dt>{escape(name)}</dt><dd>{said}</dd></div>"


def _bar(part: float, whole: float, label: str) -> str:
    return f'<progress max="{whole:g}" value="{part:g}" aria-label="{escape(label)}"></progress>'


def _percent(part: int, whole: int) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(1000 * part / whole) / 10:.1f} %" if whole else "none"


def _size(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _types(ops: Counter[str]) -> str:
    return ", ".join(f"{number} × {op}" if number > 1 else op for op, number in ops.most_common())


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of cells that are HTML already; heads that begin with # are for numbers."""
    classes = [' class="number"' if head.startswith("#") else "" for head in heads]
    head = "".join(
        f'<th scope="col"{c}>{escape(h.removeprefix("#"))}</th>' for h, c in zip(heads, classes, strict=True)
    )

    def body(part: Sequence[Sequence[str]]) -> str:
        lines = (
            "<tr>" + "".join(f"<td{c}>{cell}</td>" for cell, c in zip(row, classes, strict=True)) + "</tr>"
            for row in part
        )
        return (
            f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )

    if len(rows) <= _ROWS:
        return body(rows)
    rest = f"<details><summary>{len(rows) - _ROWS:,} more</summary>{body(rows[_ROWS:])}</details>"
    return body(rows[:_ROWS]) + rest
