"use strict";
// Chooses among the numbers that fastadam has computed. page.js draws them. Nothing of the optimizers is computed here.

const about = JSON.parse(document.getElementById("header").textContent);
const byId = (id) => document.getElementById(id);
const FLOOR = 1e-10; // of drawn losses
const STEPS_A_SECOND = 25;
const MOST_STEPS_A_FRAME = 5; // a slow machine takes longer rather than jump
const CONFIG = {
  displaylogo: false, responsive: true, modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d"],
  showSendToCloud: false, // plotly 7 has a button that uploads the chart
};
const FONT = { family: 'system-ui, "Segoe UI", Arial, sans-serif', size: 13, color: "#1f2933" };
const GRID = { gridcolor: "#e8ecf0", zerolinecolor: "#c5ced6", linecolor: "#9aa7b3", showline: true, ticks: "outside" };
const ONE_COLUMN = matchMedia("(max-width: 980px)"); // as in the page's style
const PHONE = matchMedia("(max-width: 600px)");
const SMALL = { entrywidth: 58, font: { size: 11 } }; // a legend with little room
const STILL = { mode: "immediate", transition: { duration: 0 }, frame: { duration: 0, redraw: false } };

let arrays = {};
const chosen = { landscape: 0, setting: 0, beta1: 0, beta2: 0, start: 0, step: 0 };
let playing = false;
let nextFrame = 0;

// ---- the numbers

async function unpack() {
  const packed = Uint8Array.from(atob(byId("numbers").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const columns = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = columns.length / 4;
  const bytes = new Uint8Array(columns.length);
  for (let place = 0; place < 4; place++) {
    for (let i = 0; i < count; i++) bytes[4 * i + place] = columns[place * count + i];
  }
  const numbers = new Float32Array(bytes.buffer);
  let offset = 0;
  for (const [name, shape] of Object.entries(about.arrays)) {
    const size = shape.reduce((a, b) => a * b);
    arrays[name] = { shape, values: numbers.subarray(offset, offset + size) };
    offset += size;
  }
}

// What is left of an array once its first axes have been chosen, flat.
function part(name, ...indices) {
  const { shape, values } = arrays[name];
  let [from, size] = [0, values.length];
  indices.forEach((index, axis) => {
    size /= shape[axis];
    from += index * size;
  });
  return values.subarray(from, from + size);
}

const landscape = () => about.landscapes[chosen.landscape];
const fits = (run) =>
  (run.beta1 === null || run.beta1 === about.beta1[chosen.beta1]) &&
  (run.beta2 === null || run.beta2 === about.beta2[chosen.beta2]);

// The run of each optimizer under the chosen settings.
function records() {
  return about.optimizers.map((optimizer, number) => {
    const run = about.runs.findIndex((run) => run.contender === number && fits(run));
    const place = [chosen.landscape, chosen.setting, chosen.start, run];
    const path = part("paths", ...place);
    const gaps = part("gaps", ...place);
    return { ...optimizer, rate: landscape().rates[chosen.setting][number], path, gaps, diverged: divergence(gaps) };
  });
}

// The step from which on the loss stays above that of the start, or is none; null if it does not.
function divergence(gaps) {
  let step = gaps.length;
  while (step > 0 && !(gaps[step - 1] <= gaps[0])) step--;
  return step < gaps.length ? step : null;
}

// ---- geometry

const height = (gap) => Math.log10(1 + Math.max(gap, 0) / landscape().scale);

function surface() {
  const [rows, columns] = about.arrays.surfaces.slice(1);
  const gaps = part("surfaces", chosen.landscape);
  const [[left, right], [bottom, top]] = landscape().view;
  const spread = (from, to, n) => Array.from({ length: n }, (_, i) => from + ((to - from) * i) / (n - 1));
  const z = Array.from({ length: rows }, (_, row) => Array.from(gaps.subarray(row * columns, (row + 1) * columns), height));
  return { x: spread(left, right, columns), y: spread(bottom, top, rows), z };
}

function inView(x, y) {
  const [[left, right], [bottom, top]] = landscape().view;
  return left <= x && x <= right && bottom <= y && y <= top;
}

// Heights of the drawn surface, so that paths lie on it.
function heightOn(drawn, x, y) {
  const [[left, right], [bottom, top]] = landscape().view;
  const column = ((x - left) / (right - left)) * (drawn.x.length - 1);
  const row = ((y - bottom) / (top - bottom)) * (drawn.y.length - 1);
  const i = Math.max(0, Math.min(Math.floor(row), drawn.y.length - 2));
  const j = Math.max(0, Math.min(Math.floor(column), drawn.x.length - 2));
  const [b, a] = [row - i, column - j];
  const along = (k) => drawn.z[k][j] * (1 - a) + drawn.z[k][j + 1] * a;
  return along(i) * (1 - b) + along(i + 1) * b;
}

// The part of a line from (x0, y0) to (x1, y1) that is in view, as shares of it, or null.
function visiblePart(x0, y0, x1, y1) {
  let [from, to] = [0, 1];
  const [xs, ys] = landscape().view;
  for (const [start, way, [low, high]] of [[x0, x1 - x0, xs], [y0, y1 - y0, ys]]) {
    if (way === 0 && (start < low || high < start)) return null;
    if (way === 0) continue;
    const [a, b] = [(low - start) / way, (high - start) / way];
    from = Math.max(from, Math.min(a, b));
    to = Math.min(to, Math.max(a, b));
  }
  return from <= to ? [from, to] : null; // null also where something is not a number
}

// A path in view, in pieces so short that it lies on the surface; null is a gap. `ends[t]` is how much of it there is at
// step t, `dots` are ends of steps far enough from each other to be told apart, and `exit` is where the path first left
// the view.
function lay(path, drawn) {
  const [[left, right], [bottom, top]] = landscape().view;
  const line = { x: [], y: [], z: [], dots: [], ends: [], exit: null };
  const share = (xa, ya, xb, yb) => Math.max(Math.abs(xb - xa) / (right - left), Math.abs(yb - ya) / (top - bottom)); // of the view
  const add = (x, y) => {
    line.x.push(x);
    line.y.push(y);
    line.z.push(x === null ? null : heightOn(drawn, x, y));
  };
  add(path[0], path[1]);
  line.ends.push(1);
  let dot = path.subarray(0, 2);
  for (let t = 1; 2 * t < path.length; t++) {
    const [x0, y0, x1, y1] = path.subarray(2 * t - 2, 2 * t + 2);
    const started = inView(x0, y0);
    const [from, to] = visiblePart(x0, y0, x1, y1) ?? [0, 0];
    const at = (s) => (s === 0 ? [x0, y0] : s === 1 ? [x1, y1] : [x0 + s * (x1 - x0), y0 + s * (y1 - y0)]);
    if (to > from) {
      const [[xa, ya], [xb, yb]] = [at(from), at(to)];
      const pieces = Math.ceil(80 * share(xa, ya, xb, yb)) || 1;
      if (!started) add(...at(from));
      for (let piece = 1; piece < pieces; piece++) add(...at(from + ((to - from) * piece) / pieces));
      add(...at(to));
    }
    if (!inView(x1, y1)) {
      if (started) {
        const [x, y] = at(to);
        line.exit ??= { step: t, x, y, z: heightOn(drawn, x, y) };
      }
      add(null, null);
    } else if (share(...dot, x1, y1) > 0.012) {
      dot = [x1, y1];
      line.dots.push({ step: t, x: x1, y: y1 });
    }
    line.ends.push(line.x.length);
  }
  return line;
}
