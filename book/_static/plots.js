// Draws the Plotly figures of a page with the one local plotly.min.js, in the theme's
// own colours, and again when the theme changes.
(() => {
  const base = document.currentScript.src.replace(/plots\.js.*$/, "");

  const colours = () => {
    const style = getComputedStyle(document.body);
    const dark = document.documentElement.dataset.theme === "dark";
    return { ink: style.color, line: dark ? "#4a4f55" : "#d5d9de" };
  };

  const axisLook = ({ ink, line }) => ({
    gridcolor: line, zerolinecolor: line, linecolor: ink, tickcolor: ink,
  });

  const themed = (layout) => {
    const look = colours();
    const out = structuredClone(layout);
    out.paper_bgcolor = out.plot_bgcolor = "rgba(0,0,0,0)";
    out.font = { family: "inherit", size: 13, ...out.font, color: look.ink };
    out.autosize = true;
    out.margin = { l: 48, r: 16, t: out.title ? 56 : 24, b: 40, ...out.margin };
    delete out.width;
    const axes = new Set(["xaxis", "yaxis", ...Object.keys(out)]);
    for (const key of axes)
      if (/^[xy]axis\d*$/.test(key))
        out[key] = { automargin: true, ...out[key], ...axisLook(look) };
    return out;
  };

  const draw = async (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const target = figure.querySelector(".plot-target");
    const settings = { responsive: true, displaylogo: false };
    await Plotly.react(target, spec.data, themed(spec.layout), settings);
    figure.querySelector(".plot-words").classList.add("read-aloud");
    figure.dataset.ready = "true";
  };

  const start = () => {
    const figures = [...document.querySelectorAll("figure.plot")];
    if (!figures.length) return;
    const script = document.createElement("script");
    script.src = base + "plotly.min.js";
    script.onload = () => {
      figures.forEach(draw);
      new MutationObserver(() => figures.forEach(draw)).observe(
        document.documentElement,
        { attributes: true, attributeFilter: ["data-theme"] },
      );
    };
    document.head.append(script);
  };

  if (document.readyState === "loading")
    document.addEventListener("DOMContentLoaded", start);
  else start();
})();
