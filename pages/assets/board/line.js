// @ts-check
// The histogram of scores, and the line that is dragged over it. Units that stay are solid, units that go are hatched.

const BINS = 50;
const END = 1.01; // beyond every score: nothing goes

class Line {
  // Fields without a value get theirs in `layout`, before anything else runs.
  /** @type {Theme} */
  theme;
  /** @type {CanvasPattern[]} */
  hatch;
  wide = 0; // pixels
  high = 0; // pixels
  value = 0; // where the line stands

  /**
   * Calls `on.drag(value)` while the line moves and `on.drop()` when it is let go.
   * @param {HTMLElement} root
   * @param {{ drag: (value: number) => void, drop: (delay?: number) => void }} on
   */
  constructor(root, on) {
    this.on = on;
    this.plot = find(root, ".plot", HTMLElement);
    this.canvas = find(root, ".bars", HTMLCanvasElement);
    this.rule = find(root, ".rule", HTMLElement);
    this.other = find(root, ".other", HTMLElement);
    this.bubble = find(this.rule, ".value", HTMLElement);
    this.context = contextOf(this.canvas);
    this.listen();
  }

  /** @param {Theme} theme */
  layout(theme) {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.plot.getBoundingClientRect();
    this.theme = theme;
    this.wide = width;
    this.high = height;
    this.hatch = hatching(this.context, theme.ink, ratio);
    Object.assign(this.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  /**
   * Draws the counts of units that stay and that go, and a tick for each unit of the `selected` layer.
   * @param {Model} model
   * @param {BoardState} choice
   * @param {Result} result
   * @param {Float64Array} scores
   * @param {number | null} selected
   */
  draw(model, choice, result, scores, selected) {
    const width = model.units[choice.unit].per_layer;
    const spread = model.heads / width;
    const [stay, go] = [new Uint16Array(BINS), new Uint16Array(BINS)];
    for (let i = 0; i < scores.length; i++) {
      const layer = Math.floor(i / width);
      const stays = result.keep[layer * model.heads + (i % width) * spread];
      (stays ? stay : go)[Math.min(BINS - 1, Math.floor(scores[i] * BINS))]++;
    }
    let most = 1;
    for (let bin = 0; bin < BINS; bin++) most = Math.max(most, stay[bin] + go[bin]);
    const { context, theme, wide, high } = this;
    const [floor, step] = [high - 10, wide / END / BINS];
    context.clearRect(0, 0, wide, high);
    for (let bin = 0; bin < BINS; bin++) {
      const tall = ((floor - 26) * stay[bin]) / most;
      const hatched = ((floor - 26) * go[bin]) / most;
      const [x, bar] = [bin * step, Math.max(1, step - 1)];
      context.fillStyle = theme.ramp[Math.round(((bin + 0.5) / BINS) * (theme.ramp.length - 1))];
      context.fillRect(x, floor - tall, bar, tall);
      context.globalAlpha = 0.25;
      context.fillRect(x, floor - tall - hatched, bar, hatched);
      context.globalAlpha = 1;
      context.fillStyle = this.hatch[0];
      context.fillRect(x, floor - tall - hatched, bar, hatched);
    }
    context.fillStyle = theme.line;
    context.fillRect(0, floor, wide, 1);
    context.fillStyle = theme.ink;
    if (selected !== null) {
      for (let i = selected * width; i < (selected + 1) * width; i++) {
        context.fillRect((scores[i] / END) * wide - 0.75, floor + 3, 1.5, 7);
      }
    }
    const own = selected === null ? undefined : choice.per_layer[selected];
    this.place(own ?? choice.threshold);
    this.other.hidden = own === undefined;
    this.other.style.left = `${(Math.min(choice.threshold, END) / END) * 100}%`;
  }

  /** @param {number} value */
  place(value) {
    this.value = value;
    const [share, words] = [Math.min(value, END) / END, value.toFixed(value * 100 === Math.round(value * 100) ? 2 : 3)];
    this.rule.style.left = `${share * 100}%`;
    this.rule.setAttribute("aria-valuenow", String(value));
    this.rule.setAttribute("aria-valuetext", `${words}: what scores this much or more goes`);
    this.bubble.textContent = words;
    this.bubble.style.transform = `translateX(${-share * 100}%)`;
  }

  listen() {
    let [held, pressed] = [false, false];
    /** @param {PointerEvent} event */
    const move = (event) => {
      const { left, width } = this.plot.getBoundingClientRect();
      this.on.drag(rounded(((event.clientX - left) / width) * END));
    };
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      held = true;
      this.plot.setPointerCapture(event.pointerId);
      this.plot.classList.add("held");
      event.preventDefault();
      this.rule.focus({ preventScroll: true });
      move(event);
    });
    this.plot.addEventListener("pointermove", (event) => held && move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.plot.addEventListener(end, () => {
        if (!held) return;
        held = false;
        this.plot.classList.remove("held");
        this.on.drop();
      });
    }
    this.rule.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 0.05 : 0.01;
      /** @type {Record<string, number>} */
      const moves = {
        ArrowLeft: this.value - step,
        ArrowDown: this.value - step,
        ArrowRight: this.value + step,
        ArrowUp: this.value + step,
        PageDown: this.value - 0.1,
        PageUp: this.value + 0.1,
        Home: 0,
        End: END,
      };
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.value = rounded(moves[event.key]); // the next key may come before the next frame
      this.on.drag(this.value);
      pressed = true;
    });
    for (const end of ["keyup", "blur"]) {
      this.rule.addEventListener(end, () => {
        if (pressed) this.on.drop(300);
        pressed = false;
      });
    }
  }
}

/** @param {number} value */
function rounded(value) {
  return Math.round(Math.max(0, Math.min(END, value)) * 1000) / 1000;
}
