"""Why ops stay in TensorFlow: grouped for people, with a remedy where there is one."""

from __future__ import annotations

from pipeline.reasons import REMEDIES, by_layer, groups, lines
from stages.artifacts import LeftOp, Reason


def left(layer: str, op: str, reason: Reason, detail: str = "") -> LeftOp:
    return LeftOp(f"{layer}/{op}", op, layer, reason, detail)


def erfc(count: int) -> list[LeftOp]:
    return [left(f"dense_{i}", "Erfc", Reason.UNTRANSLATED, "no handler") for i in range(count)]


def test_equal_reasons_are_one_group_the_most_frequent_first() -> None:
    ops = [left("a", "Where", Reason.USER), *erfc(3), left("a", "Unique", Reason.REFUSED, "words")]
    assert [str(group) for group in groups(ops)] == [
        "3 × Erfc in dense_0 … dense_2: unsupported by tf2onnx: no handler",
        "1 × Where in a: user's choice",
        "1 × Unique in a: refused by TensorRT: words",
    ]


def test_details_that_differ_in_names_only_are_one_group() -> None:
    ops = [
        left(f"layer_{i}", "Cast", Reason.DTYPE, f"layer_{i}/x:0 is float64 and would cross the region's boundary")
        for i in range(4)
    ]
    (group,) = groups(ops)
    assert group.nodes == tuple(f"layer_{i}/Cast" for i in range(4))


def test_details_that_differ_in_substance_are_not() -> None:
    assert len(groups([left("a", "Cast", Reason.DTYPE, f"input 0 is {kind}") for kind in ("string", "float64")])) == 2


def test_a_remedy_is_said_once_for_a_reason_and_only_where_there_is_one() -> None:
    ops = [*erfc(2), left("a", "Sum", Reason.TOO_SMALL), left("b", "Max", Reason.TOO_SMALL)]
    said = lines(ops)
    assert [line for line in said if "try" in line] == [f"  too small: try {REMEDIES[Reason.TOO_SMALL]}"]
    assert sum(line.startswith("left in TensorFlow: ") for line in said) == 3


def test_ops_are_found_by_layer() -> None:
    ops = [*erfc(2), left("dense_0", "Sum", Reason.TOO_SMALL)]
    assert {layer: len(entries) for layer, entries in by_layer(ops).items()} == {"dense_0": 2, "dense_1": 1}
