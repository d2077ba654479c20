// The numbers of the board: what scores.py, legal.py, plan.py, project.py and forecast.py in slim/ compute, computed
// again while a person drags. Python is right where the two differ, and a test holds them to the same numbers, exact
// ties included: hence the order of every sum. Nothing here knows the page.

const KINDS = { float64: Float64Array, float32: Float32Array, uint32: Uint32Array, uint16: Uint16Array };
const PINNED = 1e6;

/** The id of a payload of slim/planning/board.py. */
export function idOf(bytes) {
  return new TextDecoder().decode(bytes.subarray(0, 16));
}

/** A payload's header, with typed arrays in the place of their descriptions. */
export function unpack(bytes) {
  const copy = bytes.slice(); // a view into a message need not be aligned
  const body = 20 + new DataView(copy.buffer).getUint32(16, true);
  const model = JSON.parse(new TextDecoder().decode(copy.subarray(20, body)));
  for (const [name, { type, at, length }] of Object.entries(model.arrays)) {
    model.arrays[name] = new KINDS[type](copy.buffer, body + at, length);
  }
  return model;
}

/** Σ of `count` values in the order in which numpy adds them up. */
function sum(values, from, count) {
  if (count > 128) {
    const half = (count >> 1) - ((count >> 1) % 8);
    return sum(values, from, half) + sum(values, from + half, count - half);
  }
  let total = 0;
  let at = from;
  if (count >= 8) {
    const r = values.slice(from, from + 8);
    for (at += 8; at + 8 <= from + count; at += 8) {
      for (let lane = 0; lane < 8; lane++) r[lane] += values[at + lane];
    }
    total = r[0] + r[1] + (r[2] + r[3]) + (r[4] + r[5] + (r[6] + r[7]));
  }
  for (; at < from + count; at++) total += values[at];
  return total;
}

/** Sorts `order[from, from + count)` by falling `values`, ties by what stood first. */
function sortFalling(order, from, count, values) {
  for (let i = from + 1; i < from + count; i++) {
    const item = order[i];
    const value = values[item];
    let j = i - 1;
    for (; j >= from && values[order[j]] < value; j--) order[j + 1] = order[j];
    order[j + 1] = item;
  }
}

/** numpy's linear quantile of sorted values. */
export function quantile(sorted, q) {
  const place = q * (sorted.length - 1);
  const low = Math.floor(place);
  const [a, b, t] = [sorted[low], sorted[Math.min(low + 1, sorted.length - 1)], place - low];
  return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
}

/** The legal shapes of layers with `groups` KV heads of `width` query heads each; one layer's gains at a time. */
class Shapes {
  constructor(groups, width) {
    Object.assign(this, { groups, width });
    this.order = new Uint16Array(groups * width); // heads by falling gain within their group
    this.sorted = new Float64Array(groups * width);
    this.sums = Array.from({ length: width + 1 }, () => new Float64Array(groups)); // of the first p heads, by p
    this.byGroup = new Uint16Array(groups);
    this.positive = new Float64Array(groups);
  }

  /** Takes the gains of a layer, (H,). */
  take(gains) {
    const { groups, width, order, sorted } = this;
    for (let head = 0; head < groups * width; head++) order[head] = head;
    for (let group = 0; group < groups; group++) {
      sortFalling(order, group * width, width, gains);
      for (let i = group * width; i < (group + 1) * width; i++) sorted[i] = gains[order[i]];
      for (let p = 1; p <= width; p++) this.sums[p][group] = sum(sorted, group * width, p);
    }
  }

  /** legal.legal_heads: marks in `keep`, from `at` on, the set with the largest sum of gains. */
  best(keep, at) {
    let [most, groups, perGroup] = [0, 0, 0];
    for (let p = 1; p <= this.width; p++) {
      let count = 0;
      for (const value of this.sums[p]) if (value > 0) this.positive[count++] = value;
      const value = sum(this.positive, 0, count);
      if (value > most) [most, groups, perGroup] = [value, count, p];
    }
    this.mark(keep, at, groups, perGroup);
  }

  /** legal.best_set: the same for a set with `perGroup` heads in exactly `groups` groups. */
  mark(keep, at, groups, perGroup) {
    keep.fill(0, at, at + this.groups * this.width);
    for (let group = 0; group < this.groups; group++) this.byGroup[group] = group;
    sortFalling(this.byGroup, 0, this.groups, this.sums[perGroup]);
    for (let i = 0; i < groups; i++) {
      const first = this.byGroup[i] * this.width;
      for (let j = first; j < first + perGroup; j++) keep[at + this.order[j]] = 1;
    }
  }
}

/** What choices of a person give: sizes and forecast loss, with only what changed since the last one added up anew. */
export class Projector {
  constructor(model) {
    this.model = model;
    this.shapes = new Shapes(model.kv_heads, model.heads / model.kv_heads);
    if (model.sketch) {
      const { picks, tokens } = model.arrays;
      const count = tokens.length;
      this.rows = new Float64Array(model.sketch.rows); // Σ of the removed columns
      this.removed = new Uint8Array(model.layers * (model.heads + 2));
      this.costs = new Float64Array(count);
      this.drawn = new Float64Array(picks.length / count);
      this.below = this.drawn.map((_, draw) => tokens.reduce((all, n, row) => all + picks[draw * count + row] * n, 0));
    }
  }

  /** scores.composite: of each unit, layer by layer. */
  scores(unit, weights) {
    if (this.scored?.unit === unit && this.scored.weights === weights) return this.scored.scores;
    const used = Object.values(weights).some((weight) => weight > 0) ? weights : this.model.units[unit].first.weights;
    const total = sum(Object.values(used), 0, Object.keys(used).length);
    const scores = new Float64Array(this.model.layers * this.model.units[unit].per_layer);
    for (const [name, weight] of Object.entries(used)) {
      const part = this.model.arrays[`${unit}.${name}`];
      if (weight) for (let i = 0; i < scores.length; i++) scores[i] += (weight / total) * part[i];
    }
    this.scored = { unit, weights, scores };
    return scores;
  }

  /** plan.make_plan: how much is gained by keeping each unit; what a person pinned counts for more than all scores. */
  gains(choice) {
    const scores = this.scores(choice.unit, choice.weights);
    const { per_layer: width } = this.model.units[choice.unit];
    const gains = scores.map((score, i) => {
      const layer = Math.floor(i / width);
      return (choice.per_layer[layer] ?? choice.threshold) - score;
    });
    for (const [layer, index] of choice.pins.keep) gains[layer * width + index] = PINNED;
    for (const [layer, index] of choice.pins.drop) gains[layer * width + index] = -PINNED;
    for (const layer of choice.pins.protect) gains.fill(PINNED, layer * width, (layer + 1) * width);
    return gains;
  }

  /** The plan of a choice: per head whether it stays and whether the shape decided that; layers that go; figures. */
  plan(choice) {
    const { layers, heads } = this.model;
    const { per_layer: width, shapes } = this.model.units[choice.unit];
    const gains = this.gains(choice);
    const spread = heads / width;
    const wide =
      spread === 1 ? gains : Float64Array.from({ length: layers * heads }, (_, i) => gains[Math.floor(i / spread)]);
    const gone = new Uint8Array(layers);
    let keep = new Uint8Array(layers * heads);
    if (choice.uniform && shapes) keep = this.uniform(wide, shapes);
    else if (choice.unit === "head") {
      for (let layer = 0; layer < layers; layer++) {
        this.shapes.take(wide.subarray(layer * heads, (layer + 1) * heads));
        this.shapes.best(keep, layer * heads);
      }
    } else {
      for (let i = 0; i < keep.length; i++) keep[i] = wide[i] > 0;
      if (choice.unit === "layer") for (let layer = 0; layer < layers; layer++) gone[layer] = !(gains[layer] > 0);
    }
    const changed = keep.map((stays, i) => Boolean(stays) !== wide[i] > 0);
    return { keep, gone, changed, after: this.size(keep, gone), forecast: this.forecast(keep, gone) };
  }

  /** legal.uniform_heads: of `shapes`, one for all layers. */
  uniform(gains, shapes) {
    const { layers, heads } = this.model;
    const [values, perLayer] = [new Float64Array(shapes.length * layers), new Float64Array(heads)];
    this.kept ??= [];
    while (this.kept.length < shapes.length) this.kept.push(new Uint8Array(layers * heads));
    const { kept } = this;
    for (let layer = 0; layer < layers; layer++) {
      const row = gains.subarray(layer * heads, (layer + 1) * heads);
      this.shapes.take(row);
      shapes.forEach(([groups, perGroup], shape) => {
        this.shapes.mark(kept[shape], layer * heads, groups, perGroup);
        let count = 0;
        for (let head = 0; head < heads; head++) if (kept[shape][layer * heads + head]) perLayer[count++] = row[head];
        values[shape * layers + layer] = sum(perLayer, 0, count);
      });
    }
    let [best, found] = [-Infinity, 0];
    for (let shape = 0; shape < shapes.length; shape++) {
      const value = sum(values, shape * layers, layers);
      if (value > best) [best, found] = [value, shape];
    }
    return kept[found].slice();
  }

  /** project.size_of: what is left, by quantity. */
  size(keep, gone) {
    const { layers, heads, kv_heads, prices } = this.model;
    const group = heads / kv_heads;
    const after = Object.fromEntries(Object.entries(prices).map(([name, price]) => [name, price.fixed]));
    for (let layer = 0; layer < layers; layer++) {
      if (gone[layer]) continue;
      let [queries, keys, last] = [0, 0, -1];
      for (let head = 0; head < heads; head++) {
        if (!keep[layer * heads + head]) continue;
        queries++;
        const here = Math.floor(head / group);
        if (here !== last) keys++;
        last = here;
      }
      for (const [name, { rest, block, query, key }] of Object.entries(prices)) {
        after[name] += rest[layer] + (queries > 0) * block[layer] + queries * query[layer] + keys * key[layer];
      }
    }
    return after;
  }

  /** forecast.forecast: on the rows that did not choose the plan; null without a sketch. */
  forecast(keep, gone) {
    const { layers, heads, sketch, arrays } = this.model;
    if (!sketch) return null;
    for (let layer = 0; layer < layers; layer++) {
      let blockGoes = true;
      for (let head = 0; head < heads; head++) if (keep[layer * heads + head]) blockGoes = false;
      const first = layer * (heads + 2);
      for (let head = 0; head < heads; head++) this.column(first + head, !blockGoes && !keep[layer * heads + head]);
      this.column(first + heads, blockGoes);
      this.column(first + heads + 1, Boolean(gone[layer]));
    }
    const { rows, costs, drawn, below } = this;
    if (!this.removed.includes(1)) rows.fill(0); // what rounding left
    costs.fill(0);
    for (let row = 0; row < rows.length; row++) costs[arrays.sequences[row]] += 0.5 * rows[row] * rows[row];
    const count = costs.length;
    for (let draw = 0; draw < drawn.length; draw++) {
      let above = 0;
      for (let row = 0; row < count; row++) above += arrays.picks[draw * count + row] * costs[row];
      drawn[draw] = below[draw] > 0 ? above / below[draw] : 0;
    }
    const tokens = arrays.tokens.reduce((all, n) => all + n, 0);
    const value = tokens > 0 ? costs.reduce((all, cost) => all + cost, 0) / tokens : 0;
    const factor = correctionFactor(sketch.correction, value);
    const found = { nats_per_token: factor * value, low: null, high: null, sequences: count, factor };
    if (count < 2) return found;
    drawn.sort();
    const [low, high] = sketch.ends.map(
      (q) => factor * wider(quantile(drawn, q), value, sketch.correction?.spread ?? 0),
    );
    return { ...found, low, high };
  }

  /** Adds a column of the sketch to what is removed, or takes it back, where that changes. */
  column(index, goes) {
    if (Boolean(this.removed[index]) === goes) return;
    this.removed[index] = goes;
    const { rows } = this;
    const [start, sign] = [index * rows.length, goes ? 1 : -1];
    const { sketch } = this.model.arrays;
    for (let row = 0; row < rows.length; row++) rows[row] += sign * sketch[start + row];
  }
}

/** faithfulness.Correction.factor. */
function correctionFactor(correction, forecast) {
  if (!correction || forecast <= 0) return 1;
  const seen = Math.log(Math.min(Math.max(forecast, correction.smallest), correction.largest));
  return Math.exp(correction.intercept + correction.slope * seen + correction.curvature * seen ** 2);
}

/** forecast._wider. */
function wider(end, middle, spread) {
  if (!(end > 0) || end === middle) return end;
  const away = Math.log(end / middle);
  return middle * Math.exp(Math.sign(away) * Math.hypot(away, 1.96 * spread));
}

/** Python's plan in the form in which `Projector.plan` gives one. */
export function fromPython(model, { keep, changes, after, forecast }) {
  const { layers, heads } = model;
  const found = { keep: new Uint8Array(layers * heads), changed: new Uint8Array(layers * heads) };
  keep.forEach((kept, layer) => kept?.forEach((head) => (found.keep[layer * heads + head] = 1)));
  for (const { layer, head } of changes) found.changed[layer * heads + head] = 1;
  return { ...found, gone: Uint8Array.from(keep, (kept) => kept === null), after, forecast };
}

/** The same back as Python writes it. */
export function toPython(model, { keep, gone, changed, after, forecast }) {
  const { layers, heads } = model;
  const rows = Array.from({ length: layers }, (_, layer) => [...keep.subarray(layer * heads, (layer + 1) * heads)]);
  const changes = [];
  changed.forEach((is, i) => {
    if (is) changes.push({ layer: Math.floor(i / heads), head: i % heads, change: keep[i] ? "kept" : "removed" });
  });
  return {
    keep: rows.map((row, layer) => (gone[layer] ? null : row.flatMap((stays, head) => (stays ? [head] : [])))),
    changes,
    after,
    forecast,
  };
}
