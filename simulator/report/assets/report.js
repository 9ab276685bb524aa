// Draws the charts (uPlot gives axes, scales, selection; the bars are ours) and wires the
// few controls. Data: see _data in html.py. Nothing here inserts HTML: only text and canvas.
(() => {
  "use strict";
  const $ = (selector) => document.querySelector(selector);
  const root = document.documentElement;
  const D = JSON.parse($("#run-data").textContent);
  const dpr = () => window.devicePixelRatio || 1;

  // ---- theme and copy: these work even where the charts do not

  const redraws = [];
  const themes = ["auto", "light", "dark"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const remember = (value) => { try { return value === undefined ? localStorage.getItem("ray-sim-theme") : localStorage.setItem("ray-sim-theme", value); } catch { return null; } };
  function setTheme(name) {
    if (name === "auto") root.removeAttribute("data-theme"); else root.setAttribute("data-theme", name);
    $("#theme").textContent = "Theme: " + name;
    redraws.forEach((redraw) => redraw());
  }
  let theme = themes.includes(remember()) ? remember() : "auto";
  $("#theme").hidden = false;
  $("#theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    remember(theme);
    setTheme(theme);
  });
  setTheme(theme);
  dark.addEventListener("change", () => setTheme(theme));
  window.addEventListener("beforeprint", () => setTheme("light"));
  window.addEventListener("afterprint", () => setTheme(theme));

  const copy = $("#copy");
  if (copy) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const text = $("#command").textContent;
      let done = true;
      try { await navigator.clipboard.writeText(text); } catch {
        const range = document.createRange();
        range.selectNodeContents($("#command"));
        const selection = window.getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        done = document.execCommand("copy");
      }
      copy.textContent = done ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
  }
  if (!D.lanes.length || !$("#lanes")) return;

  // ---- data

  function column(text, Type) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  }
  const from = column(D.from, Uint32Array), length = column(D.length, Uint32Array);
  const outcome = column(D.outcome, Uint8Array), attempt = column(D.attempt, Uint8Array);
  let keys = null;
  const key = (i) => (keys ||= D.keys.split("\n"))[i];
  const COMPLETED = 0, AGAIN = 1, CUT = 2, FAILED = 3;
  const lanes = D.lanes.map((lane) => ({ ...lane, tasks: [], calls: [] }));
  for (const [lane, call, row, first, last] of D.segments) {
    (call ? lanes[lane].calls : lanes[lane].tasks)[row] = { first, last };
  }
  const anyCalls = lanes.some((lane) => lane.calls.length);

  // First execution of a segment that ends after t (ms since D.start); none of it overlap.
  function firstAfter(segment, t) {
    let low = segment.first, high = segment.last;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (from[middle] + length[middle] < t) low = middle + 1; else high = middle;
    }
    return low;
  }

  // ---- looks

  let colour = {}, stripes = {};
  function readColours() {
    const style = getComputedStyle(root);
    colour = {};
    for (const name of ["text", "quiet", "line", "card", "grid", "completed", "again", "cut", "failed", "open", "call", "fault", "curve", "curve-fill", "before", "goal", "stripe", "label", "state-alive", "state-unnoticed", "state-dead", "state-gone", "state-starting", "state-paused"]) {
      colour[name] = style.getPropertyValue("--" + name).trim();
    }
    stripes = { dead: hatch(colour.stripe, 6, 1), again: hatch(colour.card, 5, 2, true) };
  }
  // A pattern says what colour alone may not.
  function hatch(ink, size, width, falling) {
    const scale = dpr(), side = Math.round(size * scale), tile = document.createElement("canvas");
    tile.width = tile.height = side;
    const c = tile.getContext("2d");
    c.strokeStyle = ink;
    c.lineWidth = width * scale;
    c.beginPath();
    for (const shift of [-side, 0, side]) {
      if (falling) { c.moveTo(shift, 0); c.lineTo(shift + side, side); } else { c.moveTo(shift, side); c.lineTo(shift + side, 0); }
    }
    c.stroke();
    return c.createPattern(tile, "repeat");
  }
  const outcomeColour = () => [colour.completed, colour.again, colour.cut, colour.failed, colour.open];
  const font = (px, weight = "") => `${weight} ${px * dpr()}px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif`;
  const seconds = (v, digits = 2) => v.toFixed(digits).replace("-", "−") + " s";
  const stateWords = { alive: "alive", unnoticed: "gone, Ray has not noticed", dead: "dead", gone: "gone, not needed any more", starting: "starting", paused: "paused" };

  // ---- geometry

  const area = $("#chart-area");
  const narrow = () => area.clientWidth < 560;
  const nameWidth = () => Math.min(narrow() ? 76 : 120, 16 + 7 * Math.max(6, ...lanes.map((l) => l.name.length)));
  // Rare overlaps share a thin strip below the usual rows, instead of making all bars thinner.
  const strips = (lane) => (lane.tasks.length > lane.rows ? 1 : 0);
  const most = Math.max(...lanes.map((lane) => lane.rows));
  const laneHeight = Math.max(lanes.length > 24 ? 20 : 36, Math.min(most * 9, 120)) + (anyCalls ? 10 : 0);
  const axisHeight = 26, headRoom = 18;

  // Where a lane stands on the canvas, in device pixels.
  function laneBox(u, i) {
    const height = u.bbox.height / lanes.length, gap = Math.min(3 * dpr(), height * 0.1);
    const top = u.bbox.top + i * height;
    const strip = 4 * dpr();
    const calls = lanes[i].calls.length ? 8 * dpr() : 0;
    const rare = strips(lanes[i]) * 5 * dpr(), bottom = top + height - gap;
    return { top: top + gap, bottom, tasksTop: top + gap + strip, tasksBottom: bottom - calls - rare - dpr(), callsTop: bottom - calls };
  }

  function rowBox(lane, box, row) {
    const height = (box.tasksBottom - box.tasksTop) / lane.rows, gap = height > 5 * dpr() ? dpr() : 0;
    if (row >= lane.rows) return [box.tasksBottom + dpr(), 4 * dpr()];
    return [box.tasksTop + row * height, Math.max(height - gap, 1)];
  }

  function drawLanes(u) {
    const c = u.ctx, { left, width, top, height } = u.bbox, scale = dpr();
    const { min, max } = u.scales.x, perSecond = width / (max - min);
    const X = (t) => left + (t - min) * perSecond;
    const clampX = (x) => Math.max(left, Math.min(left + width, x));
    const viewFrom = Math.max(0, (min - D.start) * 1000), viewTo = (max - D.start) * 1000;
    const origin = left + (D.start - min) * perSecond, perMs = perSecond / 1000;
    const colours = outcomeColour();
    c.save();
    c.beginPath();
    c.rect(left, top - headRoom * scale, width, height + headRoom * scale);
    c.clip();

    lanes.forEach((lane, i) => {
      const box = laneBox(u, i);
      for (const [start, end, state] of lane.spans) {
        if (state === "alive" || end < min || start > max) continue;
        const a = clampX(X(start)), b = clampX(X(end));
        c.fillStyle = colour["state-" + state] || colour.grid;
        c.fillRect(a, box.top, b - a, box.bottom - box.top);
        if (state === "dead") { c.fillStyle = stripes.dead; c.fillRect(a, box.top, b - a, box.bottom - box.top); }
      }
      c.fillStyle = colour.grid;
      c.fillRect(left, Math.round(box.bottom), width, scale);
    });

    const special = [];
    let labels = 0;
    const named = [];
    const drawRow = (segment, rowTop, rowHeight, plain) => {
      const y = Math.round(rowTop), h = Math.max(1, Math.round(rowTop + rowHeight) - y), thin = 4 * scale;
      // Whole pixels, one rectangle for neighbours too narrow to tell apart: a full view of a
      // long run is then as cheap to paint as a short one.
      let begin = -1, end = -1;
      const flush = () => { if (end > begin) c.fillRect(begin, y, end - begin, h); begin = end = -1; };
      c.fillStyle = plain;
      for (let i = firstAfter(segment, viewFrom); i < segment.last; i++) {
        if (from[i] > viewTo) break;
        const a = Math.max(left, origin + from[i] * perMs);
        const b = Math.min(left + width, origin + (from[i] + length[i]) * perMs);
        if (outcome[i] !== COMPLETED) { special.push([i, a, b, y, h]); continue; }
        const x = Math.round(a), w = Math.max(1, Math.round(b) - x);
        if (w > thin) {
          flush();
          c.fillRect(x, y, w - scale, h);
          if (w > 46 * scale && h > 12 * scale && labels < 300) { labels++; named.push([i, a, b, y, h]); }
        } else if (x <= end + 1) {
          end = Math.max(end, x + w);
        } else {
          flush();
          begin = x;
          end = x + w;
        }
      }
      flush();
    };
    lanes.forEach((lane, i) => {
      const box = laneBox(u, i);
      lane.tasks.forEach((segment, row) => {
        const [y, h] = rowBox(lane, box, row);
        drawRow(segment, y, h, colours[COMPLETED]);
      });
      const callHeight = (box.bottom - box.callsTop) / Math.max(1, lane.calls.length);
      lane.calls.forEach((segment, row) => drawRow(segment, box.callsTop + row * callHeight + scale, Math.max(callHeight - 2 * scale, 1), colour.call));
    });
    // The few that matter are painted last, so that nothing hides them, and never too thin to see.
    for (const [i, a, b, y, h] of special) {
      const w = Math.max(b - a, 2 * scale), kind = outcome[i];
      c.fillStyle = colours[kind];
      if (kind === CUT) {
        c.globalAlpha = 0.45; c.fillRect(a, y, w, h); c.globalAlpha = 1;
        c.fillRect(a + w - Math.min(w, 3 * scale), y, Math.min(w, 3 * scale), h);
      } else if (kind === AGAIN) {
        c.fillRect(a, y, w, h);
        if (w > 8 * scale && h > 5 * scale) { c.fillStyle = stripes.again; c.fillRect(a + scale, y + scale, w - 2 * scale, h - 2 * scale); }
      } else if (kind === FAILED) {
        c.fillRect(a, y, w, h);
      } else {
        c.strokeStyle = colours[kind]; c.lineWidth = scale; c.setLineDash([3 * scale, 2 * scale]);
        c.strokeRect(a + scale / 2, y + scale / 2, Math.max(w - scale, scale), Math.max(h - scale, scale));
        c.setLineDash([]);
      }
      if (w > 46 * scale && h > 12 * scale && kind !== AGAIN) named.push([i, a, b, y, h]);
    }
    c.font = font(11);
    c.textBaseline = "middle";
    c.textAlign = "left";
    c.fillStyle = colour.label;
    for (const [i, a, b, y, h] of named) {
      const text = key(i);
      if (c.measureText(text).width < b - a - 8 * scale) c.fillText(text, a + 4 * scale, y + h / 2);
    }
    lanes.forEach((lane, i) => {
      const box = laneBox(u, i);
      c.font = font(11);
      c.fillStyle = colour.text;
      for (const [start, end, state] of lane.spans) {
        if (state === "alive" || end < min || start > max) continue;
        const a = clampX(X(start)), b = clampX(X(end));
        const text = [stateWords[state], state === "unnoticed" ? "unnoticed" : state].find((t) => t && c.measureText(t).width < b - a - 10 * scale);
        if (text) c.fillText(text, a + 5 * scale, (box.top + box.bottom) / 2);
      }
    });
    for (const fault of D.faults) {
      const targets = fault.lane < 0 ? lanes.map((_, i) => i) : [fault.lane];
      for (const i of targets) {
        const box = laneBox(u, i), a = clampX(X(fault.start)), b = clampX(X(fault.end ?? D.end));
        if (X(fault.start) > left + width || X(fault.end ?? D.end) < left) continue;
        c.fillStyle = colour.fault;
        c.fillRect(a, box.top, Math.max(b - a, 2 * scale), 3 * scale);
      }
    }
    // What a program said of itself: a tick at the foot of its node's lane, named where there is room.
    c.fillStyle = colour.text;
    c.textBaseline = "alphabetic";
    c.font = font(10);
    const marks = D.marks.filter(([at]) => at >= min && at <= max);
    marks.forEach(([at, lane, name], i) => {
      const box = laneBox(u, lane), x = X(at), next = marks.slice(i + 1).find((m) => m[1] === lane);
      c.fillRect(Math.round(x), box.bottom - 7 * scale, Math.max(1, scale), 7 * scale);
      const room = (next ? X(next[0]) : left + width) - x;
      if (c.measureText(name).width < room - 6 * scale) c.fillText(name, x + 3 * scale, box.bottom - 2 * scale);
    });
    drawFaultLines(u, X, true);
    drawMark(u, X);
    c.restore();
  }

  function drawFaultLines(u, X, named) {
    const c = u.ctx, { left, width, top, height } = u.bbox, scale = dpr();
    let free = -Infinity;
    c.font = font(12, "600");
    c.textBaseline = "alphabetic";
    c.fillStyle = c.strokeStyle = colour.fault;
    c.setLineDash([]);
    for (const fault of D.faults) {
      const x = X(fault.at);
      if (x < left || x > left + width) continue;
      c.lineWidth = 1.5 * scale;
      c.beginPath();
      c.moveTo(x, top - (named ? 3 : 0) * scale);
      c.lineTo(x, top + height);
      c.stroke();
      if (!named) continue;
      const size = c.measureText(fault.text).width, right = x + size + 8 * scale > left + width;
      const start = right ? x - size - 6 * scale : x + 6 * scale;
      if (start < free) continue;
      c.textAlign = "left";
      c.fillText(fault.text, start, top - 6 * scale);
      c.beginPath();
      c.moveTo(x - 4 * scale, top - 12 * scale); c.lineTo(x + 4 * scale, top - 12 * scale); c.lineTo(x, top - 4 * scale);
      c.fill();
      free = start + size + 12 * scale;
    }
  }

  // The recovery step that the pointer or the keyboard is on, shown in both charts.
  let mark = null;
  function drawMark(u, X) {
    if (!mark) return;
    const c = u.ctx, { top, height, left, width } = u.bbox, scale = dpr(), x = X(mark.at);
    if (x < left || x > left + width) return;
    c.strokeStyle = colour.text;
    c.lineWidth = scale;
    c.setLineDash([4 * scale, 3 * scale]);
    c.beginPath(); c.moveTo(x, top); c.lineTo(x, top + height); c.stroke();
    c.setLineDash([]);
  }

  function drawThroughputFaults(u) {
    const c = u.ctx, { left, width, top, height } = u.bbox;
    const { min, max } = u.scales.x, X = (t) => left + ((t - min) * width) / (max - min);
    c.save();
    c.beginPath(); c.rect(left, top, width, height); c.clip();
    c.globalAlpha = 0.5;
    c.fillStyle = colour["state-unnoticed"];
    for (const fault of D.faults) {
      const a = Math.max(left, X(fault.start)), b = Math.min(left + width, X(fault.end ?? D.end));
      if (b > a) c.fillRect(a, top, b - a, height);
    }
    c.restore();
  }
  function drawThroughputLines(u) {
    const { left, width, top, height } = u.bbox, { min, max } = u.scales.x;
    u.ctx.save();
    u.ctx.beginPath(); u.ctx.rect(left, top, width, height); u.ctx.clip();
    const X = (t) => left + ((t - min) * width) / (max - min);
    drawFaultLines(u, X, false);
    drawMark(u, X);
    u.ctx.restore();
  }

  // ---- charts

  const charts = [];
  const whole = [D.start, D.end];
  function limit(min, max) {
    const full = whole[1] - whole[0], span = Math.max(max - min, 0.01);
    if (span >= full) return whole;
    let start = (min + max) / 2 - span / 2;
    start = Math.min(Math.max(start, whole[0]), whole[1] - span);
    return [start, start + span];
  }
  function view(min, max) {
    const [a, b] = limit(min, max);
    for (const chart of charts) chart.setScale("x", { min: a, max: b });
  }
  const current = () => { const { min, max } = charts[0].scales.x; return [min, max]; };
  function zoom(factor, at) {
    const [min, max] = current(), centre = at ?? (min + max) / 2;
    view(centre - (centre - min) * factor, centre + (max - centre) * factor);
  }
  const move = (share) => { const [min, max] = current(), by = (max - min) * share; view(min + by, max + by); };
  function aroundFault() {
    const first = D.faults[0], last = D.faults[D.faults.length - 1];
    const end = last.end ?? Math.min(last.start + 30, D.end), pad = Math.max(1, (end - first.at) * 0.25);
    view(first.at - pad, end + pad);
  }

  const steps = [];
  for (let e = -3; e < 6; e++) for (const f of [1, 2, 5]) steps.push(Number(`${f}e${e}`));
  const xAxis = () => ({
    stroke: () => colour.quiet, font: "12px system-ui, sans-serif", incrs: steps, size: axisHeight, gap: 3,
    grid: { stroke: () => colour.grid, width: 1 }, ticks: { show: false },
    values: (u, splits) => { const step = splits.length > 1 ? splits[1] - splits[0] : 1; const digits = step >= 1 ? 0 : Math.min(4, Math.ceil(-Math.log10(step) - 1e-9)); return splits.map((v) => v.toFixed(digits).replace("-", "−") + (v === splits[splits.length - 1] ? " s" : "")); },
  });
  const cursor = (extra) => ({
    drag: { x: true, y: false, setScale: false, dist: 4 },
    sync: { key: "run", scales: ["x", null] },
    points: { show: false },
    bind: { dblclick: () => () => { view(...whole); return null; }, mousedown: (u, target, handler) => (event) => { if (event.shiftKey || event.button === 1) { beginMove(u, event.clientX); event.preventDefault(); return null; } return event.button === 0 ? handler(event) : null; } },
    ...extra,
  });
  const selected = (u) => {
    if (u.select.width > 3) view(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  };

  function make() {
    readColours();
    const width = area.clientWidth, side = nameWidth();
    charts.push(new uPlot({
      width, height: lanes.length * laneHeight + axisHeight + headRoom, padding: [headRoom, 14, 0, 0],
      scales: { x: { time: false, range: (u, min, max) => [min, max] }, y: { range: [0, lanes.length], dir: -1 } },
      axes: [xAxis(), {
        stroke: () => colour.text, font: `${narrow() ? 12 : 13}px system-ui, sans-serif`, size: side, gap: 6, grid: { show: false }, ticks: { show: false },
        splits: () => lanes.map((_, i) => i + 0.5), values: () => lanes.map((lane) => lane.name),
      }],
      series: [{}, { show: true, paths: () => null, points: { show: false } }],
      legend: { show: false },
      cursor: cursor({ y: false }),
      hooks: { draw: [drawLanes], setCursor: [lanesTip], setSelect: [selected] },
    }, [whole, [null, null]], $("#lanes")));

    const t = D.throughput, n = t.values.length, xs = new Float64Array(n + 1);
    for (let i = 0; i <= n; i++) xs[i] = t.start + i * t.step;
    const held = (values) => [...values, values[n - 1] ?? null];
    const stepped = uPlot.paths.stepped({ align: 1 });
    // The mean over the last window: where it crosses a 95 % mark, throughput counted as back.
    const wide = Math.max(1, Math.round((t.window ?? t.step) / t.step)), mean = new Float64Array(n + 1);
    let sum = 0;
    for (let i = 0; i < n; i++) {
      sum += t.values[i] - (i >= wide ? t.values[i - wide] : 0);
      mean[i + 1] = Math.max(0, sum / wide);
    }
    const top = Math.max(1, t.before ?? 0, ...t.values) * 1.12;
    charts.push(new uPlot({
      width, height: 190, padding: [8, 14, 0, 0],
      scales: { x: { time: false, range: (u, min, max) => [min, max] }, y: { range: [0, top] } },
      axes: [xAxis(), { stroke: () => colour.quiet, font: "12px system-ui, sans-serif", size: side, gap: 6, space: 34, grid: { stroke: () => colour.grid, width: 1 }, ticks: { show: false } }],
      series: [
        {},
        { label: "every moment", width: 0, fill: () => colour["curve-fill"], paths: stepped, points: { show: false } },
        { label: "mean", stroke: () => colour.curve, width: 2, points: { show: false } },
        { label: "before", stroke: () => colour.before, width: 1.5, dash: [2, 3], points: { show: false } },
        { label: "goal", stroke: () => colour.goal, width: 1.5, dash: [7, 4], paths: stepped, points: { show: false } },
      ],
      legend: { show: false },
      cursor: cursor({ y: false }),
      hooks: { drawAxes: [drawThroughputFaults], draw: [drawThroughputLines], setCursor: [throughputTip], setSelect: [selected] },
    }, [xs, held(t.values), mean, held(t.values.map(() => t.before)), held(t.goal)], $("#throughput")));
    if (D.capacity && $("#capacity")) {
      const c = D.capacity, at = [...c.at, D.end], last = (values) => [...values, values[values.length - 1]];
      charts.push(new uPlot({
        width, height: 170, padding: [8, 14, 0, 0],
        scales: { x: { time: false, range: (u, min, max) => [min, max] }, y: { range: [0, Math.max(1, ...c.wanted, ...c.offered) * 1.12] } },
        axes: [xAxis(), { stroke: () => colour.quiet, font: "12px system-ui, sans-serif", size: side, gap: 6, space: 34, grid: { stroke: () => colour.grid, width: 1 }, ticks: { show: false } }],
        series: [
          {},
          { label: "offered", stroke: () => colour.curve, width: 2, fill: () => colour["curve-fill"], paths: stepped, points: { show: false } },
          { label: "wanted", stroke: () => colour.fault, width: 2, paths: stepped, points: { show: false } },
        ],
        legend: { show: false },
        cursor: cursor({ y: false }),
        hooks: { draw: [drawThroughputLines], setCursor: [capacityTip], setSelect: [selected] },
      }, [at, last(c.offered), last(c.wanted)], $("#capacity")));
    }
    for (const chart of charts) attach(chart);
    view(...whole);
    redraws.push(() => { readColours(); charts.forEach((chart) => chart.redraw(false, true)); });
  }

  // ---- pointing

  const tip = $("#tip");
  let pointed = null;
  function showTip(u, text) {
    if (!text) { tip.hidden = true; return; }
    tip.textContent = text;
    tip.hidden = false;
    const over = u.over.getBoundingClientRect(), box = area.getBoundingClientRect();
    const x = over.left - box.left + u.cursor.left, y = over.top - box.top + u.cursor.top;
    const left = x + 14 + tip.offsetWidth > area.clientWidth ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.transform = `translate(${Math.max(0, left)}px, ${y + 14}px)`;
  }
  function lanesTip(u) {
    if (pointed !== u) return;
    const { left, top } = u.cursor;
    if (left == null || left < 0) { showTip(u, ""); return; }
    const t = u.posToVal(left, "x"), y = top * dpr() + u.bbox.top, index = Math.floor((top * dpr() * lanes.length) / u.bbox.height);
    const lane = lanes[index];
    if (!lane) { showTip(u, ""); return; }
    const box = laneBox(u, index), near = (3 * (u.scales.x.max - u.scales.x.min)) / u.over.clientWidth;
    const inCalls = lane.calls.length && y >= box.callsTop;
    let rows = lane.tasks.filter((_, row) => { const [a, h] = rowBox(lane, box, row); return y >= a - dpr() && y < a + h + dpr(); });
    if (inCalls) {
      const row = Math.floor(((y - box.callsTop) / (box.bottom - box.callsTop)) * lane.calls.length);
      rows = lane.calls.slice(row, row + 1);
    }
    const hit = rows.map((segment) => find(segment, t, near)).find((i) => i >= 0) ?? -1;
    const lines = [];
    if (hit >= 0) {
      const start = D.start + from[hit] / 1000;
      lines.push(`${inCalls ? "call " : ""}${key(hit)}: ${D.outcomes[outcome[hit]]}`, `${seconds(start)} to ${seconds(start + length[hit] / 1000)} (${seconds(length[hit] / 1000, 3)})`, `execution ${attempt[hit]} of this work, on ${lane.name}`);
    } else {
      const span = lane.spans.find(([start, end]) => start <= t && t < end);
      lines.push(`${lane.name} at ${seconds(t)}`, span ? stateWords[span[2]] || span[2] : "");
    }
    for (const fault of D.faults) if (fault.lane === index && t >= fault.start && t < (fault.end ?? D.end)) lines.push(`${fault.word} at ${seconds(fault.start)}` + (fault.end === null ? ", not back" : `, back at ${seconds(fault.end)}`));
    showTip(u, lines.filter(Boolean).join("\n"));
  }
  function find(segment, t, near) {
    const ms = (t - D.start) * 1000, reach = near * 1000;
    let best = -1, distance = Infinity;
    for (let i = firstAfter(segment, ms - reach); i < segment.last && from[i] <= ms + reach; i++) {
      // Nearest first; of equally near ones, one that did not simply complete.
      const d = Math.max(0, from[i] - ms, ms - from[i] - length[i]) - (outcome[i] ? reach : 0);
      if (d < distance) { best = i; distance = d; }
    }
    return best;
  }
  function throughputTip(u) {
    if (pointed !== u) return;
    const { left } = u.cursor;
    if (left == null || left < 0) { showTip(u, ""); return; }
    const t = u.posToVal(left, "x"), i = Math.floor((t - D.throughput.start) / D.throughput.step), value = D.throughput.values[i];
    if (value === undefined) { showTip(u, ""); return; }
    const goal = D.throughput.goal[i];
    const average = u.data[2][Math.min(i + 1, u.data[2].length - 1)];
    showTip(u, `${seconds(t)}: ${value.toFixed(2)} slots of useful work` + (D.throughput.window ? `\nmean of the last ${D.throughput.window} s: ${average.toFixed(2)}` : "") + (goal === null ? "" : `\n95 % mark: ${goal.toFixed(2)}`));
  }

  function capacityTip(u) {
    if (pointed !== u) return;
    const { left } = u.cursor;
    if (left == null || left < 0) { showTip(u, ""); return; }
    const t = u.posToVal(left, "x"), c = D.capacity;
    let i = c.at.length - 1;
    while (i > 0 && c.at[i] > t) i--;
    showTip(u, `${seconds(t)}: ${c.wanted[i]} CPUs wanted, ${c.offered[i]} offered`);
  }

  // ---- moving: wheel, shift-drag, touch, keys, buttons

  let moving = null;
  function beginMove(u, x) { moving = { u, x, view: current() }; area.classList.add("moving"); }
  window.addEventListener("mousemove", (event) => {
    if (!moving) return;
    const [min, max] = moving.view, by = ((moving.x - event.clientX) * (max - min)) / moving.u.over.clientWidth;
    view(min + by, max + by);
  });
  window.addEventListener("mouseup", () => { moving = null; area.classList.remove("moving"); });

  // A wheel gesture that began as scrolling the page goes on scrolling it.
  let scrolled = -Infinity;
  window.addEventListener("wheel", (event) => { if (!event.target.closest || !event.target.closest(".u-over")) scrolled = performance.now(); }, { passive: true });
  function attach(u) {
    const over = u.over;
    over.addEventListener("mouseenter", () => { pointed = u; });
    over.addEventListener("mouseleave", () => { pointed = null; tip.hidden = true; });
    over.addEventListener("wheel", (event) => {
      const now = performance.now();
      if (now - scrolled < 250 && !event.ctrlKey) { scrolled = now; return; }
      const [min, max] = current(), full = whole[1] - whole[0];
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) { event.preventDefault(); move(event.deltaX / over.clientWidth); return; }
      if (event.deltaY > 0 && max - min >= full * 0.9999) return;
      event.preventDefault();
      const rect = over.getBoundingClientRect();
      zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * 0.004), u.posToVal(event.clientX - rect.left, "x"));
    }, { passive: false });
    const touches = new Map();
    let begun = null;
    const snapshot = () => { begun = { view: current(), points: [...touches.values()].map((p) => u.posToVal(p, "x")) }; };
    const x = (event) => event.clientX - over.getBoundingClientRect().left;
    over.addEventListener("pointerdown", (event) => { if (event.pointerType === "touch") { touches.set(event.pointerId, x(event)); snapshot(); } });
    over.addEventListener("pointermove", (event) => {
      if (!touches.has(event.pointerId)) return;
      touches.set(event.pointerId, x(event));
      const points = [...touches.values()], [min, max] = begun.view, wide = over.clientWidth;
      if (points.length === 1) {
        const start = begun.points[0] - (points[0] / wide) * (max - min);
        view(start, start + max - min);
      } else if (Math.abs(points[1] - points[0]) > 8) {
        const span = ((begun.points[1] - begun.points[0]) / (points[1] - points[0])) * wide;
        const start = begun.points[0] - (points[0] / wide) * span;
        if (span > 0) view(start, start + span);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) over.addEventListener(name, (event) => { touches.delete(event.pointerId); if (touches.size) snapshot(); });
  }
  const actions = { whole: () => view(...whole), fault: aroundFault, in: () => zoom(0.6), out: () => zoom(1 / 0.6), left: () => move(-0.25), right: () => move(0.25) };
  const tools = $(".tools");
  tools.hidden = false;
  tools.addEventListener("click", (event) => { const act = actions[event.target.dataset.do]; if (act) act(); });
  const byKey = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "whole", Home: "whole" };
  area.addEventListener("keydown", (event) => {
    const name = byKey[event.key];
    if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[name]();
  });
  for (const phase of document.querySelectorAll(".phase")) {
    const show = () => { if (D.faults.length) { mark = { at: D.faults[0].at + Number(phase.dataset.at) }; charts.forEach((chart) => chart.redraw(false, false)); } };
    const hide = () => { mark = null; charts.forEach((chart) => chart.redraw(false, false)); };
    phase.addEventListener("mouseenter", show);
    phase.addEventListener("mouseleave", hide);
    phase.addEventListener("focusin", show);
    phase.addEventListener("focusout", hide);
  }

  make();
  // For measuring: when the charts first stand on the screen.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("charts-drawn")));
  new ResizeObserver(() => {
    const width = area.clientWidth;
    if (!width || width === charts[0].width) return;
    const [min, max] = current();
    charts.forEach((chart) => chart.setSize({ width, height: chart.height }));
    view(min, max);
  }).observe(area);
})();
