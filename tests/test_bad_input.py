"""Bad input by the command line: the error's words, exit code 1, a remedy, no traceback, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import vision
from pipeline.cli import main
from tests.test_architecture import ROOT

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """`make` writes the file or folder that stands for `{bad}` in the arguments; `words` are in the error."""

    arguments: str
    words: str
    make: Make = lambda path: None


class Open(tf.Module):
    """Two open axes, so that the second one needs a range."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32, "x")])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.relu(x) @ tf.ones([3, 3])}


def graph_def() -> bytes:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        tf.nn.relu(tf.matmul(x, tf.ones([4, 3])), name="y")
    content: bytes = graph.as_graph_def().SerializeToString()
    return content


def meta_graph() -> bytes:
    message = tf.compat.v1.MetaGraphDef()
    message.graph_def.ParseFromString(graph_def())
    content: bytes = message.SerializeToString()
    return content


def foreign_op() -> bytes:
    message = tf.compat.v1.GraphDef()
    message.node.add(name="x", op="Placeholder").attr["dtype"].type = tf.float32.as_datatype_enum
    message.node.add(name="y", op="NobodysOp", input=["x"])
    content: bytes = message.SerializeToString()
    return content


def keras_file(change: Callable[[bytes], bytes]) -> Make:
    def make(path: Path) -> None:
        whole = path.with_name("whole.keras")
        vision.small_cnn().save(whole)
        path.write_bytes(change(whole.read_bytes()))
        whole.unlink()

    return make


def blank_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


def samples(**arrays: np.ndarray) -> Make:
    return lambda path: np.savez(path, **arrays)


ROWS = np.zeros((2, 4), np.float32)
PB = lambda path: path.write_bytes(graph_def())  # noqa: E731
META = lambda path: path.write_bytes(meta_graph())  # noqa: E731
OPEN = lambda path: tf.saved_model.save(Open(), str(path))  # noqa: E731

CASES = {
    # the model
    "a missing file": Case("convert {bad}.pb OUT", "no such file or folder"),
    "a file that is no model": Case("convert {bad}.txt OUT", "is not a model", lambda path: path.write_text("hello")),
    "a folder that is no model": Case("convert {bad} OUT", "holds no SavedModel", Path.mkdir),
    "text as .pb": Case("convert {bad}.pb OUT", "is no GraphDef", lambda path: path.write_text("hello world")),
    "a truncated .pb": Case("convert {bad}.pb OUT", "is cut off", lambda path: path.write_bytes(graph_def()[:-20])),
    "an empty .pb": Case("convert {bad}.pb OUT", "holds an empty graph", lambda path: path.write_bytes(b"")),
    "a truncated .keras": Case("convert {bad}.keras OUT", "no Keras model", keras_file(lambda c: c[: len(c) // 2])),
    "a corrupt .keras": Case("convert {bad}.keras OUT", "can't load it", keras_file(blank_middle)),
    "an empty .h5": Case("convert {bad}.h5 OUT", "is no Keras model", lambda path: path.write_bytes(b"")),
    "a custom op": Case(
        "convert {bad}.pb OUT", "op NobodysOp, which is not loaded", lambda p: p.write_bytes(foreign_op())
    ),
    "a name too long": Case(f"convert {'m' * 300} OUT", "no such file or folder"),
    "an unknown input": Case("convert GRAPH OUT --inputs nope:0", "has no tensor nope:0"),
    "an unknown output": Case("convert GRAPH OUT --outputs nope:0", "has no tensor nope:0"),
    "an unknown output of a SavedModel": Case("convert {bad} OUT --outputs nope", "nope: no such output", OPEN),
    "an unknown signature": Case("convert {bad} OUT --signature nope", "has no signature nope", OPEN),
    "unknown tags": Case("convert {bad} OUT --tags nope", "tags", OPEN),
    "a signature of a .pb": Case("convert GRAPH OUT --signature other", "has no signatures, so there is no other"),
    "tags of a .pb": Case("convert GRAPH OUT --tags serve", "has no tags"),
    "a checkpoint without its values": Case("convert {bad}.meta OUT", "files are missing", META),
    "a cut off .meta": Case("convert {bad}.meta OUT", "is no MetaGraph", lambda path: path.write_bytes(b"\xff\xff")),
    "values without a graph": Case(
        "convert {bad}.index OUT", "bad.meta is missing", lambda path: path.write_bytes(b"x")
    ),
    "a constant without a value": Case("convert GRAPH OUT --constant x", "constant 'x' can't be read"),
    "a constant for no input": Case("convert GRAPH OUT --constant nope=1", "has no tensor nope"),
    "a constant for an open shape": Case("convert GRAPH OUT --constant x=1", "its shape (None, 4) is open"),
    "a missing op library": Case("convert GRAPH OUT --op-library {bad}.so", "bad.so: no such library"),
    "a file that is no op library": Case(
        "convert GRAPH OUT --op-library {bad}.so", "TensorFlow can't load it", lambda path: path.write_text("hello")
    ),
    "an unknown architecture": Case("convert keras:ResNet51 OUT", "no such architecture"),
    "an unknown pretrained model": Case("convert pretrained:nothing OUT", "no such model"),
    # sizes and samples
    "an open axis without a range": Case("convert {bad} OUT", "shape (?, ?, 3) is open and has no range", OPEN),
    "a shape without a name": Case("convert GRAPH OUT --shape 1x4", "can't be read"),
    "a shape with letters": Case("convert GRAPH OUT --shape x=axb", "can't be read"),
    "two points of a shape": Case("convert GRAPH OUT --shape x=1x4,2x4", "can't be read"),
    "points of different rank": Case("convert GRAPH OUT --shape x=1x4,2,3x4", "different rank"),
    "a negative size": Case("convert GRAPH OUT --shape x=-1x4", "can't be read"),
    "a shape of an unknown input": Case("convert GRAPH OUT --shape nope=1x4", "nope: the model has no such input"),
    "a shape of another rank": Case("convert GRAPH OUT --shape x=1x4x1", "does not fit its shape (?, 4)"),
    "a range out of order": Case("convert GRAPH OUT --shape x=8x4,1x4,32x4", "is not in order"),
    "a size that is fixed": Case("convert GRAPH OUT --shape x=1x5", "does not fit its shape (?, 4)"),
    "samples that are no archive": Case(
        "convert GRAPH OUT --samples {bad}.npz", "can't be read", lambda path: path.write_bytes(b"PK\3\4 but no more")
    ),
    "pickled samples": Case("convert GRAPH OUT --samples {bad}.npz", "pickle", samples(x=np.array([{}], object))),
    "samples without an input": Case("convert GRAPH OUT --samples {bad}.npz", "no array for input x", samples()),
    "missing samples": Case("convert GRAPH OUT --samples {bad}.npz", "bad.npz: can't be read"),
    "samples of an unknown input": Case("convert GRAPH OUT --samples {bad}.npz", "no such input", samples(nope=ROWS)),
    "samples of another dtype": Case(
        "convert GRAPH OUT --samples {bad}.npz", "sample x: dtype int32", samples(x=ROWS.astype(np.int32))
    ),
    "samples of another shape": Case(
        "convert GRAPH OUT --samples {bad}.npz", "sample x: shape (2, 3)", samples(x=ROWS[:, :3])
    ),
    "samples with NaN": Case("convert GRAPH OUT --samples {bad}.npz", "contains NaN", samples(x=ROWS * np.nan)),
    # settings
    "a negative error": Case("convert GRAPH OUT --max-error -1", "max_error -1.0"),
    "an error that is no number": Case("convert GRAPH OUT --max-error nan", "max_error nan"),
    "no time at all": Case("convert GRAPH OUT --time-limit 0", "time_limit_seconds 0.0 is not positive"),
    "no memory at all": Case("convert GRAPH OUT --workspace-mib 0", "workspace_mib 0 is not positive"),
    "an odd capability": Case("convert GRAPH OUT --capability sm_86", "capability 'sm_86' can't be read"),
    "an unknown back end": Case("convert GRAPH OUT --backend cuda", "cuda: is no back end"),
    "an empty back end": Case("convert GRAPH OUT --backend ,", "is no back end"),
    "a region size for export": Case("export {bad} OUT --min-region 0", "min_region 0 is not positive", Path.mkdir),
    "a capability for build": Case("build {bad} OUT --capability 8", "capability '8' can't be read", Path.mkdir),
    "a time limit for split": Case("split {bad} OUT --time-limit -1", "is not positive", Path.mkdir),
    # artifacts
    "a folder that no stage wrote": Case("export {bad} OUT", "holds no artifact.json", Path.mkdir),
    "no folder for a stage": Case("stitch {bad} OUT", "holds no artifact.json"),
    "a file for a stage": Case("build {bad}.txt OUT", "is damaged", lambda path: path.write_text("hello")),
    "no folder to verify": Case("verify {bad}", "no such folder"),
    # the output
    "an output that exists": Case("convert GRAPH {bad}", "exists already", Path.mkdir),
    "an output that is a file": Case("freeze GRAPH {bad}.txt", "exists already", lambda path: path.write_text("mine")),
    "an output that is a broken link": Case(
        "freeze GRAPH {bad}", "exists already", lambda path: path.symlink_to("gone")
    ),
    "an output inside a file": Case("freeze GRAPH {bad}.txt/out", "can't be written", lambda path: path.write_text("")),
    "an output where nothing can be": Case("freeze GRAPH /proc/none/out", "can't be written"),
    "an output with too long a name": Case(f"freeze GRAPH {'o' * 300}", "can't be written"),
}


@pytest.mark.parametrize("what", CASES)
def test_bad_input_is_a_stated_error(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[what]
    words = case.arguments.split()
    if bad := next((word for word in words if "{bad}" in word), None):
        case.make(tmp_path / bad.replace("{bad}", "bad").partition("/")[0])
    PB(tmp_path / "graph.pb")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    code = main([word.replace("{bad}", "bad").replace("GRAPH", "graph.pb").replace("OUT", "out") for word in words])
    printed = capsys.readouterr()
    assert code == 1
    assert case.words in printed.err
    assert printed.err.count("error: ") == 1
    assert "\n  try: " in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert tree(tmp_path) == before


def tree(folder: Path) -> dict[str, int]:
    """Every path in a folder and when it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["convert"],
        ["convert", "m"],
        ["convert", "m", "o", "--precision", "fp4"],
        ["convert", "m", "o", "--on-failure", "ignore"],
        ["convert", "m", "o", "--min-region", "few"],
        ["convert", "m", "o", "--what"],
        ["verify"],
        ["verify", "o", "--precision", "fp16"],
    ],
)
def test_wrong_usage_exits_with_two_and_says_how(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: graftrt" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


NOBODY = 65534


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder of somebody else's."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    folder = parent / "locked"
    folder.mkdir()
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(parent)


@pytest.mark.parametrize(
    ("mode", "words"), [(0o555, "can't be written: Permission denied"), (0o000, "Permission denied")]
)
def test_a_folder_without_permission_is_a_stated_error(mode: int, words: str, locked: Path) -> None:
    """The parts that look and write, run by an ordinary user: root may do anything."""
    locked.chmod(mode)
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from stages import storage
from stages.errors import ConversionError
if os.geteuid() == 0:
    os.setuid({NOBODY})
try:
    with storage.write_folder(__import__("pathlib").Path(sys.argv[1])):
        print("written")
except ConversionError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(locked / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert words in done.stdout, done.stderr
    assert "try: name a folder where you may write" in done.stdout


def limited(bytes_a_file: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line with a limit on the size of files: what is written behind it fails, as on a full disk."""
    program = (
        "import resource, sys; from pipeline.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_a_file}, {bytes_a_file})); sys.exit(main())"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT, check=False)


def test_a_full_disk_is_a_stated_error_and_leaves_nothing(tmp_path: Path) -> None:
    PB(tmp_path / "graph.pb")
    done = limited(200, "freeze", tmp_path / "graph.pb", tmp_path / "out")
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "try: free some disk space" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["graph.pb"]


def test_a_disk_that_fills_up_while_weights_are_written_is_a_stated_error(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 1000], "x")
        tf.matmul(x, tf.constant(np.random.default_rng(0).random((1000, 600), np.float32)), name="y")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    done = limited(1 << 20, "freeze", tmp_path / "graph.pb", tmp_path / "out")
    assert done.returncode == 1
    assert "try: free some disk space" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["graph.pb"]


def test_a_disk_that_fills_up_while_tensorflow_saves_is_a_stated_error(tmp_path: Path) -> None:
    vision.small_cnn().save(tmp_path / "cnn.keras")
    stages = ["freeze", "export", "split", "build"]
    previous = tmp_path / "cnn.keras"
    for stage in stages:
        assert main([stage, str(previous), str(tmp_path / stage), "-q"]) == 0
        previous = tmp_path / stage
    done = limited(4096, "stitch", previous, tmp_path / "out")
    assert done.returncode == 1
    assert "error: stitch: " in done.stderr
    assert "try: free some disk space" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"cnn.keras", *stages}
