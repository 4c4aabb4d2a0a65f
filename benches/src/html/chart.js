"use strict";
// One chart: lines over T on a logarithmic axis, with a crosshair that names every value at the nearest T.
const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

function showTime(us) {
  const [value, unit] = us < 1e3 ? [us, "µs"] : us < 1e6 ? [us / 1e3, "ms"] : [us / 1e6, "s"];
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
}

function showTimes(x) {
  return `${x.toFixed(x < 10 ? 2 : x < 100 ? 1 : 0)}×`;
}

// A tick without needless zeros: "1 µs", "20 ms", "0.5×".
function tickLabel(value, unit) {
  if (unit === "×") return `${+value.toPrecision(2)}×`;
  const [scaled, name] = value < 1e3 ? [value, "µs"] : value < 1e6 ? [value / 1e3, "ms"] : [value / 1e6, "s"];
  return `${+scaled.toPrecision(2)} ${name}`;
}

// Ticks of a logarithmic axis: decades, and 2 and 5 between them where the range is small.
function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const steps = decades > 3 ? [1] : decades > 1.4 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const step of steps) {
      const tick = step * 10 ** e;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  return ticks;
}

// series: [{name, color, dash, shape, points: [[T, y], …]}]; unit: "µs" or "×".
function chart(parent, { series, unit, height, one, label }) {
  const W = 420, H = height, left = 54, right = 12, top = 18, bottom = 26;
  const shown = series.filter(s => s.points.length);
  const xs = [...new Set(shown.flatMap(s => s.points.map(p => p[0])))].sort((a, b) => a - b);
  const ys = shown.flatMap(s => s.points.map(p => p[1])).concat(one ? [1] : []);
  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label }, null);
  parent.append(svg);
  if (!xs.length) return;
  let [low, high] = [Math.min(...ys) / 1.15, Math.max(...ys) * 1.15];
  if (one) high = Math.max(high, 1.5);
  const [x0, x1] = [Math.log(xs[0]), Math.log(xs[xs.length - 1])];
  const px = x => x1 > x0 ? left + 8 + (Math.log(x) - x0) / (x1 - x0) * (W - left - right - 16) : (left + W - right) / 2;
  const py = y => H - bottom - Math.log(y / low) / Math.log(high / low) * (H - top - bottom);

  let below = H;
  for (const tick of logTicks(low, high)) {
    node("line", { class: "grid-line", x1: left, x2: W - right, y1: py(tick), y2: py(tick) }, svg);
    if (below - py(tick) < 11) continue; // its label would touch the one below
    below = py(tick);
    node("text", { x: left - 5, y: py(tick) + 4, "text-anchor": "end" }, svg).textContent = tickLabel(tick, unit);
  }
  node("line", { class: "axis", x1: left, x2: W - right, y1: H - bottom, y2: H - bottom }, svg);
  let last = -99;
  for (const x of xs) {
    node("line", { class: "axis", x1: px(x), x2: px(x), y1: H - bottom, y2: H - bottom + 3 }, svg);
    if (px(x) - last < 30) continue;
    node("text", { x: px(x), y: H - bottom + 15, "text-anchor": "middle" }, svg).textContent = x;
    last = px(x);
  }
  node("text", { x: 4, y: 11 }, svg).textContent = label;
  if (one) node("line", { class: "one", x1: left, x2: W - right, y1: py(1), y2: py(1) }, svg);

  const hair = node("line", { class: "hair", y1: top, y2: H - bottom, visibility: "hidden" }, svg);
  for (const s of shown) {
    const path = s.points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    const line = { d: path, fill: "none", style: `stroke:${s.color}`, "stroke-width": s.dash ? 1.5 : 2 };
    node("path", s.dash ? { ...line, "stroke-dasharray": s.dash } : line, svg);
    for (const [x, y] of s.points) {
      const [cx, cy, style] = [px(x), py(y), `fill:${s.color}`];
      if (s.shape === "circle") node("circle", { cx, cy, r: 3, style }, svg);
      if (s.shape === "square") node("rect", { x: cx - 2.7, y: cy - 2.7, width: 5.4, height: 5.4, style }, svg);
    }
  }

  const tip = document.getElementById("tip");
  svg.addEventListener("pointermove", event => {
    const at = (event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth * W;
    const x = xs.reduce((a, b) => Math.abs(px(b) - at) < Math.abs(px(a) - at) ? b : a);
    hair.setAttribute("x1", px(x));
    hair.setAttribute("x2", px(x));
    hair.setAttribute("visibility", "visible");
    const values = shown.map(s => [s, s.points.find(p => p[0] === x)]).filter(([, p]) => p);
    values.sort((a, b) => a[1][1] - b[1][1]);
    const table = document.createElement("table");
    const head = table.insertRow().insertCell();
    head.textContent = `T = ${x}`;
    for (const [s, [, y, note]] of values) {
      const row = table.insertRow();
      const name = row.insertCell();
      name.textContent = s.name;
      name.style.color = s.color;
      row.insertCell().textContent = unit === "×" ? showTimes(y) : showTime(y);
      row.insertCell().textContent = note || "";
    }
    tip.replaceChildren(table);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - box.height - 8)}px`;
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    hair.setAttribute("visibility", "hidden");
  });
}
