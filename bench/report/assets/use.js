// Use of the instances: by stage, over time, with what happened to them.

function use() {
  const state = { rate: USUAL };
  const known = DATA.sweep.some((point) => Object.keys(point.figures.utilisation).length);
  if (!known && !DATA.timelines.length) return null;
  const grid = h("div", { class: "grid" });
  if (known) {
    const box = card(
      "",
      "Use of the instances by stage",
      `Share of the time in which the instances that do a kind of work were at it, at ${number(state.rate)} requests/s.`,
    );
    const rows = DATA.systems.flatMap((system) => {
      const point = nearest(pointsOf(system), state.rate);
      return Object.entries(point.figures.utilisation)
        .sort(([a], [b]) => STAGES.indexOf(a) - STAGES.indexOf(b))
        .map(([stage, share], index) => ({
          name: `${system} · ${stageName(stage)}`,
          colour: stageColour(stage, index),
          value: share,
          text: percent(share, 0),
          tip: [[stageColour(stage, index), `${number(point.rate)} requests/s`, percent(share)]],
        }));
    });
    barPlot(box, {
      each: 23,
      label: "use by stage",
      unit: "share of the time",
      format: (value) => percent(value, 0),
      rows,
    });
    grid.append(box);
  }
  if (DATA.timelines.length) grid.append(timelines());
  return h("section", { id: "use" }, h("h2", {}, "Use of the instances"), grid);
}

function timelines() {
  const body = h("div");
  const box = card(
    "",
    "What every instance did",
    "Drag over the chart to look closer, double click to see the whole. The veil is the warm-up; triangles are changes: roles, losses, starts.",
    body,
  );
  const controls = h("div", { class: "controls" });
  box.querySelector(".head").append(controls);
  const name = (line) => `${line.system}, ${number(line.rate)} requests/s, seed ${line.seed}`;
  const show = (index) => {
    const line = DATA.timelines[index];
    drawers.splice(0, drawers.length, ...drawers.filter((again) => !again.isOfTime));
    const before = drawers.length;
    body.replaceChildren();
    const view = {
      from: 0,
      to: line.end,
      changed: () => drawers.filter((again) => again.isOfTime).forEach((again) => again()),
    };
    let chart = null;
    if (line.rows.length && line.kinds.length) chart = gantt(body, line, view);
    if (line.queues.length) queues(body, line, view);
    if (line.changes.length) body.append(changes(line));
    drawers.slice(before).forEach((again) => {
      again.isOfTime = true;
    });
    controls.replaceChildren(choice);
    if (chart) {
      controls.append(
        h("button", { type: "button", onclick: () => chart.see(0, line.end) }, "whole"),
      );
      if (line.exact.length > 1)
        line.exact.forEach((window, number_) =>
          controls.append(
            h(
              "button",
              { type: "button", onclick: () => chart.see(window.from, window.to) },
              `close-up ${number_ + 1}`,
            ),
          ),
        );
      else
        controls.append(
          h(
            "button",
            {
              type: "button",
              onclick: () => chart.see(line.warmup, line.warmup + (line.last - line.warmup) / 12),
            },
            "close-up",
          ),
        );
    }
  };
  const choice = h(
    "select",
    { "aria-label": "run", onchange: (event) => show(Number(event.target.value)) },
    DATA.timelines.map((line, index) => h("option", { value: index }, name(line))),
  );
  requestAnimationFrame(() => show(0));
  return box;
}

function queues(host, line, view) {
  const part = (key, title) => {
    const box = h("div", {}, h("h3", { style: { margin: "16px 0 2px" } }, title));
    host.append(box);
    const step = line.end / line.queues[0].waiting.length;
    const options = {
      height: 170,
      left: ganttLeft(line),
      right: 12,
      step: true,
      label: title,
      legend: key === "waiting",
      series: line.queues.map((queue, index) => ({
        key: queue.name,
        name: queue.name,
        colour: stageColour(
          STAGES.find((stage) => queue.name.includes(stage)) || queue.name,
          index,
        ),
        points: queue[key].map((value, bin) => [(bin + 0.5) * step, value]),
      })),
      x: {
        label: "seconds",
        format: (value) => number(value, 5),
        read: (value) => `${number(value, 5)} s`,
        get range() {
          return [view.from, view.to];
        },
      },
      y: { label: title, format: number },
    };
    linePlot(box, options);
  };
  part("waiting", "Requests waiting, by group of instances");
  part("running", "Requests running");
}

function changes(line) {
  const more =
    line.numChanges > line.changes.length
      ? `, the first ${line.changes.length} of ${line.numChanges}`
      : "";
  return h(
    "details",
    { style: { margin: "14px 0 4px" } },
    h("summary", {}, `${line.changes.length} changes of instances${more}`),
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
            ["instance", "at", "what", "detail"].map((name) => h("th", {}, name)),
          ),
        ),
        h(
          "tbody",
          {},
          line.changes.map((change) =>
            h(
              "tr",
              {},
              [change.name, `${number(change.at, 5)} s`, change.what, change.detail].map((text) =>
                h("td", {}, text),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
