"use strict";
// The page of a report: filters, chart, layers, address. All names of the file are set as text.
(() => {
  const { scaleOf, spread, frontOf, nameMarks, legendItem } = numsimChart;
  const { element, number, limits, heatTable, csvAddress } = numsimTables;
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.querySelector(`[data-testid="${id}"]`);
  const COLOURS = 7, SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "hexagon", "wye", "cross"];
  const NAMED = 3; // cases of a tie that are named; the rest are counted
  const PAGED = 500; // rows of the table that are shown at once

  // ------------------------------------------------------------------ the data
  const word = (column, i) => column.words[column.at[i]];
  const value = (key, i) => { const v = data.numbers[key]?.[i]; return v === undefined || v === null ? NaN : +(v === "inf" ? Infinity : v === "-inf" ? -Infinity : v); };
  const count = data.failed.length;
  const every = d3.range(count);
  const ids = every.map((i) => word(data.words.case_id, i));
  const place = new Map(ids.map((id, i) => [id, i]));
  const measures = new Map(data.measures.map((m) => [m.key, m]));
  const facets = Object.fromEntries(Object.entries(data.facets).map(([name, column]) => [name, every.map((i) => word(column, i))]));
  const haystack = every.map((i) => Object.values(data.words).map((c) => word(c, i)).concat(word(data.names, i), facets.kind[i]).join("\n").toLowerCase());
  const title = (i) => `${word(data.names, i)}, ${facets.target[i]}`;
  const exact = (i) => facets.kind[i] === "exact" && !data.failed[i];
  const units = [...new Set(facets.target)], scales = [...new Set(facets.scales)];
  const colour = (unit) => { const i = units.indexOf(unit); return i < COLOURS ? `var(--u${i})` : d3.interpolateSinebow(((i - COLOURS) * 0.382) % 1); };
  const symbol = (s) => SYMBOLS[scales.indexOf(s) % SYMBOLS.length];
  const written = (key, v, chance = "", unit = true) => {
    const m = measures.get(key);
    if (Number.isNaN(v)) return "";
    if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
    return d3.format(m.form)(v).replace("e+", "e") + chance + (m.unit && unit ? ` ${m.unit}` : "");
  };

  const opener = (i, text = word(data.names, i)) => element("a", { href: `#case=${ids[i]}` }, text);

  // ------------------------------------------------------------------ the view, and its address
  const axes = { x: data.measures.filter((m) => m.axis === "x"), y: data.measures.filter((m) => m.axis === "y") };
  const offered = (m) => every.some((i) => Number.isFinite(value(m.key, i)) && !data.failed[i]);
  for (const name of ["x", "y"]) axes[name] = axes[name].filter(offered);
  const firstOf = (name, keys) => keys.find((k) => axes[name].some((m) => m.key === k)) ?? axes[name][0]?.key ?? "";
  const START = {
    q: "", format: "", scales: "", target: "", kind: "", run: data.run.some((r) => r) ? "0" : "", sort: "", dir: "", case: "",
    x: firstOf("x", ["bits_per_weight"]), y: firstOf("y", ["perplexity_above", "perplexity", "embedding_cosine", "kl_nats"]),
    edges: data.edges.join(), tol: String(data.tolerance), over: data.thresholds.join(), unit: "",
  };
  const view = { ...START };
  const NUMBERS = { edges: 3, tol: 1, over: 3 };
  function readAddress() {
    Object.assign(view, START);
    let given;
    try { given = new URLSearchParams(location.hash.slice(1)); } catch { return; }
    for (const [key, v] of given) {
      const known = {
        q: () => true, x: () => axes.x.some((m) => m.key === v), y: () => axes.y.some((m) => m.key === v),
        sort: () => !!header(v), dir: () => v === "ascending" || v === "descending", case: () => place.has(v),
        run: () => START.run !== "" && data.run.includes(+v), unit: () => productViews().some((o) => o[0] === v),
      }[key] ?? (key in facets ? () => facets[key].includes(v) : key in NUMBERS ? () => v.split(",").length === NUMBERS[key] && v.split(",").every((n) => n !== "" && +n >= 0) : () => false);
      if (known()) view[key] = v;
    }
  }
  function writeAddress(push) {
    const words = new URLSearchParams();
    for (const [key, v] of Object.entries(view)) if (v !== START[key]) words.set(key, v);
    const hash = `#${words}`;
    try { // a page without an address, as in a notebook, keeps its view to itself
      if (push && hash !== location.hash) history.pushState(null, "", hash); else history.replaceState(null, "", hash);
    } catch { /* the view holds without an address */ }
  }

  // ------------------------------------------------------------------ which cases are shown
  function shownCases() {
    const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
    return every.filter((i) => ["format", "scales", "target", "kind"].every((f) => view[f] === "" || facets[f][i] === view[f])
      && (view.run === "" || data.run[i] === +view.run) && words.every((w) => haystack[i].includes(w)));
  }

  // ------------------------------------------------------------------ table
  const tableBody = $("cases").tBodies[0], rowOf = new Map([...tableBody.rows].map((r) => [r.dataset.case, r]));
  const header = (key) => [...$("cases").tHead.querySelectorAll("th")].find((th) => th.dataset.key === key);
  let all = false;
  function drawTable(cases) {
    const shown = new Set(cases), key = header(view.sort) ? view.sort : "";
    let order = every;
    if (key) {
      const at = header(key).cellIndex, sign = view.dir === "descending" ? -1 : 1;
      const cell = (i) => { const c = rowOf.get(ids[i]).cells[at]; return c.dataset.v === undefined ? c.textContent.toLowerCase() : c.dataset.v === "" ? null : c.dataset.v === "inf" ? Infinity : c.dataset.v === "-inf" ? -Infinity : +c.dataset.v; };
      const cells = every.map(cell);
      order = [...every].sort((a, b) => cells[a] === null || cells[b] === null ? (cells[a] === null) - (cells[b] === null) || a - b : sign * d3.ascending(cells[a], cells[b]) || a - b);
    }
    for (const th of $("cases").tHead.querySelectorAll("th")) th.setAttribute("aria-sort", th.dataset.key === key ? view.dir : "none");
    const next = order.map((i) => rowOf.get(ids[i]));
    if (next.some((row, i) => tableBody.rows[i] !== row)) tableBody.replaceChildren(...next);
    let n = 0;
    for (const i of order) {
      const row = rowOf.get(ids[i]), hide = !shown.has(i) || (!all && n >= PAGED);
      n += shown.has(i);
      if (row.hidden !== hide) row.hidden = hide;
    }
    const more = document.querySelector(".more");
    more.hidden = all || n <= PAGED;
    more.textContent = `show all ${n} rows`;
    $("count").textContent = `${n} of ${count} cases`;
    const lines = [[...$("cases").tHead.rows[0].cells].map((c) => c.dataset.key), ...order.filter((i) => shown.has(i)).map((i) => [...rowOf.get(ids[i]).cells].map((c) => c.dataset.v ?? c.textContent))];
    download = lines;
  }
  let download = [];
  function saveCsv(event) { event.currentTarget.href = csvAddress(download); }

  // ------------------------------------------------------------------ chart
  const chartBox = document.querySelector(".chart");
  function drawChart(cases) {
    const said = document.querySelector(".said"), mx = measures.get(view.x), my = measures.get(view.y);
    chartBox.replaceChildren();
    if (!mx || !my) { said.textContent = "No measure of this file has values on two axes."; return; }
    const drawn = cases.filter((i) => !data.failed[i] && Number.isFinite(value(view.x, i)) && Number.isFinite(value(view.y, i)));
    const X = (i) => value(view.x, i), Y = (i) => value(view.y, i), ranges = view.x === "area_ge" ? ["area_low", "area_high"].map((k) => (i) => value(k, i)) : null;
    const front = frontOf(drawn.filter(exact), X, (i) => (my.better === "higher" ? -Y(i) : Y(i)), ranges), ahead = new Set(front), rank = (i) => (ahead.has(i) ? 0 : exact(i) ? 1 : 2);
    drawn.sort((a, b) => rank(a) - rank(b) || a - b); // who comes first keeps its place
    const width = Math.max(280, chartBox.clientWidth || 700), height = width < 500 ? 360 : 440, radius = drawn.length > 600 ? 3 : drawn.length > 150 ? 4 : 6;
    const half = (i) => (my.stderr && Number.isFinite(value(my.stderr, i)) ? 2 * value(my.stderr, i) : 0);
    const sides = drawn.flatMap((i) => [Y(i) - half(i), Y(i) + half(i)]).filter((v) => my.scale !== "log" || v > 0);
    let moved = 0, places;
    const apart = (options) => Plot.initializer(options, (given, groups, channels, scale) => {
      if (!places) {
        const [xs, n] = spread(drawn.map((i) => scale.x(X(i))), drawn.map((i) => scale.y(Y(i))), 2 * radius);
        [places, moved] = [xs, n];
      }
      return { data: given, facets: groups, channels: { x: { value: places } } };
    });
    const wide = view.x === "area_ge" ? drawn.flatMap((i) => [value("area_low", i), value("area_high", i)]) : drawn.map(X);
    const xscale = { ...scaleOf(mx, drawn.length ? wide : [0, 1], width), label: `${mx.head} →`, nice: false };
    const yscale = { ...scaleOf(my, sides.length ? sides : [0.5, 1], height), label: `↑ ${my.head}${my.scale === "symlog" ? " (symmetric log scale)" : my.scale === "log" ? " (log scale)" : ""}` };
    const svg = Plot.plot({
      width, height, marginLeft: 58, marginRight: 16, marginTop: 30, marginBottom: 42,
      style: { fontSize: "12px", fontFamily: "inherit", background: "var(--ground)", overflow: "visible" },
      ariaLabel: `${my.head} against ${mx.head}: ${drawn.length} cases`,
      x: xscale, y: yscale, symbol: { type: "identity" },
      marks: [
        Plot.gridY({ ticks: yscale.ticks, stroke: "var(--grid)", strokeOpacity: 1 }),
        my.better === "lower" && my.scale !== "log" && yscale.domain[0] < 0 ? Plot.ruleY([0], { stroke: "var(--soft)" }) : null,
        Plot.axisX({ ticks: xscale.ticks, tickFormat: xscale.tickFormat, color: "var(--ink)", label: xscale.label }),
        Plot.axisY({ ticks: yscale.ticks, tickFormat: yscale.tickFormat, color: "var(--ink)", label: yscale.label }),
        view.x === "area_ge" ? Plot.ruleY(drawn, { y: Y, x1: (i) => value("area_low", i), x2: (i) => value("area_high", i), strokeOpacity: 0.4, stroke: { value: (i) => colour(facets.target[i]), scale: null }, ariaHidden: true }) : null,
        Plot.line(front, { x: X, y: Y, stroke: "var(--soft)", strokeDasharray: "5 4", curve: "step-after", ariaHidden: true }),
        my.stderr ? Plot.ruleX(drawn, apart({ x: X, y1: (i) => (my.scale === "log" ? Math.max(Y(i) - half(i), Y(i) / 100) : Y(i) - half(i)), y2: (i) => Y(i) + half(i), stroke: { value: (i) => colour(facets.target[i]), scale: null }, ariaHidden: true })) : null,
        Plot.dot(drawn, apart({
          x: X, y: Y, r: radius, symbol: (i) => symbol(facets.scales[i]), strokeWidth: 1.6,
          stroke: { value: (i) => colour(facets.target[i]), scale: null },
          fill: { value: (i) => (exact(i) ? colour(facets.target[i]) : "var(--ground)"), scale: null },
          href: (i) => `#case=${ids[i]}`,
          ariaLabel: (i) => `${title(i)}${word(data.names, i).includes(word(data.words.weight_format, i)) ? "" : `, ${word(data.words.weight_format, i)}`}: ${mx.title} ${written(view.x, X(i))}, ${my.title} ${written(view.y, Y(i))}`,
          className: "marks",
        })),
      ],
    });
    svg.setAttribute("data-testid", "chart");
    svg.setAttribute("role", "group");
    svg.querySelectorAll("a").forEach((a) => {
      const i = drawn[d3.select(a.firstElementChild).datum()];
      a.setAttribute("data-testid", "point");
      a.setAttribute("data-case", ids[i]);
      const label = a.querySelector("[aria-label]");
      if (label) { a.setAttribute("aria-label", label.getAttribute("aria-label")); label.removeAttribute("aria-label"); }
      if (ids[i] === view.case) a.setAttribute("aria-current", "true");
    });
    chartBox.append(svg);
    const marks = drawn.map((i, n) => [places[n], svg.scale("y").apply(Y(i)), ...(ahead.has(i) ? [word(data.names, i).split(", ")[0]] : [])]);
    nameMarks(svg, marks, width, height);
    drawLegend(drawn);
    const notes = [];
    if (moved) notes.push(moved === 1 ? "1 mark stood on another and is moved sideways." : `${moved} marks stood on others and are moved sideways.`);
    if (cases.length > drawn.length) notes.push(`Not drawn: ${cases.length - drawn.length} cases without finite values on both axes.`);
    if (my.stderr) notes.push("Bars: 95 % of chance.");
    if (view.x === "area_ge") notes.push("Bars across: what the model of area can tell; where they overlap, areas are equal.");
    if (front.length) notes.push("Dashed, from left: ");
    said.replaceChildren(notes.join(" "));
    front.slice(0, 12).forEach((i, n) => said.append(n ? " → " : "", opener(i, title(i))));
    if (front.length > 12) said.append(` and ${front.length - 12} more`);
  }
  function drawLegend(drawn) {
    const legend = document.querySelector(".legend");
    const there = (list, column) => list.filter((v) => drawn.some((i) => facets[column][i] === v));
    const u = there(units, "target"), s = there(scales, "scales");
    legend.replaceChildren(
      ...u.slice(0, 24).map((v) => legendItem("circle", v, colour(v))),
      ...s.slice(0, 16).map((v) => legendItem(symbol(v), v || "no scales")),
      ...(drawn.some((i) => !exact(i)) ? [legendItem("circle", "fake quantisation", "var(--soft)", "none")] : []),
      ...(u.length > 24 || s.length > 16 ? [element("span", {}, "and more")] : []),
    );
  }
  // ------------------------------------------------------------------ recipe and layers of a case
  function recipeList(i) {
    const list = element("dl");
    for (const [name, head] of Object.entries(data.settings)) {
      const text = word(data.words[name], i);
      if (text !== "") list.append(element("dt", {}, head), element("dd", {}, text));
    }
    return list;
  }
  function showRecipe(i) {
    const list = recipeList(i);
    for (const m of data.measures) {
      const v = value(m.key, i);
      if (!Number.isNaN(v)) list.append(element("dt", {}, m.title), element("dd", {}, written(m.key, v)));
    }
    $("recipe").replaceChildren(element("h3", {}, title(i)), element("p", { class: "note" }, data.failed[i] ? "failed" : exact(i) ? "bit exact" : "fake quantisation"), list);
  }
  const byCase = d3.group(d3.range(data.products.case.length), (k) => data.products.case[k]);
  function drawDetail() {
    const open = document.querySelector(".open"), first = data.answers[+view.run || 0]?.steps.at(-1);
    const i = place.get(view.case) ?? place.get(first) ?? 0;
    for (const [id, row] of rowOf) if (id === ids[i]) row.setAttribute("aria-current", "true"); else if (row.hasAttribute("aria-current")) row.removeAttribute("aria-current");
    for (const a of document.querySelectorAll('[data-testid="point"]')) if (a.dataset.case === ids[i]) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current");
    const rows = byCase.get(i) ?? [], p = data.products;
    const name = element("p", { class: "pick" }, title(i));
    if (!$("recipe").querySelector("dl")) showRecipe(i);
    if (!rows.length) { open.replaceChildren(name, element("p", {}, "No products of this case stand in the file."), recipeList(i)); return; }
    const layers = [...new Set(rows.map((k) => word(p.layer, k)))], ops = [...new Set(rows.map((k) => word(p.op, k)))];
    const at = new Map(rows.map((k) => [`${word(p.layer, k)}\n${word(p.op, k)}`, k]));
    const both = rows.flatMap((k) => [number(p.local[k]), number(p.cumulative[k])]);
    const shade = d3.scaleSequential(limits(both), d3.interpolateViridis).clamp(true);
    const worst = rows.filter((k) => !Number.isNaN(number(p.local[k]))).sort((a, b) => number(p.local[a]) - number(p.local[b])).slice(0, 5);
    const heat = (key, head) => element("div", {}, element("h3", {}, head), heatTable(layers, ops, (l, o) => { const k = at.get(`${l}\n${o}`); return k === undefined ? NaN : number(p[key][k]); }, shade, { "data-testid": `heatmap-${key}` }));
    open.replaceChildren(
      name,
      element("p", { class: "note" }, `SQNR in dB, one scale: ${d3.format(".1f")(shade.domain()[0])} to ${d3.format(".1f")(shade.domain()[1])} dB. Products that stay float32 are left out. Worst on exact inputs: ${worst.map((k) => `${word(p.layer, k)}.${word(p.op, k)} ${d3.format(".1f")(number(p.local[k]))} dB`).join(", ")}.`),
      element("div", { class: "heats" }, heat("local", "Local: this product alone"), heat("cumulative", "Cumulative: everything before as well")),
    );
  }

  // ------------------------------------------------------------------ products over formats
  function productViews() {
    const found = [["", "lowest of all units"], ...units.map((u) => [u, `unit ${u}`])];
    for (const a of units) for (const b of units) if (a !== b && pairsOf(a, b)) found.push([`${a} - ${b}`, `difference: ${a} minus ${b}`]);
    return found;
  }
  const pairs = new Map();
  function pairsOf(a, b) { // formats and scales that both units have
    if (!pairs.size) for (const i of byCase.keys()) { const n = word(data.names, i); if (!pairs.has(facets.target[i])) pairs.set(facets.target[i], new Set()); pairs.get(facets.target[i]).add(n); }
    return units.length < 20 && [...(pairs.get(a) ?? [])].some((n) => pairs.get(b)?.has(n));
  }
  const COLUMNS_SHOWN = 60;
  function drawProducts() {
    const matrix = document.querySelector(".matrix");
    if (!matrix) return;
    const p = data.products, found = new Map(), columns = new Set(), rows = new Set(), [one, other] = view.unit.split(" - ");
    for (const [i, list] of byCase) {
      const unit = facets.target[i];
      if (view.unit !== "" && unit !== one && unit !== other) continue;
      if (view.run !== "" && data.run[i] !== +view.run) continue;
      for (const k of list) {
        const r = `${word(p.layer, k)}.${word(p.op, k)}`.replace(/\.$/, ""), c = word(data.names, i), key = `${r}\n${c}`, v = number(p.local[k]);
        rows.add(r); columns.add(c);
        if (other) { const pair = found.get(key) ?? [NaN, NaN]; pair[unit === one ? 0 : 1] = v; found.set(key, pair); }
        else if (!Number.isNaN(v)) found.set(key, Math.min(v, found.get(key) ?? Infinity));
      }
    }
    const at = (r, c) => { const v = found.get(`${r}\n${c}`); return v === undefined ? NaN : other ? v[0] - v[1] : v; };
    let kept = [...columns].filter((c) => [...rows].some((r) => !Number.isNaN(at(r, c))));
    const note = kept.length > COLUMNS_SHOWN ? `The first ${COLUMNS_SHOWN} of ${kept.length} columns; tables/products.csv has all.` : "";
    kept = kept.slice(0, COLUMNS_SHOWN);
    const low = new Set([...byCase.keys()].filter((i) => value("bits_per_weight", i) < 9.5).map((i) => word(data.names, i)));
    const scaled = kept.filter((c) => low.has(c)), values = (scaled.length ? scaled : kept).flatMap((c) => [...rows].map((r) => at(r, c)));
    const [a, b] = limits(values), far = Math.max(Math.abs(a), Math.abs(b), 0.01);
    const shade = other ? d3.scaleDiverging([-far, 0, far], d3.interpolateRdBu).clamp(true) : d3.scaleSequential([a, b], d3.interpolateViridis).clamp(true);
    matrix.replaceChildren(heatTable([...rows], kept, at, shade, { class: "heat turned" }), element("p", { class: "note" }, note));
  }

  // ------------------------------------------------------------------ answer and comparison, redrawn when edited
  const stated = (i, key) => { const m = measures.get(key), v = value(key, i), e = m?.stderr ? value(m.stderr, i) : NaN; return !m || Number.isNaN(v) ? "" : written(key, v, Number.isFinite(e) && m.unit !== "%" ? ` ± ${d3.format(".1~g")(2 * e).replace("e+", "e")}` : "", false); };
  function card(question, id, key, notes) {
    if (id === undefined) return element("article", { class: "card" }, element("h3", {}, question), element("p", { class: "note" }, "No bit-exact case is within it."));
    const i = place.get(id);
    return element("article", { class: "card" }, element("h3", {}, question), element("p", { class: "pick" }, opener(i)),
      element("p", {}, `${d3.format(".2f")(value("bits_per_weight", i))} bits · ${facets.target[i]}`),
      element("dl", {}, ...[...new Set(["dnll", "perplexity_above", key])].filter((k) => stated(i, k)).flatMap((k) => [element("dt", {}, measures.get(k).head), element("dd", {}, stated(i, k))])), ...notes);
  }
  function tiedNotes(tied) {
    if (!tied.length) return [];
    const line = element("p", { class: "note" }, `Tied with ${tied.length} other${tied.length > 1 ? "s" : ""}: `);
    tied.slice(0, NAMED).forEach((id, n) => line.append(n ? "; " : "", opener(place.get(id), title(place.get(id)))));
    if (tied.length > NAMED) line.append(` and ${tied.length - NAMED} more`);
    line.append(".");
    return [line];
  }
  function drawAnswers() {
    const tolerance = +view.tol;
    data.answers.forEach((found, run) => {
      if (!found.steps.length) return; // the page says why there is no answer
      const bits = (id) => value("bits_per_weight", place.get(id)), cards = [], cosine = found.judged === "embedding_cosine";
      let before;
      for (const edge of view.edges.split(",").map(Number)) {
        const best = found.steps.filter((id) => bits(id) <= edge + data.shown).at(-1), tied = best === undefined ? [] : found.tied[best].filter((id) => bits(id) <= edge + data.shown), notes = [];
        if (best !== undefined && best === before) notes.push(element("p", { class: "note" }, "Nothing gained over the card before."));
        notes.push(...tiedNotes(tied));
        cards.push(card(`At most ${edge} bits per weight`, best, found.judged, notes));
        before = best ?? before;
      }
      const good = every.filter((i) => data.run[i] === run && exact(i) && Number.isFinite(value(found.judged, i)) && (cosine ? value("embedding_cosine", i) >= 1 - data.cosine_tolerance * tolerance : value("perplexity_above", i) <= tolerance));
      const least = (key, question) => {
        const sign = measures.get(found.judged).better === "higher" ? -1 : 1;
        const priced = good.filter((i) => Number.isFinite(value(key, i))).sort((a, b) => value(key, a) - value(key, b) || sign * (value(found.judged, a) - value(found.judged, b)));
        let equal = []; // the model of area tells them not apart: the best of them is named
        if (key === "area_ge" && priced.length) {
          const alike = priced.filter((i) => value("area_low", i) <= value("area_high", priced[0])), best = d3.least(alike, (a, b) => sign * (value(found.judged, a) - value(found.judged, b)));
          equal = alike.filter((i) => i !== best);
          priced[0] = best;
        }
        const only = priced.length === good.length ? "" : `, of the ${priced.length} with a price`;
        cards.push(card(`${question} ${within}${only}`, priced.length ? ids[priced[0]] : undefined, found.judged, tiedNotes(equal.map((i) => ids[i]))));
      };
      const within = cosine ? `with a cosine of at least ${1 - data.cosine_tolerance * tolerance}` : `within ${tolerance} % of the reference's perplexity`;
      least("bits_per_weight", "Smallest");
      if (found.cost) least(found.cost, `Least ${measures.get(found.cost).title}`);
      document.querySelector(`.cards[data-run="${run}"]`).replaceChildren(...cards);
    });
  }
  function drawCompared() {
    if (!data.compared) return;
    const [ppl, db, sigma] = view.over.split(",").map(Number), f = (form, v) => (v === null ? "" : typeof v === "string" ? v : d3.format(form)(v));
    const rows = data.compared.filter((r) => r.change !== "moved" || Math.abs(number(r.relative)) > ppl || Math.abs(number(r.decibels)) > db || Math.abs(number(r.sigmas)) > sigma || r.appeared);
    const body = $("compare-table").tBodies[0];
    body.replaceChildren(...rows.map((r) => element("tr", { "data-testid": "compare-row", "data-case": r.case_id, "data-change": r.change },
      ...[r.change === "gone" || !place.has(r.case_id) ? r.name : opener(place.get(r.case_id), r.name), r.change, f(".6", r.perplexity_before), f(".6", r.perplexity_now), r.relative === null ? "" : `${f("+.3", 100 * number(r.relative))} %`, f(".2f", r.sqnr_cumulative_db_before), f(".2f", r.sqnr_cumulative_db_now), f("+.3", r.decibels), f("+.2", r.sigmas), r.same_recipe ? "same recipe, other result" : ""].map((c) => element("td", {}, c)))));
    $("compare-count").textContent = rows.length ? `${rows.length} case${rows.length > 1 ? "s" : ""} differ${rows.length > 1 ? "" : "s"}.` : "No change.";
  }

  // ------------------------------------------------------------------ everything together
  const fields = { search: "q", "filter-format": "format", "filter-scales": "scales", "filter-target": "target", "filter-kind": "kind", "filter-run": "run", "axis-x": "x", "axis-y": "y", "products-unit": "unit" };
  function fill(id, options) { const s = $(id); if (s) s.replaceChildren(...options.map(([v, t]) => element("option", { value: v }, t))); }
  const inputs = (prefix) => [...document.querySelectorAll(`input[name^="${prefix}"]`)];
  function show() {
    for (const [id, key] of Object.entries(fields)) if ($(id) && $(id).value !== view[key]) $(id).value = view[key];
    inputs("edge").forEach((e, n) => { e.value = view.edges.split(",")[n]; });
    inputs("tolerance").forEach((e) => { e.value = view.tol; });
    inputs("over_").forEach((e, n) => { e.value = view.over.split(",")[n]; });
    for (const cards of document.querySelectorAll(".cards")) cards.hidden = cards.dataset.run !== (view.run || "0");
    if (view.edges !== START.edges || view.tol !== START.tol || edited) { edited = true; drawAnswers(); }
    if (view.over !== START.over || editedOver) { editedOver = true; drawCompared(); }
    const cases = shownCases();
    drawTable(cases);
    drawChart(cases);
    drawProducts();
    drawDetail();
  }
  let edited = false, editedOver = false, from = null;
  function change(values) { Object.assign(view, values); writeAddress(false); filtered(); }
  function filtered() { const cases = shownCases(); drawTable(cases); drawChart(cases); }
  function open(id, focus = true) {
    if (!place.has(id)) return;
    view.case = id;
    writeAddress(true);
    drawDetail();
    showRecipe(place.get(id));
    if (focus) { $("detail").focus({ preventScroll: true }); $("detail").scrollIntoView({ block: "start" }); }
  }

  fill("axis-x", axes.x.map((m) => [m.key, m.head]));
  fill("axis-y", axes.y.map((m) => [m.key, m.head]));
  fill("products-unit", productViews());
  for (const [id, key] of Object.entries(fields)) $(id)?.addEventListener(id === "search" ? "input" : "change", (event) => {
    if (key === "run" || key === "unit") { view[key] = event.target.value; writeAddress(false); show(); } else change({ [key]: event.target.value });
  });
  document.addEventListener("change", (event) => {
    const name = event.target.name ?? "", list = (prefix) => inputs(prefix).map((e) => e.value || "0").join();
    if (name.startsWith("edge") || name === "tolerance") { view.edges = list("edge"); view.tol = list("tolerance"); edited = true; writeAddress(false); drawAnswers(); }
    if (name.startsWith("over_")) { view.over = list("over_"); editedOver = true; writeAddress(false); drawCompared(); }
  });
  $("reset").addEventListener("click", () => { const { case: kept } = view; Object.assign(view, START, { case: kept }); writeAddress(false); show(); });
  $("cases").tHead.addEventListener("click", (event) => {
    const key = event.target.closest("th")?.dataset.key;
    if (!key || !event.target.closest("button")) return;
    change({ sort: key, dir: view.sort === key && view.dir === "ascending" ? "descending" : "ascending" });
  });
  document.querySelector(".more").addEventListener("click", () => { all = true; filtered(); });
  document.querySelector(".download").addEventListener("click", saveCsv);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a"), href = link?.getAttribute("href") ?? link?.getAttribute("xlink:href") ?? "";
    if (!href.startsWith("#case=") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    from = link;
    open(href.slice(6));
  });
  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, (event) => {
    const mark = event.target.closest?.('[data-testid="point"], [data-testid="case-row"]');
    if (mark && !(kind === "pointerover" && mark.tagName === "TR")) showRecipe(place.get(mark.dataset.case));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); $("search").focus(); }
    if (event.key === "Escape" && $("detail").contains(document.activeElement)) {
      const back = document.querySelector(`[data-testid="point"][data-case="${CSS.escape(view.case)}"]`) ?? (from?.isConnected ? from : null);
      back?.focus();
      back?.scrollIntoView({ block: "center" });
    }
  });
  addEventListener("popstate", () => { readAddress(); show(); });
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawChart(shownCases()); } });
  addEventListener("beforeprint", () => { all = true; drawTable(shownCases()); });

  readAddress();
  show();
  if (view.case) showRecipe(place.get(view.case));
})();
