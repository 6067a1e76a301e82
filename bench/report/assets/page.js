// Use of the instances over time, the tables, and the page itself.

function use() {
  const state = { rate: USUAL };
  const known = DATA.sweep.some((point) => Object.keys(point.figures.utilisation).length);
  if (!known && !DATA.timelines.length) return null;
  const grid = h("div", { class: "grid" });
  if (known) {
    const box = card("", "Use of the instances by stage", `Share of the time in which the instances that do a kind of work were at it, at ${number(state.rate)} requests/s.`);
    const rows = DATA.systems.flatMap((system) => {
      const point = nearest(pointsOf(system), state.rate);
      return Object.entries(point.figures.utilisation).sort(([a], [b]) => STAGES.indexOf(a) - STAGES.indexOf(b)).map(([stage, share], index) => ({ name: `${system} · ${stageName(stage)}`, colour: stageColour(stage, index), value: share, text: percent(share, 0), tip: [[stageColour(stage, index), `${number(point.rate)} requests/s`, percent(share)]] }));
    });
    barPlot(box, { each: 23, label: "use by stage", unit: "share of the time", format: (value) => percent(value, 0), rows });
    grid.append(box);
  }
  if (DATA.timelines.length) grid.append(timelines());
  return h("section", { id: "use" }, h("h2", {}, "Use of the instances"), grid);
}

function timelines() {
  const body = h("div");
  const box = card("", "What every instance did", "Drag over the chart to look closer, double click to see the whole. The veil is the warm-up; triangles are changes: roles, losses, starts.", body);
  const controls = h("div", { class: "controls" });
  box.querySelector(".head").append(controls);
  const name = (line) => `${line.system}, ${number(line.rate)} requests/s, seed ${line.seed}`;
  const show = (index) => {
    const line = DATA.timelines[index];
    drawers.splice(0, drawers.length, ...drawers.filter((again) => !again.isOfTime));
    const before = drawers.length;
    body.replaceChildren();
    const view = { from: 0, to: line.end, changed: () => drawers.filter((again) => again.isOfTime).forEach((again) => again()) };
    let chart = null;
    if (line.rows.length && line.kinds.length) chart = gantt(body, line, view);
    if (line.queues.length) queues(body, line, view);
    if (line.changes.length) body.append(changes(line));
    drawers.slice(before).forEach((again) => { again.isOfTime = true; });
    controls.replaceChildren(choice);
    if (chart) {
      controls.append(h("button", { type: "button", onclick: () => chart.see(0, line.end) }, "whole"));
      if (line.exact.length > 1) line.exact.forEach((window, number_) => controls.append(h("button", { type: "button", onclick: () => chart.see(window.from, window.to) }, `close-up ${number_ + 1}`)));
      else controls.append(h("button", { type: "button", onclick: () => chart.see(line.warmup, line.warmup + (line.last - line.warmup) / 12) }, "close-up"));
    }
  };
  const choice = h("select", { "aria-label": "run", onchange: (event) => show(Number(event.target.value)) }, DATA.timelines.map((line, index) => h("option", { value: index }, name(line))));
  requestAnimationFrame(() => show(0));
  return box;
}

function queues(host, line, view) {
  const part = (key, title) => {
    const box = h("div", {}, h("h3", { style: { margin: "16px 0 2px" } }, title));
    host.append(box);
    const step = line.end / line.queues[0].waiting.length;
    const options = { height: 170, step: true, label: title, legend: key === "waiting",
      series: line.queues.map((queue, index) => ({ key: queue.name, name: queue.name, colour: stageColour(STAGES.find((stage) => queue.name.includes(stage)) || queue.name, index), points: queue[key].map((value, bin) => [(bin + 0.5) * step, value]) })),
      x: { label: "seconds", format: (value) => number(value, 5), read: (value) => `${number(value, 5)} s`, get range() { return [view.from, view.to]; } },
      y: { label: title, format: number } };
    linePlot(box, options);
  };
  part("waiting", "Requests waiting, by group of instances");
  part("running", "Requests running");
}

function changes(line) {
  const more = line.numChanges > line.changes.length ? `, the first ${line.changes.length} of ${line.numChanges}` : "";
  return h("details", { style: { margin: "14px 0 4px" } }, h("summary", {}, `${line.changes.length} changes of instances${more}`),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["instance", "at", "what", "detail"].map((name) => h("th", {}, name)))),
      h("tbody", {}, line.changes.map((change) => h("tr", {}, [change.name, `${number(change.at, 5)} s`, change.what, change.detail].map((text) => h("td", {}, text))))))));
}

const ms = (value) => number(value * 1e3);
const COLUMNS = [
  ["rate", "requests/s", (p) => p.rate, number], ["attained", "%", (p) => p.figures.attainment, (v) => (100 * v).toFixed(1)],
  ["TTFT p50", "ms", (p) => p.figures.ttft_s.p50, ms], ["TTFT p90", "ms", (p) => p.figures.ttft_s.p90, ms], ["TTFT p99", "ms", (p) => p.figures.ttft_s.p99, ms],
  ["TPOT p50", "ms", (p) => p.figures.tpot_s.p50, ms], ["TPOT p99", "ms", (p) => p.figures.tpot_s.p99, ms],
  ["ITL p50", "ms", (p) => p.figures.itl_s.p50, ms], ["ITL p99", "ms", (p) => p.figures.itl_s.p99, ms], ["gap p90, p99", "ms", (p) => p.figures.gap_p90_s.p99, ms],
  ["whole p50", "ms", (p) => p.figures.whole_s.p50, ms], ["answered", "/s", (p) => p.figures.requests_per_s, number], ["tokens", "/s", (p) => p.figures.tokens_per_s, number],
  ["effective", "/s", (p) => p.figures.effective_requests_per_s, number], ["effective", "/s per GPU", (p) => p.figures.effective_requests_per_gpu, number],
  ["GPU s", "per success", (p) => p.figures.gpu_s_per_success, number],
  ["cost", DATA.price ? `${DATA.currency} per 1000` : "", (p) => (DATA.price && p.figures.gpu_s_per_success !== null ? (p.figures.gpu_s_per_success * DATA.price) / 3.6 : null), number],
  ["energy", "J per token", (p) => p.figures.joules_per_token, number], ["cached", "% of prompt", (p) => p.figures.cached_share, (v) => (100 * v).toFixed(1)],
  ["requests", "", (p) => p.figures.requests, number], ["not answered", "", (p) => p.figures.requests - (p.figures.outcomes.ok || 0), number], ["client late p99", "ms", (p) => p.figures.late_p99_s, ms],
].filter(([name, , value]) => (["cost", "energy", "cached", "client late p99"].includes(name) ? DATA.sweep.some((p) => value(p)) : true));

function table() {
  const body = h("tbody");
  let sorted = null, isUp = true;
  const fillIn = () => {
    const rows = [...DATA.sweep];
    if (sorted !== null) rows.sort((a, b) => (isUp ? 1 : -1) * ((COLUMNS[sorted][2](a) ?? Infinity) - (COLUMNS[sorted][2](b) ?? Infinity)));
    body.replaceChildren(...rows.map((point) => h("tr", {}, h("td", {}, h("i", { style: { "--c": colourOf(point.system) } }), point.system),
      COLUMNS.map(([name, , value, format]) => { const found = value(point); return h("td", { class: name === "attained" ? (found >= LEVEL ? "good" : "bad") : null }, found === null || found === undefined ? "–" : format(found)); }))));
  };
  fillIn();
  const head = h("tr", {}, h("th", { class: "sortable", onclick: () => { sorted = null; fillIn(); } }, "system"), COLUMNS.map(([name, unit], index) => h("th", { class: "sortable", onclick: () => { isUp = sorted === index ? !isUp : true; sorted = index; fillIn(); } }, name, h("small", {}, unit))));
  return h("section", { id: "figures" }, h("h2", {}, "All figures"), h("p", {}, "Click a heading to sort. Latencies are of answered requests; attainment counts all that arrived."),
    h("div", { class: "grid" }, h("div", { class: "card" }, h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), body))), classes()));
}

function classes() {
  const names = [...new Set(DATA.sweep.flatMap((point) => Object.keys(point.figures.classes)))];
  const bounds = (name) => { const slo = DATA.slos.find((each) => each.name === name); return slo ? [slo.ttft, slo.tpot].map((value) => (value === null ? "none" : duration(value))).join(" · ") : "–"; };
  const rows = DATA.systems.flatMap((system) => { const point = nearest(pointsOf(system), USUAL); return names.filter((name) => point.figures.classes[name]).map((name) => [system, point.rate, name, point.figures.classes[name]]); });
  const box = card("", "By SLO class", `Nearest rate to ${number(USUAL)} requests/s; attainment over all that arrived. A class whose bounds depend on the pictures shows its most frequent ones.`);
  box.append(h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["system", "rate", "class", "bounds TTFT · TPOT", "requests", "attained %", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms"].map((name) => h("th", {}, name)))),
    h("tbody", {}, rows.map(([system, rate, name, c]) => h("tr", {}, h("td", {}, h("i", { style: { "--c": colourOf(system) } }), system), h("td", {}, number(rate)), h("td", {}, name), h("td", {}, bounds(name)), h("td", {}, number(c.requests)),
      h("td", { class: c.attainment >= LEVEL ? "good" : "bad" }, (100 * c.attainment).toFixed(1)), [c.ttft_s.p50, c.ttft_s.p99, c.tpot_s.p50, c.tpot_s.p99].map((value) => h("td", {}, ms(value)))))))));
  return box;
}

function again() {
  const grid = h("div", { class: "grid" });
  if (DATA.scenario) grid.append(card(DATA.fits.length ? "half" : "", "Scenario", `Seeds ${DATA.seeds.join(", ")}. With the same version this text gives the same requests.`, h("pre", {}, DATA.scenario)));
  if (DATA.fits.length) grid.append(card(DATA.scenario ? "half" : "", "Cost model", `${DATA.hardware} How far its predictions are from what it was fitted to.`, h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["predicts", "from", "points", "mean error", "worst"].map((name) => h("th", {}, name)))),
    h("tbody", {}, DATA.fits.map((fit) => h("tr", {}, [fit.what, fit.source, number(fit.num_points), percent(fit.mape), fit.worst ? percent(fit.worst) : "–"].map((text) => h("td", {}, text)))))))));
  const notes = Object.entries(DATA.notes);
  if (notes.length) grid.append(card("", "Notes", "", h("dl", { class: "notes" }, notes.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]))));
  const pace = DATA.pace === "mean" ? "the mean gap between the tokens behind the first" : "the gap that nine tenths of an answer's gaps do not exceed";
  grid.append(card("", "Definitions", "", h("dl", { class: "notes" }, [
    ["TTFT", "From the moment a request was due to its first token."], ["TPOT", "The mean gap between the tokens behind the first; answers of one token have none."], ["ITL", "Each single gap."],
    ["Attainment", `Share of all requests that arrived behind the warm-up and were answered within the bounds of their class on TTFT and TPOT (${pace}). Refused, failed, timed out and cancelled ones are misses.`],
    ["Goodput", "The greatest offered rate with attainment of at least the level, by interpolation between the last good and the first bad rate."], ["Effective throughput", "Attained requests per second at one offered rate."],
    ["Percentiles", "Nearest rank: a value that was measured, over all answered requests of all seeds."], ["Intervals", "Percentile bootstrap of the mean over seeds; of few seeds it is too narrow."],
  ].map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]))));
  return h("section", { id: "again" }, h("h2", {}, "To make it again"), grid);
}

function build() {
  const found = [summary(), sweep(), latency(), where(), use(), table(), again()].filter(Boolean);
  const names = { goodput: "Goodput", latency: "Latency", phases: "Where time went", use: "Instances", figures: "Figures", again: "Reproduce" };
  const root = document.documentElement;
  const paint = (theme) => { root.dataset.theme = theme; mode.textContent = theme === "dark" ? "light" : "dark"; drawAll(); };
  const mode = h("button", { type: "button", title: "other colours", onclick: () => paint(root.dataset.theme === "dark" ? "light" : "dark") }, "dark");
  document.body.prepend(h("nav", {}, h("div", {}, h("b", {}, "Triptych report"), h("div", { class: "links" }, found.filter((one) => names[one.id]).map((one) => h("a", { href: `#${one.id}` }, names[one.id]))), mode)));
  document.querySelector("nav").after(h("main", {}, heading(), found, h("footer", {}, "Self-contained: this file loads nothing and sends nothing.")));
  const asked = new URLSearchParams(location.hash.includes("theme=") ? location.hash.slice(1) : "").get("theme");
  paint(asked || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
  addEventListener("beforeprint", () => paint("light"));
  addEventListener("scroll", hideTip, { passive: true });
}
build();
