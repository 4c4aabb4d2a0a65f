// The page: filters, legend, what it comes to, a card for each operation and model, and the table.
const data = JSON.parse(document.getElementById("data").textContent);
// In the order in which they are shown; operations without a line here follow under their names.
const ABOUT = {
  plan: "expert ids to maps, offsets and counts",
  gather: "rows by expert, with a plan that is there",
  permute: "plan and gather in one call",
  combine: "rows brought home, weighted and summed",
  combine_grad: "gradients of combine, for rows and weights",
  gather_weighted: "gather with the weight on the input",
  combine_residual: "combine onto a residual",
  zero_tail: "zeros in the rows past the last offset",
  plan_mask: "a plan from a mask map with probabilities",
  mask_grad: "gradients of probabilities, back to the map",
  chunk_sort: "chunks of rows from 8 ranks, by expert",
  block_table: "blocks of 64 routes of one expert",
  split_sizes: "rows for each of 8 ranks",
  plan_by_weight: "a plan with a capacity by weight",
  plan_copies: "a plan with copies of experts",
  add_load: "the load of a plan added to sums",
  route: "softmax and top-k",
  route_grouped: "sigmoid, 4 of 8 groups, top-k",
  route_losses: "load-balancing loss and z-loss",
  route_grad: "the gradient of the logits",
  gather_fp8_token: "gathered and quantised, a scale for each row",
  gather_fp8_block: "gathered and quantised, a scale for 128 elements",
  gather_mxfp8: "gathered and quantised, a scale for 32 elements",
  gather_nvfp4: "gathered and quantised to 4 bits, a scale for 16 elements",
  swiglu: "silu(gate) * up",
  swiglu_fp8_block: "silu(gate) * up, quantised, a scale for 128 elements",
  swiglu_mxfp8: "silu(gate) * up, quantised, a scale for 32 elements",
};
const deviceOf = r => `${r.device.split(":")[0]}: ${r.device_name}`;
const FIELDS = {
  device: deviceOf, operation: r => r.op, model: r => r.model, dtype: r => r.dtype, routing: r => r.routing,
  cache: r => r.cache,
};
const ALL_TOO = ["device", "operation", "model"];
const unique = list => [...new Set(list)];
const OPS = unique([...Object.keys(ABOUT), ...data.records.map(r => r.op)]);
const element = (name, text, parent) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};

const classOf = r => r.device.split(":")[0];
const classes = unique(data.records.map(classOf));
const copyName = r => classes.length > 1 ? `copy (${classOf(r)})` : "copy";
// A peer that ran on several devices is a line on each.
const on = new Map(data.records.map(r => [r.contender, new Set()]));
for (const r of data.records) on.get(r.contender).add(classOf(r));
const nameOf = r => on.get(r.contender).size > 1 ? `${r.contender} (${classOf(r)})` : r.contender;
const byKind = [...data.records].sort((a, b) => (a.kind > b.kind) - (a.kind < b.kind));
const contenders = unique(byKind.map(nameOf));
const names = contenders.concat(unique(data.records.filter(r => Object.keys(r.copies).length).map(copyName)));
const kindOf = name => data.records.find(r => nameOf(r) === name)?.kind;
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
    const several = ALL_TOO.includes(field) && values.length > 1;
    const count = value => data.records.filter(r => r.kind === "ours" && get(r) === value).length;
    // One device at first: the one that has the most to show.
    const most = values.reduce((a, b) => count(b) > count(a) ? b : a);
    chosen[field] = several && field !== "device" ? "" : field === "device" ? most : values[0];
    if (values.length < 2) continue;
    const label = element("label", `${field} `, box);
    const select = element("select", undefined, label);
    if (several) element("option", "all", select).value = "";
    for (const value of field === "operation" ? OPS.filter(op => values.includes(op)) : values)
      element("option", value, select).value = value;
    select.value = chosen[field];
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

// Of what the filters leave.
function legend(records) {
  const box = document.getElementById("legend");
  box.replaceChildren();
  const shown = new Set(records.flatMap(r => Object.keys(r.copies).length ? [nameOf(r), copyName(r)] : [nameOf(r)]));
  for (const name of names.filter(name => shown.has(name))) {
    const button = element("button", undefined, box);
    button.append(swatch(name), name);
    button.setAttribute("aria-pressed", String(!hidden.has(name)));
    button.addEventListener("click", () => {
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
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
    if (value !== null) points.get(nameOf(r)).set(r.tokens, [r.tokens, value, r.way]);
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
  for (const op of OPS) {
    const ofOp = records.filter(r => r.op === op);
    if (!ofOp.length) continue;
    const title = element("h2", `${op} `, main);
    element("small", ABOUT[op] || "", title);
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
        chart(card, { series: ratio, unit: "×", height: 150, one: true, label: "time over copy" });
    }
  }
  if (!records.length) element("p", "Nothing was measured with these settings.", main).className = "none";
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
  legend(records);
  glance(records);
  charts(records);
  table(records);
}

runs();
filters();
draw();
