// The page: filters, legend, a card for each operation and model, and the table.
const data = JSON.parse(document.getElementById("data").textContent);
const OPS = {
  plan: "expert ids to maps, offsets and counts",
  gather: "rows by expert, with a plan that is there",
  permute: "plan and gather in one call",
  combine: "rows brought home, weighted and summed",
  combine_grad: "gradients of combine, for rows and weights",
};
const deviceOf = r => `${r.device.split(":")[0]}: ${r.device_name}`;
const FIELDS = { device: deviceOf, dtype: r => r.dtype, routing: r => r.routing, cache: r => r.cache };
const unique = list => [...new Set(list)];
const element = (name, text, parent) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};

const classes = unique(data.records.map(r => r.device.split(":")[0]));
const copyName = r => classes.length > 1 ? `copy (${r.device.split(":")[0]})` : "copy";
const contenders = unique([...data.records].sort((a, b) => (a.kind > b.kind) - (a.kind < b.kind)).map(r => r.contender));
const names = contenders.concat(unique(data.records.filter(r => Object.keys(r.copies).length).map(copyName)));
const kindOf = name => data.records.find(r => r.contender === name)?.kind;
const styleOf = name => {
  const at = contenders.indexOf(name);
  if (at < 0) return { color: "var(--copy)", dash: "5 4" };
  return { color: `var(--s${at % 7})`, shape: kindOf(name) === "ours" ? "circle" : "square" };
};
const copyOf = r => Object.entries(r.copies).reduce((a, b) => a && a[1] <= b[1] ? a : b, null);
const hidden = new Set();
const chosen = {};

function filters() {
  const box = document.getElementById("filters");
  for (const [field, get] of Object.entries(FIELDS)) {
    const values = unique(data.records.map(get));
    const several = field === "device" && values.length > 1;
    chosen[field] = several ? "" : values[0];
    if (values.length < 2) continue;
    const label = element("label", `${field} `, box);
    const select = element("select", undefined, label);
    if (several) element("option", "all", select).value = "";
    for (const value of values) element("option", value, select).value = value;
    select.addEventListener("change", () => {
      chosen[field] = select.value;
      draw();
    });
  }
}

function swatch(name) {
  const style = styleOf(name);
  const svg = node("svg", { viewBox: "0 0 22 10", style: "width:22px;height:10px" }, null);
  const line = { x1: 0, x2: 22, y1: 5, y2: 5, style: `stroke:${style.color}`, "stroke-width": 2 };
  node("line", style.dash ? { ...line, "stroke-dasharray": style.dash } : line, svg);
  if (style.shape === "circle") node("circle", { cx: 11, cy: 5, r: 3.5, style: `fill:${style.color}` }, svg);
  if (style.shape === "square") node("rect", { x: 8, y: 2, width: 6, height: 6, style: `fill:${style.color}` }, svg);
  return svg;
}

function legend() {
  const box = document.getElementById("legend");
  for (const name of names) {
    const button = element("button", undefined, box);
    button.append(swatch(name), name);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      draw();
    });
  }
}

// Of several runs of the same thing the last one counts.
function current() {
  const last = new Map();
  for (const r of data.records) {
    if (!Object.entries(FIELDS).every(([field, get]) => !chosen[field] || get(r) === chosen[field])) continue;
    last.set([r.contender, deviceOf(r), r.model, r.op, r.tokens].join("|"), r);
  }
  return [...last.values()];
}

function lines(records, valueOf, withCopy) {
  const points = new Map(names.map(name => [name, new Map()]));
  for (const r of records) {
    const value = valueOf(r);
    if (value !== null) points.get(r.contender).set(r.tokens, [r.tokens, value, r.way]);
    const copy = copyOf(r);
    if (withCopy && copy && (r.kind === "ours" || !points.get(copyName(r)).has(r.tokens)))
      points.get(copyName(r)).set(r.tokens, [r.tokens, copy[1], copy[0]]);
  }
  return names.filter(name => !hidden.has(name)).map(name =>
    ({ name, ...styleOf(name), points: [...points.get(name).values()].sort((a, b) => a[0] - b[0]) }));
}

function charts(records) {
  const main = document.getElementById("charts");
  main.replaceChildren();
  for (const op of Object.keys(OPS)) {
    const ofOp = records.filter(r => r.op === op);
    if (!ofOp.length) continue;
    const title = element("h2", `${op} `, main);
    element("small", OPS[op], title);
    const grid = element("div", undefined, main);
    grid.className = "grid";
    for (const model of unique(ofOp.map(r => r.model))) {
      const ofModel = ofOp.filter(r => r.model === model);
      const card = element("div", undefined, grid);
      card.className = "card";
      element("h3", model, card);
      chart(card, { series: lines(ofModel, r => r.us, true), unit: "µs", height: 250, label: "time over tokens" });
      const ratio = lines(ofModel, r => copyOf(r) ? r.us / copyOf(r)[1] : null, false);
      if (op !== "plan" && ratio.some(s => s.points.length))
        chart(card, { series: ratio, unit: "×", height: 150, one: !hidden.has("copy"), label: "time over copy" });
    }
  }
  if (!records.length) element("p", "Nothing was measured with these settings.", main).className = "none";
}

function table(records) {
  const box = document.getElementById("table");
  box.replaceChildren();
  const head = box.createTHead().insertRow();
  for (const title of ["operation", "model", "T", "contender", "time", "fastest", "samples", "copy", "ratio", "GB/s", "over best peer"])
    element("th", title, head);
  const body = box.createTBody();
  let before = "";
  const order = r => [Object.keys(OPS).indexOf(r.op), r.model, r.tokens, r.kind, r.contender];
  const compare = (a, b) => {
    const [x, y] = [order(a), order(b)];
    const at = x.findIndex((v, i) => v !== y[i]);
    return at < 0 ? 0 : x[at] < y[at] ? -1 : 1;
  };
  for (const r of [...records].sort(compare)) {
    const row = body.insertRow();
    const group = `${r.op}|${r.model}`;
    if (group !== before) row.className = "first";
    before = group;
    const copy = copyOf(r);
    const peers = records.filter(p => p.kind === "peer" && deviceOf(p) === deviceOf(r) && p.model === r.model
      && p.op === r.op && p.tokens === r.tokens).map(p => p.us);
    const cells = [r.op, r.model, r.tokens, r.way ? `${r.contender} (${r.way})` : r.contender, showTime(r.us),
      showTime(r.us_min), r.samples, copy ? `${showTime(copy[1])} ${copy[0]}` : "–", copy ? showTimes(r.us / copy[1]) : "–",
      (r.bytes / r.us / 1e3).toFixed(1), r.kind === "ours" && peers.length ? showTimes(Math.min(...peers) / r.us) : "–"];
    for (const cell of cells) element("td", cell, row);
  }
}

function runs() {
  const box = document.getElementById("runs");
  for (const run of data.runs) {
    const versions = Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(", ");
    const devices = Object.entries(run.devices).map(([id, facts]) => facts.name ? `${id} ${facts.name}` : id).join(", ");
    const commit = run.commit ? `commit ${run.commit.slice(0, 12)}${run.commit.endsWith("-dirty") ? " (dirty)" : ""}` : "";
    const parts = [run.program, run.date, run.cpu, run.machine, devices, versions, commit];
    element("div", parts.filter(Boolean).join(" · "), box);
    for (const line of run.skipped) element("div", `not measured: ${line}`, document.getElementById("skipped"));
  }
}

function draw() {
  const records = current();
  charts(records);
  table(records);
}

runs();
filters();
legend();
draw();
