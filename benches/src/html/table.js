// What it comes to in a few lines, and every number in a table.

// The fastest peer that did the same work on the same device.
function bestPeer(records, ours) {
  const same = records.filter(p => p.kind === "peer" && deviceOf(p) === deviceOf(ours) && p.model === ours.model
    && p.op === ours.op && p.tokens === ours.tokens);
  return same.reduce((a, b) => a && a.us <= b.us ? a : b, null);
}

function range(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return showTimes(low) === showTimes(high) ? showTimes(low) : `${showTimes(low)} to ${showTimes(high)}`;
}

// For each operation and model: over the copy at the largest batch, and over the fastest peer at all of them.
function glance(records) {
  const box = document.getElementById("glance");
  box.replaceChildren();
  const ours = records.filter(r => r.kind === "ours");
  const [models, contenders] = [unique(ours.map(r => r.model)), unique(ours.map(nameOf))];
  if (!ours.length) return;
  const head = box.createTHead().insertRow();
  for (const title of ["operation", ...models]) element("th", title, head);
  const body = box.createTBody();
  for (const op of OPS)
    for (const name of contenders) {
      const mine = ours.filter(r => r.op === op && nameOf(r) === name);
      if (!mine.length) continue;
      const row = body.insertRow();
      element("td", contenders.length > 1 ? `${op} (${name})` : op, row);
      for (const model of models) {
        const cell = row.insertCell();
        const of = mine.filter(r => r.model === model).sort((a, b) => b.tokens - a.tokens);
        if (!of.length) continue;
        const copy = copyOf(of[0]);
        element("div", `T = ${of[0].tokens}: ${showTime(of[0].us)}${copy ? `, ${showTimes(of[0].us / copy[1])} the copy` : ""}`, cell);
        const gains = of.map(r => [r, bestPeer(records, r)]).filter(([, p]) => p).map(([r, p]) => p.us / r.us);
        if (gains.length) {
          const line = element("div", `${range(gains)} as fast as the best peer`, cell);
          line.className = Math.min(...gains) >= 1 ? "good" : "bad";
        }
      }
    }
}

function table(records) {
  const box = document.getElementById("table");
  box.replaceChildren();
  const head = box.createTHead().insertRow();
  for (const title of ["operation", "model", "T", "contender", "time", "fastest", "samples", "copy", "ratio", "GB/s", "over best peer"])
    element("th", title, head);
  const body = box.createTBody();
  let before = "";
  const order = r => [OPS.indexOf(r.op), r.model, r.tokens, r.kind, r.contender];
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
    const peer = r.kind === "ours" && bestPeer(records, r);
    const cells = [r.op, r.model, r.tokens, r.way ? `${nameOf(r)}: ${r.way}` : nameOf(r), showTime(r.us),
      showTime(r.us_min), r.samples, copy ? `${showTime(copy[1])} ${copy[0]}` : "–", copy ? showTimes(r.us / copy[1]) : "–",
      (r.bytes / r.us / 1e3).toFixed(1), peer ? showTimes(peer.us / r.us) : "–"];
    for (const cell of cells) element("td", cell, row);
  }
}
