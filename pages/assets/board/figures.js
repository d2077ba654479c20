// @ts-check
// The preview beside the map, and a sentence about the removals.

/**
 * @param {number} value
 * @param {number} digits
 */
const fixed = (value, digits) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/**
 * quantities.Quantity.words: a number as it is shown.
 * @param {Scale[]} scales by rising `above`, from 0 on
 * @param {number} value
 */
function inScale(scales, value) {
  const { factor, digits, unit } = /** @type {Scale} */ (scales.findLast(({ above }) => value >= above));
  return `${fixed(value / factor, digits)} ${unit}`.trim();
}

const SCALE = [Math.log(0.001), Math.log(10)]; // nats/token that the track runs over

class Figures {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.list = find(root, ".figures", HTMLElement);
    this.words = find(root, ".words", HTMLElement);
    this.track = find(root, ".track", HTMLElement);
  }

  /**
   * Takes another model: a card for each quantity, before that of the loss.
   * @param {Model} model
   */
  take(model) {
    for (const card of this.list.querySelectorAll(".card:not(.loss)")) card.remove();
    this.list.insertAdjacentHTML(
      "afterbegin",
      model.quantities
        .map(
          (quantity) =>
            `<div class="card" data-figure="${figureOf(quantity)}" title="${quantity.about}">` +
            `<dt>${quantity.title}</dt><dd class="value"></dd><dd class="change"></dd></div>`,
        )
        .join(""),
    );
  }

  /**
   * @param {Model} model
   * @param {Result} result
   */
  draw(model, result) {
    const { before } = model;
    for (const quantity of model.quantities) {
      const { field, scales, faster } = quantity;
      const [was, now] = [before[field], result.after[field]];
      if (faster) {
        const times = `${fixed(was / now, 2)}×`;
        this.set(figureOf(quantity), was / now, times, "times as fast, at most", was > now ? "good" : "");
        continue;
      }
      const change = was ? now / was - 1 : 0;
      const sign = change < 0 ? "−" : "";
      const share = `${sign}${fixed(Math.abs(change) * 100, 1)}% of ${inScale(scales, was)}`;
      this.set(figureOf(quantity), now, inScale(scales, now), share, change < 0 ? "good" : "");
    }
    this.drawLoss(model, result.forecast);
    this.words.textContent = inWords(model, result);
    this.words.classList.toggle("alarm", !result.keep.includes(1));
  }

  /**
   * @param {Model} model
   * @param {Forecast | null} forecast
   */
  drawLoss(model, forecast) {
    this.track.hidden = !forecast;
    if (!forecast || !model.sketch) {
      this.set("loss", "", "unknown", "this calibration was made without KL, so it has no loss sketch", "");
      return;
    }
    const { nats_per_token: nats, low, high } = forecast;
    const interval =
      low === null || high === null ? "one row, no interval" : `95%: ${fixed(low, 3)} to ${fixed(high, 3)}`;
    const rough = forecast.sequences < model.sketch.of ? " · rough until you let go" : "";
    const perplexity = `perplexity × ${fixed(Math.exp(Math.min(nats, 50)), 2)}`;
    this.set(
      "loss",
      nats,
      `${fixed(nats, 3)} nats/token`,
      `${interval} · ${perplexity}${rough}`,
      nats >= model.ruinous ? "alarm" : "",
    );
    this.card("loss").dataset.low = String(low ?? "");
    this.card("loss").dataset.high = String(high ?? "");
    /** @param {number} value */
    const at = (value) => `${Math.max(0, Math.min(1, (Math.log(value) - SCALE[0]) / (SCALE[1] - SCALE[0]))) * 100}%`;
    this.track.style.setProperty("--at", at(nats));
    this.track.style.setProperty("--low", at(low ?? nats));
    this.track.style.setProperty("--high", at(high ?? nats));
  }

  /** @param {string} name */
  card(name) {
    return find(this.list, `[data-figure=${name}]`, HTMLElement);
  }

  /**
   * @param {string} name
   * @param {number | ""} value
   * @param {string} words
   * @param {string} change in words
   * @param {"good" | "alarm" | ""} kind
   */
  set(name, value, words, change, kind) {
    const card = this.card(name);
    card.dataset.value = String(value);
    card.dataset.kind = kind;
    find(card, ".value", HTMLElement).textContent = words;
    find(card, ".change", HTMLElement).textContent = change;
  }
}

/**
 * The name of a quantity's card: two speeds may share the field of a size.
 * @param {Quantity} quantity
 */
function figureOf({ name, field, faster }) {
  return faster ? name : field;
}

/**
 * A sentence about the removals.
 * @param {Model} model
 * @param {Result} result
 */
function inWords(model, { keep, gone, changed }) {
  const { layers, heads } = model;
  if (!keep.includes(1)) return "Every attention block would go, and the last one cannot. Keep something.";
  const [total, stay] = [layers * heads, keep.reduce((all, is) => all + is, 0)];
  const out = gone.reduce((all, is) => all + is, 0);
  let blocks = -out;
  for (let layer = 0; layer < layers; layer++) {
    if (!keep.subarray(layer * heads, (layer + 1) * heads).includes(1)) blocks++;
  }
  const words = [`${fixed(total - stay, 0)} of ${fixed(total, 0)} heads go`];
  if (blocks) words.push(`${blocks} of ${layers} attention blocks with all of theirs`);
  if (out) words.push(`${out} of ${layers} layers, MLP and all`);
  const kept = changed.reduce((all, is, i) => all + (is && keep[i]), 0);
  const more = changed.reduce((all, is) => all + is, 0) - kept;
  if (kept + more)
    words.push(`valid shapes keep ${kept} more heads and remove ${more} more than the threshold asks for`);
  return `${words.join("; ")}.`;
}
