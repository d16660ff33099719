// Line charts on SVG, without a library: lineChart(element, label, format).draw([{name, points: [[time_ms, value], ...]}]).
// A point of null breaks its line. The pointer, or the arrow keys on the focused chart, reads all lines at one time.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 24;

function make(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function niceSteps(top) {
  // Some four round steps from 0 to at least `top`.
  const rough = (top || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const steps = [];
  for (let i = 0; i * step <= top + step * 0.999; i++) steps.push(i * step);
  return steps;
}

function clock(time) {
  return new Date(time).toLocaleTimeString([], { hour12: false });
}

function lineChart(holder, label, format) {
  const legend = document.createElement("ul"), svg = make("svg", { role: "img", tabindex: "0" });
  legend.className = "legend";
  holder.append(legend, svg);
  let series = [], read = null; // read: the time that the reader looks at, null: now

  function times() {
    return [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
  }

  function valueAt(points, time) {
    let found = null;
    for (const [at, value] of points) if (at <= time) found = value;
    return found;
  }

  function draw(next) {
    if (next) series = next;
    const all = times(), box = svg.getBoundingClientRect(), width = Math.max(box.width, 100), height = Math.max(box.height, 80);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const values = series.flatMap((s) => s.points.map((p) => p[1])).filter((v) => v !== null);
    const low = Math.min(0, ...values), steps = niceSteps(Math.max(...values, 1e-9) || 1), top = steps[steps.length - 1];
    if (!values.length) {
      svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "Nothing yet"));
      svg._time = () => null;
      return tell(0);
    }
    const from = all[0] ?? 0, to = all[all.length - 1] ?? 1;
    const x = (t) => LEFT + ((t - from) / Math.max(to - from, 1)) * (width - LEFT - RIGHT);
    const y = (v) => height - BOTTOM - ((v - low) / Math.max(top - low, 1e-12)) * (height - TOP - BOTTOM);
    for (const step of low < 0 ? [low, ...steps] : steps) {
      svg.append(make("line", { x1: LEFT, x2: width - RIGHT, y1: y(step), y2: y(step), class: "gridline" }));
      svg.append(make("text", { x: LEFT - 7, y: y(step) + 4, "text-anchor": "end" }, format(step)));
    }
    if (all.length) {
      svg.append(make("text", { x: LEFT, y: height - 6 }, clock(from)));
      svg.append(make("text", { x: width - RIGHT, y: height - 6, "text-anchor": "end" }, clock(to)));
    }
    series.forEach((s) => {
      let path = "", pen = "M";
      for (const [at, value] of s.points) {
        if (value === null) { pen = "M"; continue; }
        path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      }
      svg.append(make("path", { d: path, class: `s${s.style}` }));
    });
    if (read !== null && all.length) {
      read = all.reduce((best, t) => (Math.abs(t - read) < Math.abs(best - read) ? t : best));
      svg.append(make("line", { x1: x(read), x2: x(read), y1: TOP, y2: height - BOTTOM, class: "cross" }));
    }
    tell(read ?? to);
    svg._time = (px) => from + ((px - LEFT) / (width - LEFT - RIGHT)) * (to - from);
  }

  function tell(time) {
    legend.replaceChildren();
    const said = [];
    for (const s of series) {
      const value = valueAt(s.points, time), item = document.createElement("li"), figure = document.createElement("b");
      const mark = make("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" });
      mark.append(make("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: `s${s.style}` }));
      figure.textContent = value === null ? "–" : format(value);
      item.append(mark, `${s.name} `, figure);
      legend.append(item);
      said.push(`${s.name} ${figure.textContent}`);
    }
    if (read !== null) {
      const at = document.createElement("li");
      at.textContent = `at ${clock(time)}`;
      legend.append(at);
    }
    svg.setAttribute("aria-label", `${label}: ${said.join(", ") || "nothing yet"}. Arrow keys read earlier times.`);
  }

  svg.addEventListener("pointermove", (e) => { read = svg._time(e.clientX - svg.getBoundingClientRect().left); draw(); });
  svg.addEventListener("pointerleave", () => { read = null; draw(); });
  svg.addEventListener("blur", () => { read = null; draw(); });
  svg.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key], all = times();
    if (!step || !all.length) return;
    e.preventDefault();
    const at = read === null ? all.length - 1 : all.indexOf(read);
    read = all[Math.min(all.length - 1, Math.max(0, at + step))];
    draw();
  });
  new ResizeObserver(() => draw()).observe(svg);
  return { draw };
}
