// Horizontal bars: plain with whiskers, and stacked.

/* rows: [{name, colour, value, low, high, text, tip}] */
function barPlot(host, options) {
  const figure = h("div");
  host.append(figure);
  drawn(host, () => figure.replaceChildren(drawBars(figure, options)));
}

const labelWidth = (names, width) =>
  clamp(Math.max(...names.map((name) => name.length)) * 6.9 + 14, 60, width * 0.36);
const cut = (name, width) =>
  name.length * 6.7 > width ? `${name.slice(0, Math.max(3, Math.floor(width / 6.9) - 1))}…` : name;

function drawBars(figure, options) {
  const width = Math.max(260, figure.clientWidth),
    each = options.each || 34,
    tall = Math.round(each * 0.6),
    box = { top: 4, bottom: 34, right: 74 };
  const left = labelWidth(
    options.rows.map((row) => row.name),
    width,
  );
  const height = box.top + box.bottom + each * options.rows.length;
  const top = Math.max(...options.rows.flatMap((row) => [row.value, row.high || 0]), 0) || 1;
  const x = scale(0, top * 1.02, left, width - box.right);
  const svg = s("svg", {
    viewBox: `0 0 ${width} ${height}`,
    height,
    role: "img",
    "aria-label": options.label,
  });
  for (const tick of linearTicks(0, top, clamp(Math.floor((width - left) / 90), 2, 8))) {
    svg.append(
      s("line", {
        class: "grid-line",
        x1: x(tick),
        x2: x(tick),
        y1: box.top,
        y2: height - box.bottom,
      }),
    );
    svg.append(
      s(
        "text",
        { x: x(tick), y: height - box.bottom + 16, "text-anchor": "middle" },
        options.format(tick),
      ),
    );
  }
  svg.append(
    s(
      "text",
      {
        class: "axis-title",
        x: (left + width - box.right) / 2,
        y: height - 3,
        "text-anchor": "middle",
      },
      options.unit,
    ),
  );
  options.rows.forEach((row, index) => {
    const middle = box.top + each * (index + 0.5);
    const bar = s("rect", {
      class: "bar",
      x: left,
      y: middle - tall / 2,
      width: Math.max(1.5, x(row.value) - left),
      height: tall,
      rx: Math.min(4, tall / 4),
      style: { fill: row.colour },
    });
    bar.addEventListener("pointermove", (event) => showTip(event, row.name, row.tip || []));
    bar.addEventListener("pointerleave", hideTip);
    svg.append(
      s("text", { x: left - 10, y: middle + 4, "text-anchor": "end" }, cut(row.name, left - 12)),
      bar,
    );
    if (row.high > row.low) {
      const mark = { "stroke-width": 1.6, style: { stroke: "var(--ink)" }, opacity: 0.75 };
      svg.append(s("line", { x1: x(row.low), x2: x(row.high), y1: middle, y2: middle, ...mark }));
      for (const end of [row.low, row.high])
        svg.append(s("line", { x1: x(end), x2: x(end), y1: middle - 5, y2: middle + 5, ...mark }));
    }
    svg.append(
      s(
        "text",
        { class: "strong", x: x(Math.max(row.value, row.high || 0)) + 8, y: middle + 4 },
        row.text,
      ),
    );
  });
  return svg;
}

/* rows: [{group, name, parts: {key: value}}]; parts in the order of keys */
function stackPlot(host, options) {
  const hidden = new Set();
  const figure = h("div");
  host.append(figure);
  const again = drawn(host, () => figure.replaceChildren(drawStacks(figure, options, hidden)));
  host.append(
    legend(
      options.keys.map((key) => [key, stageName(key), stageColour(key)]),
      hidden,
      again,
      true,
    ),
  );
  return again;
}

function drawStacks(figure, options, hidden) {
  const width = Math.max(260, figure.clientWidth),
    each = 21,
    gap = 22,
    box = { top: 2, bottom: 36, right: 66 };
  const groups = [...new Set(options.rows.map((row) => row.group))];
  const left = labelWidth(["mean"], width);
  const height = box.top + box.bottom + each * options.rows.length + gap * groups.length;
  const keys = options.keys.filter((key) => !hidden.has(key));
  const total = (row) => keys.reduce((sum, key) => sum + (row.parts[key] || 0), 0);
  const top = Math.max(...options.rows.map(total), 0) || 1;
  const x = scale(0, top, left, width - box.right);
  const svg = s("svg", {
    viewBox: `0 0 ${width} ${height}`,
    height,
    role: "img",
    "aria-label": options.label,
  });
  for (const tick of linearTicks(0, top, clamp(Math.floor((width - left) / 90), 2, 10))) {
    svg.append(
      s("line", {
        class: "grid-line",
        x1: x(tick),
        x2: x(tick),
        y1: box.top,
        y2: height - box.bottom,
      }),
    );
    svg.append(
      s(
        "text",
        { x: x(tick), y: height - box.bottom + 16, "text-anchor": "middle" },
        options.format(tick),
      ),
    );
  }
  svg.append(
    s(
      "text",
      {
        class: "axis-title",
        x: (left + width - box.right) / 2,
        y: height - 4,
        "text-anchor": "middle",
      },
      options.unit,
    ),
  );
  let place = box.top;
  for (const group of groups) {
    svg.append(s("text", { class: "strong", x: 0, y: place + 15 }, group));
    place += gap;
    for (const row of options.rows.filter((one) => one.group === group)) {
      svg.append(s("text", { x: left - 10, y: place + 14, "text-anchor": "end" }, row.name));
      let from = 0;
      for (const key of keys) {
        const value = row.parts[key] || 0;
        if (value <= 0) continue;
        const bar = s("rect", {
          class: "bar",
          x: x(from),
          y: place + 2,
          width: Math.max(0.4, x(from + value) - x(from) - 0.8),
          height: each - 5,
          style: { fill: stageColour(key) },
        });
        bar.addEventListener("pointermove", (event) =>
          showTip(
            event,
            `${group}, ${row.name}: ${options.read(total(row))}`,
            keys
              .filter((one) => row.parts[one])
              .map((one) => [
                stageColour(one),
                stageName(one),
                `${options.read(row.parts[one])} · ${percent(row.parts[one] / total(row), 0)}`,
              ]),
          ),
        );
        bar.addEventListener("pointerleave", hideTip);
        svg.append(bar);
        from += value;
      }
      svg.append(
        s("text", { class: "strong", x: x(from) + 8, y: place + 14 }, options.read(total(row))),
      );
      place += each;
    }
  }
  return svg;
}
