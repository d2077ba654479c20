// The projection beside the map, and in words what goes.

const fixed = (value, digits) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const scaled = (value, unit) =>
  value < 1e10 ? `${fixed(value / 1e6, 1)} M${unit}` : `${fixed(value / 1e9, 1)} ${unit ? "G" : "B"}${unit}`;
const SIZES = {
  parameters: (value) => scaled(value, ""),
  bytes: (value) => scaled(value, "B"),
  kv_bytes_per_token: (value) => `${fixed(value / 1024, 1)} KiB`,
  flops_per_token: (value) => `${fixed(value / 1e9, value < 1e10 ? 3 : 1)} GFLOP`,
};
const SPEEDS = { prefill: "flops_per_token", decode: "bytes_read_per_token" };
const SCALE = [Math.log(0.001), Math.log(10)]; // nats/token that the track runs over

class Figures {
  constructor(root) {
    this.cards = Object.fromEntries(
      [...root.querySelectorAll("[data-figure]")].map((card) => [card.dataset.figure, card]),
    );
    this.words = root.querySelector(".words");
    this.track = root.querySelector(".track");
  }

  draw(model, choice, result) {
    const { before } = model;
    for (const [name, words] of Object.entries(SIZES)) {
      const [was, now] = [before[name], result.after[name]];
      const change = was ? now / was - 1 : 0;
      const sign = change < 0 ? "−" : "";
      this.set(
        name,
        now,
        words(now),
        `${sign}${fixed(Math.abs(change) * 100, 1)}% of ${words(was)}`,
        change < 0 ? "good" : "",
      );
    }
    for (const [name, quantity] of Object.entries(SPEEDS)) {
      const faster = before[quantity] / result.after[quantity];
      this.set(name, faster, `${fixed(faster, 2)}×`, "times as fast, at most", faster > 1 ? "good" : "");
    }
    this.drawLoss(model, result.forecast);
    this.words.textContent = inWords(model, result);
    this.words.classList.toggle("alarm", !result.keep.includes(1));
  }

  drawLoss(model, forecast) {
    this.track.hidden = !forecast;
    if (!forecast) {
      this.set("loss", "", "unknown", "this calibration was made without KL, so it has no loss sketch", "");
      return;
    }
    const { nats_per_token: nats, low, high } = forecast;
    const interval = low === null ? "one row, no interval" : `95%: ${fixed(low, 3)} to ${fixed(high, 3)}`;
    const rough = forecast.sequences < model.sketch.of ? " · rough until you let go" : "";
    const perplexity = `perplexity × ${fixed(Math.exp(Math.min(nats, 50)), 2)}`;
    this.set(
      "loss",
      nats,
      `${fixed(nats, 3)} nats/token`,
      `${interval} · ${perplexity}${rough}`,
      nats >= model.ruinous ? "alarm" : "",
    );
    this.cards.loss.dataset.low = low ?? "";
    this.cards.loss.dataset.high = high ?? "";
    const at = (value) => `${Math.max(0, Math.min(1, (Math.log(value) - SCALE[0]) / (SCALE[1] - SCALE[0]))) * 100}%`;
    this.track.style.setProperty("--at", at(nats));
    this.track.style.setProperty("--low", at(low ?? nats));
    this.track.style.setProperty("--high", at(high ?? nats));
  }

  set(name, value, words, change, kind) {
    const card = this.cards[name];
    card.dataset.value = value;
    card.dataset.kind = kind;
    card.querySelector(".value").textContent = words;
    card.querySelector(".change").textContent = change;
  }
}

/** A sentence for what goes. */
function inWords(model, { keep, gone, changed }) {
  const { layers, heads } = model;
  if (!keep.includes(1)) return "Every attention block would go, and the last one cannot. Keep something.";
  const [total, stay] = [layers * heads, keep.reduce((all, is) => all + is, 0)];
  const out = gone.reduce((all, is) => all + is, 0);
  let blocks = -out;
  for (let layer = 0; layer < layers; layer++) blocks += !keep.subarray(layer * heads, (layer + 1) * heads).includes(1);
  const words = [`${fixed(total - stay, 0)} of ${fixed(total, 0)} heads go`];
  if (blocks) words.push(`${blocks} of ${layers} attention blocks with all of theirs`);
  if (out) words.push(`${out} of ${layers} layers, MLP and all`);
  const kept = changed.reduce((all, is, i) => all + (is && keep[i]), 0);
  const more = changed.reduce((all, is) => all + is, 0) - kept;
  if (kept + more)
    words.push(`to keep every layer's shape legal, ${kept} more stay and ${more} more go than was asked for`);
  return `${words.join("; ")}.`;
}
