"use strict";

// Sorting: a table's headers sort it by the data-value of its cells. Cells without a value (a run without a result)
// come last in either direction.

function compareValues(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

function sortTable(table, column, ascending) {
  const valueOf = (row) => row.cells[column].dataset.value;
  const rows = [...table.tBodies[0].rows];
  const filled = rows.filter((row) => valueOf(row) !== "");
  const empty = rows.filter((row) => valueOf(row) === "");
  filled.sort((a, b) => (ascending ? 1 : -1) * compareValues(valueOf(a), valueOf(b)));
  table.tBodies[0].append(...filled, ...empty);
  [...table.tHead.rows[0].cells].forEach((cell, index) => {
    const order = index !== column ? "none" : ascending ? "ascending" : "descending";
    cell.setAttribute("aria-sort", order);
  });
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    cell.querySelector("button").addEventListener("click", () => {
      sortTable(table, column, cell.getAttribute("aria-sort") !== "ascending");
    });
  });
}

// Curves

const data = JSON.parse(document.getElementById("data").textContent);
const state = { hidden: new Set(), axis: "steps", part: 1, seeds: true };
const HEIGHT = 340;
const MARGIN = { left: 52, right: 30, top: 10, bottom: 44 };
const REACH = 60; // largest distance from the pointer to the selected point, in pixels

function svg(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

function niceTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n++) ticks.push(n * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return { ticks, decimals };
}

function shownCount(value) {
  const prefixes = ["", " k", " M", " G", " T"];
  let power = 0;
  while (value >= 999.5 && power < prefixes.length - 1) {
    value /= 1000;
    power++;
  }
  return Number(value.toPrecision(3)) + prefixes[power];
}

function shownX(value) {
  return state.axis === "tokens" ? shownCount(value) : Math.round(value).toLocaleString("en");
}

// Visible curves. The mean of each trial comes after its seeds, so that it is drawn above them.
function visibleCurves(kind) {
  const curves = [];
  for (const trial of data.trials) {
    if (state.hidden.has(trial.name)) continue;
    const mean = trial.mean[kind];
    const isAlone = (run) => mean.seeds.length === 1 && mean.seeds[0] === run.seed;
    const isMean = (run) => isAlone(run) && mean.groupSize === 1;
    const nameOf = (run) => `seed ${run.seed}${run.status === "finished" ? "" : ` (${run.status})`}`;
    const own = trial.runs.filter((run) => !isMean(run));
    if (state.seeds) curves.push(...own.map((run) => ({ ...run[kind], trial, role: "seed", label: nameOf(run) })));
    const one = trial.runs.find(isAlone);
    const whose = one ? nameOf(one) : `mean of ${mean.seeds.length} seeds`;
    const label = mean.groupSize > 1 ? `${whose}, median of ${mean.groupSize} points` : whose;
    curves.push({ ...mean, trial, role: "mean", label });
  }
  return curves.filter((curve) => curve.steps.length);
}

function bounds(kind, curves) {
  const ends = data.trials.flatMap((trial) => trial.runs.map((run) => run[kind][state.axis].at(-1) ?? 0));
  const right = Math.max(1, ...ends);
  const left = right * (1 - state.part);
  const inside = curves.flatMap((curve) => curve.losses.filter((_, i) => curve[state.axis][i] >= left));
  const low = inside.reduce((a, b) => Math.min(a, b), Infinity);
  const high = inside.reduce((a, b) => Math.max(a, b), -Infinity);
  const margin = 0.05 * (high - low) || 0.05;
  return inside.length ? { left, right, low: low - margin, high: high + margin } : { left, right, low: 0, high: 1 };
}

class Chart {
  constructor(kind, title, parent) {
    this.kind = kind;
    const heading = document.createElement("h3");
    heading.textContent = title;
    this.box = document.createElement("div");
    this.box.className = "chart";
    this.output = document.createElement("output");
    parent.append(heading, this.box);
    this.svg = svg("svg", { tabindex: 0, role: "group", "data-kind": kind });
    this.svg.setAttribute("aria-label", `${title}. Use the arrow keys to move between points and curves.`);
    this.box.append(this.svg, this.output);
    this.svg.addEventListener("pointermove", (event) => this.pointAt(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  draw() {
    this.width = Math.max(this.box.clientWidth, 240); // clientWidth is 0 in a tab that was never shown
    this.curves = visibleCurves(this.kind);
    this.bounds = bounds(this.kind, this.curves);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.drawAxes();
    const clip = `clip-${this.kind}`;
    const area = svg("clipPath", { id: clip }, this.svg);
    const size = { x: MARGIN.left, y: 0, width: this.width - MARGIN.left - MARGIN.right / 2 };
    svg("rect", { ...size, height: HEIGHT - MARGIN.bottom }, area);
    const lines = svg("g", { "clip-path": `url(#${clip})`, class: this.kind }, this.svg);
    for (const curve of this.curves) this.drawCurve(curve, lines);
    this.mark = svg("circle", { class: "mark", r: 5, visibility: "hidden" }, this.svg);
    this.point(null);
  }

  drawAxes() {
    const { left, right, low, high } = this.bounds;
    const bottom = HEIGHT - MARGIN.bottom;
    const vertical = niceTicks(low, high, 6);
    for (const tick of vertical.ticks) {
      const y = this.y(tick);
      svg("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }, this.svg);
      const label = svg("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, this.svg);
      label.textContent = tick.toFixed(vertical.decimals);
    }
    const horizontal = niceTicks(left, right, Math.max(2, Math.floor(this.width / 120)));
    for (const tick of horizontal.ticks) {
      const x = this.x(tick);
      svg("line", { class: "grid", x1: x, x2: x, y1: MARGIN.top, y2: bottom }, this.svg);
      svg("text", { x, y: bottom + 17, "text-anchor": "middle" }, this.svg).textContent = shownX(tick);
    }
    const middle = (MARGIN.left + this.width - MARGIN.right) / 2;
    const under = svg("text", { x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, this.svg);
    under.textContent = state.axis === "tokens" ? "real tokens trained on" : "step";
    const beside = svg("text", { transform: `translate(12 ${bottom / 2}) rotate(-90)`, "text-anchor": "middle" }, this.svg);
    beside.textContent = "loss (nats per masked token)";
    if (!this.curves.length) {
      const place = { x: middle, y: bottom / 2, "text-anchor": "middle" };
      svg("text", place, this.svg).textContent = "nothing to show";
    }
  }

  drawCurve(curve, parent) {
    const points = curve.losses.map((loss, i) => `${this.x(curve[state.axis][i]).toFixed(1)} ${this.y(loss).toFixed(1)}`);
    const path = svg("path", { d: `M${points.join("L")}`, class: curve.role, "data-trial": curve.trial.name }, parent);
    path.style.stroke = curve.trial.color;
    // A curve with a single point is drawn as a dot.
    if (points.length === 1) {
      path.setAttribute("d", `M${points[0]}h0.01`);
      path.style.strokeWidth = "6";
      path.style.strokeLinecap = "round";
    }
    if (curve.role === "mean") {
      path.style.strokeDasharray = curve.trial.dashes.map((length) => 2 * length).join(" ");
    }
  }

  x(value) {
    const { left, right } = this.bounds;
    return MARGIN.left + ((value - left) / (right - left)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const { low, high } = this.bounds;
    return MARGIN.top + ((high - value) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  }

  pointAt(event) {
    const box = this.svg.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let [nearest, least] = [null, REACH];
    this.curves.forEach((curve, c) => {
      curve.losses.forEach((loss, i) => {
        if (curve[state.axis][i] < this.bounds.left) return;
        // If points coincide, the last one is selected: the mean, which is drawn on top.
        const distance = Math.hypot(this.x(curve[state.axis][i]) - px, this.y(loss) - py);
        if (distance <= least) [nearest, least] = [{ c, i }, distance];
      });
    });
    this.point(nearest);
  }

  step(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") this.point(null);
    if (!(event.key in moves) || !this.curves.length) return;
    event.preventDefault();
    const [byCurve, byPoint] = moves[event.key];
    const from = this.at ?? { c: this.curves.length - 1, i: this.curves.at(-1).steps.length - 1 };
    if (!this.at) return this.point(from);
    const c = (from.c + byCurve + this.curves.length) % this.curves.length;
    const curve = this.curves[c];
    const first = curve[state.axis].findIndex((value) => value >= this.bounds.left);
    let i = from.i + byPoint;
    if (byCurve) {
      const here = this.curves[from.c][state.axis][from.i];
      i = curve[state.axis].findIndex((value) => value >= here);
      if (i < 0) i = curve.steps.length - 1;
    }
    this.point({ c, i: Math.min(Math.max(i, first), curve.steps.length - 1) });
  }

  // Shows the value of a point; hides it if there is none.
  point(at) {
    this.at = at;
    this.mark.setAttribute("visibility", at ? "visible" : "hidden");
    if (!at) {
      this.output.textContent = "";
      return;
    }
    const curve = this.curves[at.c];
    const [x, y] = [this.x(curve[state.axis][at.i]), this.y(curve.losses[at.i])];
    this.mark.setAttribute("cx", x);
    this.mark.setAttribute("cy", y);
    this.mark.style.stroke = curve.trial.color;
    const where = `step ${curve.steps[at.i].toLocaleString("en")}, ${shownCount(curve.tokens[at.i])} tokens`;
    this.output.textContent = `${curve.trial.name}, ${curve.label}\n${curve.losses[at.i].toFixed(4)} nats\n${where}`;
    const { offsetWidth, offsetHeight } = this.output;
    const beside = x + 14 + offsetWidth <= this.width ? x + 14 : Math.max(0, x - 14 - offsetWidth);
    this.output.style.left = `${beside}px`;
    this.output.style.top = `${Math.max(0, y - offsetHeight - 8)}px`;
  }
}

function addTrial(trial, legend) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  Object.assign(box, { type: "checkbox", checked: true, value: trial.name });
  const swatch = svg("svg", { width: 30, height: 10, "aria-hidden": "true" });
  const line = svg("line", { x1: 0, x2: 30, y1: 5, y2: 5, "stroke-width": 3 }, swatch);
  line.style.stroke = trial.color;
  line.style.strokeDasharray = trial.dashes.map((length) => 2 * length).join(" ");
  const name = document.createElement("span");
  name.textContent = trial.name === data.baseline ? `${trial.name} (baseline)` : trial.name;
  label.append(box, swatch, name);
  legend.append(label);
  return box;
}

function start() {
  const charts = document.getElementById("charts");
  const drawn = [
    new Chart("evaluation", "Evaluation loss", charts),
    new Chart("training", "Training loss", charts),
  ];
  const redraw = () => drawn.forEach((chart) => chart.draw());
  const boxes = data.trials.map((trial) => addTrial(trial, document.getElementById("legend")));
  const readBoxes = () => {
    state.hidden = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    redraw();
  };
  boxes.forEach((box) => box.addEventListener("change", readBoxes));
  for (const [id, checked] of [["all", true], ["none", false]]) {
    document.getElementById(id).addEventListener("click", () => {
      boxes.forEach((box) => (box.checked = checked));
      readBoxes();
    });
  }
  const control = (id, read) => {
    document.getElementById(id).addEventListener("change", (event) => {
      read(event.target);
      redraw();
    });
  };
  control("axis", (select) => (state.axis = select.value));
  control("part", (select) => (state.part = Number(select.value)));
  control("seeds", (box) => (state.seeds = box.checked));
  document.getElementById("controls").hidden = false;
  redraw();
}

start();
