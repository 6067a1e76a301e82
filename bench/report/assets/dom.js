// Elements, numbers, colours, the tooltip. Text from the data is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style")
      for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value);
  }
  for (const child of children.flat(3))
    if (child !== null && child !== undefined) node.append(child);
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US").replaceAll(",", "\u202f");
  if (size === 0) return "0";
  const places = clamp(digits - 1 - Math.floor(Math.log10(size)), 0, 6);
  return String(Number(value.toFixed(places)));
}
// Three digits, zeros at the end kept: for a figure that stands alone.
const figure = (value) =>
  Number.isFinite(value) && value !== 0 && Math.abs(value) < 1000
    ? Number(value.toPrecision(3)).toFixed(clamp(2 - Math.floor(Math.log10(Math.abs(value))), 0, 6))
    : number(value);
const percent = (value, places = 1) =>
  value === null || value === undefined ? "–" : `${(100 * value).toFixed(places)}\u00a0%`;
const duration = (ms) => (ms >= 1000 ? `${number(ms / 1000)}\u00a0s` : `${number(ms)}\u00a0ms`);

const STAGES = [
  "encode",
  "encode_transfer",
  "prefill",
  "kv_transfer",
  "decode",
  "mixed",
  "transfer",
  "load",
  "queue",
  "other",
];
const stageColour = (name, index = 0) =>
  STAGES.includes(name) ? `var(--${name})` : `var(--s${index % 10})`;
const stageName = (name) =>
  ({
    encode_transfer: "transfer of embeddings",
    kv_transfer: "transfer of KV",
    mixed: "mixed step",
    load: "loading",
    other: "other",
  })[name] || name;

const tip = h("div", { id: "tip", role: "status" });
document.body.append(tip);

// rows: [colour or null, name, value]
function showTip(event, title, rows) {
  tip.replaceChildren(h("div", { class: "t" }, title));
  for (const [colour, name, value] of rows)
    tip.append(
      h(
        "div",
        { class: "r" },
        h("i", { style: { "--c": colour || "transparent" } }),
        h("span", {}, name),
        h("b", {}, value),
      ),
    );
  tip.classList.add("on");
  const box = tip.getBoundingClientRect();
  const left =
    event.clientX + 18 + box.width > innerWidth
      ? event.clientX - box.width - 14
      : event.clientX + 18;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${clamp(event.clientY + 14, 6, innerHeight - box.height - 6)}px`;
}
const hideTip = () => tip.classList.remove("on");

// Everything that depends on a width or a theme draws itself again through this list.
const drawers = [];
function drawn(host, draw) {
  let width = 0;
  const again = () => {
    const now = host.clientWidth;
    if (now > 0) {
      width = now;
      draw(width);
    }
  };
  drawers.push(again);
  requestAnimationFrame(again);
  return again;
}
const drawAll = () => drawers.forEach((again) => again());

function legend(entries, hidden, onChange, blocks = false) {
  return h(
    "div",
    { class: blocks ? "legend blocks" : "legend" },
    entries.map(([key, name, colour]) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(!hidden.has(key)),
          title: "click to hide or show; double click to see it alone",
          onclick: (event) => {
            hidden.has(key) ? hidden.delete(key) : hidden.add(key);
            event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(key)));
            onChange();
          },
          ondblclick: (event) => {
            const isAlone = entries.every(([other]) => other === key || hidden.has(other));
            entries.forEach(([other]) =>
              isAlone || other === key ? hidden.delete(other) : hidden.add(other),
            );
            event.currentTarget.parentElement
              .querySelectorAll("button")
              .forEach((button, index) =>
                button.setAttribute("aria-pressed", String(!hidden.has(entries[index][0]))),
              );
            onChange();
          },
        },
        h("i", { style: { "--c": colour } }),
        name,
      ),
    ),
  );
}

function card(size, title, about, ...body) {
  return h(
    "div",
    { class: `card ${size}` },
    h(
      "div",
      { class: "head" },
      h("div", {}, h("h3", {}, title), about ? h("div", { class: "about" }, about) : null),
    ),
    body,
  );
}
