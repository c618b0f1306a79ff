"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const canvas = $("slide"), context = canvas.getContext("2d"), thumbnail = $("thumbnail");

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const ramp = new Uint8Array(bytes(data.colours));
  const colours = Array.from({ length: 256 }, (_, i) => `rgb(${ramp[3 * i]} ${ramp[3 * i + 1]} ${ramp[3 * i + 2]})`);
  const scales = new Map(data.scales.map((scale) => {
    const coords = new Int32Array(bytes(scale.coords));
    const attention = new Float32Array(bytes(scale.attention)), percentile = new Float32Array(bytes(scale.percentile));
    // Weakest first, so that the strongest is drawn last where patches share a pixel.
    const order = new Uint32Array(bytes(scale.order)).reverse();
    return [scale.name, { ...scale, coords, attention, percentile, order, lattice: latticeOf(coords, scale.size) }];
  }));
  const state = { magnification: data.scales[0].name, values: "percentile", overlay: true, opacity: 0.5, from: 0, selected: -1 };
  const view = { x: 0, y: 0, zoom: 1 }; // level-0 px of the top-left corner, CSS px per level-0 px

  const scale = () => scales.get(state.magnification);
  const format = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(2) : value.toPrecision(3));

  function range() {
    return state.values === "percentile" ? [0, 100] : scale().range;
  }

  function colourIndex(row) {
    const [low, high] = range();
    return high > low ? Math.round(255 * (scale()[state.values][row] - low) / (high - low)) : 128;
  }

  // ---- drawing ----
  function draw() {
    const density = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * density), height = Math.round(canvas.clientHeight * density);
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const zoom = view.zoom * density;
    const toX = (x) => Math.round((x - view.x) * zoom), toY = (y) => Math.round((y - view.y) * zoom);
    context.clearRect(0, 0, width, height);
    const [left, top, right, bottom] = [toX(0), toY(0), toX(data.size[0]), toY(data.size[1])];
    context.fillStyle = "#fff";
    context.fillRect(left, top, right - left, bottom - top);
    if (thumbnail) {
      context.imageSmoothingQuality = "high";
      context.drawImage(thumbnail, left, top, right - left, bottom - top);
    }
    context.strokeStyle = "#8a939c";
    context.strokeRect(left - 0.5, top - 0.5, right - left + 1, bottom - top + 1);
    if (state.overlay) drawPatches(toX, toY, width, height);
    if (state.selected >= 0) drawSelected(toX, toY, density);
    drawScaleBar();
  }

  function drawPatches(toX, toY, width, height) {
    context.save();
    context.beginPath();
    context.rect(toX(0), toY(0), toX(data.size[0]) - toX(0), toY(data.size[1]) - toY(0)); // patches overhang the slide
    context.clip();
    context.globalAlpha = state.opacity;
    (scale().lattice ? drawLattice : drawBoxes)(toX, toY, width, height);
    context.restore();
  }

  function drawBoxes(toX, toY, width, height) {
    const { coords, size, percentile, order } = scale();
    let current = -1;
    for (const row of order) {
      if (percentile[row] < state.from) continue;
      const x = coords[2 * row], y = coords[2 * row + 1];
      const left = toX(x), top = toY(y), right = toX(x + size[0]), bottom = toY(y + size[1]);
      if (right < 0 || bottom < 0 || left > width || top > height) continue;
      const index = colourIndex(row);
      if (index !== current) { context.fillStyle = colours[index]; current = index; }
      context.fillRect(left, top, Math.max(1, right - left), Math.max(1, bottom - top));
    }
  }

  // ---- patches on a regular grid are one small picture, a pixel each, which a slide of 100,000 needs to pan smoothly ----
  function latticeOf(coords, size) {
    const columns = [], rows = [];
    for (let row = 0; row < coords.length / 2; row++) {
      columns.push((coords[2 * row] - coords[0]) / size[0]);
      rows.push((coords[2 * row + 1] - coords[1]) / size[1]);
    }
    if (![...columns, ...rows].every(Number.isInteger)) return null;
    const least = (values) => values.reduce((a, b) => Math.min(a, b)), most = (values) => values.reduce((a, b) => Math.max(a, b));
    const [left, top] = [least(columns), least(rows)];
    const picture = document.createElement("canvas");
    picture.width = most(columns) - left + 1;
    picture.height = most(rows) - top + 1;
    const cells = columns.map((column, row) => (rows[row] - top) * picture.width + column - left);
    return { x: coords[0] + left * size[0], y: coords[1] + top * size[1], cells, picture, shows: "" };
  }

  function paint({ lattice, percentile }) {
    const shows = `${state.values} ${state.from}`;
    if (lattice.shows === shows) return;
    const cellContext = lattice.picture.getContext("2d");
    const pixels = cellContext.createImageData(lattice.picture.width, lattice.picture.height);
    lattice.cells.forEach((cell, row) => {
      if (percentile[row] < state.from) return;
      const index = colourIndex(row);
      pixels.data.set([ramp[3 * index], ramp[3 * index + 1], ramp[3 * index + 2], 255], 4 * cell);
    });
    cellContext.putImageData(pixels, 0, 0);
    lattice.shows = shows;
  }

  function drawLattice(toX, toY, width, height) {
    const { lattice, size } = scale(), { picture } = lattice;
    paint(scale());
    // Only the cells in view, so that edges stay exact however far one zooms in.
    const zoom = view.zoom * (window.devicePixelRatio || 1);
    const first = (start, from, length) => Math.max(0, Math.floor((start - from) / length));
    const last = (start, from, length, shown, count) => Math.min(count, Math.ceil((start + shown / zoom - from) / length));
    const [left, right] = [first(view.x, lattice.x, size[0]), last(view.x, lattice.x, size[0], width, picture.width)];
    const [top, bottom] = [first(view.y, lattice.y, size[1]), last(view.y, lattice.y, size[1], height, picture.height)];
    if (right <= left || bottom <= top) return;
    const edges = [lattice.x + left * size[0], lattice.y + top * size[1], lattice.x + right * size[0], lattice.y + bottom * size[1]];
    const [x, y] = [toX(edges[0]), toY(edges[1])];
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, left, top, right - left, bottom - top, x, y, toX(edges[2]) - x, toY(edges[3]) - y);
  }

  function drawSelected(toX, toY, density) {
    const { coords, size } = scale();
    const x = coords[2 * state.selected], y = coords[2 * state.selected + 1];
    const box = [toX(x), toY(y), toX(x + size[0]) - toX(x), toY(y + size[1]) - toY(y)];
    for (const [colour, line] of [["#fff", 5], ["#111", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * density;
      context.strokeRect(...box);
    }
    context.lineWidth = 1;
  }

  function drawScaleBar() {
    const bar = $("scale-bar");
    bar.hidden = !data.mpp;
    if (!data.mpp) return;
    const most = 140 * data.mpp[0] / view.zoom; // um that 140 px show
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].find((step) => step * power <= most) * power;
    bar.firstElementChild.style.width = `${length * view.zoom / data.mpp[0]}px`;
    bar.firstElementChild.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  }

  let waiting = false;
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  // ---- moving ----
  function fitZoom() {
    return 0.97 * Math.min(canvas.clientWidth / data.size[0], canvas.clientHeight / data.size[1]);
  }

  function centre(x, y, zoom) {
    view.zoom = zoom;
    view.x = x - canvas.clientWidth / zoom / 2;
    view.y = y - canvas.clientHeight / zoom / 2;
    redraw();
  }

  const fit = () => centre(data.size[0] / 2, data.size[1] / 2, fitZoom());

  function zoomAt(factor, px, py) {
    const zoom = Math.min(Math.max(view.zoom * factor, fitZoom() / 2), Math.max(4, fitZoom()));
    view.x += px / view.zoom - px / zoom;
    view.y += py / view.zoom - py / zoom;
    view.zoom = zoom;
    redraw();
  }

  const zoomMiddle = (factor) => zoomAt(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);

  function pan(dx, dy) {
    view.x -= dx / view.zoom;
    view.y -= dy / view.zoom;
    redraw();
  }

  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    canvas.classList.add("dragging");
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return read(event.offsetX, event.offsetY);
    const now = [event.offsetX, event.offsetY];
    pointers.set(event.pointerId, now);
    pan((now[0] - before[0]) / pointers.size, (now[1] - before[1]) / pointers.size);
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      zoomAt(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, (event) => {
      pointers.delete(event.pointerId);
      canvas.classList.toggle("dragging", pointers.size > 0);
    });
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015)), event.offsetX, event.offsetY);
  }, { passive: false });
  const keys = {
    ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
    "+": () => zoomMiddle(1.4), "=": () => zoomMiddle(1.4), "-": () => zoomMiddle(1 / 1.4), 0: fit,
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  $("zoom-in").addEventListener("click", () => zoomMiddle(1.4));
  $("zoom-out").addEventListener("click", () => zoomMiddle(1 / 1.4));
  $("fit").addEventListener("click", fit);

  // ---- reading ----
  function describe(row) {
    const { coords, attention, percentile } = scale();
    return `${state.magnification} patch at x ${coords[2 * row]}, y ${coords[2 * row + 1]}: attention ${format(attention[row])}, percentile ${percentile[row].toFixed(1)}`;
  }

  function read(px, py) {
    const x = view.x + px / view.zoom, y = view.y + py / view.zoom;
    const { coords, size, order } = scale();
    const row = order.findLast((each) => x >= coords[2 * each] && x < coords[2 * each] + size[0] && y >= coords[2 * each + 1] && y < coords[2 * each + 1] + size[1]);
    $("readout").textContent = `x ${Math.floor(x)}, y ${Math.floor(y)} px${row === undefined ? "" : ` · ${describe(row)}`}`;
  }

  function select(row) {
    const { coords, size } = scale();
    state.selected = row;
    const zoom = Math.max(fitZoom(), Math.min(4, Math.min(canvas.clientWidth, canvas.clientHeight) / 5 / size[0]));
    centre(coords[2 * row] + size[0] / 2, coords[2 * row + 1] + size[1] / 2, zoom);
    $("readout").textContent = describe(row);
    canvas.scrollIntoView({ block: "nearest" });
  }

  // ---- controls ----
  function showLegend() {
    const [low, high] = range(), { attention, half } = scale();
    const percentile = state.values === "percentile";
    $("low").textContent = percentile ? "0, least" : format(low);
    $("high").textContent = percentile ? "100, most" : format(high);
    $("legend-text").textContent = percentile
      ? `Percentile rank among the ${attention.length} patches at ${state.magnification}`
      : `Raw attention of the model at ${state.magnification}, lowest to highest of ${attention.length} patches`;
    $("half").textContent = `Half of the attention lies on ${half} of them`;
  }

  function onChoice(name, key) {
    for (const input of document.querySelectorAll(`input[name=${name}]`)) {
      input.addEventListener("change", () => {
        state[key] = input.value;
        if (key === "magnification") state.selected = -1;
        for (const gallery of document.querySelectorAll(".galleries")) {
          gallery.hidden = gallery.dataset.magnification !== state.magnification;
        }
        showLegend();
        redraw();
      });
      if (input.defaultChecked) input.checked = true; // a reload keeps what was chosen before
    }
  }
  onChoice("magnification", "magnification");
  onChoice("values", "values");
  $("overlay").checked = true;
  $("overlay").addEventListener("change", (event) => { state.overlay = event.target.checked; redraw(); });
  function onSlider(id, apply, text) {
    $(id).value = $(id).defaultValue;
    $(id).addEventListener("input", (event) => {
      apply(Number(event.target.value));
      $(`${id}-value`).textContent = text(event.target.value);
      redraw();
    });
  }
  onSlider("opacity", (value) => { state.opacity = value / 100; }, (value) => `${value} %`);
  onSlider("from", (value) => { state.from = value; }, (value) => value);
  for (const button of document.querySelectorAll(".patches button")) {
    button.addEventListener("click", () => select(Number(button.dataset.row)));
  }

  new ResizeObserver(redraw).observe(canvas);
  showLegend();
  fit();
  if (thumbnail && !thumbnail.complete) thumbnail.addEventListener("load", redraw);
})();
