// Small plots of health reports, one a figure.

import { el, say, svg } from "./dom.js";
import { newest, points } from "./series.js";
import { bitrate, duration, percent, rtt } from "./words.js";

const WIDTH = 240;
const HEIGHT = 48;
const FIGURES = [
  ["rtt", "Round trip", rtt],
  ["retransmit", "Sent again", percent],
  ["bitrate", "Bitrate", bitrate],
];

/** {element, draw(series, now)}. */
export function plots() {
  const all = FIGURES.map(([member, title, words]) => {
    const line = svg("polyline", { class: "curve" });
    const tip = svg("polyline", { class: "curve tip" }); // the newest, as a dot: also where there is no line yet
    const floor = svg("line", { class: "floor", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT });
    const box = { viewBox: `-1 -2 ${WIDTH + 2} ${HEIGHT + 4}`, preserveAspectRatio: "none", role: "img" };
    const picture = svg("svg", box, floor, line, tip);
    const value = el("span", { class: "value" }, "–");
    const top = el("span", { class: "top" });
    const element = el("div", { class: "figure" }, el("dt", {}, title), el("dd", {}, value, picture, top));
    return { member, title, words, line, tip, picture, value, top, element };
  });
  const element = el("dl", { class: "figures", hidden: true }, ...all.map((one) => one.element));
  const draw = (series, now) => {
    element.hidden = !series.length;
    const last = newest(series, now);
    for (const one of all) {
      const { points: found, top } = points(series, one.member, WIDTH, HEIGHT);
      one.line.setAttribute("points", found);
      const end = found.split(" ").at(-1);
      one.tip.setAttribute("points", end && `${end} ${end}`);
      say(one.value, last ? one.words(last[one.member]) : "–");
      say(one.top, `0–${one.words(top)}`);
      one.picture.setAttribute("aria-label", told(one, series));
    }
  };
  return { element, draw };
}

function told({ member, title, words }, series) {
  if (!series.length) return `${title}: no reports yet`;
  const values = series.map((one) => one[member]);
  const span = duration(series.at(-1).at - series[0].at);
  return `${title} over ${span}: last ${words(values.at(-1))}, least ${words(Math.min(...values))}, most ${words(Math.max(...values))}`;
}
