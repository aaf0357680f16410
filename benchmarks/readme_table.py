"""Rewrites the table of measured results in README.md from `benchmarks/results/*.json`.

    python -m benchmarks.readme_table

Results that are missing are left out. What lies between the two markers in README.md belongs to this script.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- begin results: written by python -m benchmarks.readme_table -->"
END = "<!-- end results -->"
_OPS_NAMED = 3
EMPTY = "No results in `benchmarks/results/` yet; `make bench` measures them."

Figures = Mapping[str, Any]
Record = Mapping[str, Any]


def block(results: Path = RESULTS) -> str:
    """The Markdown between the markers, for the results in a folder; ends with a line break."""
    parts = []
    for name, render in RENDERERS.items():
        path = results / f"{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            parts.append(f"{render(record['figures'])}\n\n{_source(name, record)}")
    return "\n\n".join(parts or [EMPTY]) + "\n"


def rewritten(readme: str, results: Path = RESULTS) -> str:
    """README's text with the block between its markers replaced.

    Raises:
        ValueError: a marker is missing or stands twice.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold each of these lines once: {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block(results)}\n{END}{after}"


def _conversion(figures: Figures) -> str:
    stages = figures["convert_stages_seconds"]
    rows = [
        ("stock tf2onnx, export only", f"{figures['stock_export_seconds']:.1f} s"),
        ("GraftRT, export only", f"{figures['export_seconds']:.1f} s"),
        ("GraftRT, whole conversion", f"{figures['convert_seconds']:.1f} s"),
        *((f"– {name}", f"{seconds:.1f} s") for name, seconds in stages.items()),
    ]
    return "**Converting ResNet50 at 224 × 224**\n\n" + _table(("", "median"), rows)


def _architectures(figures: Figures) -> str:
    rows = []
    for name, entry in figures.items():
        plans = entry["plans"].items()
        rows.append(
            (
                name,
                f"{entry['ops_in_engines']} of {entry['ops_total']}",
                str(entry["regions"]),
                "<br>".join(
                    f"{backend} {plan['megabytes']:.1f} MB in {plan['build_seconds']:.1f} s" for backend, plan in plans
                ),
                f"{entry['max_rel_error']:.1e}",
                f"{entry['convert_seconds']:.1f} s",
            )
        )
    head = ("keras.applications", "ops in engines", "regions", "plans", "largest relative error", "conversion")
    return "**Architectures, fp32, the stitched model against TensorFlow on a CPU**\n\n" + _table(head, rows)


def _pretrained(figures: Figures) -> str:
    rows = [
        (
            f"`{name}`" if name.startswith("pretrained:") else name,
            f"{entry['ops_in_engines']} of {entry['ops_total']}",
            str(entry["regions"]),
            f"{entry['max_rel_error']:.1e}",
            "<br>".join(_left(reason, ops) for reason, ops in entry["left_in_tensorflow"].items()),
        )
        for name, entry in figures.items()
    ]
    head = ("trained weights", "ops in engines", "regions", "largest relative error", "in TensorFlow, and why")
    title = "**Models with trained weights, fp32, split for TensorRT for RTX, run on a CPU against TensorFlow**"
    return f"{title}\n\n" + _table(head, rows)


def _left(reason: str, ops: Mapping[str, int]) -> str:
    """`control flow: 13 Enter, 5 Merge, 5 Switch, 42 others`"""
    names = [f"{count} {op}" for op, count in ops.items()]
    if len(names) > _OPS_NAMED + 1:
        names[_OPS_NAMED:] = [f"{sum(list(ops.values())[_OPS_NAMED:])} others"]
    return f"{reason}: {', '.join(names)}"


def _op_overhead(figures: Figures) -> str:
    rows = [
        ("ONNX Runtime session, called directly", f"{figures['session_milliseconds']:.1f} ms"),
        ("the same engine through EngineCall in a TensorFlow function", f"{figures['op_milliseconds']:.1f} ms"),
        ("median of the paired ratios", f"{figures['median_of_paired_ratios']:.3f}"),
    ]
    title = f"**ResNet50 at batch {figures['batch']} on a CPU, {figures['runs']} runs in turn**"
    return f"{title}\n\n" + _table(("", "median"), rows)


def _progress(figures: Figures) -> str:
    names = {"resnet50": "ResNet50", "chain_1000": "a chain of small ops"}
    rows = [
        (
            f"{words}, {figures[name]['ops']:,} ops",
            f"{figures[name]['wall_milliseconds_without'] / 1000:.2f} s",
            f"{figures[name]['wall_milliseconds_with'] / 1000:.2f} s",
            _with_interval(figures[name], "wall"),
            _with_interval(figures[name], "cpu"),
            f"{figures[name]['monitor_share'] + figures[name]['drawing_share']:.1%}",
        )
        for name, words in names.items()
    ]
    title = (
        f"**Building a region with TensorRT for RTX, {figures['pairs']} times without and with a progress bar in turn**"
    )
    title += f", load average {figures['load_average']}"
    head = (
        "region",
        "without",
        "with",
        "median of the paired ratios",
        "likewise, processor time of both processes",
        "monitor and drawing, timed by themselves",
    )
    return f"{title}\n\n" + _table(head, rows)


def _with_interval(figures: Figures, time: str) -> str:
    low, high = figures[f"{time}_interval"]
    return f"{figures[f'median_of_paired_{time}_ratios']:.3f} ({low:.3f} to {high:.3f})"


def _clustering(figures: Figures) -> str:
    sizes = (10_000, 100_000)
    rows = [
        (f"{nodes:,}", f"{figures[f'seconds_{nodes}_nodes']:.3f} s", f"{figures[f'clusters_{nodes}_nodes']:,}")
        for nodes in sizes
    ]
    title = f"**Clustering a synthetic graph, best of {figures['runs']} runs**"
    return f"{title}\n\n" + _table(("nodes", "CPU time", "clusters"), rows)


def _scaling(figures: Figures) -> str:
    names = {"nothing_refused": "nothing refused", "refused_every_500": "one refused after every 500"}
    rows = [
        (
            f"{row['ops']:,}, {words}",
            str(row["regions"]),
            f"{row['seconds']:.1f} s",
            f"{row['seconds_with_cached_engines']:.1f} s",
        )
        for name, words in names.items()
        for row in figures[name]
    ]
    title = "**Converting chains of small ops, for TensorRT for RTX and ONNX Runtime**"
    return f"{title}\n\n" + _table(("computing ops", "regions", "conversion", "again, engines cached"), rows)


def _large_model(figures: Figures) -> str:
    rows = [
        (name, *(f"{entry[f'{part}_over_weights']:.2f}" for part in ("pss", "anonymous")))
        for name, entry in figures["stages"].items()
    ]
    size, largest = figures["weights_bytes"] / 1e9, figures["largest_tensor_bytes"] / 1e9
    title = f"**A model with {size:.2f} GB of weights, {largest:.2f} GB in one tensor: peak memory over weights**"
    return f"{title}\n\n" + _table(("", "with mapped files", "without"), rows)


def _precision(figures: Figures) -> str:
    rows = [
        (
            f"`{name.partition(' ')[0]}` {name.partition(' ')[2]}",
            *(
                (f"{entry['agreement']:.1%} of {entry['images']}", f"{entry['max_rel_error']:.1e}")
                if entry["engines"]["onnxruntime"] in name
                else ("not run here", "")
            ),
            f"{entry['share_in_int8']:.0%}" if "share_in_int8" in entry else "",
            f"{entry['megabytes']['tensorrt_rtx']:.2f} MB",
        )
        for name, entry in figures.items()
    ]
    head = ("precision", "same answer as TensorFlow", "largest relative error", "multiplied in int8", "plan for GPUs")
    title = "**Answers on crops of photographs and faces that nothing was calibrated on, run by ONNX Runtime**"
    return f"{title}\n\n" + _table(head, rows)


def _gpu(figures: Figures) -> str:
    rows = []
    models = {name: peers for name, peers in figures.items() if isinstance(peers, dict) and "stitched fp16" in peers}
    for name, peers in models.items():
        stitched, raw, plain = (peers[peer] for peer in ("stitched fp16", "raw fp16", "tensorflow tf32"))
        ran = not any(region["fallbacks"] for region in stitched.get("stats", {"": {"fallbacks": True}}).values())
        for batch in (key for key in raw if key.isdigit()):
            engine, usual = raw[batch]["pipelined"], plain[batch]["pipelined"]
            cells = ["no engine ran", "", "", ""]
            if ran:
                own = stitched[batch]["pipelined"]
                cells = [
                    f"{own:.3f} ms",
                    f"{own / engine:.2f}",
                    f"{usual / own:.1f}",
                    f"{stitched[batch]['synchronous']:.2f} ms",
                ]
            rows.append((f"{name}, {batch}", f"{engine:.3f} ms", *cells, f"{usual:.2f} ms"))
    title = f"**Calls that follow one another on one {figures['gpu']}, fp16 beside TensorFlow's default (TF32)**"
    head = (
        "model, batch",
        "raw engine",
        "stitched",
        "over raw",
        "times as fast as TensorFlow",
        "stitched, latency",
        "TensorFlow",
    )
    return f"{title}\n\n" + _table(head, rows)


RENDERERS: Mapping[str, Callable[[Figures], str]] = {
    "gpu": _gpu,
    "conversion": _conversion,
    "architectures": _architectures,
    "pretrained": _pretrained,
    "precision": _precision,
    "op_overhead": _op_overhead,
    "progress": _progress,
    "clustering": _clustering,
    "scaling": _scaling,
    "large_model": _large_model,
}
"""By the name of the result file, in README's order."""


def _source(name: str, record: Record) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    place = f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}"
    return f"<sub>[{name}.json](benchmarks/results/{name}.json), {record['date']}, {place}, {versions}.</sub>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    README.write_text(rewritten(README.read_text()))


if __name__ == "__main__":
    main()
