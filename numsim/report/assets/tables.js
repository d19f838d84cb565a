"use strict";
// What the page of a report makes of data: elements, tables of colour, CSV. Names are set as text.
const numsimTables = (() => {
  const element = (name, attributes = {}, ...content) => {
    const e = document.createElement(name);
    for (const [key, v] of Object.entries(attributes)) if (v !== null && v !== false) e.setAttribute(key, v === true ? "" : v);
    e.append(...content.filter((c) => c !== null));
    return e;
  };
  const number = (v) => (v === null || v === undefined ? NaN : v === "inf" ? Infinity : v === "-inf" ? -Infinity : v);
  const ink = (background) => { const c = d3.rgb(background), f = (u) => ((u /= 255) <= 0.03928 ? u / 12.92 : ((u + 0.055) / 1.055) ** 2.4); return 0.2126 * f(c.r) + 0.7152 * f(c.g) + 0.0722 * f(c.b) > 0.179 ? "#000" : "#fff"; };
  const limits = (values) => { const v = values.filter(Number.isFinite).sort(d3.ascending); const [a, b] = [d3.quantile(v, 0.02) ?? 0, d3.quantile(v, 0.98) ?? 1]; return a === b ? [a - 1, b + 1] : [a, b]; };
  function heatTable(rows, columns, at, shade, attributes) {
    const head = element("tr", {}, element("th", { scope: "col" }, ""), ...columns.map((c) => element("th", { scope: "col", title: c }, element("span", {}, c))));
    const body = rows.map((r) => element("tr", {}, element("th", { scope: "row", title: r }, r), ...columns.map((c) => {
      const v = at(r, c);
      if (v === undefined || Number.isNaN(v)) return element("td");
      const cell = element("td", { "data-v": String(v) }, Number.isFinite(v) ? d3.format(".1f")(v) : v > 0 ? "∞" : "−∞"), ground = shade(v);
      cell.style.background = ground;
      cell.style.color = ink(ground);
      return cell;
    })));
    return element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "table" }, element("table", { class: "heat", ...attributes }, element("thead", {}, head), element("tbody", {}, ...body)));
  }
  function csvAddress(rows) { // no spreadsheet computes a cell
    const cell = (t) => { const s = /^'*[=+\-@\t\r]/.test(t) && Number.isNaN(+t) ? `'${t}` : t; return /[",\n\r]/.test(s) ? `"${s.replaceAll('"', '""')}"` : s; };
    return `data:text/csv;charset=utf-8,${encodeURIComponent(rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n")}`;
  }
  return { element, number, limits, heatTable, csvAddress };
})();
