// What makes it again, and the page itself.

function again() {
  const grid = h("div", { class: "grid" });
  if (DATA.scenario)
    grid.append(
      card(
        DATA.fits.length ? "half" : "",
        "Scenario",
        `Seeds ${DATA.seeds.join(", ")}. With the same version this text gives the same requests.`,
        h("pre", {}, DATA.scenario),
      ),
    );
  if (DATA.fits.length)
    grid.append(
      card(
        DATA.scenario ? "half" : "",
        "Cost model",
        "How far its predictions are from what it was fitted to.",
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
                ["predicts", "from", "points", "mean error", "worst"].map((name) =>
                  h("th", {}, name),
                ),
              ),
            ),
            h(
              "tbody",
              {},
              DATA.fits.map((fit) =>
                h(
                  "tr",
                  {},
                  [
                    fit.what,
                    fit.source,
                    number(fit.num_points),
                    percent(fit.mean_error),
                    fit.worst ? percent(fit.worst) : "–",
                  ].map((text) => h("td", {}, text)),
                ),
              ),
            ),
          ),
        ),
      ),
    );
  const notes = Object.entries(DATA.notes);
  if (DATA.hardware) notes.unshift(["hardware", DATA.hardware]);
  if (notes.length)
    grid.append(
      card(
        "",
        "Notes",
        "",
        h(
          "dl",
          { class: "notes" },
          notes.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]),
        ),
      ),
    );
  const pace =
    DATA.pace === "mean"
      ? "the mean gap between the tokens behind the first"
      : "the gap that nine tenths of an answer's gaps do not exceed";
  grid.append(
    card(
      "",
      "Definitions",
      "",
      h(
        "dl",
        { class: "notes" },
        [
          ["TTFT", "From the moment a request was due to its first token."],
          [
            "TPOT",
            "The mean gap between the tokens behind the first; answers of one token have none.",
          ],
          ["ITL", "Each single gap."],
          [
            "Attainment",
            `Share of all requests that arrived behind the warm-up and were answered within the bounds of their class on TTFT and TPOT (${pace}). Refused, failed, timed out and cancelled ones are misses.`,
          ],
          [
            "Goodput",
            "The greatest offered rate with attainment of at least the level, by interpolation between the last good and the first bad rate.",
          ],
          ["Effective throughput", "Attained requests per second at one offered rate."],
          [
            "Percentiles",
            "Nearest rank: a value that was measured, over all answered requests of all seeds.",
          ],
          [
            "Intervals",
            "Percentile bootstrap of the mean over seeds; of few seeds it is too narrow.",
          ],
        ].map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]),
      ),
    ),
  );
  return h("section", { id: "again" }, h("h2", {}, "To make it again"), grid);
}

function build() {
  const found = [summary(), sweep(), latency(), where(), use(), table(), again()].filter(Boolean);
  const names = {
    goodput: "Goodput",
    latency: "Latency",
    phases: "Where time went",
    use: "Instances",
    figures: "Figures",
    again: "Reproduce",
  };
  const root = document.documentElement;
  const paint = (theme) => {
    root.dataset.theme = theme;
    mode.textContent = theme === "dark" ? "light" : "dark";
    drawAll();
  };
  const mode = h(
    "button",
    {
      type: "button",
      title: "other colours",
      onclick: () => paint(root.dataset.theme === "dark" ? "light" : "dark"),
    },
    "dark",
  );
  document.body.prepend(
    h(
      "nav",
      {},
      h(
        "div",
        {},
        h("b", {}, "Triptych report"),
        h(
          "div",
          { class: "links" },
          found
            .filter((one) => names[one.id])
            .map((one) => h("a", { href: `#${one.id}` }, names[one.id])),
        ),
        mode,
      ),
    ),
  );
  document
    .querySelector("nav")
    .after(
      h(
        "main",
        {},
        heading(),
        found,
        h("footer", {}, "Self-contained: this file loads nothing and sends nothing."),
      ),
    );
  const asked = new URLSearchParams(
    location.hash.includes("theme=") ? location.hash.slice(1) : "",
  ).get("theme");
  paint(asked || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 120);
  });
  addEventListener("beforeprint", () => paint("light"));
  addEventListener("scroll", hideTip, { passive: true });
}
build();
