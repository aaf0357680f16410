"""Writes the generated part of docs/coverage.md from `results/coverage.json`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping

from benchmarks.coverage.digest import ROOT
from benchmarks.record import RESULTS

BEGIN, END = "<!-- begin coverage: written by python -m benchmarks.coverage -->\n", "<!-- end coverage -->\n"
DOCUMENT = ROOT / "docs" / "coverage.md"
EQUALITY = ("usual", "one", "none", "broadcast")
"""The comparisons that an op must pass; `edges` is reported, and judged by hand (see the policy)."""
_WORDS = 110
_RUNTIME = r"ONNX Runtime can't run \S+: \[ONNXRuntimeError\] : \d+ : "
_STEPS = {"tensorflow": "TensorFlow", "translated": "", "parsed": "parser", "built": "builder"}


def write() -> None:
    """Put the table into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{generated()}\n{END}{after}", encoding="utf-8")


def generated() -> str:
    """The tables as Markdown, from the committed results."""
    result = json.loads((RESULTS / "coverage.json").read_text(encoding="utf-8"))
    figures, versions = result["figures"], result["machine"]["versions"]
    ops: Mapping[str, Mapping[str, Mapping[str, str]]] = figures["ops"]
    engines = {op for op, found in ops.items() if any(in_engines(steps) for steps in found.values())}
    absent = {op for op, found in ops.items() if all("tensorflow" in steps for steps in found.values())}
    outside = sum(map(len, figures["out_of_scope"].values()))
    named = ", ".join(f"{name} {versions[name]}" for name in ("tensorflow", "tf2onnx", "tensorrt-rtx", "onnxruntime"))
    lines = [
        f"Measured {result['date']} in {figures['seconds']} s with {named}.",
        "",
        f"TensorFlow has {len(ops) + outside} ops. {outside} are out of scope (listed at the end), and {len(absent)} have no "
        f"kernel on a CPU to compare with. Of the {len(ops) - len(absent)} others {len(engines)} can be in an engine, in one "
        "dtype or more.",
        "",
        "| op | in engines | odd values | not in engines |",
        "| --- | --- | --- | --- |",
    ]
    for op, found in ops.items():
        inside = [dtype or "yes" for dtype, steps in found.items() if in_engines(steps)]
        odd = _grouped({k: s["edges"] for k, s in found.items() if in_engines(s) and s.get("edges", "yes") != "yes"})
        why = _grouped({dtype: reason(steps) for dtype, steps in found.items() if not in_engines(steps)})
        lines.append(f"| {op} | {', '.join(inside)} | {odd} | {why} |")
    lines += ["", "### Out of scope", ""]
    for name, members in sorted(figures["out_of_scope"].items()):
        lines += [f"**{name}** ({len(members)}): {', '.join(members)}.", ""]
    return "\n".join(lines)


def in_engines(steps: Mapping[str, str]) -> bool:
    """Whether an op in one dtype is translated, taken, built and equal."""
    compared = [steps.get(name, "yes") for name in EQUALITY]
    return all(steps.get(name) == "yes" for name in ("translated", "usual", "parsed", "built")) and set(compared) == {
        "yes"
    }


def reason(steps: Mapping[str, str]) -> str:
    """Why an op in one dtype is not in engines: the first step that it fails."""
    for step, name in _STEPS.items():
        if steps.get(step, "yes") != "yes":
            return f"{name}: {steps[step]}" if name else steps[step]
    for name in EQUALITY:
        found = steps.get(name, "yes")
        if found.startswith("not run: "):
            return f"not compared: {re.sub(_RUNTIME, '', found.removeprefix('not run: '))}"
        if found != "yes":
            return f"differs, {name}: {found}"
    return "not compared"


def _grouped(found: Mapping[str, str]) -> str:
    """What is the same for several dtypes is said once."""
    groups: dict[str, list[str]] = {}
    for dtype, words in found.items():
        short = words if len(words) <= _WORDS else f"{words[:_WORDS]}…"
        groups.setdefault(re.sub(r"([\[\]|<*_`])", r"\\\1", short), []).append(dtype)
    return "; ".join(f"{', '.join(kinds)}: {words}" if kinds != [""] else words for words, kinds in groups.items())


if __name__ == "__main__":
    write()
    sys.exit()
