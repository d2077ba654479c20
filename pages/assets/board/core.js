// @ts-check
// The numbers of the board: what scores.py and forecast.py in slim/calibration and threshold.py, shapes.py and sizes.py
// in slim/planning compute, computed again while the line is dragged. Python is right where the two differ, and a test
// holds them to the same numbers, exact ties included: costs are integers, whose sums are exact in any order. Nothing
// here knows the page.

/**
 * The data that the scripts of the board hand to each other.
 *
 * @typedef {"head" | "group" | "block" | "layer"} Unit
 * @typedef {[layer: number, index: number]} Place of a unit
 * @typedef {[groups: number, perGroup: number]} Shape of a layer: KV groups that stay, query heads in each
 * @typedef {"parameters" | "bytes" | "kv_bytes_per_token" | "flops_per_token" | "bytes_read_per_token"} SizeName
 * @typedef {Record<SizeName, number>} Size
 *
 * @typedef {object} BoardState The settings on the board: BoardState of slim/planning/board_choice.py.
 * @property {Unit} unit
 * @property {number} threshold
 * @property {Record<string, number>} weights by metric
 * @property {{ [layer: number]: number | undefined }} per_layer thresholds of their own
 * @property {{ keep: Place[], drop: Place[], protect: number[] }} pins
 * @property {boolean} uniform
 *
 * @typedef {object} Model A payload of slim/planning/board.py.
 * @property {number} layers
 * @property {number} heads in each layer
 * @property {number} kv_heads in each layer
 * @property {Record<Unit, UnitFacts>} units
 * @property {number} weight_steps the largest whole number that a weight is taken as
 * @property {number} threshold the largest; one beyond it asks for the same
 * @property {number} pinned the cost of a pinned unit, in times the highest score
 * @property {Record<SizeName, SizeModel>} sizes
 * @property {Quantity[]} quantities that have a card, in their order
 * @property {Size} before
 * @property {number} ruinous nats/token
 * @property {Sketch | null} sketch
 * @property {Arrays} arrays
 *
 * @typedef {object} UnitFacts Where it cannot be removed, all from `highest` on is missing.
 * @property {string} title
 * @property {string} noun
 * @property {number} per_layer
 * @property {boolean} single whether a layer has one
 * @property {boolean} whole_layers whether the MLP goes with it
 * @property {string | null} why_not
 * @property {number} highest rank, doubled
 * @property {BoardState} first
 * @property {{ name: string, title: string }[]} metrics
 * @property {number[]} per_group query heads that a KV group may keep
 * @property {Shape[] | null} shapes
 * @property {string | null} why_not_uniform
 *
 * @typedef {object} SizeModel SizeModel of slim/planning/sizes.py; lists are by layer.
 * @property {number} fixed
 * @property {number[]} rest
 * @property {number[]} block
 * @property {number[]} query
 * @property {number[]} key
 *
 * @typedef {object} Quantity Quantity of slim/planning/quantities.py.
 * @property {string} name
 * @property {string} title
 * @property {SizeName} field
 * @property {Scale[]} scales
 * @property {boolean} faster
 * @property {string} about
 *
 * @typedef {{ above: number, factor: number, unit: string, digits: number }} Scale
 *
 * @typedef {object} Sketch
 * @property {number} rows
 * @property {number} sequences that are here
 * @property {number} of so many
 * @property {[low: number, high: number]} ends
 * @property {Correction | null} correction
 *
 * @typedef {object} Correction
 * @property {number} intercept
 * @property {number} slope
 * @property {number} curvature
 * @property {number} smallest
 * @property {number} largest
 * @property {number} spread
 *
 * @typedef {Float64Array | Float32Array | Int32Array | Uint32Array | Uint16Array} Numbers
 * @typedef {{ [metric: `${Unit}.${string}`]: Int32Array } & SketchArrays} Arrays doubled ranks by metric
 * @typedef {{ sketch: Float32Array, sequences: Uint32Array, tokens: Float64Array, picks: Uint16Array }} SketchArrays
 * @typedef {{ type: string, at: number, length: number }} ArrayPlace
 *
 * @typedef {object} Ranks Of each unit, layer by layer.
 * @property {Unit} unit
 * @property {BoardState["weights"]} weights
 * @property {Float64Array} total in parts of `whole`
 * @property {number} whole
 * @property {Float64Array} scores 0..1
 *
 * @typedef {object} Result Of each head 1 or 0: whether it stays, whether the shape decided that.
 * @property {Uint8Array} keep
 * @property {Uint8Array} changed
 * @property {Uint8Array} gone of each layer
 * @property {Size} after
 * @property {Forecast | null} forecast
 *
 * @typedef {object} Outcome The same as Python writes it.
 * @property {LayerKeep[]} keep
 * @property {{ layer: number, head: number, change: "kept" | "removed" }[]} changes
 * @property {Size} after
 * @property {Forecast | null} forecast
 *
 * @typedef {{ layer: boolean, heads: number[], channels: "all" | number[] }} LayerKeep
 *
 * @typedef {object} Forecast
 * @property {number} nats_per_token
 * @property {number | null} low
 * @property {number | null} high
 * @property {number} sequences
 * @property {number} factor
 */

/** @type {Record<string, new (buffer: ArrayBuffer, at: number, length: number) => Numbers>} */
const KINDS = {
  float64: Float64Array,
  float32: Float32Array,
  int32: Int32Array,
  uint32: Uint32Array,
  uint16: Uint16Array,
};

/**
 * The id of a payload of slim/planning/board.py.
 * @param {Uint8Array} bytes
 */
function idOf(bytes) {
  return new TextDecoder().decode(bytes.subarray(0, 16));
}

/**
 * A payload's header, with typed arrays in the place of their descriptions.
 * @param {Uint8Array} bytes
 * @returns {Model}
 */
function unpack(bytes) {
  const copy = bytes.slice(); // a view into a message need not be aligned
  const body = 20 + new DataView(copy.buffer).getUint32(16, true);
  /** @type {Omit<Model, "arrays"> & { arrays: Record<string, ArrayPlace> }} */
  const header = JSON.parse(new TextDecoder().decode(copy.subarray(20, body)));
  /** @type {Record<string, Numbers>} */
  const arrays = {};
  for (const [name, { type, at, length }] of Object.entries(header.arrays)) {
    arrays[name] = new KINDS[type](copy.buffer, body + at, length);
  }
  return { ...header, arrays: /** @type {Arrays} */ (arrays) };
}

/**
 * Sorts `order[from, from + count)` by rising `values`, ties by what stood first.
 * @param {Uint16Array} order
 * @param {number} from
 * @param {number} count
 * @param {Float64Array} values
 */
function sortRising(order, from, count, values) {
  for (let i = from + 1; i < from + count; i++) {
    const item = order[i];
    const value = values[item];
    let j = i - 1;
    for (; j >= from && values[order[j]] > value; j--) order[j + 1] = order[j];
    order[j + 1] = item;
  }
}

/**
 * numpy's linear quantile of sorted values.
 * @param {Float64Array} sorted
 * @param {number} q
 */
function quantile(sorted, q) {
  const place = q * (sorted.length - 1);
  const low = Math.floor(place);
  const [a, b, t] = [sorted[low], sorted[Math.min(low + 1, sorted.length - 1)], place - low];
  return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
}

/**
 * scores.weight_parts: weights as whole numbers, of which none is above `steps`.
 * @param {number[]} weights
 * @param {number} steps
 */
function weightParts(weights, steps) {
  const largest = Math.max(...weights);
  for (let scale = 1; largest * scale <= steps; scale *= 10) {
    const parts = weights.map((weight) => Math.round(weight * scale));
    if (parts.every((part, i) => part / scale === weights[i])) return parts;
  }
  return weights.map((weight) => Math.floor((weight / largest) * steps + 0.5));
}

/**
 * shapes.in_parts: a threshold in parts of `whole`, the very integer where it is the score of one.
 * @param {number} threshold
 * @param {number} whole
 */
function inParts(threshold, whole) {
  const parts = threshold * whole;
  const nearest = Math.round(parts);
  return nearest / whole === threshold ? nearest : parts;
}

/** The valid shapes of layers with `groups` KV heads of `width` query heads each; one layer's costs at a time. */
class Shapes {
  /**
   * @param {number} groups
   * @param {number} width
   */
  constructor(groups, width) {
    this.groups = groups;
    this.width = width;
    this.order = new Uint16Array(groups * width); // heads by rising cost within their group
    this.sums = Array.from({ length: width + 1 }, () => new Float64Array(groups)); // of the first p heads, by p
    this.byGroup = new Uint16Array(groups);
  }

  /**
   * Takes the costs of a layer, (H,).
   * @param {Float64Array} costs
   */
  take(costs) {
    const { groups, width, order, sums } = this;
    for (let head = 0; head < groups * width; head++) order[head] = head;
    for (let group = 0; group < groups; group++) {
      sortRising(order, group * width, width, costs);
      for (let p = 1; p <= width; p++) sums[p][group] = sums[p - 1][group] + costs[order[group * width + p - 1]];
    }
  }

  /**
   * shapes.valid_heads: marks in `keep`, from `at` on, the set with the largest sum of margins.
   * @param {Uint8Array} keep
   * @param {number} at
   * @param {number} threshold
   * @param {number[]} perGroups
   */
  best(keep, at, threshold, perGroups) {
    let [most, groups, perGroup] = [0, 0, 0];
    for (const p of perGroups) {
      let [count, spent] = [0, 0];
      for (const cost of this.sums[p]) {
        if (threshold * p > cost) {
          count++;
          spent += cost;
        }
      }
      const value = threshold * (count * p) - spent;
      if (value > most) [most, groups, perGroup] = [value, count, p];
    }
    this.mark(keep, at, groups, perGroup);
  }

  /**
   * shapes.best_set: the same for a set with `perGroup` heads in exactly `groups` groups.
   * @param {Uint8Array} keep
   * @param {number} at
   * @param {number} groups
   * @param {number} perGroup
   */
  mark(keep, at, groups, perGroup) {
    keep.fill(0, at, at + this.groups * this.width);
    for (let group = 0; group < this.groups; group++) this.byGroup[group] = group;
    sortRising(this.byGroup, 0, this.groups, this.sums[perGroup]);
    for (let i = 0; i < groups; i++) {
      const first = this.byGroup[i] * this.width;
      for (let j = first; j < first + perGroup; j++) keep[at + this.order[j]] = 1;
    }
  }
}

/** Sizes and forecast loss of board states, with only what changed since the last one added up anew. */
class Projector {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    /** @type {Uint8Array[]} */
    this.kept = []; // by shape, of uniform()
    /** @type {Ranks | null} */
    this.ranked = null; // the last ones
    this.shapes = new Shapes(model.kv_heads, model.heads / model.kv_heads);
    if (model.sketch) {
      const { picks, tokens } = model.arrays;
      const count = tokens.length;
      /** @type {Float64Array} */
      this.rows = new Float64Array(model.sketch.rows); // Σ of the removed columns
      /** @type {Uint8Array} */
      this.removed = new Uint8Array(model.layers * (model.heads + 2));
      /** @type {Float64Array} */
      this.costs = new Float64Array(count);
      /** @type {Float64Array} */
      this.drawn = new Float64Array(picks.length / count);
      /** @type {Float64Array} */
      this.below = this.drawn.map((_, draw) => tokens.reduce((all, n, row) => all + picks[draw * count + row] * n, 0));
    }
  }

  /**
   * scores.weighted_ranks: the total of each unit in parts of `whole`, layer by layer, and the scores 0..1.
   * @param {Unit} unit
   * @param {BoardState["weights"]} weights
   * @returns {Ranks}
   */
  ranks(unit, weights) {
    if (this.ranked?.unit === unit && this.ranked.weights === weights) return this.ranked;
    const { first, highest, per_layer: width } = this.model.units[unit];
    const used = Object.values(weights).some((weight) => weight > 0) ? weights : first.weights;
    const parts = weightParts(Object.values(used), this.model.weight_steps);
    const total = new Float64Array(this.model.layers * width);
    Object.keys(used).forEach((name, at) => {
      const ranks = this.model.arrays[`${unit}.${name}`];
      for (let i = 0; i < total.length; i++) total[i] += parts[at] * ranks[i];
    });
    const whole = parts.reduce((all, part) => all + part, 0) * highest;
    this.ranked = { unit, weights, total, whole, scores: total.map((value) => value / whole) };
    return this.ranked;
  }

  /**
   * The scores of each unit, layer by layer.
   * @param {Unit} unit
   * @param {BoardState["weights"]} weights
   */
  scores(unit, weights) {
    return this.ranks(unit, weights).scores;
  }

  /**
   * threshold.plan_by_threshold: the cost of keeping each unit; a pinned one costs more, or less, than all others.
   * @param {BoardState} choice
   */
  unitCosts(choice) {
    const { total, whole } = this.ranks(choice.unit, choice.weights);
    const { per_layer: width } = this.model.units[choice.unit];
    const pinned = this.model.pinned * whole;
    const costs = total.slice();
    for (const [layer, index] of choice.pins.keep) costs[layer * width + index] = -pinned;
    for (const [layer, index] of choice.pins.drop) costs[layer * width + index] = pinned;
    for (const layer of choice.pins.protect) costs.fill(-pinned, layer * width, (layer + 1) * width);
    return costs;
  }

  /**
   * The threshold of each layer, in the parts that costs are in.
   * @param {BoardState} choice
   */
  thresholds(choice) {
    const { whole } = this.ranks(choice.unit, choice.weights);
    return Float64Array.from({ length: this.model.layers }, (_, layer) =>
      inParts(Math.min(choice.per_layer[layer] ?? choice.threshold, this.model.threshold), whole),
    );
  }

  /**
   * The plan of a board state: of each head whether it stays and whether the shape decided that; layers that go; figures.
   * @param {BoardState} choice
   * @returns {Result}
   */
  plan(choice) {
    const { layers, heads } = this.model;
    const { per_layer: width, per_group, shapes, whole_layers } = this.model.units[choice.unit];
    const [costs, thresholds, spread] = [this.unitCosts(choice), this.thresholds(choice), heads / width];
    const wide =
      spread === 1 ? costs : Float64Array.from({ length: layers * heads }, (_, i) => costs[Math.floor(i / spread)]);
    const gone = new Uint8Array(layers);
    let keep = new Uint8Array(layers * heads);
    if (choice.uniform && shapes) keep = this.uniform(wide, thresholds, shapes);
    else {
      for (let layer = 0; layer < layers; layer++) {
        this.shapes.take(wide.subarray(layer * heads, (layer + 1) * heads));
        this.shapes.best(keep, layer * heads, thresholds[layer], per_group);
        if (whole_layers) gone[layer] = keep[layer * heads] ? 0 : 1;
      }
    }
    const changed = keep.map((stays, i) => {
      const wanted = thresholds[Math.floor(i / heads)] > wide[i];
      return Boolean(stays) === wanted ? 0 : 1;
    });
    return { keep, gone, changed, after: this.size(keep, gone), forecast: this.forecast(keep, gone) };
  }

  /**
   * shapes.uniform_heads: of `shapes`, one for all layers.
   * @param {Float64Array} costs
   * @param {Float64Array} thresholds
   * @param {Shape[]} shapes
   */
  uniform(costs, thresholds, shapes) {
    const { layers, heads } = this.model;
    const spent = new Float64Array(shapes.length);
    while (this.kept.length < shapes.length) this.kept.push(new Uint8Array(layers * heads));
    const { kept } = this;
    for (let layer = 0; layer < layers; layer++) {
      this.shapes.take(costs.subarray(layer * heads, (layer + 1) * heads));
      shapes.forEach(([groups, perGroup], shape) => {
        this.shapes.mark(kept[shape], layer * heads, groups, perGroup);
        for (let i = layer * heads; i < (layer + 1) * heads; i++) if (kept[shape][i]) spent[shape] += costs[i];
      });
    }
    const together = thresholds.reduce((all, threshold) => all + threshold, 0);
    let [best, found] = [-Infinity, 0];
    shapes.forEach(([groups, perGroup], shape) => {
      const value = together * (groups * perGroup) - spent[shape];
      if (value > best) [best, found] = [value, shape];
    });
    return kept[found].slice();
  }

  /**
   * sizes.size_by: the sizes after pruning, by field of Size.
   * @param {Uint8Array} keep
   * @param {Uint8Array} gone
   */
  size(keep, gone) {
    const { layers, heads, kv_heads, sizes } = this.model;
    const group = heads / kv_heads;
    const models = /** @type {[SizeName, SizeModel][]} */ (Object.entries(sizes));
    const after = /** @type {Size} */ (Object.fromEntries(models.map(([name, { fixed }]) => [name, fixed])));
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
      for (const [name, { rest, block, query, key }] of models) {
        after[name] += rest[layer] + (queries > 0 ? block[layer] : 0) + queries * query[layer] + keys * key[layer];
      }
    }
    return after;
  }

  /**
   * forecast.forecast: on the held-out fold; null without a sketch.
   * @param {Uint8Array} keep
   * @param {Uint8Array} gone
   * @returns {Forecast | null}
   */
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
    if (!this.removed.includes(1)) rows.fill(0); // clears rounding errors
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

  /**
   * Adds a column of the sketch to what is removed, or takes it back, where that changes.
   * @param {number} index
   * @param {boolean} goes
   */
  column(index, goes) {
    if (Boolean(this.removed[index]) === goes) return;
    this.removed[index] = goes ? 1 : 0;
    const { rows } = this;
    const [start, sign] = [index * rows.length, goes ? 1 : -1];
    const { sketch } = this.model.arrays;
    for (let row = 0; row < rows.length; row++) rows[row] += sign * sketch[start + row];
  }
}

/**
 * check_record.Correction.factor.
 * @param {Correction | null} correction
 * @param {number} forecast
 */
function correctionFactor(correction, forecast) {
  if (!correction || forecast <= 0) return 1;
  const seen = Math.log(Math.min(Math.max(forecast, correction.smallest), correction.largest));
  return Math.exp(correction.intercept + correction.slope * seen + correction.curvature * seen ** 2);
}

/**
 * forecast._wider.
 * @param {number} end
 * @param {number} middle
 * @param {number} spread
 */
function wider(end, middle, spread) {
  if (!(end > 0) || end === middle) return end;
  const away = Math.log(end / middle);
  return middle * Math.exp(Math.sign(away) * Math.hypot(away, 1.96 * spread));
}

/**
 * Python's plan in the form in which `Projector.plan` gives one.
 * @param {Model} model
 * @param {Outcome} outcome
 * @returns {Result}
 */
function fromPython(model, { keep, changes, after, forecast }) {
  const { layers, heads } = model;
  const found = { keep: new Uint8Array(layers * heads), changed: new Uint8Array(layers * heads) };
  keep.forEach((kept, layer) => kept.heads.forEach((head) => (found.keep[layer * heads + head] = 1)));
  for (const { layer, head } of changes) found.changed[layer * heads + head] = 1;
  return { ...found, gone: Uint8Array.from(keep, (kept) => (kept.layer ? 0 : 1)), after, forecast };
}

/**
 * The same back as Python writes it.
 * @param {Model} model
 * @param {Result} result
 * @returns {Outcome}
 */
function toPython(model, { keep, gone, changed, after, forecast }) {
  const { layers, heads } = model;
  const rows = Array.from({ length: layers }, (_, layer) => [...keep.subarray(layer * heads, (layer + 1) * heads)]);
  /** @type {Outcome["changes"]} */
  const changes = [];
  changed.forEach((is, i) => {
    if (is) changes.push({ layer: Math.floor(i / heads), head: i % heads, change: keep[i] ? "kept" : "removed" });
  });
  return {
    keep: rows.map((row, layer) => ({
      layer: !gone[layer],
      heads: row.flatMap((stays, head) => (stays ? [head] : [])),
      channels: "all",
    })),
    changes,
    after,
    forecast,
  };
}
