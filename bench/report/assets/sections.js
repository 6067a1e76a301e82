// What the data says, its heading, and the sections about goodput.

const DATA = JSON.parse(document.getElementById("data").textContent);
const colourOf = (system) => `var(--s${DATA.systems.indexOf(system) % 10})`;
const pointsOf = (system) => DATA.sweep.filter((point) => point.system === system);
const goodputOf = (system, level) =>
  DATA.goodput.find((each) => each.system === system && each.level === level);
const RATES = [...new Set(DATA.sweep.map((point) => point.rate))].sort((a, b) => a - b);
const LEVEL = DATA.levels[0];
const nearest = (list, rate) =>
  list.reduce((best, one) => (Math.abs(one.rate - rate) < Math.abs(best.rate - rate) ? one : best));
const perGpu = (each) => each.crossing.rate / each.num_gpus;
const GPU_COUNTS = [...new Set(DATA.sweep.map((point) => point.gpus))];
// The greatest rate that the best system bears: where differences are seen.
const USUAL =
  RATES.filter((rate) =>
    DATA.sweep.some((point) => point.rate === rate && point.figures.attainment >= LEVEL),
  ).pop() ?? RATES[0];
const bound = { crossed: "", above: "≥ ", below: "< " };
const stated = (each) => (each.crossing.kind === "below" ? each.crossing.bad : each.crossing.rate);

const both = ({ count, p50, p99 }) =>
  count ? `${duration(p50 * 1e3)} · ${duration(p99 * 1e3)}` : "–";

const spread = ({ interval }, gpus) =>
  DATA.seeds.length < 2
    ? "one seed"
    : `95\u00a0% CI ${number(interval.low / gpus)} to ${number(interval.high / gpus)}`;

// A bound is not ranked: what is behind it was not measured.
function rank({ crossing }, share) {
  if (DATA.systems.length < 2 || crossing.kind !== "crossed") return "";
  return share < 0.9995 ? ` · ${percent(share, 0)} of the best` : " · the best";
}

function heading() {
  const chip = (name, value) => h("span", { class: "chip" }, `${name} `, h("b", {}, value));
  return h(
    "header",
    {},
    h("h1", {}, DATA.title),
    h(
      "div",
      { class: "chips" },
      chip("workload", DATA.workloads.join(", ")),
      chip("requests", number(DATA.requests)),
      chip(
        RATES.length === 1 ? "rate" : "rates",
        RATES.length > 6
          ? `${RATES.length}, ${number(RATES[0])} to ${number(RATES[RATES.length - 1])}/s`
          : RATES.map((rate) => `${number(rate)}/s`).join(", "),
      ),
      chip("seeds", DATA.seeds.join(", ")),
      chip(
        "arrivals",
        `${number(DATA.duration - DATA.warmup)} s behind ${number(DATA.warmup)} s of warm-up`,
      ),
      chip("GPUs", GPU_COUNTS.map((count) => number(count)).join(", ")),
      DATA.hardware && DATA.hardware.length < 48 ? chip("hardware", DATA.hardware) : null,
    ),
    DATA.invalid.length
      ? h(
          "div",
          { class: "warning" },
          h("b", {}, "Not to be used: "),
          "the measurement itself was at fault in these runs.",
          h(
            "ul",
            {},
            DATA.invalid.slice(0, 12).map((text) => h("li", {}, text)),
            DATA.invalid.length > 12 ? h("li", {}, `and ${DATA.invalid.length - 12} more`) : null,
          ),
        )
      : null,
  );
}

function summary() {
  const size =
    DATA.systems.length <= 2
      ? "half"
      : DATA.systems.length === 3 || DATA.systems.length > 4
        ? "third"
        : "quarter";
  const best = Math.max(...DATA.systems.map((system) => perGpu(goodputOf(system, LEVEL))));
  const cards = DATA.systems.map((system) => {
    const each = goodputOf(system, LEVEL),
      gpus = each.num_gpus,
      at = nearest(pointsOf(system), USUAL),
      f = at.figures;
    const share = best > 0 ? perGpu(each) / best : 0;
    const facts = [
      ["TTFT p50 · p99", both(f.ttft_s)],
      ["TPOT p50 · p99", both(f.tpot_s)],
      ["attainment", percent(f.attainment)],
      ["GPU seconds a success", f.gpu_s_per_success === null ? "–" : number(f.gpu_s_per_success)],
    ];
    if (f.joules_per_token !== null)
      facts.push(["energy a token", `${number(f.joules_per_token)} J`]);
    return h(
      "div",
      { class: `card kpi ${size}`, style: { "--c": colourOf(system) } },
      h(
        "div",
        { class: "name" },
        system,
        h("span", {}, `${number(gpus)} GPU${gpus === 1 ? "" : "s"}`),
      ),
      h(
        "div",
        { class: "big" },
        `${bound[each.crossing.kind]}${figure(stated(each) / gpus)} `,
        h("small", {}, "requests/s per GPU"),
      ),
      h(
        "div",
        { class: "ci" },
        `goodput at ${percent(LEVEL, 0)} · ${spread(each, gpus)}${rank(each, share)}`,
      ),
      h(
        "dl",
        {},
        h(
          "dt",
          { style: { "grid-column": "1 / -1", color: "var(--faint)" } },
          `at ${number(at.rate)} requests/s`,
        ),
        facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
      ),
    );
  });
  return h("section", { id: "summary" }, h("div", { class: "grid" }, cards));
}

function sweep() {
  const grid = h("div", { class: "grid" });
  const lines = card(
    RATES.length > 1 ? "" : "half",
    "SLO attainment over the offered rate",
    "Share of all requests that arrived, refused and failed ones included, within every bound of their class. Bands: 95\u00a0% interval over seeds. Diamonds: goodput, the bar its interval.",
  );
  const series = DATA.systems.map((system) => ({
    key: system,
    name: system,
    colour: colourOf(system),
    dots: true,
    points: pointsOf(system).map((point) => [point.rate, point.figures.attainment]),
    band: pointsOf(system).map((point) => [point.rate, point.low, point.high]),
  }));
  const marks = DATA.systems
    .map((system) => goodputOf(system, LEVEL))
    .filter((each) => each.crossing.kind === "crossed")
    .map((each) => ({
      key: each.system,
      x: each.crossing.rate,
      low: each.interval.low,
      high: each.interval.high,
      y: LEVEL,
      colour: colourOf(each.system),
      name: `${each.system}: goodput`,
      rows: [
        [null, "at 90 %", `${number(each.crossing.rate)}/s`],
        [
          null,
          "95\u00a0% interval",
          `${number(each.interval.low)} to ${number(each.interval.high)}`,
        ],
        [
          null,
          "measured between",
          `${number(each.crossing.good)} and ${number(each.crossing.bad)}`,
        ],
        ...(each.isMonotone ? [] : [[null, "last crossing", `${number(each.crossing.last)}/s`]]),
      ],
    }));
  const least = Math.min(...DATA.sweep.map((point) => point.low));
  linePlot(lines, {
    series,
    marks,
    height: 340,
    snap: true,
    label: "attainment over rate",
    x: {
      label: "offered requests per second",
      format: number,
      read: (value) => `${number(value)} requests/s`,
      range: [0, Math.max(...RATES) * 1.03],
    },
    y: {
      label: "attainment",
      format: (value) => percent(value, 0),
      read: percent,
      range: [least > 0.8 ? 0.75 : 0, 1.01],
    },
    levels: DATA.levels
      .map((level, index) => ({ y: level, name: percent(level, 0), weak: index > 0 }))
      .slice(0, least > 0.8 ? 3 : 1),
  });
  grid.append(lines);
  const bars = card(
    "half",
    "Goodput per GPU",
    `Greatest rate with attainment of at least ${percent(LEVEL, 0)}, divided by the GPUs; whiskers: 95\u00a0% interval over seeds.`,
  );
  barPlot(bars, {
    label: "goodput per GPU",
    unit: "requests/s per GPU",
    format: number,
    rows: goodputRows(LEVEL),
  });
  const stricter = card(
    "half",
    "Goodput per GPU at 99 %",
    "The same where only one request in a hundred may miss.",
  );
  barPlot(stricter, {
    label: "goodput per GPU at 99 %",
    unit: "requests/s per GPU",
    format: number,
    rows: goodputRows(0.99),
  });
  grid.append(bars, stricter, effective());
  return h(
    "section",
    { id: "goodput" },
    h("h2", {}, "Goodput"),
    h(
      "p",
      {},
      "The rate up to which a system keeps its promises. Where a curve comes back above the line the first crossing counts; the last is told in the tooltip.",
    ),
    grid,
  );
}

function goodputRows(level) {
  return DATA.systems.map((system) => {
    const each = goodputOf(system, level),
      gpus = each.num_gpus;
    return {
      name: system,
      colour: colourOf(system),
      value: perGpu(each),
      low: each.interval.low / gpus,
      high: each.interval.high / gpus,
      text: `${bound[each.crossing.kind]}${figure(stated(each) / gpus)}`,
      tip: [
        [
          colourOf(system),
          "goodput",
          `${bound[each.crossing.kind]}${number(stated(each))} requests/s`,
        ],
        [null, "GPUs", number(gpus)],
        [
          null,
          "95\u00a0% interval per GPU",
          `${number(each.interval.low / gpus)} to ${number(each.interval.high / gpus)}`,
        ],
      ],
    };
  });
}

function effective() {
  const box = card(
    "",
    "Effective throughput",
    "Requests within their bounds, per second and GPU, at each offered rate. Not goodput: this one has no level to keep.",
  );
  linePlot(box, {
    height: 260,
    snap: true,
    label: "effective throughput",
    series: DATA.systems.map((system) => ({
      key: system,
      name: system,
      colour: colourOf(system),
      dots: true,
      points: pointsOf(system).map((point) => [
        point.rate,
        point.figures.effective_requests_per_gpu,
      ]),
    })),
    x: {
      label: "offered requests per second",
      format: number,
      read: (value) => `${number(value)} requests/s`,
      range: [0, Math.max(...RATES) * 1.03],
    },
    y: { label: "effective requests/s per GPU", format: number },
  });
  return box;
}
