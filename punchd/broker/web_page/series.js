// What health reports say over time, and how that is drawn. Pure.

const KEPT_MS = 10 * 60_000;
const MOST = 600; // samples; the server sends one a second at most
export const NEWS_MS = 30_000; // for how long a report is news

/** The series with one more sample {at: ms, rtt, retransmit, bitrate, status}; what is too old goes. */
export function push(series, sample) {
  const kept = [...series, sample].filter((one) => sample.at - one.at <= KEPT_MS);
  return kept.slice(-MOST);
}

/** The newest sample, unless it is old news. */
export function newest(series, now) {
  const last = series.at(-1);
  return last && now - last.at <= NEWS_MS ? last : null;
}

/**
 * A line through a member of the samples, as the points of an SVG polyline in a box of `width` by `height`.
 * The time axis ends at the newest sample and shows a minute or more; the other one begins at 0.
 */
export function points(series, member, width, height) {
  if (!series.length) return { points: "", top: 0 };
  const end = series.at(-1).at;
  const span = Math.max(60_000, end - series[0].at);
  const top = niceTop(Math.max(...series.map((one) => one[member])));
  const place = (one) => {
    const x = width - ((end - one.at) / span) * width;
    const y = height - (one[member] / top) * height;
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  };
  return { points: series.map(place).join(" "), top };
}

/** 1, 2 or 5 times a power of ten, not below `value`. */
export function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= value * 0.999999) ?? 10 * power;
}
