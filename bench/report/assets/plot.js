// Line charts: axes, bands, thresholds, markers, a cross-hair that reads every line at once.

function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough) || power;
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step)
    ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

function logTicks(low, high, width) {
  const decades = Math.log10(high / low);
  const steps =
    decades < 1.2 ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9] : decades * 3 > width / 46 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const step of steps) {
      const tick = step * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  return ticks;
}

function scale(low, high, from, to, isLog) {
  const map = isLog ? Math.log : (x) => x;
  const [a, b] = [map(low), map(high)];
  const there = (value) => from + ((map(value) - a) / (b - a || 1)) * (to - from);
  there.back = (place) => {
    const x = a + ((place - from) / (to - from)) * (b - a);
    return isLog ? Math.exp(x) : x;
  };
  return there;
}

// Value of a line at x; null outside it.
function readAt(points, x) {
  if (!points.length || x < points[0][0] || x > points[points.length - 1][0]) return null;
  let low = 0,
    high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    points[middle][0] <= x ? (low = middle) : (high = middle);
  }
  const [[x0, y0], [x1, y1]] = [points[low], points[high]];
  return x1 === x0 ? y1 : y0 + ((x - x0) / (x1 - x0)) * (y1 - y0);
}

/* options: {series: [{key, name, colour, points, band, dots, whiskers}], x: {label, format, isLog, range},
   y: {label, format, range, ticks}, height, levels: [{y, name, weak}], bounds: [{x, name}], marks: [{x, low, high, y, colour, name}],
   step, legend} */
function linePlot(host, options) {
  const hidden = options.hidden || new Set();
  const figure = h("div");
  host.append(figure);
  const again = drawn(host, () => figure.replaceChildren(drawLines(figure, options, hidden)));
  const entries = options.series.map((one) => [one.key, one.name, one.colour]);
  const unique = entries.filter(
    ([key], index) => entries.findIndex(([other]) => other === key) === index,
  );
  if (options.legend !== false) host.append(legend(unique, hidden, again));
  return again;
}

function spanOf(series, options) {
  const xs = series
    .flatMap((one) => one.points.map(([x]) => x))
    .filter((x) => !options.x.isLog || x > 0);
  let [low, high] = options.x.range || [Math.min(...xs), Math.max(...xs)];
  if (!Number.isFinite(low)) [low, high] = [options.x.isLog ? 1 : 0, 10];
  if (low === high) {
    low = options.x.isLog ? low / 2 : low - 1;
    high = options.x.isLog ? high * 2 : high + 1;
  }
  const ys = series.flatMap((one) => one.points.map(([, y]) => y));
  const top = Math.max(...ys, 0);
  return { x: [low, high], y: options.y.range || [0, top > 0 ? top * 1.08 : 1] };
}

function drawLines(figure, options, hidden) {
  const width = Math.max(260, figure.clientWidth || figure.parentElement.clientWidth);
  const height = options.height || 280;
  const box = {
    left: options.left || 50,
    right: options.right || 16,
    top: (options.bounds || []).length ? 22 : 14,
    bottom: 40,
  };
  const shown = options.series.filter((one) => !hidden.has(one.key));
  const span = spanOf(shown.length ? shown : options.series, options);
  const x = scale(...span.x, box.left, width - box.right, options.x.isLog);
  const y = scale(...span.y, height - box.bottom, box.top);
  const svg = s("svg", {
    viewBox: `0 0 ${width} ${height}`,
    height,
    role: "img",
    "aria-label": options.label || options.y.label,
  });
  const clip = `clip${Math.random().toString(36).slice(2)}`;
  svg.append(
    s(
      "clipPath",
      { id: clip },
      s("rect", {
        x: box.left - 6,
        y: box.top - 8,
        width: width - box.left - box.right + 12,
        height: height - box.top - box.bottom + 8,
      }),
    ),
  );
  axes(svg, options, { x, y, span, width, height, box });
  for (const level of options.levels || []) {
    svg.append(
      s("line", {
        class: level.weak ? "threshold weak" : "threshold",
        x1: box.left,
        x2: width - box.right,
        y1: y(level.y),
        y2: y(level.y),
      }),
    );
    svg.append(
      s(
        "text",
        { class: "mark", x: box.left + 6, y: y(level.y) + (level.below ? 13 : -5) },
        level.name,
      ),
    );
  }
  for (const bound of options.bounds || []) {
    if (bound.x < span.x[0] || bound.x > span.x[1]) continue;
    svg.append(
      s("line", {
        class: "threshold",
        x1: x(bound.x),
        x2: x(bound.x),
        y1: box.top,
        y2: height - box.bottom,
      }),
    );
    svg.append(
      s(
        "text",
        { class: "mark", x: x(bound.x), y: box.top - 5, "text-anchor": "middle" },
        bound.name,
      ),
    );
  }
  const inside = s("g", { "clip-path": `url(#${clip})` });
  svg.append(inside);
  for (const one of shown) drawSeries(inside, one, x, y, options);
  for (const mark of (options.marks || []).filter((each) => !hidden.has(each.key)))
    drawMark(svg, mark, x, y, span);
  crossHair(svg, shown, options, { x, y, span, width, height, box });
  return svg;
}

function axes(svg, options, { x, y, span, width, height, box }) {
  const yTicks = options.y.ticks || linearTicks(...span.y, 5);
  for (const tick of yTicks) {
    svg.append(
      s("line", {
        class: "grid-line",
        x1: box.left,
        x2: width - box.right,
        y1: y(tick),
        y2: y(tick),
      }),
    );
    svg.append(
      s("text", { x: box.left - 8, y: y(tick) + 4, "text-anchor": "end" }, options.y.format(tick)),
    );
  }
  const count = clamp(Math.floor((width - box.left) / 80), 3, 12);
  const ticks = options.x.isLog ? logTicks(...span.x, width) : linearTicks(...span.x, count);
  let last = -Infinity;
  for (const tick of ticks) {
    const label = options.x.format(tick);
    svg.append(
      s("line", {
        class: "grid-line",
        x1: x(tick),
        x2: x(tick),
        y1: box.top,
        y2: height - box.bottom,
      }),
    );
    if (x(tick) - last < 9 + label.length * 6.2) continue;
    last = x(tick);
    svg.append(
      s("text", { x: x(tick), y: height - box.bottom + 17, "text-anchor": "middle" }, label),
    );
  }
  svg.append(
    s("line", {
      class: "axis",
      x1: box.left,
      x2: width - box.right,
      y1: height - box.bottom,
      y2: height - box.bottom,
    }),
  );
  svg.append(
    s(
      "text",
      {
        class: "axis-title",
        x: (box.left + width - box.right) / 2,
        y: height - 4,
        "text-anchor": "middle",
      },
      options.x.label,
    ),
  );
}

function drawSeries(svg, one, x, y, options) {
  const points = options.x.isLog ? one.points.filter(([at]) => at > 0) : one.points;
  if (!points.length) return;
  if (one.band && one.band.length > 1) {
    const upper = one.band.map(([at, , high]) => `${x(at)},${y(high)}`),
      lower = one.band.map(([at, low]) => `${x(at)},${y(low)}`).reverse();
    svg.append(
      s("polygon", {
        points: [...upper, ...lower].join(" "),
        style: { fill: one.colour, opacity: 0.13 },
      }),
    );
  }
  let path = `M${x(points[0][0])},${y(points[0][1])}`;
  for (let i = 1; i < points.length; i++)
    path += options.step
      ? `H${x(points[i][0]).toFixed(1)}V${y(points[i][1]).toFixed(1)}`
      : `L${x(points[i][0]).toFixed(1)},${y(points[i][1]).toFixed(1)}`;
  svg.append(
    s("path", {
      class: "series",
      d: path,
      fill: "none",
      "stroke-width": 2,
      "stroke-linejoin": "round",
      "stroke-dasharray": one.dash || null,
      style: { stroke: one.colour },
    }),
  );
  if (one.dots)
    for (const [at, value] of points)
      svg.append(
        s("circle", {
          cx: x(at),
          cy: y(value),
          r: 3.2,
          style: { fill: "var(--card)", stroke: one.colour },
          "stroke-width": 1.8,
        }),
      );
}

function drawMark(svg, mark, x, y, span) {
  if (mark.x < span.x[0] || mark.x > span.x[1]) return;
  const place = y(mark.y);
  const [low, high] = [clamp(mark.low, ...span.x), clamp(mark.high, ...span.x)];
  svg.append(
    s("line", {
      x1: x(low),
      x2: x(high),
      y1: place,
      y2: place,
      "stroke-width": 5,
      opacity: 0.35,
      "stroke-linecap": "round",
      style: { stroke: mark.colour },
    }),
  );
  const diamond = s("path", {
    d: `M${x(mark.x)},${place - 6.5}l6.5,6.5l-6.5,6.5l-6.5,-6.5z`,
    style: { fill: mark.colour, stroke: "var(--card)" },
    "stroke-width": 1.5,
  });
  diamond.addEventListener("pointermove", (event) => {
    event.stopPropagation();
    showTip(event, mark.name, mark.rows);
  });
  diamond.addEventListener("pointerleave", hideTip);
  svg.append(diamond);
}

function crossHair(svg, shown, options, { x, y, span, width, height, box }) {
  const line = s("line", {
    class: "cross",
    y1: box.top,
    y2: height - box.bottom,
    visibility: "hidden",
  });
  const dots = s("g", { "pointer-events": "none" });
  const pad = s("rect", {
    x: box.left,
    y: box.top,
    width: Math.max(0, width - box.left - box.right),
    height: Math.max(0, height - box.top - box.bottom),
    fill: "transparent",
  });
  const stops = options.snap
    ? [...new Set(shown.flatMap((one) => one.points.map(([at]) => at)))]
    : null;
  pad.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    let at = clamp(x.back(((event.clientX - frame.left) / frame.width) * width), ...span.x);
    if (stops && stops.length)
      at = stops.reduce((best, stop) =>
        Math.abs(x(stop) - x(at)) < Math.abs(x(best) - x(at)) ? stop : best,
      );
    line.setAttribute("x1", x(at));
    line.setAttribute("x2", x(at));
    line.setAttribute("visibility", "visible");
    dots.replaceChildren();
    const rows = [];
    for (const one of shown) {
      const value =
        options.hold && one.points.length && at > one.points[one.points.length - 1][0]
          ? one.points[one.points.length - 1][1]
          : readAt(one.points, at);
      if (value === null) continue;
      dots.append(s("circle", { cx: x(at), cy: y(value), r: 3.5, style: { fill: one.colour } }));
      rows.push([one.colour, one.name, (options.y.read || options.y.format)(value)]);
    }
    showTip(event, `${options.x.title || ""}${(options.x.read || options.x.format)(at)}`, rows);
  });
  pad.addEventListener("pointerleave", () => {
    line.setAttribute("visibility", "hidden");
    dots.replaceChildren();
    hideTip();
  });
  const marks = [...svg.querySelectorAll("path")].filter((node) =>
    node.getAttribute("d").includes("z"),
  );
  svg.append(line, dots, pad, ...marks);
}
