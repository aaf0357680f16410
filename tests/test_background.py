"""Engines that are built while a model serves: no call waits for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import vision
from stages import storage
from stages.artifacts import EngineSet as EngineSetRecord
from stages.engine_op.background import Builder, Order, profile_around
from stages.engine_op.dtypes import BY_NAME
from stages.engine_op.engine_set import EngineSet
from stages.engine_op.engines import TensorView
from stages.engine_op.interface import Interface, Plan, Port
from stages.engine_op.reasons import CannotRun, Reason
from stages.engine_op.registry import Registry
from stages.errors import StitchError
from stages.stitch import stitch
from tests.conftest import Converted
from tests.engine_op_models import affine_interface, affine_model, plan_of

FLOAT = BY_NAME["float32"]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are refused as where the library is of another version: this machine has no GPU to load any."""

    def load(self: EngineSet, candidate: object, storage: str) -> object:
        raise CannotRun(Reason.VERSION, "the plan was built by another")

    monkeypatch.setattr(EngineSet, "_load", load)


def view(*shape: int) -> TensorView:
    return TensorView(1, FLOAT, shape)


@pytest.mark.parametrize(
    ("size", "low", "high"), [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 4), (40, 33, 64), (64, 33, 64), (65, 65, 128)]
)
def test_an_open_axis_takes_all_sizes_up_to_a_power_of_two(size: int, low: int, high: int) -> None:
    interface = affine_interface([], "r")
    assert profile_around(interface, [view(size, 3)]) == (("input_0", (low, 3), (size, 3), (high, 3)),)


def test_a_scalar_and_an_input_that_engines_do_not_read() -> None:
    ports = (Port("a", "float32", ()), Port(None, "float32", (None,)), Port("b", "float32", (None, 7)))
    profile = profile_around(Interface("r", ports, (), ()), [view(), view(5), view(6, 7)])
    assert profile == (("a", (), (), ()), ("b", (5, 7), (6, 7), (8, 7)))


def test_an_order_becomes_a_plan_for_its_sizes() -> None:
    plans: list[tuple[Plan, int]] = []
    done = threading.Event()

    def ready(plan: Plan, file: Path) -> None:
        plans.append((plan, file.stat().st_size))
        done.set()

    profile = (("input_0", (33, 3), (40, 3), (64, 3)),)
    Builder().add(Order("r", "tensorrt_rtx", "fp32", affine_model(61).SerializeToString, profile, ready))
    assert done.wait(120)
    ((plan, size),) = plans
    assert (plan.backend, plan.device, plan.precision, plan.profiles, plan.bytes) == (
        "tensorrt_rtx",
        "gpu",
        "fp32",
        (profile,),
        size,
    )


def test_an_order_that_can_not_be_built_is_said_and_the_next_one_built(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    builder = Builder()
    profile = (("input_0", (1, 3), (1, 3), (1, 3)),)
    builder.add(Order("broken", "tensorrt_rtx", "fp32", lambda: b"no model", profile, lambda plan, file: None))
    model = affine_model(62).SerializeToString
    builder.add(Order("sound", "tensorrt_rtx", "fp32", model, profile, lambda plan, file: done.set()))
    assert done.wait(120)
    assert "broken: no engine was built while serving" in caplog.text


def test_a_call_is_refused_at_once_and_its_engine_ordered_once(refused: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stages.engine_op.background")
    data = affine_model(63).SerializeToString()
    profiles = ((("input_0", (1, 3), (8, 3), (16, 3)),),)
    plans = [plan_of(b"plan", device="gpu", backend="tensorrt_rtx", profiles=profiles), plan_of(data)]
    interface = Interface(
        "served",
        (Port("input_0", "float32", (None, 3)),),
        affine_interface([], "served").outputs,
        tuple(plans),
        "embedded",
        build_at_runtime=True,
    )
    engines = EngineSet(interface, [b"plan", data], "gpu:0", Registry())
    start = time.perf_counter()
    for size in (2, 3, 2, 16):  # all within the plan's own profile: one engine serves them
        with pytest.raises(CannotRun, match="another"):
            engines.run([view(size, 3)], lambda *_: 0)
    assert time.perf_counter() - start < 1
    wait_for(lambda: "an engine built while serving can't run" in caplog.text)
    engines.close()
    assert caplog.text.count("served: built an engine for") == 1


def wait_for(condition: object, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_being_asked_nothing_is_built(refused: None) -> None:
    plan = plan_of(b"plan", device="gpu", backend="tensorrt_rtx")
    with pytest.raises(CannotRun, match="another"):
        EngineSet(affine_interface([plan], "r", storage="embedded"), [b"plan"], "gpu:0", Registry())


def test_a_model_converted_for_it_has_what_engines_are_built_from(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    result = converted(vision.small_cnn(), backend="tensorrt_rtx", build_at_runtime=True, keep_stages=True)
    assert {path.suffix for path in (result.out / "saved_model/assets").iterdir()} == {".plan", ".onnx"}
    assert b'"build_at_runtime": true' in (result.out / "saved_model/saved_model.pb").read_bytes()
    engines = storage.load(EngineSetRecord, result.out / "stages/build")
    plans_only = tuple(engine for engine in engines.engines if engine.fingerprint.backend == "tensorrt_rtx")
    with pytest.raises(StitchError, match="from which others could be built"):
        stitch(replace(engines, engines=plans_only), tmp_path / "stitched", build_at_runtime=True)
    assert not (tmp_path / "stitched").exists()
