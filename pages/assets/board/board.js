// @ts-check
// The board: holds its state with its history, draws it while it changes, and hands it to Python on release.

/**
 * @typedef {object} Received The data that pages/views/board.py sends with every run of the page.
 * @property {string} payload the id of the numbers
 * @property {number} edit of which `choice` is
 * @property {number} version which rises where the browser has to take over `choice`
 * @property {BoardState} choice
 * @property {Outcome | null} plan
 *
 * @typedef {(name: string, value: unknown) => void} Send Streamlit's setStateValue
 */

/** @type {Map<string, Model>} */
const MODELS = new Map(); // by payload id
/** @type {Map<ParentNode, Board>} */
const BOARDS = new Map(); // by the element Streamlit gives
const KNOWN = 3; // payloads kept in memory
const NARROW = 860; // pixels below which the map stands under the figures

class Board {
  // Fields without a value get theirs in `receive`, before anything else runs.
  /** @type {Received} */
  data;
  /** @type {Send} */
  send;
  /** @type {Model} */
  model;
  /** @type {Projector} */
  projector;
  payload = "";
  version = 0;
  /** @type {HTMLButtonElement[]} */
  units = []; // in the order of the model's
  /** @type {BoardState} */
  choice;
  /** @type {Result} */
  result;
  edit = 0;
  moving = false; // between the first change and the release
  /** @type {BoardState[]} */
  history = [];
  at = -1; // the choice's place in it
  /** @type {Partial<Record<Unit, { weights: BoardState["weights"], keep: Place[], drop: Place[] }>>} */
  shelf = {};
  /** @type {number | null} */
  selected = null; // the layer whose own threshold is set
  /** @type {Cell | null} */
  tipped = null; // which the pointer is over
  /** @type {number | null} */
  frame = null; // in which the choice is to be shown
  /** @type {number | undefined} */
  timer; // until the choice is sent
  /** @type {number | null} */
  said = null; // the last edit that was read out
  /** @type {{ choice: BoardState, selected: number | null } | null} */
  shown = null; // in the controls

  /** @param {ParentNode} element */
  constructor(element) {
    this.root = find(element, ".board", HTMLElement);
    this.map = new HeadMap(this.root, {
      pin: (cells, first, to) => this.pin(cells, first, to),
      protect: (layer) => this.protect(layer),
      select: (layer) => this.select(layer === this.selected ? null : layer),
      hover: (cell, x, y) => this.tip(cell, x, y),
      moved: () => this.map.focus((cell) => this.describe(cell)),
    });
    this.line = new Line(this.root, { drag: (value) => this.threshold(value), drop: (delay) => this.commit(delay) });
    this.figures = new Figures(this.root);
    this.listen();
    this.watch = new ResizeObserver(() => this.model && this.layout());
    this.watch.observe(this.root);
  }

  /** @param {string} name */
  part(name) {
    return find(this.root, `.${name}`, HTMLElement);
  }

  /** @param {"undo" | "redo"} name */
  button(name) {
    return find(this.root, `.${name}`, HTMLButtonElement);
  }

  /** @param {"uniform" | "exact"} name */
  input(name) {
    return find(this.root, `.${name}`, HTMLInputElement);
  }

  /** The selected layer's own threshold; undefined where it has none, or none is selected. */
  own() {
    return this.selected === null ? undefined : this.choice.per_layer[this.selected];
  }

  /**
   * Takes the data that Python sends on mounting, after every release, and when the theme changes.
   * @param {Received} data
   * @param {Send} send
   */
  receive(data, send) {
    this.data = data;
    this.send = send;
    const model = MODELS.get(data.payload);
    if (!model) return;
    if (this.model !== model || this.version !== data.version) this.adopt(model, data);
    this.layout();
    if (data.edit === this.edit && !this.moving) this.settle();
  }

  /**
   * Replaces the state by Python's.
   * @param {Model} model
   * @param {Received} data
   */
  adopt(model, data) {
    if (this.model !== model) {
      this.model = model;
      this.name();
      this.projector = new Projector(model);
      this.history = [];
      this.at = -1;
      this.shelf = {};
      this.selected = null;
    }
    this.payload = data.payload;
    this.version = data.version;
    this.edit = data.edit;
    this.choice = data.choice;
    this.remember();
    this.rebuild();
    this.result = this.projector.plan(this.choice);
  }

  /** Shows Python's plan of exactly this state in place of the board's own. */
  settle() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.frame = null;
    this.result = this.data.plan ? fromPython(this.model, this.data.plan) : this.projector.plan(this.choice);
    this.draw();
    this.root.dataset.source = "plan";
    if (this.said !== this.edit) {
      this.said = this.edit;
      const loss = find(this.root, "[data-figure=loss] .value", HTMLElement).textContent;
      this.part("said").textContent = `${this.part("words").textContent} Forecast loss ${loss}.`;
    }
  }

  /** Everything that depends on the unit. */
  rebuild() {
    const { units } = this.model;
    this.map.take(this.model, this.choice.unit);
    for (const button of this.units) {
      const { why_not: reason } = units[unitOf(button)];
      button.disabled = Boolean(reason);
      button.title = reason ?? "";
    }
    const { metrics, why_not_uniform: reason } = units[this.choice.unit];
    this.input("uniform").disabled = Boolean(reason);
    this.part("sliders").innerHTML = metrics
      .map(
        ({ name, title }) =>
          `<label>${title}<input type="range" min="0" max="1" step="0.05" data-metric="${name}"><span></span></label>`,
      )
      .join("");
  }

  /** Shows the units and the figures of another model. */
  name() {
    this.figures.take(this.model);
    this.part("units").innerHTML = Object.entries(this.model.units)
      .map(([unit, { title }]) => `<button role="radio" data-unit="${unit}">${title}</button>`)
      .join("");
    this.units = [...this.part("units").querySelectorAll("button")];
  }

  layout() {
    const room = this.root.clientWidth;
    if (!room) return; // on a page that is not shown
    const alone = room < NARROW;
    this.theme = themeOf(this.root);
    this.part("halves").classList.toggle("stacked", alone);
    this.map.layout(alone ? room : room * 0.54, alone, this.theme);
    this.line.layout(this.theme);
    if (this.result) this.draw();
  }

  /**
   * A state in the making: shown with the next frame, not sent to Python.
   * @param {Partial<BoardState>} choice
   */
  change(choice) {
    const { unit } = this.choice;
    this.choice = { ...this.choice, ...choice };
    this.moving = true;
    if (unit !== this.choice.unit) {
      this.rebuild();
      this.map.number();
      this.map.drawn = null;
    }
    this.frame ??= requestAnimationFrame(() => {
      const began = performance.now();
      this.frame = null;
      this.result = this.projector.plan(this.choice);
      this.draw();
      this.root.dataset.source = "live";
      const detail = performance.now() - began;
      this.root.dispatchEvent(new CustomEvent("board-frame", { detail, bubbles: true, composed: true }));
    });
  }

  /**
   * The state is set: a step of the history, and after `delay` ms without another one it goes to Python.
   * @param {number} [delay]
   */
  commit(delay = 0) {
    this.moving = false;
    if (this.remember()) this.tell(delay);
    else if (this.data.edit === this.edit) this.settle();
  }

  /** Adds the state to the history; false where it is the last one there. */
  remember() {
    if (this.at >= 0 && JSON.stringify(this.history[this.at]) === JSON.stringify(this.choice)) return false;
    this.history = [...this.history.slice(Math.max(0, this.at - 99), this.at + 1), this.choice];
    this.at = this.history.length - 1;
    return true;
  }

  tell(delay = 0) {
    this.edit++;
    this.buttons();
    clearTimeout(this.timer);
    const send = () => this.send("state", { payload: this.payload, edit: this.edit, choice: this.choice });
    if (delay) this.timer = setTimeout(send, delay);
    else send();
  }

  /**
   * Undoes or redoes.
   * @param {-1 | 1} by
   */
  step(by) {
    if (!this.history[this.at + by]) return;
    this.at += by;
    this.change(this.history[this.at]);
    this.moving = false;
    this.tell(200);
  }

  /**
   * @param {Partial<BoardState>} choice
   * @param {number} [delay]
   */
  make(choice, delay = 0) {
    this.change(choice);
    this.commit(delay);
  }

  /** @param {number} value */
  threshold(value) {
    const { per_layer: own } = this.choice;
    if (this.selected === null) this.change({ threshold: value });
    else this.change({ per_layer: { ...own, [this.selected]: value } });
  }

  /**
   * Pins cells: to `to`, or, where it is left out, to the pin after that of the first cell: none, drop, keep.
   * @param {Place[]} cells
   * @param {Cell} first
   * @param {Pin} [to]
   */
  pin(cells, first, to) {
    const { pins } = this.choice;
    /** @type {(list: Place[], place: Place) => boolean} */
    const has = (list, [layer, index]) => list.some((place) => place[0] === layer && place[1] === index);
    const [kept, dropped] = [pins.keep, pins.drop].map((list) => has(list, [first.layer, first.index]));
    if (to === undefined) to = dropped ? "keep" : kept ? null : "drop";
    else if ((to === "keep" && kept) || (to === "drop" && dropped)) to = null;
    /** @param {Place[]} list */
    const others = (list) => list.filter((place) => !has(cells, place));
    const next = { keep: others(pins.keep), drop: others(pins.drop) };
    if (to) next[to] = [...next[to], ...cells].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    this.make({ pins: { ...pins, ...next } }, 150);
    this.map.focus((cell) => this.describe(cell));
  }

  /** @param {number} layer */
  protect(layer) {
    const { pins } = this.choice;
    const there = pins.protect.includes(layer);
    const protect = there ? pins.protect.filter((other) => other !== layer) : [...pins.protect, layer];
    this.make({ pins: { ...pins, protect: protect.sort((a, b) => a - b) } });
  }

  /** @param {number | null} layer */
  select(layer) {
    this.selected = layer;
    this.draw();
  }

  /**
   * Weights and pins belong to a unit and come back with it.
   * @param {Unit} unit
   */
  unit(unit) {
    const { pins, weights, unit: old, uniform } = this.choice;
    this.shelf[old] = { weights, keep: pins.keep, drop: pins.drop };
    const { first, why_not_uniform: reason } = this.model.units[unit];
    const back = this.shelf[unit] ?? { weights: first.weights, keep: [], drop: [] };
    const there = { keep: back.keep, drop: back.drop, protect: pins.protect };
    this.make({ unit, weights: back.weights, pins: there, uniform: uniform && !reason });
  }

  draw() {
    const { model, choice, result, selected } = this;
    const scores = this.projector.scores(choice.unit, choice.weights);
    this.map.draw(choice, result, scores);
    this.line.draw(model, choice, result, scores, selected);
    this.figures.draw(model, result);
    this.controls();
    if (this.tipped) this.part("tip").textContent = this.describe(this.tipped);
  }

  /** Buttons and inputs, where the choice has changed. */
  controls() {
    const { choice, selected } = this;
    if (this.shown?.choice === choice && this.shown.selected === selected) return;
    this.shown = { choice, selected };
    this.map.label(choice, selected);
    const active = /** @type {Document | ShadowRoot} */ (this.root.getRootNode()).activeElement;
    const own = this.own();
    const exact = this.input("exact");
    if (active !== exact) exact.value = String(own ?? choice.threshold);
    this.part("which").textContent = selected === null ? "All that scores" : `In layer ${selected}, all that scores`;
    this.part("single").hidden = selected === null;
    this.part("same").hidden = own === undefined;
    const whole = selected !== null && choice.pins.protect.includes(selected);
    this.part("protect").setAttribute("aria-pressed", String(whole));
    for (const button of this.units) {
      const here = unitOf(button) === choice.unit;
      button.setAttribute("aria-checked", String(here));
      button.tabIndex = here ? 0 : -1;
    }
    this.input("uniform").checked = choice.uniform;
    const grouped = this.model.units[choice.unit].per_group.length > 1;
    this.part("by-shape").hidden = !grouped && !choice.uniform;
    for (const label of this.part("sliders").querySelectorAll("label")) {
      const input = find(label, "input", HTMLInputElement);
      const weight = choice.weights[metricOf(input)] ?? 0;
      if (active !== input) input.value = String(weight);
      input.style.setProperty("--share", `${weight * 100}%`);
      find(label, "span", HTMLElement).textContent = weight.toFixed(2);
    }
    this.part("unweighted").hidden = Object.values(choice.weights).some((weight) => weight > 0);
    this.buttons();
  }

  buttons() {
    this.button("undo").disabled = this.at < 1;
    this.button("redo").disabled = this.at >= this.history.length - 1;
  }

  /**
   * A cell as text: its place, its score, whether it stays, and why.
   * @param {Cell} cell
   */
  describe({ layer, index }) {
    const { model, choice, result } = this;
    const { per_layer: width, metrics, noun, single, whole_layers, highest } = model.units[choice.unit];
    const i = layer * width + index;
    const first = layer * model.heads + index * (model.heads / width);
    /** @param {Place} place */
    const has = ([a, b]) => a === layer && b === index;
    const stays = Boolean(result.keep[first]);
    const score = this.projector.scores(choice.unit, choice.weights)[i];
    const line = choice.per_layer[layer] ?? choice.threshold;
    let why =
      score >= line ? `scores ${score.toFixed(3)}, at or above ${line}` : `scores ${score.toFixed(3)}, below ${line}`;
    if (choice.pins.protect.includes(layer)) why = "its layer is protected";
    else if (choice.pins.keep.some(has)) why = "kept by hand";
    else if (choice.pins.drop.some(has)) why = "dropped by hand";
    if (result.changed[first]) why += "; the layer's valid shape decides otherwise";
    const ranks = metrics
      .filter(({ name }) => choice.weights[name] > 0)
      .map(({ name, title }) => `${title} ${(model.arrays[`${choice.unit}.${name}`][i] / highest).toFixed(2)}`);
    const what = whole_layers ? "whole" : single ? noun : `${noun} ${index}`;
    const place = `Layer ${layer}, ${what}`;
    return `${place}: ${stays ? "stays" : "goes"}. ${why[0].toUpperCase()}${why.slice(1)}.\n${ranks.join(" · ")}`;
  }

  /**
   * Describes the cell under the pointer beside it; shows nothing for null.
   * @param {Cell | null} cell
   * @param {number} [x]
   * @param {number} [y]
   */
  tip(cell, x = 0, y = 0) {
    const tip = this.part("tip");
    this.tipped = cell;
    tip.hidden = !cell;
    if (!cell) return;
    tip.textContent = this.describe(cell);
    const { left, top, width } = this.root.getBoundingClientRect();
    tip.style.left = `${Math.min(x - left + 14, width - tip.offsetWidth)}px`;
    tip.style.top = `${y - top + 18}px`;
  }

  listen() {
    /**
     * @template {keyof HTMLElementEventMap} K
     * @param {string} name
     * @param {K} event
     * @param {(event: HTMLElementEventMap[K]) => void} act
     */
    const on = (name, event, act) => this.part(name).addEventListener(event, act);
    on("units", "click", ({ target }) => {
      const button = this.units.find((one) => one === target);
      if (button) this.unit(unitOf(button));
    });
    on("units", "keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
      const able = this.units.filter((button) => !button.disabled);
      if (!by) return;
      event.preventDefault();
      const here = able.findIndex((button) => button === event.target);
      const next = able[(here + by + able.length) % able.length];
      next.focus();
      this.unit(unitOf(next));
    });
    on("uniform", "change", () => this.make({ uniform: this.input("uniform").checked }));
    on("undo", "click", () => this.step(-1));
    on("redo", "click", () => this.step(1));
    on("reset", "click", () => this.make(this.model.units[this.choice.unit].first));
    on("exact", "change", () => {
      const exact = this.input("exact");
      if (exact.valueAsNumber >= 0) this.threshold(rounded(exact.valueAsNumber));
      exact.value = String(this.own() ?? this.choice.threshold);
      this.commit();
    });
    on("same", "click", () => {
      if (this.selected === null) return;
      const { [this.selected]: _, ...others } = this.choice.per_layer;
      this.make({ per_layer: others });
    });
    on("protect", "click", () => {
      if (this.selected !== null) this.protect(this.selected);
    });
    on("all", "click", () => this.select(null));
    on("sliders", "input", ({ target }) => {
      if (!(target instanceof HTMLInputElement)) return;
      this.change({ weights: { ...this.choice.weights, [metricOf(target)]: target.valueAsNumber } });
    });
    on("sliders", "change", () => this.commit(200));
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.selected !== null) this.select(null);
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
      if (event.target === this.input("exact")) return; // which undoes what is typed
      event.preventDefault();
      this.step(event.shiftKey ? 1 : -1);
    });
  }

  close() {
    clearTimeout(this.timer);
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.watch.disconnect();
  }
}

/** @param {HTMLElement} button of a unit */
function unitOf(button) {
  return /** @type {Unit} */ (button.dataset.unit);
}

/** @param {HTMLElement} input of a weight */
function metricOf(input) {
  return /** @type {string} */ (input.dataset.metric);
}

/**
 * The page's colors, as numbers for the canvas.
 * @param {HTMLElement} root
 * @returns {Theme}
 */
function themeOf(root) {
  const style = getComputedStyle(root);
  /** @param {string} name */
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const [ink, paper, line, warning] = ["ink", "paper", "line", "warning"].map(colour);
  const page = contextOf(document.createElement("canvas"));
  page.fillStyle = paper; // reads back as #rrggbb, however it is written
  const dark = parseInt(String(page.fillStyle).slice(3, 5), 16) < 128;
  root.style.colorScheme = dark ? "dark" : "light";
  return { ink, paper, line, warning, ramp: ramp(dark ? RAMP.dark : RAMP.light) };
}

const RAMP = {
  light: ["#0b4a46", "#0f766e", "#4fa79d", "#a9d3c9", "#efe3c4"],
  dark: ["#8ff3e3", "#2fb3a5", "#17756d", "#25504c", "#4d4a3a"],
};

/**
 * 101 steps between evenly spaced colors.
 * @param {string[]} stops
 */
function ramp(stops) {
  const numbers = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({ length: 101 }, (_, i) => {
    const place = (i / 100) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(place));
    const mixed = numbers[low].map((from, c) => Math.round(from + (numbers[low + 1][c] - from) * (place - low)));
    return `rgb(${mixed.join(",")})`;
  });
}

/**
 * Streamlit calls this for the numbers (bytes) and for the board, whenever its data or the theme changes.
 * @param {{ data: Uint8Array | Received, parentElement: ParentNode, setStateValue: Send }} given
 */
export default function ({ data, parentElement, setStateValue }) {
  if (data instanceof Uint8Array) {
    const id = idOf(data);
    if (MODELS.has(id)) return;
    MODELS.set(id, unpack(data));
    const [oldest] = MODELS.keys();
    if (MODELS.size > KNOWN) MODELS.delete(oldest);
    for (const board of BOARDS.values()) if (board.data.payload === id) board.receive(board.data, board.send);
    return;
  }
  const board = BOARDS.get(parentElement) ?? new Board(parentElement);
  BOARDS.set(parentElement, board);
  board.receive(data, setStateValue);
  return () => {
    board.close();
    BOARDS.delete(parentElement);
  };
}
