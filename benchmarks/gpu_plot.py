"""Draws `results/gpu.json` into docs/images/gpu.svg: latency against throughput of one model's peers.

python -m benchmarks.gpu_plot [model]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from benchmarks.record import RESULTS
from pipeline.bench.records import Bench, Measured, Peer, Size
from pipeline.page_bench import plot
from pipeline.timing import Timing

TARGET = Path(__file__).parent.parent / "docs/images/gpu.svg"
STYLE = """text{font:12px sans-serif;fill:#444}.grid path{stroke:#ddd;fill:none}
.peer polyline{fill:none;stroke:currentColor;stroke-width:2}.peer circle,.peer rect,.peer path{fill:currentColor}
.p0{color:#1b6e3c}.p1{color:#1f5fbf}.p2{color:#b3541e}"""


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "ResNet50"
    record = json.loads((RESULTS / "gpu.json").read_text())
    drawn = re.search(r"<svg viewBox=.*?</svg>", plot(bench(name, record)), re.DOTALL)
    assert drawn is not None, f"gpu.json has nothing of {name}"
    keys = "".join(
        f'<text x="70" y="{24 + 16 * n}" class="p{n}" style="fill:currentColor">{peer}</text>'
        for n, peer in enumerate(("stitched fp16", "raw engine fp16", "TensorFlow"))
    )
    svg = drawn[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    svg = svg.replace(">", f'><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{keys}', 1)
    TARGET.write_text(svg + "\n")


def bench(name: str, record: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]) -> Bench:
    """One model's peers in the form of `graftrt bench`."""
    rows = record["figures"][name]
    batches = [key for key in rows["raw fp16"] if key.isdigit()]
    peers = tuple(
        Peer(peer, peer, tuple(_measured(rows[peer][batch]) for batch in batches))
        for peer in ("stitched fp16", "raw fp16", "tensorflow tf32")
    )
    sizes = tuple(Size({}, int(batch)) for batch in batches)
    gpu = str(record["figures"]["gpu"])
    return Bench(name, str(record["date"]), gpu, True, (), (), sizes, peers, (), {})


def _measured(row: dict[str, float]) -> Measured:
    return Measured(Timing(0.0, row["synchronous"], row["synchronous_p99"], row["pipelined"], 0))


if __name__ == "__main__":
    main()
