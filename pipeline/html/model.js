"use strict";
// What the page knows, and which items stand for the graph's ops while some scopes are closed.

const data = JSON.parse(document.getElementById("data").textContent);
const graph = data.graph;
const FIRST_ITEMS = 60;  // most items that the first view shows
const MOST_PARTS = 150;  // most items that dividing closed scopes may lead to
const PALETTE = 8;

const regionOf = new Int32Array(graph.names.length).fill(-1);
const numberOf = new Map(graph.names.map((name, i) => [name, i]));
data.regions.forEach((region, r) => { for (const i of region.nodes) regionOf[i] = r; });
const leftOf = new Map(data.left.flatMap(([reason, nodes]) => nodes.map((i) => [i, data.reasons[reason]])));

// Scopes from the outermost to a group's own.
const paths = [];
graph.groups.forEach(([, parent], g) => { paths.push(parent === null ? [g] : [...paths[parent], g]); });
const pathOf = (i) => graph.group_of[i] === null ? [] : paths[graph.group_of[i]];

class Item {
  constructor(id, kind, number, scopes) {
    Object.assign(this, { id, kind, number, scopes, nodes: [] });
  }

  get label() {
    if (this.kind === "region") return data.regions[this.number].name;
    const [first, last] = [this.nodes[0], this.nodes.at(-1)].map((i) => graph.names[i].split("/").pop());
    if (this.kind === "op") return first;
    return this.id.includes(".") ? `${first} … ${last}` : graph.groups[this.number][0];
  }

  get sub() {
    if (this.kind === "region") return `EngineCall: ${count(this.nodes.length, "op")}`;
    return this.kind === "group" ? count(this.nodes.length, "op") : graph.ops[this.number];
  }

  // [region, share] by falling share; region -1 is TensorFlow.
  shares() {
    const counts = new Map();
    for (const i of this.nodes) if (!isInput(i)) counts.set(regionOf[i], (counts.get(regionOf[i]) || 0) + 1);
    const total = [...counts.values()].reduce((a, b) => a + b, 0);
    return [...counts].map(([region, n]) => [region, n / total]).sort((a, b) => b[1] - a[1]);
  }

  get colour() {
    const shares = this.shares();
    if (!shares.length) return "io";
    if (shares.length > 1) return "mixed";
    return shares[0][0] < 0 ? "tf" : `r${shares[0][0] % PALETTE}`;
  }

  get description() {
    const where = this.shares().map(([r, share]) =>
      `${shares2text(share)}${r < 0 ? "TensorFlow" : data.regions[r].name}`).join(", ");
    const what = this.kind === "group" ? "closed scope" : this.kind === "region" ? "region" : "op";
    return `${what} ${this.label}, ${this.sub}${where && this.kind !== "region" ? `, in ${where}` : ""}`;
  }
}

const shares2text = (share) => share === 1 ? "" : `${Math.round(share * 100)} % `;
const isInput = (i) => graph.ops[i] === "Placeholder" || graph.ops[i] === "PlaceholderWithDefault";

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

// What stays in TensorFlow of a closed scope lies before some regions and after others. Each connected part of it becomes
// an item of its own (as long as that are not too many), so that the picture shows the order of things.
function divide(ids, items) {
  const above = Int32Array.from(ids.keys());
  const root = (i) => {
    while (above[i] !== i) i = above[i] = above[above[i]];
    return i;
  };
  for (const [a, b] of graph.edges) if (ids[a] === ids[b] && regionOf[a] < 0) above[root(a)] = root(b);
  const parts = new Map();
  for (const item of items.values()) {
    if (item.kind !== "group") continue;
    for (const i of item.nodes) {
      const id = `${item.id}.${root(i)}`;
      if (!parts.has(id)) parts.set(id, { item, nodes: [] });
      parts.get(id).nodes.push(i);
    }
  }
  if (items.size + parts.size > MOST_PARTS) return;
  for (const [id, { item, nodes }] of parts) {
    if (nodes.length === item.nodes.length) continue;
    const alone = nodes.length === 1;
    const part = new Item(alone ? `op${nodes[0]}` : id, alone ? "op" : "group", alone ? nodes[0] : item.number, item.scopes);
    part.nodes = nodes;
    items.delete(item.id);
    items.set(part.id, part);
    for (const i of nodes) ids[i] = part.id;
  }
}

// The items and edges to draw. `open` holds the open scopes; stitched: a region is one item, wherever its ops lie.
function contract(open, stitched) {
  const items = new Map();
  const ids = graph.names.map((_, i) => {
    const region = regionOf[i];
    const path = pathOf(i);
    const closed = path.findIndex((g) => !open.has(g));
    let item;
    if (stitched && region >= 0) item = ["region", region, []];
    else if (closed >= 0) item = ["group", path[closed], path.slice(0, closed)];
    else item = ["op", i, path];
    const id = `${item[0]}${item[1]}`;
    if (!items.has(id)) items.set(id, new Item(id, ...item));
    items.get(id).nodes.push(i);
    return id;
  });
  if (stitched) divide(ids, items);
  const edges = new Map();
  const add = (pairs, control) => {
    for (const [a, b] of pairs) {
      const [source, target] = [ids[a], ids[b]];
      if (source !== target && !edges.has(`${source} ${target}`)) edges.set(`${source} ${target}`, { source, target, control });
    }
  };
  add(graph.edges, false);
  add(graph.controls, true);
  return { items: [...items.values()], edges: [...edges.values()] };
}

// Scopes to open at first: level by level, as long as the picture stays small.
function firstOpen() {
  let open = new Set();
  for (let depth = 1; ; depth += 1) {
    const wider = new Set(open);
    for (const path of paths) if (path.length === depth) wider.add(path[depth - 1]);
    if (wider.size === open.size || contract(wider, false).items.length > FIRST_ITEMS) return open;
    open = wider;
  }
}
