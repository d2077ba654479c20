// The board: holds a person's choice with its history, draws it while it changes, and hands it to Python on release.

const MODELS = new Map(); // by payload id
const BOARDS = new Map(); // by the element Streamlit gives
const KNOWN = 3; // payloads kept at hand
const NARROW = 860; // pixels below which the map stands under the figures

class Board {
  constructor(element) {
    this.root = element.querySelector(".board");
    this.part = (name) => this.root.querySelector(`.${name}`);
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

  /** What Python says: on mounting, after every release, and when the theme changes. */
  receive(data, send) {
    Object.assign(this, { data, send });
    const model = MODELS.get(data.payload);
    if (!model) return;
    if (this.model !== model || this.version !== data.version) this.adopt(model, data);
    this.layout();
    if (data.edit === this.edit && !this.moving) this.settle();
  }

  /** Takes Python's choice for its own. */
  adopt(model, data) {
    const same = this.model === model;
    if (!same)
      Object.assign(this, { model, projector: new Projector(model), history: [], at: -1, shelf: {}, selected: null });
    Object.assign(this, { payload: data.payload, version: data.version, edit: data.edit, choice: data.choice });
    this.remember();
    this.rebuild();
    this.result = this.projector.plan(this.choice);
  }

  /** Shows Python's plan of this very choice in place of the board's own. */
  settle() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.result = this.data.plan ? fromPython(this.model, this.data.plan) : this.projector.plan(this.choice);
    this.draw();
    this.root.dataset.source = "plan";
    if (this.said !== this.edit) {
      this.said = this.edit;
      const loss = this.root.querySelector("[data-figure=loss] .value").textContent;
      this.part("said").textContent = `${this.part("words").textContent} Forecast loss ${loss}.`;
    }
  }

  /** Everything that depends on the unit. */
  rebuild() {
    const { units } = this.model;
    this.map.take(this.model, this.choice.unit);
    for (const button of this.part("units").children) {
      const { why_not: reason } = units[button.dataset.unit];
      button.disabled = Boolean(reason);
      button.title = reason ?? "";
    }
    const { metrics, why_not_uniform: reason } = units[this.choice.unit];
    this.part("uniform").disabled = Boolean(reason);
    this.part("sliders").innerHTML = metrics
      .map(
        ({ name, title }) =>
          `<label>${title}<input type="range" min="0" max="1" step="0.05" data-metric="${name}"><span></span></label>`,
      )
      .join("");
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

  /** A choice in the making: shown with the next frame, not told to Python. */
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

  /** The choice is made: a step of the history, and after `delay` ms without another one it goes to Python. */
  commit(delay = 0) {
    this.moving = false;
    if (this.remember()) this.tell(delay);
    else if (this.data.edit === this.edit) this.settle();
  }

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

  step(by) {
    if (!this.history[this.at + by]) return;
    this.at += by;
    this.change(this.history[this.at]);
    this.moving = false;
    this.tell(200);
  }

  make(choice, delay = 0) {
    this.change(choice);
    this.commit(delay);
  }

  threshold(value) {
    const { per_layer: own } = this.choice;
    if (this.selected === null) this.change({ threshold: value });
    else this.change({ per_layer: { ...own, [this.selected]: value } });
  }

  /** Pins cells: to `to`, or, where none is said, to what comes after the first one's none, drop, keep. */
  pin(cells, first, to) {
    const { pins } = this.choice;
    const has = (list, [layer, index]) => list.some((place) => place[0] === layer && place[1] === index);
    const [kept, dropped] = [pins.keep, pins.drop].map((list) => has(list, [first.layer, first.index]));
    if (to === undefined) to = dropped ? "keep" : kept ? null : "drop";
    else if ((to === "keep" && kept) || (to === "drop" && dropped)) to = null;
    const others = (list) => list.filter((place) => !has(cells, place));
    const next = { keep: others(pins.keep), drop: others(pins.drop) };
    if (to) next[to] = [...next[to], ...cells].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    this.make({ pins: { ...pins, ...next } }, 150);
    this.map.focus((cell) => this.describe(cell));
  }

  protect(layer) {
    const { pins } = this.choice;
    const there = pins.protect.includes(layer);
    const protect = there ? pins.protect.filter((other) => other !== layer) : [...pins.protect, layer];
    this.make({ pins: { ...pins, protect: protect.sort((a, b) => a - b) } });
  }

  select(layer) {
    this.selected = layer;
    this.draw();
  }

  /** Weights and pins belong to a unit and come back with it. */
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
    this.figures.draw(model, choice, result);
    this.controls();
    if (this.tipped) this.part("tip").textContent = this.describe(this.tipped);
  }

  /** Buttons and inputs, where the choice has changed. */
  controls() {
    const { choice, selected } = this;
    if (this.shown?.choice === choice && this.shown.selected === selected) return;
    this.shown = { choice, selected };
    this.map.label(choice, selected);
    const active = this.root.getRootNode().activeElement;
    const own = selected === null ? undefined : choice.per_layer[selected];
    const exact = this.part("exact");
    if (active !== exact) exact.value = String(own ?? choice.threshold);
    this.part("which").textContent = selected === null ? "All that scores" : `In layer ${selected}, all that scores`;
    this.part("single").hidden = selected === null;
    this.part("same").hidden = own === undefined;
    this.part("protect").setAttribute("aria-pressed", choice.pins.protect.includes(selected));
    for (const button of this.part("units").children) {
      const here = button.dataset.unit === choice.unit;
      button.setAttribute("aria-checked", here);
      button.tabIndex = here ? 0 : -1;
    }
    this.part("uniform").checked = choice.uniform;
    const grouped = choice.unit === "head" && this.model.heads > this.model.kv_heads;
    this.part("by-shape").hidden = !grouped && !choice.uniform;
    for (const label of this.part("sliders").children) {
      const input = label.querySelector("input");
      const weight = choice.weights[input.dataset.metric] ?? 0;
      if (active !== input) input.value = weight;
      input.style.setProperty("--share", `${weight * 100}%`);
      label.querySelector("span").textContent = weight.toFixed(2);
    }
    this.part("unweighted").hidden = Object.values(choice.weights).some((weight) => weight > 0);
    this.buttons();
  }

  buttons() {
    this.part("undo").disabled = this.at < 1;
    this.part("redo").disabled = this.at >= this.history.length - 1;
  }

  /** A cell in words: where it is, what it scores, what becomes of it and why. */
  describe({ layer, index }) {
    const { model, choice, result } = this;
    const { per_layer: width, metrics } = model.units[choice.unit];
    const i = layer * width + index;
    const [first, has] = [layer * model.heads + index * (model.heads / width), ([a, b]) => a === layer && b === index];
    const stays = Boolean(result.keep[first]);
    const score = this.projector.scores(choice.unit, choice.weights)[i];
    const line = choice.per_layer[layer] ?? choice.threshold;
    let why =
      score >= line ? `scores ${score.toFixed(3)}, at or over ${line}` : `scores ${score.toFixed(3)}, under ${line}`;
    if (choice.pins.protect.includes(layer)) why = "its layer is protected";
    else if (choice.pins.keep.some(has)) why = "kept by hand";
    else if (choice.pins.drop.some(has)) why = "dropped by hand";
    if (result.changed[first]) why += "; the layer's legal shape decides otherwise";
    const names = { head: `head ${index}`, group: `KV group ${index}`, block: "attention block", layer: "whole" };
    const ranks = metrics
      .filter(({ name }) => choice.weights[name] > 0)
      .map(({ name, title }) => `${title} ${model.arrays[`${choice.unit}.${name}`][i].toFixed(2)}`);
    const place = `Layer ${layer}, ${names[choice.unit]}`;
    return `${place}: ${stays ? "stays" : "goes"}. ${why[0].toUpperCase()}${why.slice(1)}.\n${ranks.join(" · ")}`;
  }

  tip(cell, x, y) {
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
    const on = (name, event, act) => this.part(name).addEventListener(event, act);
    on("units", "click", ({ target }) => target.dataset.unit && this.unit(target.dataset.unit));
    on("units", "keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
      const able = [...this.part("units").children].filter((button) => !button.disabled);
      if (!by) return;
      event.preventDefault();
      const next = able[(able.indexOf(event.target) + by + able.length) % able.length];
      next.focus();
      this.unit(next.dataset.unit);
    });
    on("uniform", "change", ({ target }) => this.make({ uniform: target.checked }));
    on("undo", "click", () => this.step(-1));
    on("redo", "click", () => this.step(1));
    on("reset", "click", () => this.make(this.model.units[this.choice.unit].first));
    on("exact", "change", ({ target }) => {
      if (target.valueAsNumber >= 0) this.threshold(rounded(target.valueAsNumber));
      target.value = String(this.choice.per_layer[this.selected] ?? this.choice.threshold);
      this.commit();
    });
    on("same", "click", () => {
      const { [this.selected]: _, ...others } = this.choice.per_layer;
      this.make({ per_layer: others });
    });
    on("protect", "click", () => this.protect(this.selected));
    on("all", "click", () => this.select(null));
    on("sliders", "input", ({ target }) => {
      this.change({ weights: { ...this.choice.weights, [target.dataset.metric]: target.valueAsNumber } });
    });
    on("sliders", "change", () => this.commit(200));
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.selected !== null) this.select(null);
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target.type === "number")
        return;
      event.preventDefault();
      this.step(event.shiftKey ? 1 : -1);
    });
  }

  close() {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    this.watch.disconnect();
  }
}

/** The page's colours, as numbers for the canvas. */
function themeOf(root) {
  const style = getComputedStyle(root);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const [ink, paper, line, warning] = ["ink", "paper", "line", "warning"].map(colour);
  const page = document.createElement("canvas").getContext("2d");
  page.fillStyle = paper; // reads back as #rrggbb, however it is written
  const dark = parseInt(page.fillStyle.slice(3, 5), 16) < 128;
  root.style.colorScheme = dark ? "dark" : "light";
  return { ink, paper, line, warning, ramp: ramp(dark ? RAMP.dark : RAMP.light) };
}

const RAMP = {
  light: ["#0b4a46", "#0f766e", "#4fa79d", "#a9d3c9", "#efe3c4"],
  dark: ["#8ff3e3", "#2fb3a5", "#17756d", "#25504c", "#4d4a3a"],
};

/** 101 steps between evenly spaced colours. */
function ramp(stops) {
  const numbers = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({ length: 101 }, (_, i) => {
    const place = (i / 100) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(place));
    const mixed = numbers[low].map((from, c) => Math.round(from + (numbers[low + 1][c] - from) * (place - low)));
    return `rgb(${mixed.join(",")})`;
  });
}

/** Streamlit calls this for the numbers (bytes) and for the board, whenever what it was given or the theme changes. */
export default function ({ data, parentElement, setStateValue }) {
  if (data instanceof Uint8Array) {
    const id = idOf(data);
    if (MODELS.has(id)) return;
    MODELS.set(id, unpack(data));
    if (MODELS.size > KNOWN) MODELS.delete(MODELS.keys().next().value);
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
