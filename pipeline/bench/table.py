"""What was measured, as a table on a terminal."""

from __future__ import annotations

import io

from pipeline.bench.records import STITCHED, TENSORFLOW, Bench, Measured, Peer, size_text, throughput

WIDTH = 120


def table(result: Bench, *, colour: bool = False) -> str:
    """The whole comparison as text.

    Args:
        colour: with a terminal's control sequences.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    text = io.StringIO()
    console = Console(file=text, width=WIDTH, force_terminal=colour, highlight=False)
    console.print(Text(f"{result.model} on {result.device}; engines: {', '.join(result.engines) or 'none'}"))
    if base := result.peer(TENSORFLOW):
        console.print(Text(f"compared with {base.what}"))
    for index, size in enumerate(result.sizes):
        unit = "calls/s" if size.batch is None else "items/s"
        grid = Table(title=Text(size_text(size), style="bold"), title_justify="left", box=None, pad_edge=False)
        grid.add_column("")
        for head in (
            "latency ms",
            "p99 ms",
            "runs",
            "pipelined ms",
            unit,
            "latency ×",
            "throughput ×",
            "error",
            "first ms",
        ):
            grid.add_column(head, justify="right")
        for peer in result.peers:
            grid.add_row(*(Text(cell) for cell in _row(result, peer, index)), style=_style(peer, peer.measured[index]))
        console.print(grid)
        for peer in result.peers:
            if trouble := peer.measured[index].failed or warning(peer, peer.measured[index]):
                console.print(Text(f"  {peer.name}: {trouble}", style=_style(peer, peer.measured[index])))
    for note in result.notes:
        console.print(Text(f"  {note}"))
    return text.getvalue().rstrip() + "\n"


def _row(result: Bench, peer: Peer, index: int) -> list[str]:
    measured = peer.measured[index]
    if measured.timing is None:
        return [peer.name, "not measured", *[""] * 8]
    timing, ratios = measured.timing, result.ratios(peer, index)
    return [
        peer.name,
        f"{timing.synchronous:.2f}",
        f"{timing.synchronous_p99:.2f}",
        str(timing.runs),
        f"{timing.pipelined:.2f}",
        f"{throughput(result.sizes[index], timing):,.1f}",
        *(("", "") if ratios is None else (f"{ratios[0]:.2f}", f"{ratios[1]:.2f}")),
        "" if measured.max_rel_error is None else f"{measured.max_rel_error:.1e}",
        f"{timing.first:.0f}",
    ]


def warning(peer: Peer, measured: Measured) -> str:
    """What keeps a stitched model's figure from being that of its engines; empty where nothing does."""
    if peer.name != STITCHED or measured.timing is None:
        return ""
    if not measured.engine_calls and not measured.fell_back:
        return "NO ENGINE RAN"
    if not measured.fell_back:
        return ""
    reasons = [f"{name}: {reason}" for name, by_reason in (measured.fallbacks or {}).items() for reason in by_reason]
    share = "NO ENGINE RAN" if not measured.engine_calls else "NOT ALL ENGINES RAN"
    return f"{share}: TensorFlow ran instead {measured.fell_back} times ({'; '.join(reasons)})"


def _style(peer: Peer, measured: Measured) -> str:
    return "bold red" if warning(peer, measured) else "dim" if measured.timing is None else ""
