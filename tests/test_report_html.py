"""report.html: what it holds, that it opens alone and lets nothing in, and how it behaves in a browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest
import tensorflow as tf

from fixtures import vision
from pipeline import Config, cli, convert
from pipeline.page import PICTURE, Insides, render, vendored, write_page
from pipeline.picture import Picture, PictureNode, make_picture
from pipeline.report import EngineReport, OutputError, RegionReport, Report, StageTime, Verification
from pipeline.scopes import GROUP_LIMIT, group_nodes
from pipeline.tensorboard import strip_constants
from stages import backends
from stages.artifacts import Fingerprint, FrozenGraph, LeftOp, Reason, ShapeRange, Source, Tensor
from stages.backends import inspector
from stages.backends.base import BuildOptions
from stages.backends.inspector import Layers, engine_layers
from stages.engine_types import TypedLayer
from stages.errors import ArtifactError
from stages.graph import Graph
from tests import chromium
from tests.test_architecture import ROOT

HTML = ROOT / "pipeline/html"
EVIL = "</script><img src=x onerror=alert(1)>--><script>alert(2)</script>&{{data}}\u2028"
EVIL_START = EVIL.partition("{")[0]
needs_chromium = pytest.mark.skipif(chromium.find() is None, reason="no Chromium found")


class Reader(HTMLParser):
    """Tags with their attributes, the text of scripts and styles, and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.raw:
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        (self.raw[self._inside] if self._inside else self.text).append(data)

    @property
    def data(self) -> dict:
        return json.loads(self.raw["script"][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, converted with non-maximum suppression between two regions."""
    base = tmp_path_factory.mktemp("report")
    model = str(vision.detector().save(base / "model"))
    settings = Config(backend="onnxruntime", keep_in_tf=("NonMaxSuppressionV3",), tensorboard=True)
    convert(model, base / "out", settings)
    return base / "out"


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text())


def synthetic(count: int, region_size: int) -> tuple[Report, Picture]:
    """A chain of `count` ops in scopes of three levels; of every `region_size` ops the last ten stay in TensorFlow."""
    names = [f"model/stage_{i // 1000}/layer_{i // 20}/op_{i}" for i in range(count)]
    groups, owner = group_nodes(names)
    nodes = tuple(
        PictureNode(name, "Relu", "float32 (?, 8)", group, 8, 64, True)
        for name, group in zip(names, owner, strict=True)
    )
    edges = [(i, i + 1) for i in range(count - 1)] + [(i, i + 7) for i in range(0, count - 7, 5)]
    tensor = Tensor("x:0", "float32", (None, 8))
    engine = EngineReport(
        "tensorrt_rtx", "fp16", Fingerprint("tensorrt_rtx", "1", "fp16", "d" * 64), 9, 1.0, "not run here"
    )
    regions, left = [], []
    for start in range(0, count, region_size):
        part = names[start : start + region_size]
        name = f"region_{len(regions)}"
        profile = (ShapeRange("input_0", (1, 8), (8, 8), (32, 8)),)
        regions.append(RegionReport(name, tuple(part[:-10]), (tensor,), (tensor,), (engine,), 1e-6, 2e-6, (profile,)))
        left += [LeftOp(op, "Relu", op.rsplit("/", 1)[0], Reason.REFUSED, "said the parser") for op in part[-10:]]
    check = Verification(({"x": [1, 8]},), (OutputError("y", 1e-6, 3e-6),), 2, {}, True, 2e-3)
    inside = sum(len(region.ops) for region in regions)
    times = (StageTime("freeze", 0.5),)
    report = Report("m", "tensorrt_rtx", "fp16", count, inside, tuple(regions), tuple(left), check, times)
    return report, Picture(nodes, tuple(edges), (), tuple(groups), 0, {"x:0": [1, 8]})


# What the file holds


def test_the_page_states_shares_errors_sizes_times_and_every_reason(folder: Path, reader: Reader) -> None:
    report = Report.read(folder / "report.json")
    text = " ".join(reader.text)
    assert f"{report.ops_in_engines} of {report.ops_total} in {len(report.regions)} engines" in text
    assert "Estimated work in engines" in text
    assert f"{max(output.max_rel_error for output in report.verification.outputs):.1e}" in text
    for stage in report.stages:
        assert stage.name in text
    for op in report.left_in_tensorflow:
        assert op.layer in text
        assert op.reason.value in text
        assert op.detail in text


def test_the_picture_holds_the_graph_and_each_region_its_ops_profiles_and_onnx_nodes(
    folder: Path, reader: Reader
) -> None:
    report = Report.read(folder / "report.json")
    data = reader.data
    names = data["graph"]["names"]
    assert len(report.regions) == len(data["regions"]) == 2
    for region, drawn in zip(report.regions, data["regions"], strict=True):
        assert [names[i] for i in drawn["nodes"]] == list(region.ops)
        model = onnx.load(folder / "regions" / region.name / "model.onnx")
        assert [tuple(node) for node in drawn["onnx"]] == [(node.op_type, node.name) for node in model.graph.node]
        assert drawn["profiles"][0][0]["input"] == "input_0"
        assert drawn["engines"][0]["why_no_layers"]
    left = {names[i]: data["reasons"][reason][0] for reason, nodes in data["left"] for i in nodes}
    assert left == {op.node: op.reason.value for op in report.left_in_tensorflow}
    edges = {(names[a], names[b]) for a, b in data["graph"]["edges"]}
    assert any(a.endswith("Conv2D") and b.endswith("Relu") for a, b in edges)


def test_the_page_opens_alone_and_its_policy_allows_only_its_own_script_and_style(folder: Path, reader: Reader) -> None:
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for directive, text in (("script-src", reader.raw["script"][1]), ("style-src", reader.raw["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"\beval\(|new Function\b|innerHTML\b.*=[^=]*graph", reader.raw["script"][1])
    assert [tag for tag, _ in reader.tags if tag in ("link", "img", "iframe", "object", "embed")] == []
    links = [a[key] for _, a in reader.tags for key in ("href", "src") if key in a]
    assert links
    assert all(link is not None and link.startswith("#") for link in links)
    assert not [a for _, a in reader.tags for key in a if key.startswith("on") or key == "style"]
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_every_text_of_the_model_is_escaped() -> None:
    report, picture = synthetic(30, 30)
    node = replace(picture.nodes[0], name=EVIL, op=EVIL, output=EVIL)
    groups = tuple(replace(group, label=EVIL) for group in picture.groups)
    picture = replace(picture, nodes=(node, *picture.nodes[1:]), groups=groups, sizes={EVIL: [1]})
    tensor = Tensor(EVIL, "float32", None)
    (region,) = report.regions
    engine = replace(region.engines[0], note=EVIL, verified=EVIL)
    region = replace(region, ops=(EVIL, *region.ops[1:]), inputs=(tensor,), outputs=(tensor,), engines=(engine,))
    check = Verification(({EVIL: [1]},), (OutputError(EVIL, 0.0, 0.0, EVIL),), 1, {EVIL: {EVIL: 1}}, True, 1e-5)
    left = (LeftOp(EVIL, EVIL, EVIL, Reason.REFUSED, EVIL),)
    report = replace(report, model=EVIL, signature=EVIL, regions=(region,), left_in_tensorflow=left, verification=check)
    page = render(report, picture, {region.name: Insides(((EVIL, EVIL),), (Layers((TypedLayer(EVIL),)),))})
    plain = Reader(render(*synthetic(30, 30)))
    reader = Reader(page)
    for tag in ("script", "img", "style", "iframe"):
        assert [t for t, _ in reader.tags].count(tag) == [t for t, _ in plain.tags].count(tag)
    assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;|\\u003c.*?\\u003e", "", page)
    assert reader.data["graph"]["names"][0] == EVIL
    assert reader.data["regions"][0]["onnx"] == [[EVIL, EVIL]]
    assert EVIL_START in "".join(reader.text)


def test_a_page_without_regions_or_verification_says_so() -> None:
    report, picture = synthetic(30, 30)
    bare = replace(report, regions=(), ops_in_engines=0, verification=Verification((), (), 0, {}, None))
    text = " ".join(Reader(render(bare, picture)).text)
    assert "everything runs in TensorFlow" in text
    assert "not verified" in text
    assert "was not run" in text


def test_long_tables_are_folded_but_complete() -> None:
    report, picture = synthetic(5000, 20)
    reader = Reader(render(report, picture))
    rows = [tag for tag, _ in reader.tags].count("tr")
    assert rows > 250 + len({op.layer for op in report.left_in_tensorflow})
    assert [tag for tag, _ in reader.tags].count("details") == 3  # two tables, and the licences


def test_libraries_are_what_their_list_says_and_keep_their_licences() -> None:
    entries = vendored()
    files = {path.name for path in (HTML / "vendor").glob("*.js")}
    assert files == {entry["file"] for entry in entries}
    licences = (HTML / "vendor/LICENSES.txt").read_text()
    for entry in entries:
        text = (HTML / "vendor" / entry["file"]).read_bytes()
        assert hashlib.sha256(text).hexdigest() == entry["sha256"]
        assert b"</script" not in text.lower()
        assert f"{entry['package']} {entry['version']} ({entry['licence']})" in licences


def test_the_package_carries_the_page() -> None:
    patterns = re.search(r"^pipeline = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert patterns is not None
    package = ROOT / "pipeline"
    carried = {path for pattern in json.loads(patterns[1]) for path in package.glob(pattern)}
    assert {path for path in HTML.rglob("*") if path.is_file()} <= carried


@pytest.mark.parametrize("dark", [False, True])
def test_texts_have_contrast(dark: bool) -> None:
    light, _, after = (HTML / "page.css").read_text().partition("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", after if dark else light))
    grounds = ["ground", "raised", "tf", "io", "scope", *(f"r{i}" for i in range(8))]
    pairs = [("text", ground) for ground in grounds]
    pairs += [(text, ground) for text in ("faint", "link", "good", "bad") for ground in ("ground", "raised")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line, ground in (("line", "ground"), ("tf-line", "tf"), ("r-line", "r0"), ("focus", "ground")):
        assert contrast(colours[line], colours[ground]) >= 3, (line, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# How it is made


def test_the_report_command_writes_the_page_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert cli.main(["report", str(copy)]) == 0
    assert (copy / "report.html").read_text() == before
    assert "report.html" in capsys.readouterr().out


def test_the_report_command_tells_what_is_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / PICTURE).write_text('{"format_version": 1, "names": []')
    with pytest.raises(ArtifactError, match="is damaged"):
        write_page(copy)
    (copy / PICTURE).write_text('{"format_version": 99}')
    with pytest.raises(ArtifactError, match="format version 99"):
        write_page(copy)
    (copy / PICTURE).unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        write_page(copy)
    assert cli.main(["report", str(copy)]) == 1


def test_a_picture_is_read_as_it_was_written(tmp_path: Path) -> None:
    _, picture = synthetic(50, 25)
    picture = replace(picture, nodes=(replace(picture.nodes[0], exact=False), *picture.nodes[1:]), controls=((0, 3),))
    picture.write(tmp_path / "graph.json")
    assert Picture.read(tmp_path / "graph.json") == picture


@pytest.mark.parametrize(
    "names",
    [
        [f"op_{i}" for i in range(5000)],
        [f"a/b/layer_{i // 7}/op_{i}" for i in range(5000)],
        [f"a/{'deep/' * (i % 40)}op_{i}" for i in range(300)],
        ["x", "x/y", "x/y/z", "PartitionedCall/x/y", "StatefulPartitionedCall", "/", "a//b"],
        [],
    ],
    ids=["flat", "layers", "deep", "odd", "empty"],
)
def test_no_group_is_large_and_every_node_is_in_one(names: list[str]) -> None:
    groups, owner = group_nodes(names)
    members: dict[int | None, int] = {}
    for parent in [*owner, *(group.parent for group in groups)]:
        members[parent] = members.get(parent, 0) + 1
    assert len(owner) == len(names)
    assert all(count <= GROUP_LIMIT for count in members.values())
    assert set(members) - {None} == set(range(len(groups)))
    assert all(group.parent is None or group.parent < i for i, group in enumerate(groups))


def test_parts_of_a_scope_end_where_names_change() -> None:
    names = [f"net/block{b}_{part}" for b in range(4) for part in "abcdefghijklmnopqrst"]
    groups, _ = group_nodes(names)
    assert [group.label for group in groups] == [f"block{b}_a … block{b}_t" for b in range(4)]


def test_what_has_no_layers_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "no.plan"
    plan.write_bytes(b"not a plan")
    monkeypatch.setattr(inspector, "gpu_count", lambda: 1)  # so that the library is really asked, wherever this runs
    assert engine_layers("tensorrt_rtx", [plan, plan]) == [Layers(why_not="the library can't open the plan here")] * 2
    monkeypatch.setattr(inspector, "gpu_count", lambda: 0)
    (found,) = engine_layers("tensorrt_rtx", [plan])
    assert "without one" in found.why_not
    assert engine_layers("onnxruntime", [plan, plan]) == [Layers(why_not="onnxruntime has no engine inspector")] * 2


@pytest.mark.gpu
def test_plans_list_their_layers_where_they_can_be_opened(folder: Path, tmp_path: Path) -> None:
    backend = backends.get("tensorrt_rtx")
    outcome = backend.build(folder / "regions/region_0/model.onnx", tmp_path / "a.plan", BuildOptions())
    assert outcome.built, outcome.failure
    (found,) = engine_layers("tensorrt_rtx", [tmp_path / "a.plan"])
    assert found.names, found.why_not


@pytest.mark.slow
def test_a_page_of_ten_thousand_ops_is_made_in_ten_seconds(tmp_path: Path) -> None:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.versions.producer = 2000
    shape = tf.TensorShape([None, 8]).as_proto()
    graph_def.node.add(name="x", op="Placeholder").attr["shape"].shape.CopyFrom(shape)
    last = "x"
    for i in range(10_000):
        name = f"stage_{i // 1000}/layer_{i // 20}/op_{i}"
        graph_def.node.add(name=name, op="Relu" if i % 3 else "AddV2", input=[last] if i % 3 else [last, last])
        last = name
    for node in graph_def.node:
        node.attr["dtype" if node.op == "Placeholder" else "T"].type = tf.float32.as_datatype_enum
    (tmp_path / "graph.pb").write_bytes(graph_def.SerializeToString())
    ends = Tensor("x:0", "float32", (None, 8)), Tensor(f"{last}:0", "float32", (None, 8))
    frozen = FrozenGraph(tmp_path, Source("graph_def", None), ends[:1], ends[1:], ("x",), ("y",))
    report, _ = synthetic(10_000, 250)
    start = time.process_time()
    picture = make_picture(Graph(frozen), {"x:0": [1, 8]})
    page = render(report, picture)
    assert time.process_time() - start < 10
    assert len(picture.nodes) > 10_000
    assert len(page) < 5_000_000


# TensorBoard and Netron


def graph_in(folder: Path) -> tf.compat.v1.GraphDef:
    """The graph in the event file of a folder."""
    (file,) = folder.iterdir()
    found = tf.compat.v1.GraphDef()
    (text,) = [e.graph_def for e in tf.compat.v1.train.summary_iterator(str(file)) if e.HasField("graph_def")]
    found.ParseFromString(text)
    return found


def test_event_files_hold_the_graph_before_and_after(folder: Path) -> None:
    report = Report.read(folder / "report.json")
    original, stitched = (graph_in(folder / "tensorboard" / name) for name in ("original", "stitched"))
    names = {node.name for node in original.node}
    inside = {op for region in report.regions for op in region.ops}
    assert inside <= names
    coloured = {node.name: node.attr["_XlaCluster"].s.decode() for node in original.node if "_XlaCluster" in node.attr}
    assert coloured == {op: region.name for region in report.regions for op in region.ops}
    calls = [node for node in stitched.node if node.op == "EngineCall"]
    assert {node.attr["_XlaCluster"].s.decode() for node in calls} == {region.name for region in report.regions}
    assert "NonMaxSuppressionV3" in {node.op for node in stitched.node}
    assert not {node.op for node in stitched.node} & {"Conv2D", "MatMul"}
    with tf.Graph().as_default():
        tf.graph_util.import_graph_def(original, name="")


def test_large_constants_lose_their_values_and_nothing_else() -> None:
    with tf.Graph().as_default() as graph:
        tf.constant([[float(i)] * 100 for i in range(100)], name="large")
        tf.constant([1.0, 2.0], name="small")
    graph_def = graph.as_graph_def()
    small = graph_def.node[1].SerializeToString()
    strip_constants(graph_def)
    assert graph_def.ByteSize() < 1000
    assert graph_def.node[1].SerializeToString() == small
    with tf.Graph().as_default() as again:
        tf.graph_util.import_graph_def(graph_def, name="")
        assert again.get_tensor_by_name("large:0").shape == (100, 100)


def test_event_files_are_written_only_when_asked_for(converted) -> None:
    result = converted(vision.small_cnn(), backend="onnxruntime")
    assert (result.out / "report.html").exists()
    assert not (result.out / "tensorboard").exists()


def test_regions_are_sound_onnx_files(folder: Path) -> None:
    models = sorted((folder / "regions").glob("*/model.onnx"))
    assert len(models) == 2
    for model in models:
        onnx.checker.check_model(str(model), full_check=True)


# In a browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def details(tab: chromium.Page) -> str:
    return str(tab.ask("document.getElementById('details').innerText"))


@needs_chromium
def test_both_graphs_are_drawn_one_engine_call_for_each_region(folder: Path, tab: chromium.Page) -> None:
    tab.open(folder / "report.html")
    report = Report.read(folder / "report.json")
    count = "document.querySelectorAll('#{} .item{}').length"
    assert tab.ask(count.format("before", "")) == len(Picture.read(folder / PICTURE).nodes)
    assert tab.ask(count.format("before", ".tf")) == len(report.left_in_tensorflow)
    assert tab.ask(count.format("after", "[data-id^=region]")) == len(report.regions)
    assert tab.ask(count.format("after", ".tf")) == len(report.left_in_tensorflow)
    assert tab.problems() == []


@needs_chromium
def test_a_click_on_a_region_tells_its_ops_engines_profiles_and_onnx_nodes(folder: Path, tab: chromium.Page) -> None:
    tab.open(folder / "report.html")
    tab.click("#after [data-id=region0]")
    told = details(tab)
    for words in (
        "region_0",
        "Conv2D",
        "onnxruntime fp32",
        "input_0: 1×32×32×3",
        "no engine inspector",
        "ONNX nodes",
        "FLOP",
    ):
        assert words in told
    tab.click("#before .item.tf")
    assert "user's choice" in details(tab)
    assert tab.problems() == []


@needs_chromium
def test_links_lead_to_regions_and_ops(folder: Path, tab: chromium.Page) -> None:
    tab.open(folder / "report.html", anchor="#region_1")
    assert details(tab).startswith("region_1")
    tab.click("td a[href^='#op/']")
    assert "TensorFlow" in details(tab)


@needs_chromium
def test_the_picture_is_walked_and_opened_with_the_keyboard(tmp_path: Path, tab: chromium.Page) -> None:
    (tmp_path / "page.html").write_text(render(*synthetic(3000, 300)))
    tab.open(tmp_path / "page.html")
    name = "document.activeElement.getAttribute('aria-label')"
    assert tab.ask("document.querySelectorAll('#before [tabindex=\"0\"]').length") == 1
    tab.ask("document.querySelector('#before [tabindex=\"0\"]').focus()")
    before = tab.ask("document.querySelectorAll('#before .item').length")
    assert isinstance(before, int)
    while "closed scope" not in str(tab.ask(name)):
        tab.press("ArrowDown", 40)
    scope = str(tab.ask(name)).split(",")[0].removeprefix("closed scope ")
    tab.press("Enter", 13, "\r")
    after = tab.ask("document.querySelectorAll('#before .item').length")
    assert isinstance(after, int)
    assert after > before
    assert tab.ask(name) == f"open scope {scope}"
    tab.press("Escape", 27)
    assert tab.ask("document.querySelectorAll('#before .item').length") == before
    assert str(tab.ask(name)).startswith(f"closed scope {scope}")
    scale = tab.ask("document.querySelector('#before svg > g').getAttribute('transform')")
    tab.press("+", 187, "+")
    assert tab.ask("document.querySelector('#before svg > g').getAttribute('transform')") != scale
    assert tab.problems() == []


@needs_chromium
def test_an_op_is_found_by_name(tmp_path: Path, tab: chromium.Page) -> None:
    (tmp_path / "page.html").write_text(render(*synthetic(3000, 300)))
    tab.open(tmp_path / "page.html")
    tab.ask("document.getElementById('search').value = 'op_1234'")
    tab.ask("document.getElementById('search').dispatchEvent(new Event('change'))")
    assert details(tab).startswith("model/stage_1/layer_61/op_1234")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_small_screen_scrolls_only_downwards(folder: Path, tab: chromium.Page, dark: bool) -> None:
    tab.open(folder / "report.html", width=390, height=844, dark=dark, anchor="#region_0")
    assert tab.ask("document.documentElement.scrollWidth") == 390
    colour = str(tab.ask("getComputedStyle(document.body).backgroundColor"))
    assert (colour == "rgb(255, 255, 255)") is not dark


@needs_chromium
def test_texts_of_the_model_run_no_script(tmp_path: Path, tab: chromium.Page) -> None:
    report, picture = synthetic(30, 30)
    nodes = (replace(picture.nodes[0], name=EVIL, op=EVIL, output=EVIL), *picture.nodes[1:])
    (region,) = report.regions
    region = replace(region, ops=(EVIL, *region.ops[1:]), inputs=(Tensor(EVIL, "float32", None),))
    report = replace(report, model=EVIL, regions=(region,))
    page = render(
        report, replace(picture, nodes=nodes), {"region_0": Insides(((EVIL, EVIL),), (Layers((TypedLayer(EVIL),)),))}
    )
    (tmp_path / "page.html").write_text(page)
    tab.open(tmp_path / "page.html", anchor="#region_0")
    assert EVIL_START in details(tab)
    tab.click("#before .item")
    assert tab.ask("document.querySelectorAll('img').length") == 0
    assert tab.problems() == []


@needs_chromium
@pytest.mark.parametrize("nested", [True, False])
def test_ten_thousand_ops_open_within_three_seconds(tmp_path: Path, tab: chromium.Page, nested: bool) -> None:
    report, picture = synthetic(10_000, 250)
    if not nested:
        groups, owner = group_nodes([f"op_{i}" for i in range(10_000)])
        nodes = tuple(replace(node, group=group) for node, group in zip(picture.nodes, owner, strict=True))
        picture = replace(picture, nodes=nodes, groups=tuple(groups))
    (tmp_path / "page.html").write_text(render(report, picture))
    tab.open(tmp_path / "page.html")
    assert float(str(tab.ask("document.documentElement.dataset.firstViewMs"))) < 3000
    items = tab.ask("document.querySelectorAll('.item').length")
    assert isinstance(items, int)
    assert 2 < items < 400
    assert tab.problems() == []
