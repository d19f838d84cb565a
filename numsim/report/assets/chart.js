"use strict";
// What the chart of the page needs beside Observable Plot: scales, marks apart, names that fit.
const numsimChart = (() => {
  const LABEL = 30; // letters of a name

  function tickMarks(m, low, high) { // of a symmetric log scale: zero and powers of ten on both sides, 2 and 5 times them where few fit
    const ticks = tenths(m, low, high, [1]);
    if (ticks.length > 2) return ticks;
    const more = tenths(m, low, high, [1, 2, 5]);
    return more.length > 1 ? more : d3.ticks(low, high, 4);
  }
  function tenths(m, low, high, steps) {
    const ticks = low <= 0 && high >= 0 ? [0] : [];
    for (let p = Math.floor(Math.log10(m.linear)); p <= Math.ceil(Math.log10(Math.max(Math.abs(low), Math.abs(high), m.linear))); p++) {
      for (const t of steps.map((s) => +`${s}e${p}`)) {
        if (t >= low && t <= high) ticks.push(t);
        if (-t >= low && -t <= high) ticks.push(-t);
      }
    }
    const far = ticks.filter((t) => Math.abs(t) >= m.linear || t === 0);
    return far.length > 8 ? far.filter((t) => t === 0 || Math.round(Math.log10(Math.abs(t))) % 2 === 0) : far;
  }
  function scaleOf(m, values, pixels) {
    let [low, high] = d3.extent(values);
    if (m.scale === "symlog") {
      const constant = m.linear;
      const to = (v) => Math.sign(v) * Math.log1p(Math.abs(v) / constant), from = (t) => Math.sign(t) * constant * Math.expm1(Math.abs(t));
      const room = 0.06 * (to(high) - to(low)) || 0.5;
      const domain = [from(to(low) - room), from(to(high) + room)];
      return { type: "symlog", constant, domain, ticks: tickMarks(m, ...domain), tickFormat: (v) => d3.format("~g")(v).replace("e+", "e") };
    }
    if (m.scale === "log" && low > 0) {
      const room = (high / low) ** 0.05 || 1, spread = room > 1 ? room : 1.2;
      return { type: "log", domain: [low / spread, high * spread], ticks: Math.max(3, pixels / 90), tickFormat: (v) => (high / low > 30 && !/^[125]/.test(v.toExponential()) ? "" : d3.format("~g")(v)) };
    }
    const room = 0.06 * (high - low) || Math.abs(0.1 * low) || 1;
    const percent = m.form.endsWith("%");
    return { type: "linear", domain: [low - room, high + room], ticks: Math.max(3, pixels / 80), tickFormat: percent ? "~%" : undefined };
  }
  function spread(X, Y, gap) { // marks on one place move sideways, the nearest free place first
    const taken = new Map(), cellOf = (x, y) => `${Math.floor(x / gap)},${Math.floor(y / gap)}`, moved = X.slice();
    const free = (x, y) => {
      for (let a = -1; a < 2; a++) for (let b = -1; b < 2; b++)
        for (const [u, v] of taken.get(cellOf(x + a * gap, y + b * gap)) ?? []) if ((u - x) ** 2 + (v - y) ** 2 < gap * gap * 0.98) return false;
      return true;
    };
    let count = 0;
    X.forEach((x, i) => {
      let at = x;
      for (let n = 1; n < 80 && !free(at, Y[i]); n++) at = x + (n % 2 ? 1 : -1) * Math.ceil(n / 2) * gap;
      if (at !== x) count++;
      moved[i] = at;
      const cell = cellOf(at, Y[i]);
      if (!taken.has(cell)) taken.set(cell, []);
      taken.get(cell).push([at, Y[i]]);
    });
    return [moved, count];
  }
  // marks: [x, y] in pixels, and a name where the mark gets one.
  function nameMarks(svg, marks, width, height) {
    const boxes = marks.map(([x, y]) => [x - 6, y - 6, 12, 12]), layer = d3.select(svg).append("g").attr("aria-hidden", "true").attr("pointer-events", "none");
    for (const [x, y, name] of marks.filter((m) => m.length > 2)) {
      const text = name.length > LABEL ? `${name.slice(0, LABEL - 4)}…${name.slice(-3)}` : name, w = 6.6 * text.length;
      const box = [[x + 10, y - 17], [x + 10, y + 4], [x - w - 10, y - 17], [x - w - 10, y + 4], [x + 10, y - 7], [x - w - 10, y - 7], [x - w / 2, y - 25], [x - w / 2, y + 11], [x + 10, y - 34], [x + 10, y + 20]]
        .map(([a, b]) => [a, b, w, 14])
        .find((b) => b[0] > 60 && b[0] + w < width - 4 && b[1] > 24 && b[1] < height - 60 && boxes.every((o) => b[0] + b[2] < o[0] || o[0] + o[2] < b[0] || b[1] + b[3] < o[1] || o[1] + o[3] < b[1]));
      if (!box) continue;
      boxes.push(box);
      const left = box[0] < x - w / 2 - 5;
      layer.append("text").attr("x", left ? box[0] + w : box[0]).attr("text-anchor", left ? "end" : "start").attr("y", box[1] + 11).attr("fill", "var(--ink)").text(text);
    }
  }
  function frontOf(cases, X, loss, ranges) { // from left; ranges: what the model of area tells apart
    if (ranges) {
      const [low, high] = ranges, beaten = (c) => cases.some((o) => loss(o) < loss(c) && low(o) <= high(c));
      return cases.filter((c) => !beaten(c)).sort((a, b) => X(a) - X(b));
    }
    let best = Infinity;
    return [...cases].sort((a, b) => X(a) - X(b) || loss(a) - loss(b)).filter((i) => loss(i) < best && ((best = loss(i)), true));
  }
  const hexagon = { draw(context, size) { const r = Math.sqrt((2 * size) / (3 * Math.sqrt(3))); for (let k = 0; k < 6; k++) context[k ? "lineTo" : "moveTo"](r * Math.sin((k * Math.PI) / 3), r * Math.cos((k * Math.PI) / 3)); context.closePath(); } };
  const shape = (name) => d3.symbol(d3[`symbol${name[0].toUpperCase()}${name.slice(1)}`] ?? hexagon, 60)();
  function legendItem(name, text, stroke = "var(--soft)", fill = stroke) {
    const svg = d3.create("svg").attr("width", 16).attr("height", 16).attr("viewBox", "-8 -8 16 16").attr("aria-hidden", "true"), item = document.createElement("span");
    svg.append("path").attr("d", shape(name)).attr("fill", fill).attr("stroke", stroke).attr("stroke-width", 1.6);
    item.title = text;
    item.append(svg.node(), text.length > 40 ? `${text.slice(0, 36)}…${text.slice(-3)}` : text);
    return item;
  }
  return { scaleOf, spread, frontOf, nameMarks, legendItem };
})();
