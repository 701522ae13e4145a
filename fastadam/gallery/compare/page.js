// The picture and the controls; what they show is chosen in numbers.js.

// ---- the picture: everything that the controls change is drawn by draw(), everything that time changes by move()

let shown = null; // { drawn, top, records, lines }

function draw() {
  const drawn = surface();
  const all = records();
  const top = drawn.z.reduce((highest, row) => Math.max(highest, ...row), 0);
  shown = { drawn, top, records: all, lines: all.map((record) => lay(record.path, drawn)) };
  words();
  drawLandscape();
  drawContour();
  drawLosses();
  drawCorrections();
  drawInside();
  point();
}

const exponent = (value) => {
  if (Number.isNaN(value)) return "not finite";
  if (value === Infinity) return "&gt; 3 × 10<sup>38</sup>"; // the page's numbers are float32
  if (value === 0) return "0";
  const [digits, power] = value.toExponential(1).split("e");
  return Math.abs(power) < 3 ? String(Number(value.toPrecision(2))) : `${digits} × 10<sup>${Number(power)}</sup>`;
};

const minus = (text) => text.replaceAll(/(^|[ (])-/g, "$1−");

function words() {
  const { name, formula, challenge } = landscape();
  byId("name").textContent = minus(`${name}: ${formula}`);
  byId("challenge").textContent = minus(challenge);
  const multiple = about.settings[chosen.setting];
  byId("fairness").textContent =
    multiple === null
      ? `All run at the rate ${about.same}. What is large for one is small for another: SGD's step is the rate times the ` +
        `gradient, that of Adam about the rate itself.`
      : `Each runs at ${multiple} × its own base rate on this landscape: of the rates whose paths stay in view, that with ` +
        `the lowest mean of log(loss) over all steps and starts, at β₁ = ${about.opening.beta1} and β₂ = ${about.opening.beta2}.`;
}

function outcome(record, line) {
  if (record.diverged !== null) return `<span class="diverged">diverged, step ${record.diverged}</span>`;
  return line.exit ? `left view, step ${line.exit.step}` : "in view";
}

const lift = () => 0.012 * shown.top; // of paths above the surface

// The paths until now, and where they are.
function walked() {
  const t = chosen.step;
  const heads = shown.records.map(({ path }) => [path[2 * t], path[2 * t + 1]]).map((p) => (inView(...p) ? p : [null, null]));
  return {
    walked: shown.lines.map((line) => ({ x: line.x.slice(0, line.ends[t]), y: line.y.slice(0, line.ends[t]) })),
    dots: shown.lines.map((line) => line.dots.filter(({ step }) => step <= t)).map((dots) => ({ x: dots.map(({ x }) => x), y: dots.map(({ y }) => y) })),
    heads: { x: heads.map((p) => p[0]), y: heads.map((p) => p[1]) },
  };
}

function walkedInSpace() {
  const { walked: lines, heads } = walked();
  const up = (z) => (z === null ? null : z + lift());
  return {
    walked: lines.map(({ x, y }, i) => ({ x, y, z: shown.lines[i].z.slice(0, x.length).map(up) })),
    heads: { ...heads, z: heads.x.map((x, i) => (x === null ? null : up(heightOn(shown.drawn, x, heads.y[i])))) },
  };
}

const range3d = () => [-0.02 * shown.top, 1.05 * shown.top];

// Round losses as ticks of the height.
function ticks() {
  const top = range3d()[1];
  const values = [0];
  for (let power = -1; power < 7; power++) {
    const at = height(10 ** power);
    if (at > top) break;
    if (at - height(values.at(-1)) > 0.13 * top) values.push(10 ** power);
  }
  return { tickvals: values.map(height), ticktext: values.map(String) };
}

// Further away where there is less room, so that the labels of the axes are in the picture.
const away = ({ x, y, z }) => {
  const factor = 1.06 * Math.max(1, 640 / byId("landscape-3d").clientWidth);
  return { x: factor * x, y: factor * y, z: factor * z };
};

const COLOURS = [[0, "#2f4b6e"], [0.25, "#5d7fa3"], [0.55, "#a9bfd3"], [0.8, "#dbe4ec"], [1, "#f6f8fa"]];

function drawLandscape() {
  const { drawn, records } = shown;
  const { walked, heads } = walkedInSpace();
  const { starts, minima } = landscape();
  const axis = { ...GRID, showbackground: false, ticks: "", title: { font: { size: 13 } } };
  const marker = (points, symbol, colour, size) => ({
    type: "scatter3d", mode: "markers", hoverinfo: "skip", showlegend: false,
    x: points.map((p) => p[0]), y: points.map((p) => p[1]), z: points.map((p) => heightOn(drawn, ...p) + lift()),
    marker: { symbol, size, color: colour, line: { color: "#1f2933", width: 1 } },
  });
  const traces = [
    {
      type: "surface", ...drawn, colorscale: COLOURS, showscale: false, hoverinfo: "skip",
      contours: { z: { show: true, color: "#ffffff", width: 1, start: 0, end: range3d()[1], size: range3d()[1] / 14 } },
      lighting: { ambient: 0.75, diffuse: 0.5, specular: 0.05, roughness: 0.9 },
    },
    marker(minima, "diamond", "#ffffff", 5),
    marker([starts[chosen.start]], "circle", "#1f2933", 5),
    ...records.map((record, i) => ({
      type: "scatter3d", mode: "lines", name: record.name, hoverinfo: "name", ...walked[i],
      line: { color: record.colour, width: 7 },
    })),
    {
      type: "scatter3d", mode: "markers", hoverinfo: "skip", showlegend: false, ...heads,
      marker: { size: 6, color: records.map((record) => record.colour), line: { color: "white", width: 1 } },
    },
  ];
  const [xs, ys] = landscape().view;
  Plotly.react("landscape-3d", traces, {
    font: FONT, margin: { l: 0, r: 0, t: 6, b: 0 },
    uirevision: landscape().name, // the camera stays where the reader has put it
    legend: { orientation: "h", x: 0.5, xanchor: "center", y: 1, bgcolor: "#ffffffb0" },
    scene: {
      aspectmode: "manual", aspectratio: { x: 1.15, y: 1.15, z: 0.7 },
      camera: { eye: away(landscape().eye), center: { x: 0, y: 0, z: -0.16 } },
      xaxis: { ...axis, title: { text: "x" }, range: xs }, yaxis: { ...axis, title: { text: "y" }, range: ys },
      zaxis: { ...axis, title: { text: "loss above minimum" }, range: range3d(), ...ticks() },
      annotations: exits(1),
    },
  }, CONFIG);
}

// Marks where paths have left the view, in the plane and in space: a cross, and the word if the path diverged.
function exits(turn) {
  const toCentre = ([low, high], at) => (at < (low + high) / 2 ? 1 : -1);
  const { view } = landscape();
  return shown.records.flatMap(({ name, colour, diverged }, i) => {
    const { exit } = shown.lines[i];
    if (!exit) return [];
    const place = { x: exit.x, y: exit.y, z: exit.z, font: { color: colour, size: 13 }, hovertext: `${name} left the view at step ${exit.step}` };
    const cross = { ...place, text: "<b>×</b>", showarrow: false, font: { color: colour, size: 22 } };
    const word = {
      ...place, text: `${name} diverged`, bgcolor: "#ffffffe0", borderpad: 2, arrowcolor: colour, arrowwidth: 1, arrowhead: 0,
      standoff: 6, ax: 66 * toCentre(view[0], exit.x), ay: -(20 + 22 * i) * (turn ?? toCentre(view[1], exit.y)),
    };
    return diverged === null ? [cross] : [cross, word];
  });
}

function drawContour() {
  const { drawn, records } = shown;
  const { starts, minima, view } = landscape();
  const now = walked();
  const marker = (points, marker) => ({
    type: "scatter", mode: "markers", showlegend: false, hoverinfo: "x+y", cliponaxis: false,
    x: points.map((p) => p[0]), y: points.map((p) => p[1]), marker,
  });
  const traces = [
    {
      type: "contour", ...drawn, colorscale: COLOURS, ncontours: 22, hoverinfo: "skip", line: { color: "#ffffff", width: 0.7, smoothing: 0 },
      colorbar: {
        title: { text: "loss above minimum", side: PHONE.matches ? "top" : "right" }, thickness: 12, outlinewidth: 0, ...ticks(),
        ...(PHONE.matches ? { orientation: "h", y: -0.25, yanchor: "top" } : {}),
      },
    },
    ...records.map((record, i) => ({
      type: "scatter", mode: "lines", name: record.name, hoverinfo: "name", ...now.walked[i], line: { color: record.colour, width: 2.5 },
    })),
    ...records.map((record, i) => ({
      type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false, ...now.dots[i], marker: { size: 5.5, color: record.colour },
    })),
    {
      type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false, ...now.heads,
      marker: { size: 11, color: records.map((record) => record.colour), line: { color: "white", width: 1.5 } },
    },
    marker(minima, { symbol: "star", size: 13, color: "white", line: { color: "#1f2933", width: 1 } }),
    marker([starts[chosen.start]], { symbol: "circle-open", size: 12, color: "#1f2933", line: { width: 2.5 } }),
  ];
  Plotly.react("contour", traces, {
    // room for legend and colours: what plotly adds by itself depends on what was drawn before
    font: FONT, margin: PHONE.matches ? { l: 52, r: 10, t: 84, b: 152 } : { l: 52, r: 108, t: 66, b: 44 },
    legend: { orientation: "h", x: 0.5, xanchor: "center", y: 1.01, yanchor: "bottom", ...SMALL },
    xaxis: { ...GRID, title: { text: "x" }, range: view[0], zeroline: false },
    yaxis: { ...GRID, title: { text: "y" }, range: view[1], zeroline: false },
    annotations: exits(),
  }, CONFIG);
}

const times = (from) => Array.from({ length: about.steps + 1 - from }, (_, t) => t + from);
const floored = (values) => Array.from(values, (value) => (Number.isFinite(value) ? Math.max(value, FLOOR) : null));
const cursor = (axis, colour = "#1f2933") => ({
  type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, x: [], y: [], line: { color: colour, width: 1, dash: "dot" }, ...axis,
});

function drawLosses() {
  const { records } = shown;
  const lowest = Math.min(...records.flatMap(({ gaps }) => floored(gaps)).filter((gap) => gap !== null));
  const [low, high] = [Math.log10(lowest), Math.log10(records[0].gaps[0])];
  const traces = records.map((record) => ({
    type: "scatter", mode: "lines", name: record.name,
    x: times(0), y: floored(record.gaps), line: { color: record.colour, width: 2.2 },
    hovertemplate: "step %{x}: %{y:.2e}",
  }));
  const heads = {
    type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false, x: [], y: [],
    marker: { size: 9, color: records.map((record) => record.colour), line: { color: "white", width: 1.5 } },
  };
  Plotly.react("losses", [...traces, cursor({}), heads], {
    font: FONT, margin: { l: 74, r: 20, t: 34, b: 44 }, hovermode: "x",
    legend: { orientation: "h", x: 0.5, xanchor: "center", y: 1.02, yanchor: "bottom", ...SMALL },
    xaxis: { ...GRID, title: { text: "step" }, range: [0, about.steps] },
    yaxis: {
      ...GRID, type: "log", title: { text: "loss above minimum", standoff: 6 }, range: [low - 0.04 * (high - low), high + 0.15 * (high - low)],
      exponentformat: "power", ...decades([low, high]),
    },
  }, CONFIG);
}

// Adam's run: its number among those of Adam, and its record.
function adam() {
  const number = about.optimizers.findIndex(({ name }) => name === "Adam");
  const own = about.runs.filter((run) => run.contender === number).findIndex(fits);
  return { own, record: shown.records[number] };
}

function drawCorrections() {
  const { own } = adam();
  const line = (index, name, colour) => ({
    type: "scatter", mode: "lines", name, x: times(1), y: Array.from(part("corrections", own, index)),
    line: { color: colour, width: 2.5 }, hovertemplate: "step %{x}: %{y:.3f}",
  });
  const [beta1, beta2] = [about.beta1[chosen.beta1], about.beta2[chosen.beta2]];
  Plotly.react("corrections", [
    line(0, `of m: 1 − ${beta1}<sup>t</sup>`, "#d62728"),
    line(1, `of v: 1 − ${beta2}<sup>t</sup>`, "#0072b2"),
    cursor({}),
  ], {
    font: FONT, margin: { l: 74, r: 20, t: 34, b: 44 }, hovermode: "x",
    legend: { orientation: "h", x: 0.5, xanchor: "center", y: 1.02, yanchor: "bottom" },
    xaxis: { ...GRID, title: { text: "step t" }, range: [0, about.steps] },
    yaxis: { ...GRID, title: { text: "share" }, range: [0, 1.05] },
  }, CONFIG);
}

// Subplots: a column for each kind of quantity, a row for each coordinate; on a narrow page all below each other.
const KINDS = [
  { title: "gradient and its average", axis: "gradient", log: false,
    lines: [["gradient", "g", "#9aa7b3", 1.5], ["m", "m", "#e8913a", 2], ["corrected m", "m̂ = m / (1 − β₁<sup>t</sup>)", "#d62728", 2]] },
  { title: "average of its square", axis: "gradient²", log: true,
    lines: [["v", "v", "#56a3d9", 2], ["corrected v", "v̂ = v / (1 − β₂<sup>t</sup>)", "#0b4f8a", 2]] },
  { title: "effective step", axis: "step", log: false, lines: [["step", "step taken", "#2a9d5c", 2]] },
];

function insideRanges() {
  const { own } = adam();
  const place = [chosen.landscape, chosen.setting, chosen.start, own];
  return KINDS.map(({ lines, log }) => [0, 1].map((coordinate) => {
    const values = lines.flatMap(([quantity]) => Array.from(part("adam", ...place, about.adam.indexOf(quantity), coordinate)))
      .filter((value) => Number.isFinite(value) && (!log || value > 0)).map((value) => (log ? Math.log10(value) : value));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.06 * (high - low) || 1;
    return [low - margin, high + margin];
  }));
}

// Ticks at powers of ten where there is room for several.
const decades = ([low, high]) => (high - low > 1.5 ? { dtick: Math.ceil((high - low) / 6) } : { dtick: high - low > 0.6 ? "D2" : undefined, nticks: 5 });

function drawInside() {
  const { own, record } = adam();
  const ranges = insideRanges();
  const place = [chosen.landscape, chosen.setting, chosen.start, own];
  const traces = [];
  const narrow = ONE_COLUMN.matches;
  const layout = {
    font: FONT, margin: { l: 66, r: 20, t: 66, b: 46 }, grid: { ...(narrow ? { rows: 6, columns: 1, ygap: 0.3 } : { rows: 2, columns: 3, ygap: 0.16 }), pattern: "independent", xgap: 0.25 },
    legend: { orientation: "h", x: 0.5, xanchor: "center", y: narrow ? 1.025 : 1.075, yanchor: "bottom" }, annotations: [],
  };
  ["x", "y"].forEach((coordinate, row) => KINDS.forEach(({ title, axis, log, lines }, column) => {
    const number = 1 + (narrow ? 2 * column + row : 3 * row + column);
    const axes = { xaxis: `x${number}`, yaxis: `y${number}` };
    for (const [quantity, name, colour, width] of lines) {
      const values = part("adam", ...place, about.adam.indexOf(quantity), row);
      traces.push({
        type: "scatter", mode: "lines", name, legendgroup: name, showlegend: row === 0, ...axes, x: times(1),
        y: Array.from(values, (value) => (Number.isFinite(value) ? value : null)), line: { color: colour, width },
        hovertemplate: "step %{x}: %{y:.3g}",
      });
    }
    if (axis === "step") {
      traces.push({
        type: "scatter", mode: "lines", name: `± lr = ${exponent(record.rate)}`, legendgroup: "lr", showlegend: row === 0, ...axes, hoverinfo: "skip",
        x: [0, about.steps, null, 0, about.steps], y: [record.rate, record.rate, null, -record.rate, -record.rate],
        line: { color: "#5a6773", width: 1, dash: "dash" },
      });
    }
    const range = axis === "step" ? [Math.min(ranges[column][row][0], -1.1 * record.rate), Math.max(ranges[column][row][1], 1.1 * record.rate)] : ranges[column][row];
    layout[`xaxis${number}`] = { ...GRID, range: [0, about.steps], title: { text: (narrow ? number === 6 : row === 1) ? "step" : "" } };
    layout[`yaxis${number}`] = { ...GRID, range, type: log ? "log" : "linear", exponentformat: "power", ...(log ? decades(range) : { nticks: 6 }), title: { text: `${axis} in ${coordinate}`, standoff: 4 } };
    if (row === 0) {
      layout.annotations.push({ text: title, showarrow: false, xref: `x${number} domain`, yref: `y${number} domain`, x: 0.5, y: 1.02, yanchor: "bottom", font: { size: 14, weight: 600 } });
    }
  }));
  shown.cursorsFrom = traces.length;
  shown.cursorRanges = [];
  for (let number = 1; number <= 6; number++) {
    const { range, type } = layout[`yaxis${number}`];
    shown.cursorRanges.push(range.map((end) => (type === "log" ? 10 ** end : end)));
    traces.push(cursor({ xaxis: `x${number}`, yaxis: `y${number}` }));
  }
  Plotly.react("inside", traces, layout, CONFIG);
}

const range = (from, count) => Array.from({ length: count }, (_, i) => from + i);

const columns = ({ walked, dots = [], heads }) => {
  const all = [...walked, ...dots, heads];
  return Object.fromEntries(Object.keys(heads).map((axis) => [axis, all.map((line) => line[axis])]));
};

function move() {
  const n = shown.records.length;
  Plotly.restyle("landscape-3d", columns(walkedInSpace()), range(3, n + 1));
  Plotly.restyle("contour", columns(walked()), range(1, 2 * n + 1));
  point();
}

// What shows the time in words and in the plots that have time as an axis.
function point() {
  const { records, lines } = shown;
  const n = records.length;
  const t = chosen.step;
  byId("step").value = t;
  byId("now").textContent = `${t} of ${about.steps}`;
  byId("results").innerHTML = records.map((record, i) =>
    `<tr style="--colour: ${record.colour}"><td>${record.name}</td><td>${exponent(record.rate)}</td><td>${exponent(record.gaps[t])}</td>` +
    `<td>${outcome(record, lines[i])}</td></tr>`).join("");
  const gaps = records.map(({ gaps }) => floored(gaps.subarray(t, t + 1))[0]);
  animate("losses", [{ x: [t, t], y: [FLOOR / 10, 1e12] }, { x: gaps.map(() => t), y: gaps }], [n, n + 1]);
  animate("corrections", [{ x: [t, t], y: [0, 1.05] }], [2]);
  animate("inside", shown.cursorRanges.map((ends) => ({ x: [t, t], y: ends })), range(shown.cursorsFrom, 6));
}

const animate = (id, data, traces) => Plotly.animate(id, { data, traces }, STILL).catch(() => {}); // overtaken by the next

// ---- controls

function play(on) {
  playing = on;
  byId("play").textContent = on ? "Pause" : "Play";
  cancelAnimationFrame(nextFrame);
  if (!on) return;
  if (chosen.step >= about.steps) {
    chosen.step = 0;
    move();
  }
  let last = performance.now();
  const frame = (now) => {
    const due = Math.floor(((now - last) / 1000) * STEPS_A_SECOND);
    if (due > 0) {
      last = now;
      chosen.step = Math.min(about.steps, chosen.step + Math.min(due, MOST_STEPS_A_FRAME));
      move();
    }
    if (chosen.step < about.steps) nextFrame = requestAnimationFrame(frame);
    else play(false);
  };
  nextFrame = requestAnimationFrame(frame);
}

function fill(id, labels, value) {
  byId(id).replaceChildren(...labels.map((label, i) => new Option(label, i)));
  chosen[id] = value;
  byId(id).value = value;
}

const starts = () => landscape().starts.map(([x, y]) => minus(`(${x}, ${y})`));

async function begin() {
  await unpack();
  fill("landscape", about.landscapes.map(({ name }) => name), 0);
  fill("setting", about.settings.map((s) => (s === null ? `${about.same} for all` : `${s} × each one's base`)), about.settings.indexOf(1));
  fill("beta1", about.beta1, about.beta1.indexOf(about.opening.beta1));
  fill("beta2", about.beta2, about.beta2.indexOf(about.opening.beta2));
  fill("start", starts(), 0);
  byId("step").max = about.steps;
  for (const id of ["landscape", "setting", "beta1", "beta2", "start"]) {
    byId(id).addEventListener("change", () => {
      chosen[id] = Number(byId(id).value);
      if (id === "landscape") fill("start", starts(), 0);
      draw();
    });
  }
  byId("step").addEventListener("input", () => {
    play(false);
    chosen.step = Number(byId("step").value);
    move();
  });
  byId("play").addEventListener("click", () => play(!playing));
  for (const width of [ONE_COLUMN, PHONE]) {
    width.addEventListener("change", () => { // a phone that is turned
      Plotly.purge("contour"); // else the colours of the old layout stay beside the new ones
      draw();
    });
  }
  chosen.step = about.steps;
  draw();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
  document.body.dataset.ready = "yes";
}

begin().catch((error) => {
  byId("error").style.display = "block";
  byId("error").textContent = `The page could not be drawn: ${error}. It needs a browser of 2023 or later, with WebGL.`;
  throw error;
});
