// The table of everything, and the classes.

const ms = (value) => number(value === null ? null : value * 1e3);
const seen = (quantity, cut) => (quantity.count ? quantity[cut] : null);
const of = (quantity, cut) => (point) => seen(point.figures[quantity], cut);
const COLUMNS = [
  ["rate", "requests/s", (p) => p.rate, number],
  ["attained", "%", (p) => p.figures.attainment, (v) => (100 * v).toFixed(1)],
  ["TTFT p50", "ms", of("ttft_s", "p50"), ms],
  ["TTFT p90", "ms", of("ttft_s", "p90"), ms],
  ["TTFT p99", "ms", of("ttft_s", "p99"), ms],
  ["TPOT p50", "ms", of("tpot_s", "p50"), ms],
  ["TPOT p99", "ms", of("tpot_s", "p99"), ms],
  ["ITL p50", "ms", of("itl_s", "p50"), ms],
  ["ITL p99", "ms", of("itl_s", "p99"), ms],
  ["gap p90, p99", "ms", of("gap_p90_s", "p99"), ms],
  ["whole p50", "ms", of("whole_s", "p50"), ms],
  ["answered", "/s", (p) => p.figures.requests_per_s, number],
  ["tokens", "/s", (p) => p.figures.tokens_per_s, number],
  ["effective", "/s", (p) => p.figures.effective_requests_per_s, number],
  ["effective", "/s per GPU", (p) => p.figures.effective_requests_per_gpu, number],
  ["GPU s", "per success", (p) => p.figures.gpu_s_per_success, number],
  [
    "cost",
    DATA.price ? `${DATA.currency} per 1000` : "",
    (p) =>
      DATA.price && p.figures.gpu_s_per_success !== null
        ? (p.figures.gpu_s_per_success * DATA.price) / 3.6
        : null,
    number,
  ],
  ["energy", "J per token", (p) => p.figures.joules_per_token, number],
  ["cached", "% of prompt", (p) => p.figures.cached_share, (v) => (100 * v).toFixed(1)],
  ["requests", "", (p) => p.figures.requests, number],
  ["not answered", "", (p) => p.figures.requests - (p.figures.outcomes.ok || 0), number],
  ["client late p99", "ms", (p) => p.figures.late_p99_s, ms],
].filter(([name, , value]) =>
  ["cost", "energy", "cached", "client late p99"].includes(name)
    ? DATA.sweep.some((p) => value(p))
    : true,
);

function table() {
  const body = h("tbody");
  let sorted = null,
    isUp = true;
  const refill = () => {
    const rows = [...DATA.sweep];
    if (sorted !== null)
      rows.sort(
        (a, b) =>
          (isUp ? 1 : -1) *
          ((COLUMNS[sorted][2](a) ?? Infinity) - (COLUMNS[sorted][2](b) ?? Infinity)),
      );
    body.replaceChildren(
      ...rows.map((point) =>
        h(
          "tr",
          {},
          h("td", {}, h("i", { style: { "--c": colourOf(point.system) } }), point.system),
          COLUMNS.map(([name, , value, format]) => {
            const found = value(point);
            return h(
              "td",
              { class: name === "attained" ? (found >= LEVEL ? "good" : "bad") : null },
              found === null || found === undefined ? "–" : format(found),
            );
          }),
        ),
      ),
    );
  };
  refill();
  const head = h(
    "tr",
    {},
    h(
      "th",
      {
        class: "sortable",
        onclick: () => {
          sorted = null;
          refill();
        },
      },
      "system",
    ),
    COLUMNS.map(([name, unit], index) =>
      h(
        "th",
        {
          class: "sortable",
          onclick: () => {
            isUp = sorted === index ? !isUp : true;
            sorted = index;
            refill();
          },
        },
        name,
        h("small", {}, unit),
      ),
    ),
  );
  return h(
    "section",
    { id: "figures" },
    h("h2", {}, "All figures"),
    h(
      "p",
      {},
      "Click a heading to sort. Latencies are of answered requests; attainment counts all that arrived.",
    ),
    h(
      "div",
      { class: "grid" },
      h(
        "div",
        { class: "card" },
        h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), body)),
      ),
      classes(),
    ),
  );
}

function classes() {
  const names = [...new Set(DATA.sweep.flatMap((point) => Object.keys(point.figures.classes)))];
  const bounds = (name) => {
    const slo = DATA.slos.find((each) => each.name === name);
    return slo
      ? [slo.ttft, slo.tpot].map((value) => (value === null ? "none" : duration(value))).join(" · ")
      : "–";
  };
  const rows = DATA.systems.flatMap((system) => {
    const point = nearest(pointsOf(system), USUAL);
    return names
      .filter((name) => point.figures.classes[name])
      .map((name) => [system, point.rate, name, point.figures.classes[name]]);
  });
  const box = card(
    "",
    "By SLO class",
    `Nearest rate to ${number(USUAL)} requests/s; attainment over all that arrived. A class whose bounds depend on the pictures shows its most frequent ones.`,
  );
  box.append(
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            [
              "system",
              "rate",
              "class",
              "bounds TTFT · TPOT",
              "requests",
              "attained %",
              "TTFT p50 ms",
              "TTFT p99 ms",
              "TPOT p50 ms",
              "TPOT p99 ms",
            ].map((name) => h("th", {}, name)),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map(([system, rate, name, c]) =>
            h(
              "tr",
              {},
              h("td", {}, h("i", { style: { "--c": colourOf(system) } }), system),
              h("td", {}, number(rate)),
              h("td", {}, name),
              h("td", {}, bounds(name)),
              h("td", {}, number(c.requests)),
              h(
                "td",
                { class: c.attainment >= LEVEL ? "good" : "bad" },
                (100 * c.attainment).toFixed(1),
              ),
              [
                seen(c.ttft_s, "p50"),
                seen(c.ttft_s, "p99"),
                seen(c.tpot_s, "p50"),
                seen(c.tpot_s, "p99"),
              ].map((value) => h("td", {}, ms(value))),
            ),
          ),
        ),
      ),
    ),
  );
  return box;
}
