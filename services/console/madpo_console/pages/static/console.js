// What the pages do in the browser: times in the reader's own words, and curves that grow.
"use strict";

const FIRST = ["loss", "eval/loss", "rewards/accuracy", "eval/rewards/accuracy", "rewards/implicit_margin",
  "reward_margin/mean", "weight/mean", "kl", "margin_wait_s", "tokens_per_s", "peak_memory_gib", "grad_norm", "learning_rate"];

function spanText(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const [size, name] = units.find(([each]) => seconds >= each) || units[3];
  return `${Math.max(0, Math.floor(seconds / size))} ${name}`;
}

function tellTimes(root) {
  for (const each of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(each.dateTime);
    each.textContent = `${spanText((Date.now() - moment) / 1000)} ago`;
    each.title = moment.toLocaleString();
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function figureText(value) {
  return value === null || value === undefined ? "" : Number(value.toPrecision(4)).toString();
}

// What an axis spans: what is shown and a little more, also where all values are alike.
function spread(chart, least, most) {
  if (least === null) return [0, 1];
  const margin = (most - least || Math.abs(most) || 1) * 0.06;
  return [least - margin, most + margin];
}

// One figure of one or several jobs over their steps.
class Plot {
  constructor(place, name, jobs) {
    this.figure = document.createElement("figure");
    this.figure.className = "plot";
    const caption = document.createElement("figcaption");
    caption.textContent = name;
    this.value = document.createElement("span");
    caption.append(this.value);
    this.figure.append(caption);
    place.append(this.figure);
    this.jobs = jobs;
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    this.chart = new uPlot({
      width: this.figure.clientWidth, height: 190, legend: { show: false }, scales: { x: { time: false }, y: { range: spread } },
      axes: [{ ...axis, size: 28 }, { ...axis, size: 60, values: (_, ticks) => ticks.map(figureText) }],
      cursor: { y: false },
      series: [{}, ...jobs.map((_, index) => ({ stroke: colour(`--s${index}`), width: 1.5, spanGaps: true, points: { show: false } }))],
      hooks: { setCursor: [(chart) => this.tell(chart.cursor.idx)] },
    }, [[], ...jobs.map(() => [])], this.figure);
    new ResizeObserver(() => this.chart.setSize({ width: this.figure.clientWidth, height: 190 })).observe(this.figure);
  }

  show(data) {
    this.chart.setData(data);
    this.tell(null);
  }

  tell(index) {
    const [steps, ...series] = this.chart.data;
    const at = index ?? steps.length - 1;
    this.value.replaceChildren(at < 0 ? "" : `step ${steps[at]}: `, ...series.map((each, number) => {
      const figure = document.createElement("b");
      figure.className = `ink-${number}`;
      figure.textContent = ` ${figureText(at < 0 ? null : each[at])}`;
      return figure;
    }));
  }
}

// The curves of some jobs, as /api/jobs/ID/curves gives them.
class Curves {
  constructor(place, jobs) {
    this.place = place;
    this.jobs = jobs;
    this.rows = jobs.map(() => new Map());
    this.plots = new Map();
  }

  async load() {
    await Promise.all(this.jobs.map(async (job, index) => {
      const answer = await fetch(`/api/jobs/${job}/curves`);
      if (!answer.ok) return;
      const { steps, series } = await answer.json();
      steps.forEach((step, position) => {
        const row = {};
        for (const [name, values] of Object.entries(series)) row[name] = values[position];
        this.rows[index].set(step, row);
      });
    }));
    this.draw();
  }

  add(index, step, metrics) {
    this.rows[index].set(step, metrics);
    if (this.waiting) return;
    this.waiting = setTimeout(() => { this.waiting = null; this.draw(); }, 400);
  }

  draw() {
    const steps = [...new Set(this.rows.flatMap((rows) => [...rows.keys()]))].sort((a, b) => a - b);
    const found = new Set(this.rows.flatMap((rows) => [...rows.values()].flatMap(Object.keys)));
    found.delete("epoch");
    found.delete("step");
    const rank = (name) => { const at = FIRST.indexOf(name); return at < 0 ? FIRST.length : at; };
    const names = [...found].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
    if (names.length) this.place.querySelector(".empty")?.remove();
    for (const name of names) {
      if (!this.plots.has(name)) this.plots.set(name, new Plot(this.place, name, this.jobs));
      const series = this.rows.map((rows) => steps.map((step) => rows.get(step)?.[name] ?? null));
      this.plots.get(name).show([steps, ...series]);
    }
  }
}

function follow(curves, job) {
  const source = new EventSource(`/api/jobs/${job}/events`);
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    if (event.type === "progress" && event.total_steps && Object.keys(event.metrics).length) curves.add(0, event.step, event.metrics);
  };
  source.addEventListener("over", () => { source.close(); curves.load(); });
}

document.addEventListener("DOMContentLoaded", () => {
  tellTimes(document);
  setInterval(() => tellTimes(document), 30000);
  document.body.addEventListener("htmx:after:swap", () => tellTimes(document));
  const place = document.getElementById("plots");
  if (!place) return;
  const jobs = place.dataset.jobs ? place.dataset.jobs.split(" ") : [place.dataset.job];
  const curves = new Curves(place, jobs);
  curves.load().then(() => { if ("live" in place.dataset) follow(curves, jobs[0]); });
});
