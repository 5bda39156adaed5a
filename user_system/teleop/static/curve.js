// The learning curve: [[env steps, success rate, intervention rate], ...] as two lines.

const WIDTH = 1000;
const HEIGHT = 120;

export function drawCurve(svg, axis, points) {
  const last = points.length ? points[points.length - 1][0] : 0;
  const x = (steps) => (last ? (steps / last) * WIDTH : 0).toFixed(1);
  const y = (rate) => ((1 - rate) * (HEIGHT - 4) + 2).toFixed(1);
  const line = (column) => points.map((p, i) => `${i ? "L" : "M"}${x(p[0])} ${y(p[column])}`).join("");
  const grid = [0, 0.5, 1].map((rate) => `M0 ${y(rate)}H${WIDTH}`).join("");
  for (const [name, shape] of [["grid", grid], ["aid", line(2)], ["success", line(1)]]) {
    let path = svg.querySelector(`.${name}`);
    if (!path) {
      path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      svg.append(path);
    }
    if (path.getAttribute("d") !== shape) path.setAttribute("d", shape);
  }
  axis.textContent = last ? `0 to ${last.toLocaleString("en")} environment steps, 0 to 100 %` : "no episode yet";
}
