"""The committed coverage table: of these sources, complete, and what is measured here and now."""

from __future__ import annotations

import json

import pytest

from benchmarks.coverage import scope, table
from benchmarks.coverage.digest import digest
from benchmarks.coverage.models import build, dtypes
from benchmarks.record import RESULTS
from stages.translate import UNSAFE, translatable_ops
from stages.translate.expand import COMPLEX_RULES, RULES
from stages.translate.handlers import HANDLERS

FIGURES = json.loads((RESULTS / "coverage.json").read_text(encoding="utf-8"))["figures"]


def test_the_table_was_measured_on_these_sources() -> None:
    assert FIGURES["digest"] == digest(), "what translates single ops has changed: run `python -m benchmarks.coverage`"


def test_the_document_holds_the_results() -> None:
    text = table.DOCUMENT.read_text(encoding="utf-8")
    found = text.partition(table.BEGIN)[2].partition(table.END)[0]
    assert found.strip() == table.generated().strip()


def test_every_op_of_tensorflow_is_measured_or_out_of_scope_by_class() -> None:
    ops = scope.all_ops()
    wanted, others = scope.split(ops)
    assert set(FIGURES["ops"]) == set(wanted)
    assert FIGURES["out_of_scope"] == others
    assert set(wanted) | {name for names in others.values() for name in names} == set(ops)


def test_every_op_in_scope_has_a_model() -> None:
    """A new op without usable inputs would be taken for one that TensorFlow lacks."""
    failed = {}
    for name, op in scope.split(scope.all_ops())[0].items():
        for dtype in dtypes(op)[:1]:
            try:
                build(op, dtype)
            except Exception as error:  # noqa: BLE001
                failed[name] = str(error)[:200]
    assert failed == {}


def test_what_this_project_translates_can_be_in_engines() -> None:
    """Each expansion and handler is of use: TensorRT for RTX builds it in some dtype, and it is right."""
    ops = FIGURES["ops"]
    useless = {
        name
        for name in RULES.keys() | COMPLEX_RULES.keys() | HANDLERS.keys()
        if name in ops and not any(table.in_engines(steps) for steps in ops[name].values())
    }
    assert useless == set()


def test_nothing_that_is_translated_is_wrong_on_ordinary_values() -> None:
    """Except where ONNX Runtime could not run it: then it stays in TensorFlow."""
    wrong = {
        (name, dtype): steps[variant]
        for name, found in FIGURES["ops"].items()
        for dtype, steps in found.items()
        for variant in table.EQUALITY
        if steps.get("translated") == "yes" and steps.get("parsed") == "yes" and steps.get("built") == "yes"
        if not steps.get(variant, "yes").startswith(("yes", "not run"))
    }
    assert wrong == {}


def test_denied_ops_are_not_offered() -> None:
    assert not translatable_ops() & UNSAFE.keys()


@pytest.mark.slow
def test_some_ops_measured_anew_give_what_is_committed() -> None:
    from benchmarks.coverage.check import check
    from stages.backends.isolated import Worker

    ops = scope.all_ops()
    with Worker("tensorrt_rtx", time_limit_seconds=60) as worker:
        for name in ("Erfc", "BitwiseAnd", "RFFT", "MirrorPad", "Unique", "SegmentSum"):
            dtype = dtypes(ops[name])[0]
            found, committed = check(ops[name], dtype, worker), FIGURES["ops"][name][dtype]
            assert found.keys() == committed.keys(), name
            assert {k: v == "yes" for k, v in found.items()} == {k: v == "yes" for k, v in committed.items()}, name
