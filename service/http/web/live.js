// The live part: asks /metrics each second, and draws what changed.

import { ask } from "./ask.js";
import { between, buckets, parse, quantile, total } from "./metrics.js";

const PHASES = ["decode", "queue", "inference", "encode"];
const COLORS = { decode: "#8a63d2", queue: "#d97706", inference: "#0b8a6b", encode: "#c2417c", one: "#0b6bcb", two: "#d97706" };
const KEPT = 180; // seconds of history
const WINDOW = 10; // seconds that a percentile and a rate look back
const GAP = 5; // seconds without a look that break a line: of them nothing is drawn

const looks = []; // [seconds since 1970, families]
let shown = looks; // while paused, those there were
const element = (id) => document.getElementById(id);
const number = (value, digits = 0) => (value === null || !Number.isFinite(value) ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
let charts = null;

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function chart(id, lines, unit) {
  const place = element(id);
  const axis = { stroke: () => style("--faint"), grid: { stroke: () => style("--line") }, ticks: { stroke: () => style("--line") } };
  const value = (_, v) => (v === null || v === undefined ? "–" : `${number(v, v < 10 ? 2 : 0)}${unit}`);
  const made = new uPlot(
    {
      width: place.clientWidth, height: 220, padding: [8, 8, 0, 0], cursor: { y: false },
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, (high || 1) * 1.1] } },
      axes: [axis, { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => tick.toLocaleString("en", { maximumFractionDigits: 3 })) }],
      series: [{ label: "time" }, ...lines.map(([label, color]) => ({ label, stroke: color, width: 2, value, points: { size: 4 } }))],
    },
    [[], ...lines.map(() => [])],
    place,
  );
  made.ctx.canvas.setAttribute("role", "img");
  made.ctx.canvas.setAttribute("aria-label", `Chart: ${place.parentElement.querySelector("figcaption").textContent}`);
  return made;
}

function makeCharts() {
  charts = {
    latency: chart("chart-latency", PHASES.map((phase) => [phase, COLORS[phase]]), " ms"),
    rate: chart("chart-rate", [["images/s", COLORS.one]], ""),
    batch: chart("chart-batch", [["images a batch", COLORS.one]], ""),
    queue: chart("chart-queue", [["waiting images", COLORS.two], ["requests in hand", COLORS.one]], ""),
  };
  const resize = () => Object.values(charts).forEach((each) => each.setSize({ width: each.root.parentElement.clientWidth, height: 220 }));
  new ResizeObserver(resize).observe(element("chart-latency"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(charts).forEach((each) => each.redraw(false, true)));
}

/** Takes one look at /metrics; false if this port has none (--admin-port). */
async function look() {
  const response = await ask("metrics", { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (response.status === 404) return false;
  if ([401, 403].includes(response.status)) return true; // the page says so, and works without the figures
  if (!response.ok) throw new Error(`/metrics: ${response.status}`);
  const now = Date.now() / 1000;
  looks.push([now, parse(await response.text())]);
  while (looks[0][0] < now - KEPT - WINDOW) looks.shift();
  return true;
}

function draw() {
  const model = element("live-model").value;
  const wanted = model ? { model } : {};
  const q = Number(element("percentile").value);
  const rows = []; // of the charts: time, images a second, images a batch, waiting, in hand, and each phase's latency
  shown.forEach(([time, now], at) => {
    const [since, before] = shown[Math.max(0, at - 1)];
    const gap = time - since > GAP;
    if (gap) rows.push([(since + time) / 2, ...Array(4 + PHASES.length).fill(null)]);
    const grew = (name) => Math.max(0, total(now, name, wanted) - total(before, name, wanted));
    const batches = grew("convoy_batch_items_count");
    rows.push([
      time,
      time > since && !gap ? grew("convoy_items_total") / (time - since) : null,
      batches && !gap ? grew("convoy_batch_items_sum") / batches : null,
      total(now, "convoy_queue_items", wanted),
      total(now, "convoy_inflight_requests", wanted),
      ...PHASES.map((phase) => quantile(recent(at, phase, wanted), q)).map((value) => (value === null ? null : 1000 * value)),
    ]);
  });
  const [times, rate, batch, waiting, inflight, ...latency] = rows[0].map((_, column) => rows.map((row) => row[column]));
  charts.latency.setData([times, ...latency]);
  charts.rate.setData([times, rate]);
  charts.batch.setData([times, batch]);
  charts.queue.setData([times, waiting, inflight]);
  figures(wanted);
  table(wanted);
}

/** The first look of the last WINDOW seconds before one; after a gap that is the look itself. */
function opening(at) {
  return shown.find(([time]) => time >= shown[at][0] - WINDOW);
}

function recent(at, phase, wanted) {
  const of = { ...wanted, phase };
  return between(buckets(shown[at][1], "convoy_phase_seconds", of), buckets(opening(at)[1], "convoy_phase_seconds", of));
}

function figures(wanted) {
  const [time, now] = shown.at(-1);
  const [since, before] = opening(shown.length - 1);
  const rate = (name, of = wanted) => (time > since ? Math.max(0, total(now, name, of) - total(before, name, of)) / (time - since) : null);
  const batches = rate("convoy_batch_items_count");
  const facts = [
    ["images/s", number(rate("convoy_items_total"), 1)],
    ["requests/s", number(rate("convoy_phase_seconds_count", { ...wanted, phase: "inference" }), 1)],
    ["images a batch", batches ? number(rate("convoy_batch_items_sum") / batches, 1) : "–"],
    ["waiting", number(total(now, "convoy_queue_items", wanted))],
    ["refused/s", number(rate("convoy_rejections_total"), 1)],
    ["CPU cores", number(rate("process_cpu_seconds_total", {}), 2)],
    ["memory", `${number(total(now, "process_resident_memory_bytes") / 2 ** 20)} MiB`],
  ];
  const list = element("figures");
  if (list.children.length !== facts.length) {
    list.replaceChildren(...facts.map(([name]) => {
      const box = document.createElement("div");
      const term = document.createElement("dt");
      term.textContent = name;
      box.append(term, document.createElement("dd"));
      return box;
    }));
  }
  facts.forEach(([, value], index) => { list.children[index].lastChild.textContent = value; });
}

function table(wanted) {
  const rows = PHASES.map((phase) => {
    const histogram = recent(shown.length - 1, phase, wanted);
    const cells = [0.5, 0.9, 0.99].map((q) => quantile(histogram, q)).map((value) => (value === null ? "–" : number(1000 * value, 2)));
    return [phase, ...cells, number(histogram.at(-1)?.[1] ?? 0)];
  });
  element("phase-table").tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((text) => { row.insertCell().textContent = text; });
    return row;
  }));
}

/** Starts looking each second; `onState(ok)` hears whether the server answers. */
export function start(onState) {
  makeCharts();
  const pause = element("pause");
  pause.addEventListener("click", () => {
    const paused = shown === looks;
    shown = paused ? [...looks] : looks;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
  for (const id of ["live-model", "percentile"]) element(id).addEventListener("change", () => shown.length && draw());
  let figures = true; // whether this port has any
  const tick = async () => {
    if (!document.hidden) {
      try {
        if (figures && !(await look())) {
          document.querySelectorAll('#live, a[href="#live"], a[href="metrics"]').forEach((each) => { each.style.display = "none"; });
          figures = false;
        }
        if (shown === looks && looks.length) draw();
        onState(true);
      } catch {
        onState(false);
      }
    }
    setTimeout(tick, 1000);
  };
  tick();
}
