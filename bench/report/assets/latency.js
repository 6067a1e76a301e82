// Distributions, and where TTFT went.

function latency() {
  const state = { rate: USUAL };
  const grid = h("div", { class: "grid" });
  const hidden = new Set();
  const parts = [
    [
      "ttft",
      "Time to first token",
      "Over all requests that arrived: a curve that ends below 100\u00a0% was not answered in full.",
    ],
    ["tpot", "Time per output token", "The mean gap of each answer."],
    ["itl", "Inter-token latency", "Every single gap: its tail shows what a mean hides."],
  ];
  const redraw = [];
  for (const [key, title, about] of parts) {
    const options = {
      hidden,
      height: 270,
      hold: true,
      label: title,
      series: [],
      bounds: [],
      x: {
        label: "milliseconds, logarithmic",
        format: (value) => (value >= 1000 ? `${number(value / 1000)}k` : number(value)),
        read: duration,
        title: "within ",
        isLog: true,
      },
      y: {
        label: "share",
        format: (value) => percent(value, 0),
        read: (value) => percent(value, 2),
        range: [0, 1.005],
        ticks: [0, 0.25, 0.5, 0.75, 1],
      },
    };
    const box = card(DATA.systems.length > 6 ? "" : "third", title, about);
    const refill = () => {
      options.series = DATA.systems.map((system) => {
        const curve = nearest(
          DATA.curves.filter((one) => one.system === system),
          state.rate,
        );
        const scaled = key === "ttft" ? curve.answered : 1;
        return {
          key: system,
          name: system,
          colour: colourOf(system),
          points: curve[key].map((value, index) => [
            Math.max(value, 0.01),
            DATA.shares[index] * scaled,
          ]),
        };
      });
      const seen = key === "ttft" ? "ttft" : "tpot";
      options.bounds = DATA.slos
        .filter((slo) => slo[seen] !== null)
        .slice(0, 1)
        .map((slo) => ({
          x: slo[seen],
          name: key === "itl" ? "" : `${slo.name} ${duration(slo[seen])}`,
        }));
    };
    refill();
    const again = linePlot(box, options);
    redraw.push(() => {
      refill();
      again();
    });
    grid.append(box);
  }
  const choice = h(
    "select",
    {
      "aria-label": "offered rate",
      onchange: (event) => {
        state.rate = Number(event.target.value);
        redraw.forEach((again) => again());
      },
    },
    RATES.map((rate) =>
      h(
        "option",
        { value: rate, selected: rate === state.rate ? "" : null },
        `${number(rate)} requests/s`,
      ),
    ),
  );
  return h(
    "section",
    { id: "latency" },
    h("h2", {}, "Latency"),
    h(
      "p",
      {},
      "Exact nearest-rank distributions of all seeds together, warm-up removed. A system that was not measured at the rate shows its nearest one.",
    ),
    RATES.length > 1
      ? h(
          "div",
          { class: "controls", style: { margin: "0 0 12px" } },
          h("label", {}, "offered rate ", choice),
        )
      : null,
    grid,
  );
}

function where() {
  if (!DATA.phases.length) return null;
  const grid = h("div", { class: "grid" });
  const order = ["queue", "encode", "encode_transfer", "prefill", "other"];
  const state = { rate: USUAL };
  const rows = () =>
    DATA.systems.flatMap((system) => {
      const mine = DATA.phases.filter((part) => part.system === system);
      if (!mine.length) return [];
      const rate = nearest(mine, state.rate).rate;
      return mine
        .filter((part) => part.rate === rate)
        .map((part) => ({ group: system, name: part.at, parts: part.parts }));
    });
  const box = card(
    "",
    "Where TTFT went",
    "Mean seconds of the requests around each percentile of TTFT. Phases that overlap are scaled to the time they took together.",
  );
  const options = {
    label: "phases of TTFT",
    keys: order,
    rows: rows(),
    unit: "time to first token",
    format: duration,
    read: duration,
  };
  const again = stackPlot(box, options);
  const choice = h(
    "select",
    {
      "aria-label": "offered rate",
      onchange: (event) => {
        state.rate = Number(event.target.value);
        options.rows = rows();
        again();
      },
    },
    RATES.map((rate) =>
      h(
        "option",
        { value: rate, selected: rate === state.rate ? "" : null },
        `${number(rate)} requests/s`,
      ),
    ),
  );
  box.querySelector(".head").append(h("div", { class: "controls" }, choice));
  grid.append(box);
  return h("section", { id: "phases" }, h("h2", {}, "Where the time went"), grid);
}
