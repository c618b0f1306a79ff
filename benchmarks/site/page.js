"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // ---- filters: what is shown, in every table and figure ----
  const form = $("filters");

  function wanted(record) {
    const magnifications = all("input[name=magnification]:checked", form).map((box) => box.value);
    return magnifications.includes(record.magnification)
      && ($("head").value === "" || record.head === $("head").value)
      && ($("licence").value === "" || record.licence === $("licence").value)
      && record.encoder.toLowerCase().includes($("search").value.trim().toLowerCase());
  }

  function filter() {
    const shown = new Set(Object.entries(data.records).filter(([, record]) => wanted(record)).map(([id]) => id));
    for (const part of all("[data-record]")) part.toggleAttribute("hidden", !shown.has(part.dataset.record));
    for (const cell of all("[data-column]")) cell.hidden = !shown.has(cell.dataset.column);
    all(".forest").forEach(stack);
    all("[data-walk]").forEach(oneStop);
    $("count").textContent = `${shown.size} of ${Object.keys(data.records).length} results shown`;
  }

  /** The rows of a forest plot that are shown, one below the other without gaps. */
  function stack(plot) {
    const { top, line, width } = Object.fromEntries(Object.entries(plot.dataset).map(([name, value]) => [name, Number(value)]));
    const rows = all("g[data-record]:not([hidden])", plot);
    rows.forEach((row, place) => row.setAttribute("transform", `translate(0 ${top + place * line})`));
    const below = plot.querySelector(".below"), end = top + rows.length * line;
    let height = end + 8;
    if (below) {
      below.setAttribute("transform", `translate(0 ${end})`);
      height += 30 + all("g", below).length * line;
    }
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const rule of all(".grid, .chance", plot)) rule.setAttribute("y2", height - 4);
    plot.querySelector(".best").setAttribute("y2", end);
  }

  if (form) {
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter)); // once the fields have their first values
    form.reset(); // a reload keeps what was chosen before
  }

  // ---- sorting ----
  function sort(table, head) {
    const heads = all("thead th", table), column = heads.indexOf(head);
    const order = { ascending: "descending", descending: "ascending" }[head.ariaSort] ?? (head.dataset.first || "ascending");
    for (const each of heads.filter((other) => other.hasAttribute("aria-sort"))) each.setAttribute("aria-sort", each === head ? order : "none");
    const isNumber = head.classList.contains("number"), sign = order === "ascending" ? 1 : -1;
    const keyed = all("tbody", table).map((body) => [body, body.rows[0].cells[column].dataset.value]);
    keyed.sort(([, a], [, b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // the missing last, either way
      return sign * (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true }));
    });
    table.append(...keyed.map(([body]) => body));
  }

  for (const table of all(".results")) {
    table.querySelector("thead").addEventListener("click", (event) => {
      const head = event.target.closest("th[aria-sort]");
      if (head) sort(table, head);
    });
    table.addEventListener("click", (event) => {
      const button = event.target.closest("button.more");
      if (!button) return;
      const details = $(button.getAttribute("aria-controls"));
      details.hidden = !details.hidden;
      button.setAttribute("aria-expanded", String(!details.hidden));
    });
  }

  for (const box of all("[data-hides]")) {
    const table = box.closest(".card").querySelector("table");
    box.checked = true;
    box.addEventListener("change", () => table.classList.toggle(`hide-${box.dataset.hides}`, !box.checked));
  }

  // ---- the shown rows as CSV, in the order in which they stand ----
  for (const button of all("button.csv")) {
    button.addEventListener("click", () => {
      const section = button.closest(".task"), task = section.dataset.task;
      const lines = all("tbody[data-record]:not([hidden])", section).filter((body) => body.closest(".results")).map((body) => data.records[body.dataset.record].csv);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([[data.csv[task], ...lines, ""].join("\n")], { type: "text/csv" }));
      link.download = `${section.dataset.name}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  // ---- one task at a time; without a script all of them are there ----
  const links = all(".tasks a");
  let current = links[0];

  function showTask() {
    current = links.find((link) => link.hash === location.hash) ?? current; // other places of the page keep the task
    for (const link of links) {
      $(link.hash.slice(1)).hidden = link !== current;
      link.setAttribute("aria-current", String(link === current));
    }
  }
  addEventListener("hashchange", showTask);
  showTask();

  // ---- tooltips, and walking with the arrow keys: a figure is one stop of the tab key ----
  const tip = $("tip");
  let owner = null;

  function showTip(target) {
    owner = target;
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    target.setAttribute("aria-describedby", "tip");
    placeTip(target);
  }

  function placeTip(target) {
    const place = target.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const x = Math.min(Math.max(8, place.left + place.width / 2 - size.width / 2), innerWidth - size.width - 8);
    const above = place.top - size.height; // without a gap, so that the pointer can go over to the tip and select in it
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${above >= 4 ? above : place.bottom}px`;
  }

  function hideTip() {
    owner?.removeAttribute("aria-describedby");
    owner = null;
    tip.hidden = true;
  }

  /** The pointer has left: what the keyboard is on is described again, for example where its scrolling moved the page. */
  function leaveTip() {
    const focused = document.activeElement;
    hideTip();
    if (focused.matches("[data-tip]:focus-visible")) showTip(focused);
  }

  for (const [event, show] of [["pointerover", true], ["focusin", true], ["pointerout", false], ["focusout", false]]) {
    document.addEventListener(event, ({ target, relatedTarget }) => {
      const within = target.closest?.("[data-tip]");
      if (!within) return;
      if (show) showTip(within);
      else if (!(relatedTarget instanceof Node && (within.contains(relatedTarget) || tip.contains(relatedTarget)))) leaveTip();
    });
  }
  tip.addEventListener("pointerleave", leaveTip);
  addEventListener("scroll", () => { // the tip goes along, as far as there is something to see
    if (!owner) return;
    const place = owner.getBoundingClientRect();
    if (place.bottom < 0 || place.top > innerHeight) hideTip();
    else placeTip(owner);
  }, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  const lines = (figure) => all("tbody tr, g[data-tip]", figure).filter((line) => !line.hasAttribute("hidden"));
  const cells = (line) => (line.matches("[data-tip]") ? [line] : all("[data-tip]:not([hidden])", line));

  function oneStop(figure) {
    const stops = lines(figure).flatMap(cells);
    for (const cell of all("[data-tip]", figure)) cell.setAttribute("tabindex", "-1");
    stops[0]?.setAttribute("tabindex", "0");
  }

  function walk(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const cell = event.target.closest("[data-tip]");
    if (!step || !cell) return;
    const rows = lines(event.currentTarget), row = rows.findIndex((line) => line.contains(cell));
    const next = cells(rows[row + step[0]] ?? rows[row])[cells(rows[row]).indexOf(cell) + step[1]];
    if (!next) return;
    event.preventDefault();
    cell.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  for (const figure of all(".forest, .matrix")) {
    figure.dataset.walk = "";
    oneStop(figure);
    figure.addEventListener("keydown", walk);
  }

  if (form) filter();
})();
