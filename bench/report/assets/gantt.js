// What every instance did, on a canvas: shares of bins for the whole, single jobs in close-ups.
// Drag to zoom, double click to see the whole again; the queues below follow.

const TICK = 1e-4;

// Room for the names; charts below line up with it.
const ganttLeft = (line) =>
  clamp(Math.max(...line.rows.map((row) => row.name.length), 4) * 6.8 + 16, 60, 210);

function unpack(line) {
  const bins = new Map();
  for (const [key, text] of Object.entries(line.bins.data)) {
    const raw = atob(text),
      data = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) data[i] = raw.charCodeAt(i);
    bins.set(key, data);
  }
  const windows = line.exact.map((window) => ({
    from: window.from,
    to: window.to,
    rows: new Map(
      Object.entries(window.rows).map(([row, flat]) => {
        const jobs = [];
        for (let i = 0, at = 0; i < flat.length; i += 4) {
          at += flat[i + 1];
          jobs.push([flat[i], at * TICK, (at + flat[i + 2]) * TICK, flat[i + 3]]);
        }
        return [Number(row), jobs];
      }),
    ),
  }));
  return { bins, windows };
}

function gantt(host, line, view) {
  const { bins, windows } = unpack(line);
  const hidden = new Set();
  const canvas = h("canvas");
  host.append(h("div", { class: "gantt" }, canvas));
  const rowHeight = clamp(Math.floor(460 / Math.max(1, line.rows.length)), 7, 26);
  const box = { left: ganttLeft(line), right: 12, top: 8, bottom: 30 };
  const height = box.top + box.bottom + rowHeight * line.rows.length;
  let width = 0,
    drag = null;

  const place = (time) =>
    box.left + ((time - view.from) / (view.to - view.from)) * (width - box.left - box.right);
  const time = (at) =>
    view.from + ((at - box.left) / (width - box.left - box.right)) * (view.to - view.from);
  const exactly = () =>
    windows.find((window) => view.from >= window.from - 1e-6 && view.to <= window.to + 1e-6) ||
    (windows.length === 1 && windows[0].from <= line.warmup && windows[0].to >= line.end * 0.98
      ? windows[0]
      : null);

  function draw(pen, colours) {
    const thin = line.kinds.map((kind) => kind === "transfer" || kind === "load");
    const window = exactly();
    line.rows.forEach((_, row) => {
      const top = box.top + row * rowHeight,
        full = rowHeight - (rowHeight > 10 ? 3 : 1);
      pen.fillStyle = colours.grid;
      pen.fillRect(box.left, top, width - box.left - box.right, full);
      window
        ? drawJobs(pen, window.rows.get(row) || [], top, full, thin, colours)
        : drawBins(pen, row, top, full, thin, colours);
    });
  }
  function drawJobs(pen, jobs, top, full, thin, colours) {
    let edge = -1,
      colour = "";
    for (const [kind, from, to] of jobs) {
      if (to < view.from || from > view.to || hidden.has(line.kinds[kind])) continue;
      const left = Math.max(place(from), box.left),
        right = Math.min(place(to), width - box.right);
      if (right <= edge && colour === kind) continue; // thousands of jobs may share a pixel
      pen.fillStyle = colours.kinds[kind];
      const size = Math.max(0.6, right - left - (right - left > 4 ? 0.5 : 0));
      thin[kind]
        ? pen.fillRect(left, top + full - Math.max(2, full * 0.22), size, Math.max(2, full * 0.22))
        : pen.fillRect(left, top, size, full);
      edge = Math.max(edge, left + 0.6);
      colour = kind;
    }
  }
  function drawBins(pen, row, top, full, thin, colours) {
    const step = line.end / line.bins.count;
    for (let x = Math.floor(box.left); x < width - box.right; x++) {
      const first = clamp(Math.floor(time(x) / step), 0, line.bins.count - 1),
        last = clamp(Math.floor(time(x + 1) / step), first, line.bins.count - 1);
      let base = top + full;
      line.kinds.forEach((kind, index) => {
        const data = bins.get(`${row},${index}`);
        if (!data || hidden.has(kind)) return;
        let share = 0;
        for (let bin = first; bin <= last; bin++) share += data[bin];
        const tall = (share / (last - first + 1) / 255) * full;
        if (tall < 0.05) return;
        pen.fillStyle = colours.kinds[index];
        if (thin[index]) {
          const band = Math.max(1, full * 0.2);
          pen.globalAlpha = clamp((tall / full) * 2, 0.25, 1);
          pen.fillRect(x, top + full - band, 1, band);
          pen.globalAlpha = 1;
          return;
        }
        base -= tall;
        pen.fillRect(x, base, 1.02, tall);
      });
    }
  }
  function frame(pen, colours) {
    pen.font = `${rowHeight >= 11 ? 11 : 9.5}px ${css("font-family") || "system-ui, sans-serif"}`;
    pen.fillStyle = colours.soft;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const every = Math.max(1, Math.ceil(12 / rowHeight));
    line.rows.forEach((row, index) => {
      if (index % every === 0)
        pen.fillText(
          cut(row.name, box.left - 10),
          box.left - 8,
          box.top + index * rowHeight + rowHeight / 2,
        );
    });
    pen.textAlign = "center";
    pen.textBaseline = "top";
    pen.font = pen.font.replace(/^[\d.]+px/, "11.5px");
    for (const tick of linearTicks(view.from, view.to, clamp(Math.floor(width / 110), 3, 12))) {
      pen.fillStyle = colours.line;
      pen.fillRect(place(tick), height - box.bottom, 1, 5);
      pen.fillStyle = colours.soft;
      pen.fillText(`${number(tick, 5)} s`, place(tick), height - box.bottom + 9);
    }
    if (line.warmup > view.from) {
      pen.fillStyle = colours.veil;
      pen.fillRect(
        box.left,
        box.top,
        clamp(place(line.warmup), box.left, width - box.right) - box.left,
        rowHeight * line.rows.length,
      );
    }
    for (const change of line.changes) {
      const x = place(change.at);
      if (x < box.left || x > width - box.right) continue;
      const y = box.top + change.row * rowHeight;
      pen.fillStyle =
        change.what === "lost" || change.what === "slowed" ? colours.bad : colours.ink;
      pen.fillRect(x - 0.75, y - 2, 1.5, rowHeight + 2);
      pen.beginPath();
      pen.moveTo(x - 5, y - 4);
      pen.lineTo(x + 5, y - 4);
      pen.lineTo(x, y + 3);
      pen.fill();
    }
    if (drag) {
      pen.fillStyle = colours.select;
      pen.fillRect(
        Math.min(drag.from, drag.to),
        box.top,
        Math.abs(drag.to - drag.from),
        rowHeight * line.rows.length,
      );
    }
  }
  const again = drawn(host, (now) => {
    width = now;
    const sharp = window.devicePixelRatio || 1;
    canvas.width = width * sharp;
    canvas.height = height * sharp;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const probe = h("i", { style: { color: "red" } });
    document.body.append(probe);
    const real = (value) => {
      probe.style.color = value;
      return getComputedStyle(probe).color;
    };
    const colours = {
      kinds: line.kinds.map((kind, index) => real(stageColour(kind, index))),
      grid: css("--grid"),
      soft: css("--soft"),
      line: css("--faint"),
      ink: css("--ink"),
      bad: css("--bad"),
      veil: "rgb(128 128 128 / 28%)",
      select: "rgb(80 120 255 / 22%)",
    };
    probe.remove();
    draw(pen, colours);
    frame(pen, colours);
    canvas.dataset.drawn = String(line.rows.length);
  });
  const see = (from, to) => {
    view.from = Math.max(0, from);
    view.to = Math.min(line.end, Math.max(to, from + 0.002));
    view.changed();
  };
  const where = (event) =>
    clamp(event.clientX - canvas.getBoundingClientRect().left, box.left, width - box.right);
  canvas.addEventListener("pointerdown", (event) => {
    drag = { from: where(event), to: where(event) };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => {
    const done = drag;
    drag = null;
    if (done && Math.abs(done.to - done.from) > 4)
      see(time(Math.min(done.from, done.to)), time(Math.max(done.from, done.to)));
    else again();
  });
  canvas.addEventListener("dblclick", () => see(0, line.end));
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      drag.to = where(event);
      again();
    }
    tell(event);
  });
  function tell(event) {
    const at = time(where(event)),
      row = Math.floor((event.clientY - canvas.getBoundingClientRect().top - box.top) / rowHeight);
    if (row < 0 || row >= line.rows.length) return hideTip();
    const near = ((view.to - view.from) / width) * 6;
    const rows = line.changes
      .filter((change) => change.row === row && Math.abs(change.at - at) < near)
      .map((change) => [null, `${change.what} ${change.detail}`, `${number(change.at, 5)} s`]);
    const window = exactly(),
      step = line.end / line.bins.count,
      bin = clamp(Math.floor(at / step), 0, line.bins.count - 1);
    if (window)
      for (const [kind, from, to, jobs] of (window.rows.get(row) || []).filter(
        ([, from, to]) => from <= at && at <= to,
      ))
        rows.push([
          stageColour(line.kinds[kind], kind),
          `${stageName(line.kinds[kind])}, ${jobs} ${jobs === 1 ? "job" : "jobs"}`,
          duration((to - from) * 1000),
        ]);
    else
      line.kinds.forEach((kind, index) => {
        const data = bins.get(`${row},${index}`);
        if (data && data[bin])
          rows.push([stageColour(kind, index), stageName(kind), percent(data[bin] / 255, 0)]);
      });
    showTip(
      event,
      `${line.rows[row].name} at ${number(at, 5)} s`,
      rows.length ? rows : [[null, "idle", ""]],
    );
  }
  host.append(
    legend(
      line.kinds.map((kind, index) => [kind, stageName(kind), stageColour(kind, index)]),
      hidden,
      again,
      true,
    ),
  );
  return { see, windows };
}
