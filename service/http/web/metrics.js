// What /metrics says: the Prometheus text format, and what happened between two looks at it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Parses the text format: {name: [{labels, value}]}. */
export function parse(text) {
  const families = {};
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const match = LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, key, value] of (match[2] || "").matchAll(LABEL)) labels[key] = value.replace(/\\(["\\n])/g, (_, c) => (c === "n" ? "\n" : c));
    (families[match[1]] ||= []).push({ labels, value: Number(match[3]) });
  }
  return families;
}

const fits = (labels, wanted) => Object.entries(wanted).every(([key, value]) => labels[key] === undefined || labels[key] === value);

/** The sum of a metric's samples with the wanted labels. */
export function total(families, name, wanted = {}) {
  return (families[name] || []).reduce((sum, { labels, value }) => (fits(labels, wanted) ? sum + value : sum), 0);
}

/** A cumulative histogram [[upper bound, count]] over all samples with the wanted labels. */
export function buckets(families, name, wanted = {}) {
  const counts = new Map();
  for (const { labels, value } of families[`${name}_bucket`] || []) {
    if (!fits(labels, wanted)) continue;
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) || 0) + value);
  }
  return [...counts].sort((a, b) => a[0] - b[0]);
}

/** What came into a histogram between two looks. A server that was restarted counts from zero again. */
export function between(now, before) {
  const earlier = new Map(before);
  const grown = now.map(([bound, count]) => [bound, count - (earlier.get(bound) || 0)]);
  return grown.some(([, count]) => count < 0) ? now : grown;
}

/** A quantile, interpolated as PromQL's histogram_quantile does; null if there is nothing. */
export function quantile(histogram, q) {
  const all = histogram.length ? histogram[histogram.length - 1][1] : 0;
  if (!all) return null;
  const rank = q * all;
  let lower = 0;
  let below = 0;
  for (const [upper, count] of histogram) {
    if (count >= rank) return upper === Infinity ? lower : lower + ((upper - lower) * (rank - below)) / Math.max(count - below, 1e-9);
    [lower, below] = [upper, count];
  }
  return lower;
}
