"use strict";
// One picture: layout by dagre, drawn as SVG, moved by d3-zoom, walked by keyboard.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 40;
const LETTER = 7.8;  // pixels, about, of a letter of the label
const LONGEST = 30;

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function shorten(text, most = LONGEST) {
  const half = Math.max(1, Math.floor(Math.min(most, LONGEST) / 2) - 1);
  return text.length <= Math.min(most, LONGEST) ? text : `${text.slice(0, half)}…${text.slice(-half)}`;
}

function layOut({ items, edges }) {
  const layout = new dagre.graphlib.Graph({ compound: true });
  layout.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 38, marginx: 12, marginy: 12 });
  layout.setDefaultEdgeLabel(() => ({}));
  const scopes = new Set(items.flatMap((item) => item.scopes));
  for (const g of scopes) layout.setNode(`box${g}`, {});
  for (const g of scopes) {
    const parent = graph.groups[g][1];
    if (parent !== null) layout.setParent(`box${g}`, `box${parent}`);
  }
  for (const item of items) {
    const letters = Math.max(shorten(item.label).length, shorten(item.sub).length);
    layout.setNode(item.id, { width: Math.max(64, letters * LETTER + 20), height: HEIGHT });
    if (item.scopes.length) layout.setParent(item.id, `box${item.scopes.at(-1)}`);
  }
  for (const { source, target } of edges) layout.setEdge(source, target);
  dagre.layout(layout);
  return { layout, scopes: [...scopes].sort((a, b) => a - b) };
}

class View {
  constructor(holder, stitched, name, explorer) {
    Object.assign(this, { stitched, explorer, current: null });
    this.canvas = svg("g");
    const marker = svg("marker", { id: `arrow-${holder.id}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      svg("path", { class: "arrow", d: "M0 0 8 4 0 8z" }));
    this.root = svg("svg", { role: "group", "aria-label": name }, svg("defs", {}, marker), this.canvas);
    this.arrow = `url(#arrow-${holder.id})`;
    holder.append(this.root, this.buttons(name));
    this.zoom = d3.zoom().scaleExtent([0.02, 4])
      .filter((event) => event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.button)
      .on("zoom", ({ transform }) => this.canvas.setAttribute("transform", transform));
    d3.select(this.root).call(this.zoom).on("dblclick.zoom", null);
    this.root.addEventListener("keydown", (event) => this.pressed(event));
  }

  buttons(name) {
    const box = document.createElement("div");
    box.className = "zoom";
    const actions = [["+", "Zoom in", () => this.scale(1.4)], ["−", "Zoom out", () => this.scale(1 / 1.4)], ["Fit", "Fit", () => this.fit(0)]];
    for (const [text, label, action] of actions) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.setAttribute("aria-label", `${label}: ${name}`);
      button.addEventListener("click", action);
      box.append(button);
    }
    return box;
  }

  draw(open) {
    const content = contract(open, this.stitched);
    const { layout, scopes } = layOut(content);
    this.items = content.items;
    this.places = new Map();
    this.size = layout.graph();
    const boxes = scopes.map((g) => this.box(g, layout.node(`box${g}`)));
    const edges = content.edges.map((edge) => this.edge(edge, layout.edge(edge.source, edge.target).points));
    const shapes = content.items.map((item) => this.item(item, layout.node(item.id)));
    const [frames, heads] = [boxes.map(([frame]) => frame), boxes.map(([, head]) => head)];
    this.canvas.replaceChildren(...frames, ...edges, ...heads, ...shapes);
    this.stops = [...this.canvas.querySelectorAll("[role=button]")];
    (this.stops.find((stop) => stop.dataset.id === this.current) || this.stops[0])?.setAttribute("tabindex", "0");
  }

  box(g, { x, y, width, height }) {
    const label = shorten(graph.groups[g][0], Math.floor((width - 24) / LETTER));
    const [left, top] = [x - width / 2, y - height / 2];
    const wide = Math.min(width, label.length * LETTER + 24);
    const head = svg("g", { class: "head", role: "button", tabindex: -1, "aria-expanded": true, "aria-label": `open scope ${graph.groups[g][0]}`, "data-id": `box${g}` },
      svg("rect", { x: left, y: top - 11, width: wide, height: 16, rx: 4 }),
      svg("text", { x: left + 6, y: top + 1 }, `▾ ${label}`),
      svg("title", {}, `${graph.groups[g][0]}: close`));
    head.addEventListener("click", () => this.explorer.close(g, this));
    this.places.set(`box${g}`, { x: left + wide / 2, y: top - 3 });
    return [svg("rect", { class: "frame", x: left, y: top, width, height, rx: 6 }), head];
  }

  edge({ control }, points) {
    const line = points.map(({ x, y }, i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    return svg("path", { class: `edge${control ? " control" : ""}`, d: line, "marker-end": this.arrow });
  }

  item(item, { x, y, width, height }) {
    const [left, top] = [x - width / 2, y - height / 2];
    const engine = item.colour.startsWith("r") ? " engine" : "";
    const element = svg("g", { class: `item ${item.colour}${engine}`, role: "button", tabindex: -1, "aria-label": item.description, "data-id": item.id },
      svg("rect", { class: "shape", x: left, y: top, width, height, rx: item.kind === "op" ? 4 : 10 }));
    if (item.kind === "group") element.setAttribute("aria-expanded", "false");
    if (item.colour === "mixed") element.append(...strips(item.shares(), left + 4, top + height - 6, width - 8));
    element.append(
      svg("text", { class: "name", x, y: y - 3, "text-anchor": "middle" }, shorten(item.label)),
      svg("text", { class: "sub", x, y: y + 11, "text-anchor": "middle" }, `${item.kind === "group" ? "▸ " : ""}${shorten(item.sub)}`),
      svg("title", {}, item.kind === "op" ? graph.names[item.number] : item.description));
    element.addEventListener("click", () => this.explorer.choose(item, this));
    this.places.set(item.id, { x, y });
    return element;
  }

  // Arrow keys walk through everything that can be pressed; one stop in the page's own tab order.
  pressed(event) {
    const here = this.stops.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (step && here >= 0) this.focus(this.stops[(here + step + this.stops.length) % this.stops.length].dataset.id);
    else if (event.key === "Enter" || event.key === " ") document.activeElement.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    else if (event.key === "+" || event.key === "=") this.scale(1.4);
    else if (event.key === "-") this.scale(1 / 1.4);
    else if (event.key === "0") this.fit(0);
    else if (event.key === "Escape") this.explorer.closeAround(document.activeElement.dataset.id, this);
    else return;
    event.preventDefault();
  }

  focus(id) {
    const stop = this.stops.find((element) => element.dataset.id === id);
    if (!stop) return;
    for (const other of this.stops) other.setAttribute("tabindex", other === stop ? "0" : "-1");
    this.current = id;
    this.reveal(id);
    stop.focus({ preventScroll: true });
  }

  mark(id) {
    for (const stop of this.stops) stop.classList.toggle("chosen", stop.dataset.id === id);
  }

  // Move an item into the frame, if it is outside.
  reveal(id) {
    const place = this.places.get(id);
    if (!place) return;
    const { width, height } = this.root.getBoundingClientRect();
    const [x, y] = d3.zoomTransform(this.root).apply([place.x, place.y]);
    if (x < 40 || y < 40 || x > width - 40 || y > height - 40) d3.select(this.root).call(this.zoom.translateTo, place.x, place.y);
  }

  scale(factor) { d3.select(this.root).call(this.zoom.scaleBy, factor); }

  // Show all; or, where that would be smaller than `smallest`, the beginning at that scale.
  fit(smallest) {
    const { width, height } = this.root.getBoundingClientRect();
    const whole = Math.min(1.2, width / this.size.width, height / this.size.height);
    const scale = Math.max(whole, smallest);
    const first = this.places.get(this.items[0].id);
    const middle = scale === whole || !first ? this.size.width / 2 : first.x;
    const top = scale * this.size.height < height ? (height - scale * this.size.height) / 2 : 0;
    const start = d3.zoomIdentity.translate(width / 2 - scale * middle, top).scale(scale);
    d3.select(this.root).call(this.zoom.transform, start);
  }
}

function strips(shares, left, top, width) {
  let x = left;
  return shares.map(([region, share]) => {
    const strip = svg("rect", { class: `strip ${region < 0 ? "tf" : `r${region % PALETTE}`}`, x, y: top, width: share * width, height: 4 });
    x += share * width;
    return strip;
  });
}
