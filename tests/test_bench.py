"""graftrt bench: what is measured against what, what is said about it, and where it is shown."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from fixtures import text, vision
from pipeline import Config, cli, convert
from pipeline import timing as timing_module
from pipeline.bench.peer import Original, Request, answer
from pipeline.bench.records import BENCH, PEERS, Bench, Measured, Peer, Size
from pipeline.bench.run import BenchOptions, bench
from pipeline.bench.table import table
from pipeline.page import write_page
from pipeline.report import Report
from pipeline.timing import Effort, Timing, percentile, timed
from stages.errors import ArtifactError, BenchError, ConversionError
from tests import chromium
from tests.test_architecture import ROOT

QUICK = Effort(rounds=2, seconds=0.02)


# The measurement itself


def test_times_are_those_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waiting = [0.0], [0]
    monkeypatch.setattr(timing_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def enqueue() -> None:
        now[0] += 0.001
        waiting[0] += 1

    def fetch() -> None:  # as a GPU would: what was enqueued takes 4 ms a call, and the answer 2 ms
        now[0] += 0.004 * waiting[0] + 0.002
        waiting[0] = 0

    timing = timed(enqueue, fetch, Effort(rounds=2, seconds=0.05))
    assert [timing.first, timing.synchronous, timing.synchronous_p99] == pytest.approx([7, 7, 7])
    assert timing.pipelined == pytest.approx((7 * 5 + 2) / 7)  # seven calls in a round of 50 ms, one answer
    assert timing.runs == 15  # two rounds long


def test_a_slow_call_is_a_round_of_its_own() -> None:
    calls = []
    timing = timed(lambda: calls.append(0), lambda: time.sleep(0.03), Effort(rounds=2, seconds=0.001))
    assert len(calls) == 1 + 1 + 2 + 2  # first, warm, pipelined, synchronous
    assert timing.runs == 2


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2


# A stitched model beside its original


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image classifier, its original beside it."""
    base = tmp_path_factory.mktemp("bench")
    vision.small_cnn().save(base / "cnn.keras")
    convert(base / "cnn.keras", base / "out", Config(backend="onnxruntime"))
    return base / "out"


@pytest.fixture(scope="module")
def measured(folder: Path) -> Bench:
    return bench(folder, BenchOptions(batches=(1, 40), effort=QUICK))


def test_every_peer_is_measured_at_every_size_and_answers_alike(measured: Bench, folder: Path) -> None:
    assert [peer.name for peer in measured.peers] == list(PEERS)
    assert [size.shapes["image"] for size in measured.sizes] == [[1, 16, 16, 3], [40, 16, 16, 3]]
    assert [size.in_profiles for size in measured.sizes] == [True, False]
    for peer in measured.peers:
        for entry in peer.measured:
            assert entry.timing is not None, entry.failed
            assert 0 < entry.timing.synchronous <= entry.timing.synchronous_p99
    stitched, original, xla = measured.peers
    assert str(folder.parent / "cnn.keras") in original.what
    assert all(entry.engine_calls > 0 and not entry.fallbacks for entry in stitched.measured)
    assert all(entry.engine_calls == 0 for peer in (original, xla) for entry in peer.measured)
    for peer in (stitched, xla):
        assert all(entry.max_rel_error is not None and entry.max_rel_error < 1e-5 for entry in peer.measured)
    assert measured.engines == ("onnxruntime fp32",)


def test_the_file_is_what_was_measured(measured: Bench, folder: Path) -> None:
    assert Bench.read(folder) == measured
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("inputs", "outputs", "problem"),
    [
        (("photo",), ("output_0",), "takes image, and the stitched model photo"),
        (("image",), ("a", "b"), "gives output_0, and"),
    ],
)
def test_an_original_with_other_inputs_or_outputs_is_refused(
    folder: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], problem: str
) -> None:
    model = Original(str(folder.parent / "cnn.keras"))
    wanted = tuple((name, "float32") for name in inputs)
    request = Request("tensorflow", "", "serving_default", model, True, (), "", 1, wanted, outputs, QUICK)
    assert Request.from_json(request.to_json()) == request
    said = answer(request)
    assert set(said) == {"unavailable"}
    assert problem in str(said["unavailable"])


def test_the_conversion_says_for_which_sizes_it_was(folder: Path) -> None:
    (sizes,) = Report.read(folder / "report.json").sizes
    assert (sizes.input, sizes.minimum, sizes.maximum) == ("image", (1, 16, 16, 3), (32, 16, 16, 3))


@pytest.mark.slow
def test_strings_and_tables_are_measured_and_xla_says_why_not(tmp_path: Path) -> None:
    text.text_classifier().export(str(tmp_path / "model"), verbose=False)
    convert(tmp_path / "model", tmp_path / "out", Config(backend="onnxruntime"))
    result = bench(tmp_path / "out", BenchOptions(batches=(3,), effort=QUICK))
    stitched, original, xla = (peer.measured[0] for peer in result.peers)
    assert stitched.timing
    assert original.timing
    assert stitched.max_rel_error is not None
    assert stitched.max_rel_error < 1e-5
    assert xla.failed == "XLA knows no strings (input text)"
    shown = table(result)
    assert "not measured" in shown
    assert "XLA knows no strings" in shown


@pytest.mark.slow
def test_without_the_original_the_models_own_ops_stand_in_and_a_model_without_engines_is_called_so(
    tmp_path: Path,
) -> None:
    model = text.wide_dense()  # a live model, which no other process can open; its weights are variables
    convert(model, tmp_path / "out", Config(backend="tensorrt_rtx", verify=False))
    result = bench(tmp_path / "out", BenchOptions(batches=(2,), effort=QUICK))
    stitched, original, xla = result.peers
    assert "the stitched model's own TensorFlow ops" in original.what
    assert original.measured[0].timing
    assert "--model" in xla.measured[0].failed
    if not result.gpu:
        (reasons,) = (stitched.measured[0].fallbacks or {}).values()
        assert "no usable GPU" in reasons
        assert result.not_run == ("tensorrt_rtx fp32",)
        assert "NO ENGINE RAN" in table(result)
        assert "tensorrt_rtx fp32 (no GPU here" in table(result)


# What is said of it


def synthetic() -> Bench:
    """Two sizes; at the second one not all engines ran, and XLA can't compile the model."""
    timing = Timing(50.0, 2.0, 3.0, 1.0, 120)
    slow = Timing(10.0, 4.0, 6.0, 4.0, 120)
    fell = {"region_1": {"<shape outside>": 7}}
    stitched = Peer("stitched", "the stitched model", (Measured(timing, "", 9), Measured(timing, "", 9, fell, 1e-6)))
    tensorflow = Peer("tensorflow", "TensorFlow, the original model m", (Measured(slow), Measured(slow)))
    xla = Peer("xla", "TensorFlow with XLA", (Measured(slow), Measured(None, "XLA can't compile <Op>")))
    sizes = (Size({"x": [1, 4]}, 1, True), Size({"x": [8, 4]}, 8, False))
    versions = {"tensorflow": "2"}
    return Bench(
        "m",
        "2030-01-02",
        "a CPU",
        False,
        ("onnxruntime fp32",),
        (),
        sizes,
        (stitched, tensorflow, xla),
        ("a note",),
        versions,
    )


def test_the_table_states_ratios_failures_and_fallbacks() -> None:
    shown = table(synthetic())
    row = next(line for line in shown.splitlines() if line.startswith("stitched "))
    assert row.split()[1:8] == ["2.00", "3.00", "120", "1.00", "1,000.0", "2.00", "4.00"]
    assert "stitched: NOT ALL ENGINES RAN: TensorFlow ran instead 7 times (region_1: <shape outside>)" in shown
    assert "xla: XLA can't compile <Op>" in shown
    assert "a note" in shown


def test_the_page_shows_run_times_or_says_that_there_are_none(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    (copy / BENCH).unlink(missing_ok=True)
    assert "Not measured" in write_page(copy).read_text()
    synthetic().write(copy)
    page = write_page(copy).read_text()
    assert "Measured speed" in page
    assert "<td>xla</td>" in page
    assert "not measured: XLA can&#x27;t compile &lt;Op&gt;" in page
    assert page.count('class="peer p0"') == 2  # its line, and the key
    marks = re.findall(r"<title>(\w+), batch (\d+): ([\d.]+) ms, ([\d.,]+) items/s</title>", page)
    assert marks[:2] == [("stitched", "1", "2.00", "1,000.0"), ("stitched", "8", "2.00", "8,000.0")]
    assert len(marks) == 5


@pytest.mark.skipif(chromium.find() is None, reason="no Chromium found")
def test_run_times_fit_a_small_screen(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    synthetic().write(copy)
    write_page(copy)
    with chromium.page(tmp_path / "profile") as tab:
        tab.open(copy / "report.html", width=390, height=844)
        assert tab.ask("document.documentElement.scrollWidth") == 390
        assert tab.problems() == []
        scrolling = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        assert tab.ask(f"{scrolling}.every(e => e.tabIndex === 0)") is True


# On the command line


def test_the_command_prints_json_writes_the_page_and_notices_another_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, other = tmp_path / "out", tmp_path / "other.keras"
    shutil.copytree(folder, copy)
    vision.small_cnn(seed=5).save(other)
    words = ["bench", str(copy), "--batch", "1", "--peers", "stitched,tensorflow", "--rounds", "2", "--seconds", "0.02"]
    assert cli.main([*words, "--model", str(other), "--json", "-q"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result == json.loads((copy / BENCH).read_text())
    assert said.err == ""
    (note,) = result["notes"]
    assert note.startswith("stitched: answers differ from TensorFlow's")
    assert "answers differ" in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--peers", "stitched,jax"], "peer 'jax' is unknown"),
        (["--peers", "xla,xla"], "each peer can be measured once"),
        (["--batch=-8"], "batch -8 is not positive"),
        (["--batch", "many"], "--batch 'many' can't be read"),
        (["--rounds", "0"], "rounds 0 is not positive"),
        (["--seconds=-1"], "seconds -1 is not positive"),
        (["--shape", "image=1x2x2x3"], "does not fit its shape"),
        (["--model", "nowhere.keras", "--peers", "tensorflow"], "nowhere.keras: no such file or folder"),
    ],
)
def test_what_makes_no_sense_is_refused(
    folder: Path, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(folder), *words, "-q"]) == 1
    assert problem in capsys.readouterr().err


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(tmp_path), "-q"]) == 1
    assert "holds no SavedModel" in capsys.readouterr().err


def test_a_fixed_first_axis_has_no_batch(tmp_path: Path) -> None:
    class Fixed(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([2, 3], tf.float32, "x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.nn.relu(x)}

    module = Fixed()
    convert(module, tmp_path / "out", Config(backend="onnxruntime", verify=False))
    with pytest.raises(BenchError, match="open first axis"):
        bench(tmp_path / "out", BenchOptions(batches=(4,)))


@pytest.mark.parametrize("damage", ["{", "{}", '{"schema_version": 99}'])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / BENCH).write_text(damage)
    with pytest.raises(ArtifactError, match=re.escape(BENCH)):
        Bench.read(tmp_path)


def test_what_can_not_be_written_is_stated(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no-such-folder"):
        replace(synthetic(), model="x").write(tmp_path / "no-such-folder")


def test_the_document_explains_every_key() -> None:
    shown = (ROOT / "docs/bench.md").read_text()
    fields = {field.name for record in (Bench, Peer, Measured, Size, Timing) for field in dataclasses.fields(record)}
    assert not {field for field in fields if f"`{field}`" not in shown}
