"""`report.html`: the report as one page that opens without a network.

`render` is a pure function; `write_page` gathers what it needs from the folder that `convert` wrote. Template, style and
scripts lie in `html/`, the libraries that draw the graph in `html/vendor/`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import page_bench, page_sections
from pipeline.bench.records import Bench
from pipeline.picture import Picture
from pipeline.report import EngineReport, RegionReport, Report, kept_line
from stages import backends, recordjson
from stages.backends.inspector import Layers, engine_layers
from stages.engine_types import confirm

PAGE = "report.html"
PICTURE = "graph.json"
_HTML = Path(__file__).parent / "html"
_SCRIPTS = ("model.js", "view.js", "details.js")
_HOLE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Insides:
    """What a region's files hold: `onnx` has the type and the name of each node of its ONNX model, `layers` the engine's layers for
    each of its engines."""

    onnx: tuple[tuple[str, str], ...] = ()
    layers: tuple[Layers, ...] = ()


def write_page(folder: Path) -> Path:
    """Write `folder/report.html` from `report.json`, `graph.json`, the regions' files and `bench.json` where it is there, in
    place of one that is there. What the engines' layers confirm goes into `report.json`.

    Raises:
        ArtifactError: `folder` is not what `convert` wrote, or a file is damaged.
    """
    report = Report.read(folder / "report.json")
    insides = read_insides(report, folder)
    confirmed = confirm_types(report, insides)
    if confirmed != report:
        confirmed.write(folder / "report.json")
    page = render(confirmed, Picture.read(folder / PICTURE), insides, Bench.read(folder))
    partial = folder / f".{PAGE}.partial"
    partial.write_text(page, encoding="utf-8")
    return partial.replace(folder / PAGE)


def read_insides(report: Report, folder: Path) -> dict[str, Insides]:
    """The ONNX nodes and, where the plans can be opened on this machine, the engine layers of every region."""
    layers: dict[tuple[str, str], Layers] = {}
    for backend in dict.fromkeys(engine.backend for region in report.regions for engine in region.engines):
        built = [r.name for r in report.regions if any(engine.backend == backend for engine in r.engines)]
        plans = [folder / "regions" / name / f"{backend}{backends.get(backend).suffix}" for name in built]
        layers |= {(name, backend): found for name, found in zip(built, engine_layers(backend, plans), strict=True)}
    return {
        region.name: Insides(
            _onnx_nodes(folder / "regions" / region.name / "model.onnx"),
            tuple(layers[region.name, engine.backend] for engine in region.engines),
        )
        for region in report.regions
    }


def confirm_types(report: Report, insides: Mapping[str, Insides]) -> Report:
    """The report with what the layers of the engines say of their types."""

    def confirmed(engine: EngineReport, layers: Layers) -> EngineReport:
        types = engine.types and confirm(engine.types, layers.layers, layers.why_not)
        if types is not None and types.confirmed is None and engine.types is not None and engine.types.found:
            return engine  # it was asked on another machine, where the plan could be opened
        return replace(engine, types=types)

    return replace(
        report,
        regions=tuple(
            replace(region, engines=tuple(map(confirmed, region.engines, insides[region.name].layers)))
            for region in report.regions
        ),
    )


def _onnx_nodes(model: Path) -> tuple[tuple[str, str], ...]:
    import onnx

    if not model.exists():
        return ()
    nodes = onnx.load(model, load_external_data=False).graph.node
    return tuple((node.op_type, node.name) for node in nodes)


def render(
    report: Report, picture: Picture, insides: Mapping[str, Insides] | None = None, bench: Bench | None = None
) -> str:
    """The page. Whatever comes from the model (names, messages) is escaped; scripts and style are allowed by their hash only."""
    vendor = vendored()
    style = (_HTML / "page.css").read_text(encoding="utf-8")
    script = "\n".join(
        [(_HTML / "vendor" / str(entry["file"])).read_text(encoding="utf-8") for entry in vendor]
        + [(_HTML / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    )
    pieces = {
        "script_hash": _csp_hash(script),
        "style_hash": _csp_hash(style),
        "title": html.escape(report.model),
        "style": style,
        "script": script,
        "facts": page_sections.facts(report),
        "summary": page_sections.summary(report, picture, page_bench.speed_tile(bench)),
        "run_times": page_bench.run_times(bench),
        "picture_note": page_sections.picture_note(picture),
        "regions": page_sections.regions(report),
        "left": page_sections.left_in_tensorflow(report),
        "verification": page_sections.verification(report),
        "times": page_sections.times(report),
        "libraries": html.escape(", ".join(f"{entry['package']} {entry['version']}" for entry in vendor)),
        "licences": html.escape((_HTML / "vendor/LICENSES.txt").read_text(encoding="utf-8")),
        "data": _for_script(_data(report, picture, insides or {})),
    }
    # In one pass: a piece may contain what looks like a hole.
    return _HOLE.sub(lambda hole: pieces[hole[1]], (_HTML / "page.html").read_text(encoding="utf-8"))


def vendored() -> Sequence[Mapping[str, str]]:
    """The libraries in the page, in the order in which they load: `package`, `version`, `licence`, `file`, `sha256`."""
    entries: list[dict[str, str]] = json.loads((_HTML / "vendor/vendor.json").read_text(encoding="utf-8"))
    return entries


def _data(report: Report, picture: Picture, insides: Mapping[str, Insides]) -> dict[str, object]:
    number = {node.name: i for i, node in enumerate(picture.nodes)}
    reasons = list(dict.fromkeys((op.reason.value, op.detail) for op in report.left_in_tensorflow))
    left: dict[tuple[str, str], list[int]] = {reason: [] for reason in reasons}
    for op in report.left_in_tensorflow:
        if op.node in number:
            left[op.reason.value, op.detail].append(number[op.node])
    return {
        "graph": picture.to_json(),
        "regions": [_region(region, number, insides.get(region.name, Insides())) for region in report.regions],
        "reasons": reasons,
        "left": [[i, left[reason]] for i, reason in enumerate(reasons)],
    }


def _region(region: RegionReport, number: Mapping[str, int], inside: Insides) -> dict[str, object]:
    body = recordjson.encode(region, Path())
    assert isinstance(body, dict)
    layers = inside.layers or (Layers(why_not="the region's files were not read"),) * len(region.engines)
    engines = [
        {**encoded, "types": _types(engine), "layers": found.names, "why_no_layers": found.why_not}
        for engine, encoded, found in zip(region.engines, _objects(body["engines"]), layers, strict=True)
    ]
    nodes = [number[name] for name in region.ops if name in number]
    return {key: value for key, value in body.items() if key not in ("ops", "kept_higher")} | {
        "kept": [kept_line(kept) for kept in region.kept_higher],
        "nodes": nodes,
        "engines": engines,
        "onnx": inside.onnx,
    }


def _types(engine: EngineReport) -> str:
    """Whether an engine computes in what was asked for, in words."""
    types = engine.types
    if types is None or not types.asked:
        return ""
    asked = ", ".join(f"{len(nodes)} × {kind}" for kind, nodes in types.asked.items())
    parsed = ", ".join(f"{number} × {kind}" for kind, number in types.network.items())
    found = ", ".join(f"{number} × {kind}" for kind, number in types.found.items())
    verdict = {True: "confirmed", False: "ERROR", None: "not confirmed"}[types.confirmed]
    words = [f"asked {asked}", parsed and f"parsed {parsed}", found and f"engine {found}", verdict, types.why_not]
    return "; ".join(filter(None, words))


def _objects(value: recordjson.Json) -> list[dict[str, recordjson.Json]]:
    assert isinstance(value, list)
    return [item for item in value if isinstance(item, dict)]


def _for_script(value: object) -> str:
    """JSON that can't end the element it lies in: `<`, `>` and `&` only stand in strings there."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
