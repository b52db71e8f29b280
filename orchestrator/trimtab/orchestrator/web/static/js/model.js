/** One run as the server last told it. */

const MOST_LIVE_ROWS = 400;

export class RunData {
  constructor(snapshot) {
    this.id = snapshot.id;
    this.head = snapshot.head;
    this.partNames = snapshot.parts;
    this.series = snapshot.series;
    this.bucket = snapshot.series.bucket;
    this.numMerged = snapshot.series.num_merged;
    this.ranks = new Map(snapshot.ranks.map((rank) => [rank.rank, rank]));
    this.evaluations = new Map(snapshot.evaluations.map((item) => [item.step, item]));
    this.checkpoints = snapshot.checkpoints;
    this.notes = snapshot.notes;
    this.gpus = new Map(snapshot.gpus.map((gpu) => [`${gpu.host}/${gpu.index}`, gpu]));
  }

  /** Take in changes; false asks for a new snapshot. */
  apply(changes) {
    if (changes.reset) return false;
    this.id = changes.id;
    this.head = changes.head;
    for (const rank of changes.ranks) this.ranks.set(rank.rank, rank);
    for (const item of changes.evaluations) this.evaluations.set(item.step, item);
    for (const gpu of changes.gpus) this.gpus.set(`${gpu.host}/${gpu.index}`, gpu);
    this.checkpoints.push(...changes.checkpoints);
    this.notes.push(...changes.notes);
    changes.series.step.forEach((step, index) => this.#put(step, changes.series, index));
    const numLive = this.series.step.length - this.numMerged;
    return this.numMerged === 0 ? numLive < 2 * MOST_LIVE_ROWS : numLive < MOST_LIVE_ROWS;
  }

  get numPoints() {
    return this.series.step.length;
  }

  /** Mean of a column's newest `most` known values; null where there is none. */
  recentMean(name, most) {
    const known = this.series[name].slice(-most).filter((value) => value != null);
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  }

  recentMedian(name, most) {
    return median(this.series[name].slice(-most).filter((value) => value != null));
  }

  /** Median of predicted / measured step time; null before the first step. */
  get predictionRatio() {
    const { predicted_s: predicted, step_s: measured } = this.series;
    const known = measured.map((value, i) => (value && predicted[i] != null ? predicted[i] / value : null));
    return median(known.filter((value) => value != null));
  }

  get lastEvaluation() {
    const steps = [...this.evaluations.keys()];
    return steps.length ? this.evaluations.get(Math.max(...steps)) : null;
  }

  #put(step, source, index) {
    const { series } = this;
    let at = series.step.length;
    while (at > this.numMerged && series.step[at - 1] >= step) at -= 1;
    if (at < this.numMerged || (at === this.numMerged && at > 0 && series.step[at - 1] >= step)) return;
    const replaced = series.step[at] === step ? 1 : 0;
    for (const [name, column] of Object.entries(series)) {
      if (name === "parts") column.forEach((part, i) => part.splice(at, replaced, source.parts[i][index]));
      else if (Array.isArray(column)) column.splice(at, replaced, source[name][index]);
    }
  }
}

function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
