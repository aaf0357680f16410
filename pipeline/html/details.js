"use strict";
// The panel that tells about what was chosen, and everything that answers to a click outside the pictures.

const panel = document.getElementById("details");

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, attributes);
  element.append(...children);
  return element;
}

const terms = (pairs) => make("dl", {}, ...pairs.filter(([, value]) => value !== "" && value != null)
  .flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));

function quantity(value, unit) {
  for (const [factor, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= factor) return `${(value / factor).toPrecision(3)} ${prefix}${unit}`;
  }
  return `${value} ${unit}`;
}

const assumed = new Set(graph.assumed);
const sum = (nodes, column) => nodes.reduce((total, i) => total + column[i], 0);
const work = (nodes) => `${quantity(sum(nodes, graph.flops), "FLOP")}, ${quantity(sum(nodes, graph.bytes), "B")} moved (estimated`
  + `${nodes.some((i) => assumed.has(i)) ? ", unknown axes as 1, loops as one turn" : ""})`;

function describeOp(i) {
  const left = leftOf.get(i);
  return [make("h3", {}, graph.names[i]), terms([
    ["op", graph.ops[i]],
    ["first result", graph.outputs[i]],
    ["work", isInput(i) ? "" : work([i])],
    ["runs in", regionOf[i] >= 0 ? data.regions[regionOf[i]].name : isInput(i) ? "" : "TensorFlow"],
    ["why", left ? `${left[0]}${left[1] ? `: ${left[1]}` : ""}` : ""],
  ])];
}

function byType(types) {
  const counts = new Map();
  for (const type of types) counts.set(type, (counts.get(type) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([type, n]) => `${n} × ${type}`).join(", ");
}

function fold(title, lines) {
  return make("details", {}, make("summary", {}, title), make("ol", {}, ...lines.map((line) => make("li", {}, make("code", {}, line)))));
}

function describeGroup(item) {
  const shares = item.shares().map(([r, share]) => `${(share * 100).toFixed(1)} % ${r < 0 ? "TensorFlow" : data.regions[r].name}`);
  return [make("h3", {}, `Scope ${item.label}`), terms([
    ["ops", byType(item.nodes.map((i) => graph.ops[i]))],
    ["work", work(item.nodes)],
    ["runs in", shares.join(", ")],
  ])];
}

const size = (shape) => shape.join("×") || "scalar";
const tensor = ({ name, dtype, shape }) =>
  `${name}: ${dtype} ${shape === null ? "of unknown rank" : `(${shape.map((axis) => axis === null ? "?" : axis).join(", ")})`}`;

function describeRegion(r) {
  const region = data.regions[r];
  const parts = [make("h3", {}, region.name), terms([
    ["ops", byType(region.nodes.map((i) => graph.ops[i]))],
    ["work", work(region.nodes)],
    ["largest error of its ONNX model", region.max_rel_error === null ? "" : `${region.max_rel_error.toExponential(1)} relative`],
    ["inputs", region.inputs.map(tensor).join("; ")],
    ["outputs", region.outputs.map(tensor).join("; ")],
    ["profiles", region.profiles.map((profile) => profile.map((range) =>
      `${range.input}: ${size(range.minimum)}, ${size(range.optimum)}, ${size(range.maximum)}`).join("; ")).join(" | ")],
    ["precisions", Object.entries(region.precisions).map(([name, number]) => `${count(number, "op")} in ${name}`).join(", ")],
    ["chosen by", region.evaluations ? `${count(region.evaluations, "trial")}; ${region.auto_note}`.replace(/; $/, "") : ""],
    ["ONNX model", `regions/${region.name}/model.onnx, opens in Netron`],
  ])];
  if (region.kept.length) parts.push(fold(`${count(region.kept.length, "layer")} kept higher`, region.kept));
  for (const engine of region.engines) {
    const { backend, version, capabilities, digest } = engine.fingerprint;
    parts.push(make("h4", {}, `${backend} ${engine.precision}`), terms([
      ["plan", `${quantity(engine.bytes, "B")}, built in ${engine.build_seconds.toFixed(1)} s by version ${version}`],
      ["here", engine.verified],
      ["note", engine.note],
      ["multiplies in", engine.types],
      ["built for", capabilities.length ? `compute capabilities ${capabilities.join(", ")}` : ""],
      ["digest", make("code", {}, digest.slice(0, 16))],
      ["engine layers", engine.layers.length ? "" : `not listed: ${engine.why_no_layers}`],
    ]));
    if (engine.layers.length) parts.push(fold(`${count(engine.layers.length, "engine layer")}`, engine.layers));
  }
  if (region.onnx.length) {
    parts.push(terms([["ONNX ops", byType(region.onnx.map(([type]) => type))]]),
      fold(count(region.onnx.length, "ONNX node"), region.onnx.map(([type, name]) => `${type} ${name}`)));
  }
  parts.push(fold(count(region.nodes.length, "TensorFlow op"), region.nodes.map((i) => `${graph.names[i]} (${graph.ops[i]}) ${graph.outputs[i]}`)));
  return parts;
}

class Explorer {
  constructor() {
    this.open = firstOpen();
    this.views = [
      new View(document.getElementById("before"), false, "Original graph", this),
      new View(document.getElementById("after"), true, "Stitched graph", this),
    ];
    this.redraw();
    for (const view of this.views) view.fit(0.5);
  }

  redraw(view, id) {
    for (const each of this.views) each.draw(this.open);
    if (view) view.focus(id);
  }

  choose(item, view) {
    view.focus(item.id);
    if (item.kind === "group") {
      this.open.add(item.number);
      const inside = contract(this.open, view.stitched).items.find((other) => other.scopes.includes(item.number));
      this.redraw(view, inside && `box${item.number}`);
      panel.replaceChildren(...describeGroup(item));
      return;
    }
    const region = item.kind === "region" ? item.number : regionOf[item.number];
    const parts = item.kind === "op" ? describeOp(item.number) : [];
    panel.replaceChildren(...parts, ...(region >= 0 ? describeRegion(region) : []));
    for (const each of this.views) each.mark(item.id);
  }

  close(g, view) {
    for (const open of [...this.open]) if (paths[open].includes(g)) this.open.delete(open);
    this.redraw(view, `group${g}`);
  }

  closeAround(id, view) {
    const scopes = id?.startsWith("box") ? [Number(id.slice(3))] : view.items.find((item) => item.id === id)?.scopes;
    if (scopes?.length) this.close(scopes.at(-1), view);
  }

  showOp(i) {
    for (const g of pathOf(i)) this.open.add(g);
    this.redraw(this.views[0], `op${i}`);
    this.choose(this.views[0].items.find((item) => item.id === `op${i}`), this.views[0]);
  }

  showRegion(r) {
    panel.replaceChildren(...describeRegion(r));
    this.views[1].reveal(`region${r}`);
    this.views[1].mark(`region${r}`);
    panel.focus();
  }

  closeAll() {
    this.open.clear();
    this.redraw();
    for (const view of this.views) view.fit(0.5);
  }
}

function legend() {
  const entry = (colour, text) => make("span", {}, make("span", { className: `swatch ${colour}` }), text);
  const shown = data.regions.slice(0, PALETTE).map((region, r) => entry(`r${r}`, region.name));
  if (data.regions.length > PALETTE) shown.push(`… ${data.regions.length} regions, colours repeat`);
  document.getElementById("legend").append(...shown, entry("tf", "stays in TensorFlow"), entry("io", "input"));
}

const matches = (i, text) => `${graph.names[i]} ${graph.ops[i]}`.toLowerCase().includes(text);

function start() {
  legend();
  if (!graph.names.length) {
    document.querySelector(".pictures").replaceChildren("The graph computes nothing.");
    return;
  }
  const explorer = new Explorer();
  const search = document.getElementById("search");
  search.addEventListener("input", () => {
    const text = search.value.toLowerCase();
    const found = text ? graph.names.filter((_, i) => matches(i, text)).slice(0, 20) : [];
    document.getElementById("found").replaceChildren(...found.map((value) => make("option", { value })));
  });
  search.addEventListener("change", () => {
    const text = search.value.toLowerCase();
    const i = numberOf.get(search.value) ?? (text ? graph.names.findIndex((_, n) => matches(n, text)) : -1);
    if (i >= 0) explorer.showOp(i);
  });
  document.getElementById("outline").addEventListener("click", () => explorer.closeAll());
  window.addEventListener("hashchange", () => follow(explorer));
  follow(explorer);
}

// #region_0 and #op/NAME are links to a region and to an op.
function follow(explorer) {
  const target = decodeURIComponent(location.hash.slice(1));
  const region = data.regions.findIndex(({ name }) => name === target);
  const op = target.startsWith("op/") ? numberOf.get(target.slice(3)) : undefined;
  if (region >= 0) explorer.showRegion(region);
  if (op !== undefined) explorer.showOp(op);
}

start();
document.documentElement.dataset.firstViewMs = Math.round(performance.now());
