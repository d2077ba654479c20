// @ts-check
// The map: a row per layer, a cell per unit. Only cells that changed are painted anew during a drag.

const ROW = { least: 13, most: 22, all: 640 };
const CELL = { least: 7, most: 40, alone: 72 }; // wide; alone where nothing stands beside the map
const LABELS = 152; // pixels that row labels and counts take
const [STAYS, GOES, SHAPE, KEPT_BY_HAND, DROPPED_BY_HAND, BLOCK, LAYER] = [0, 1, 2, 4, 8, 16, 32];

/**
 * @typedef {{ layer: number, index: number }} Cell
 * @typedef {"keep" | "drop" | null} Pin by hand; null lets the score decide
 * @typedef {{ ink: string, paper: string, line: string, warning: string, ramp: string[] }} Theme
 *
 * @typedef {object} MapEvents Edits that are made on the map.
 * @property {(cells: Place[], first: Cell, to?: Pin) => void} pin
 * @property {(layer: number) => void} protect
 * @property {(layer: number) => void} select
 * @property {(cell: Cell | null, x?: number, y?: number) => void} hover
 * @property {() => void} moved
 */

/**
 * The first element below `root` that a selector names. Throws where board.html has none of this kind.
 * @template {HTMLElement} T
 * @param {ParentNode} root
 * @param {string} selector
 * @param {new () => T} kind
 * @returns {T}
 */
function find(root, selector, kind) {
  const found = root.querySelector(selector);
  if (found instanceof kind) return found;
  throw new Error(`board.html: ${selector} is not there as ${kind.name}`);
}

/** @param {HTMLCanvasElement} canvas */
function contextOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}

class HeadMap {
  // Fields without a value get theirs in `take` and `layout`, before anything else runs.
  /** @type {Model} */
  model;
  width = 1; // cells in a row
  wide = 0; // pixels of a head
  tall = 0; // pixels of a row
  apart = 0; // pixels between KV groups
  gap = 1; // pixels between cells
  /** @type {Theme} */
  theme;
  /** @type {CanvasPattern[]} */
  hatch;
  /** @type {Uint8Array | null} */
  drawn = null; // codes of what stands there
  /** @type {Float64Array | null} */
  scores = null; // which it was painted by
  /** @type {Cell | null} */
  anchor = null; // of a rectangle that keys stretch

  /**
   * @param {HTMLElement} root
   * @param {MapEvents} on
   */
  constructor(root, on) {
    this.on = on;
    this.scroll = find(root, ".scroll", HTMLElement);
    this.rows = find(root, ".rows", HTMLElement);
    this.columns = find(root, ".columns", HTMLElement);
    this.shapes = find(root, ".shapes", HTMLElement);
    this.grid = find(root, ".grid", HTMLElement);
    this.canvas = find(root, ".cells", HTMLCanvasElement);
    this.ring = find(root, ".ring", HTMLElement);
    this.box = find(root, ".box", HTMLElement);
    this.cell = find(root, ".cell", HTMLElement);
    this.template = find(root, "template", HTMLTemplateElement);
    this.context = contextOf(this.canvas);
    /** @type {Cell} */
    this.active = { layer: 0, index: 0 };
    this.listen();
  }

  /**
   * Takes another model or unit.
   * @param {Model} model
   * @param {Unit} unit
   */
  take(model, unit) {
    if (this.model !== model) {
      this.rows.replaceChildren(...Array.from({ length: model.layers }, (_, layer) => this.row(layer)));
      this.shapes.innerHTML = "<span></span>".repeat(model.layers);
      this.scroll.scrollTop = 0;
      this.active = { layer: 0, index: 0 };
    }
    this.model = model;
    this.width = model.units[unit].per_layer;
    this.active.index = Math.min(this.active.index, this.width - 1);
    this.grid.setAttribute("aria-rowcount", String(model.layers));
    this.grid.setAttribute("aria-colcount", String(this.width));
  }

  /**
   * The label of a row: a lock, the layer, and its own threshold where it has one.
   * @param {number} layer
   */
  row(layer) {
    const row = /** @type {HTMLElement} */ (find(this.template.content, ".row", HTMLElement).cloneNode(true));
    const [lock, name] = row.querySelectorAll("button");
    row.dataset.layer = String(layer);
    lock.setAttribute("aria-label", `Protect layer ${layer}`);
    lock.title = `Protect layer ${layer}: it stays whole`;
    name.setAttribute("aria-label", `Layer ${layer}`);
    name.title = `A threshold of its own for layer ${layer}`;
    name.textContent = String(layer);
    name.tabIndex = layer ? -1 : 0;
    return row;
  }

  /**
   * Fits the map into `room` pixels, in the colors of `theme`.
   * @param {number} room
   * @param {boolean} alone
   * @param {Theme} theme
   */
  layout(room, alone, theme) {
    const { layers, heads, kv_heads } = this.model;
    const group = heads / kv_heads;
    const tall = Math.max(ROW.least, Math.min(ROW.most, Math.floor(ROW.all / layers)));
    const wide = Math.max(CELL.least, Math.min(alone ? CELL.alone : CELL.most, Math.floor((room - LABELS) / heads)));
    this.scroll.style.maxWidth = `${room}px`;
    const ratio = window.devicePixelRatio || 1;
    this.tall = tall;
    this.wide = wide;
    this.theme = theme;
    this.hatch = hatching(this.context, theme.ink, ratio);
    this.apart = group > 1 && kv_heads > 1 && wide > 8 ? 3 : 0;
    const [width, height] = [heads * wide + (kv_heads - 1) * this.apart, layers * tall];
    Object.assign(this.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.scroll.style.setProperty("--tall", `${tall}px`);
    this.columns.style.width = `${width}px`;
    this.number();
    this.drawn = null;
  }

  /** Numbers over the columns, as many as there is room for. */
  number() {
    const count = this.width > 1 ? this.width : 0;
    const every = [1, 2, 4, 8, 16].find((step) => (step * this.wide * this.model.heads) / this.width >= 22) ?? 32;
    this.columns.innerHTML = Array.from({ length: Math.ceil(count / every) }, (_, i) => i * every)
      .map((index) => {
        const [x, , wide] = this.place(0, index);
        return `<span style="left:${x + wide / 2}px">${index}</span>`;
      })
      .join("");
  }

  /**
   * The pixel that a head begins at.
   * @param {number} head
   */
  left(head) {
    return head * this.wide + Math.floor((head * this.model.kv_heads) / this.model.heads) * this.apart;
  }

  /**
   * The rectangle of a cell: x, y, width, height, without the gap after it.
   * @param {number} layer
   * @param {number} index
   * @returns {[x: number, y: number, width: number, height: number]}
   */
  place(layer, index) {
    const spread = this.model.heads / this.width;
    const x = this.left(index * spread);
    const right = this.left((index + 1) * spread - 1) + this.wide;
    return [x, layer * this.tall, right - x - this.gap, this.tall - this.gap];
  }

  /**
   * The cell under a point of the page; null beside the map.
   * @param {PointerEvent} event
   * @returns {Cell | null}
   */
  at(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    const layer = Math.floor(y / this.tall);
    if (layer < 0 || layer >= this.model.layers) return null;
    for (let index = 0; index < this.width; index++) {
      const [start, , width] = this.place(layer, index);
      if (x >= start - this.apart / 2 && x < start + width + this.gap + this.apart / 2) return { layer, index };
    }
    return null;
  }

  /**
   * Paints the result of a board state; only the cells that changed.
   * @param {BoardState} choice
   * @param {Result} result
   * @param {Float64Array} scores
   */
  draw(choice, result, scores) {
    const { layers, heads } = this.model;
    const { width } = this;
    const spread = heads / width;
    const codes = new Uint8Array(layers * width);
    for (const [layer, index] of choice.pins.keep) codes[layer * width + index] |= KEPT_BY_HAND;
    for (const [layer, index] of choice.pins.drop) codes[layer * width + index] |= DROPPED_BY_HAND;
    const drawn = this.scores === scores ? this.drawn : null;
    for (let layer = 0; layer < layers; layer++) {
      let stay = 0;
      for (let head = 0; head < heads; head++) stay += result.keep[layer * heads + head];
      const whole = stay ? 0 : result.gone[layer] ? LAYER : BLOCK;
      for (let index = 0; index < width; index++) {
        const [first, i] = [layer * heads + index * spread, layer * width + index];
        codes[i] |= (result.keep[first] ? STAYS : GOES) | (result.changed[first] ? SHAPE : 0) | whole;
        if (codes[i] !== drawn?.[i]) this.paint(layer, index, codes[i], scores[i]);
      }
      const words = stay ? `${stay}` : result.gone[layer] ? "layer" : "block";
      const shape = /** @type {HTMLElement} */ (this.shapes.children[layer]);
      if (shape.textContent !== words) {
        shape.textContent = words;
        shape.title = stay
          ? `${stay} of ${heads} heads stay`
          : result.gone[layer]
            ? "the whole layer goes"
            : "the attention block goes";
        shape.className = stay === heads ? "whole" : stay ? "" : "gone";
      }
    }
    this.drawn = codes;
    this.scores = scores;
  }

  /**
   * @param {number} layer
   * @param {number} index
   * @param {number} code
   * @param {number} score
   */
  paint(layer, index, code, score) {
    const { context, theme } = this;
    const [x, y, width, height] = this.place(layer, index);
    const next = index < this.width - 1 ? this.place(layer, index + 1)[0] : x + width + this.gap;
    const joined = code & (BLOCK | LAYER) && index < this.width - 1 ? next - x : width;
    context.clearRect(x, y, next - x, this.tall);
    context.fillStyle = theme.ramp[Math.round(score * (theme.ramp.length - 1))];
    if (code & GOES) {
      context.globalAlpha = 0.2;
      context.fillRect(x, y, joined, height);
      context.globalAlpha = 1;
      context.fillStyle = this.hatch[code & LAYER ? 1 : 0];
      context.fillRect(x, y, joined, height);
    } else context.fillRect(x, y, width, height);
    if (code & SHAPE) {
      context.strokeStyle = theme.warning;
      const thick = width < 12 ? 1 : 2;
      context.lineWidth = thick;
      context.strokeRect(x + thick / 2, y + thick / 2, width - thick, height - thick);
    }
    if (code & (KEPT_BY_HAND | DROPPED_BY_HAND))
      this.mark(code, x + width / 2, y + height / 2, Math.min(width, height) * 0.26);
  }

  /**
   * Paints a dot where a unit is kept by hand, a cross where it is dropped by hand.
   * @param {number} code
   * @param {number} x
   * @param {number} y
   * @param {number} size
   */
  mark(code, x, y, size) {
    const { context, theme } = this;
    const path = new Path2D();
    if (code & KEPT_BY_HAND) path.arc(x, y, size, 0, 2 * Math.PI);
    else {
      for (const side of [-1, 1]) {
        path.moveTo(x - size, y - side * size);
        path.lineTo(x + size, y + side * size);
      }
    }
    context.lineCap = "round";
    context.strokeStyle = theme.paper;
    context.lineWidth = 5;
    context.stroke(path);
    context.strokeStyle = context.fillStyle = theme.ink;
    context.lineWidth = 2;
    context.stroke(path);
    if (code & KEPT_BY_HAND) context.fill(path);
  }

  /**
   * The row labels: protected layers, thresholds of their own, the selected one.
   * @param {BoardState} choice
   * @param {number | null} selected
   */
  label(choice, selected) {
    const there = new Set(choice.pins.protect);
    for (const row of /** @type {NodeListOf<HTMLElement>} */ (this.rows.querySelectorAll(".row"))) {
      const layer = Number(row.dataset.layer);
      const own = choice.per_layer[layer];
      row.classList.toggle("protected", there.has(layer));
      row.classList.toggle("selected", layer === selected);
      find(row, ".lock", HTMLElement).setAttribute("aria-pressed", String(there.has(layer)));
      find(row, ".name", HTMLElement).setAttribute("aria-pressed", String(layer === selected));
      find(row, ".own", HTMLElement).textContent = own === undefined ? "" : own.toFixed(2);
    }
  }

  /**
   * Moves the ring to the active cell and describes it for screen readers.
   * @param {(cell: Cell) => string} describe
   */
  focus(describe) {
    const { layer, index } = this.active;
    const [x, y, width, height] = this.place(layer, index);
    Object.assign(this.ring.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
    this.cell.setAttribute("aria-rowindex", String(layer + 1));
    this.cell.setAttribute("aria-colindex", String(index + 1));
    this.cell.setAttribute("aria-label", describe(this.active));
  }

  /**
   * The cells of a rectangle between two of them, its anchor first.
   * @param {Cell} one
   * @param {Cell} other
   */
  between(one, other) {
    /** @type {Place[]} */
    const found = [];
    const [top, bottom] = [Math.min(one.layer, other.layer), Math.max(one.layer, other.layer)];
    const [left, right] = [Math.min(one.index, other.index), Math.max(one.index, other.index)];
    for (let layer = top; layer <= bottom; layer++) {
      for (let index = left; index <= right; index++) found.push([layer, index]);
    }
    return found;
  }

  /**
   * Shows the rectangle between two cells, or none.
   * @param {Cell | null} one
   * @param {Cell} [other]
   */
  showBox(one, other) {
    this.box.hidden = !one;
    if (!one || !other) return;
    const [a, b] = [this.place(one.layer, one.index), this.place(other.layer, other.index)];
    const [x, y] = [Math.min(a[0], b[0]), Math.min(a[1], b[1])];
    const [right, bottom] = [Math.max(a[0] + a[2], b[0] + b[2]), Math.max(a[1] + a[3], b[1] + b[3])];
    Object.assign(this.box.style, {
      left: `${x}px`,
      top: `${y}px`,
      width: `${right - x}px`,
      height: `${bottom - y}px`,
    });
  }

  listen() {
    /** @type {Cell | null} */
    let down = null;
    /** @type {Cell | null} */
    let corner = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      down = this.at(event);
      if (down && event.shiftKey) {
        corner = down;
        this.canvas.setPointerCapture(event.pointerId);
        this.showBox(down, corner);
      }
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const here = this.at(event);
      if (corner && here) this.showBox(down, (corner = here));
      this.on.hover(here, event.clientX, event.clientY);
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const here = this.at(event);
      if (down && corner) this.on.pin(this.between(down, corner), down);
      else if (down && here && here.layer === down.layer && here.index === down.index) {
        this.active = here;
        this.on.pin([[here.layer, here.index]], here);
      }
      this.grid.focus({ preventScroll: true });
      [down, corner] = [null, null];
      this.showBox(null);
    });
    this.canvas.addEventListener("pointercancel", () => {
      [down, corner] = [null, null];
      this.showBox(null);
    });
    this.canvas.addEventListener("pointerleave", () => this.on.hover(null));
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.grid.addEventListener("focus", () => this.on.moved());
    this.rows.addEventListener("click", (event) => {
      const row = around(event, ".row");
      if (!row) return;
      if (around(event, ".lock")) this.on.protect(Number(row.dataset.layer));
      else if (around(event, ".name")) this.on.select(Number(row.dataset.layer));
    });
    this.rows.addEventListener("keydown", (event) => {
      const row = around(event, ".row");
      if (!row) return;
      const layer = Number(row.dataset.layer);
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (event.key.toLowerCase() === "p" && !event.ctrlKey && !event.metaKey) this.on.protect(layer);
      const next = step && this.rows.children[layer + step];
      if (!next) return;
      event.preventDefault();
      find(row, ".name", HTMLElement).tabIndex = -1;
      find(next, ".name", HTMLElement).tabIndex = 0;
      find(next, ".name", HTMLElement).focus();
    });
  }

  /**
   * Arrows move, with Shift they stretch a rectangle; Enter, K and D pin what is in it.
   * @param {KeyboardEvent} event
   */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { layer, index } = this.active;
    const [last, bottom] = [this.width - 1, this.model.layers - 1];
    /** @type {Record<string, [layer: number, index: number]>} */
    const moves = {
      ArrowUp: [layer - 1, index],
      ArrowDown: [layer + 1, index],
      ArrowLeft: [layer, index - 1],
      ArrowRight: [layer, index + 1],
      Home: [layer, 0],
      End: [layer, last],
      PageUp: [layer - 10, index],
      PageDown: [layer + 10, index],
    };
    /** @type {Record<string, Pin | undefined>} */
    const pins = { Enter: undefined, " ": undefined, k: "keep", d: "drop", Backspace: null, Delete: null };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in moves) {
      this.anchor = event.shiftKey ? (this.anchor ?? this.active) : null;
      const [row, column] = moves[key];
      this.active = { layer: Math.max(0, Math.min(bottom, row)), index: Math.max(0, Math.min(last, column)) };
      this.showBox(this.anchor, this.active);
      this.on.moved();
      this.ring.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (key in pins) {
      this.on.pin(this.between(this.anchor ?? this.active, this.active), this.active, pins[key]);
    } else return;
    event.preventDefault();
  }
}

/**
 * The closest element to the target of an event that matches a selector, or null.
 * @param {Event} event
 * @param {string} selector
 * @returns {HTMLElement | null}
 */
function around({ target }, selector) {
  return target instanceof Element ? target.closest(selector) : null;
}

/**
 * Diagonal lines, once and crossed, that run on from cell to cell.
 * @param {CanvasRenderingContext2D} context
 * @param {string} colour
 * @param {number} ratio
 */
function hatching(context, colour, ratio) {
  return [false, true].map((crossed) => {
    const size = Math.round(6 * ratio);
    const tile = Object.assign(document.createElement("canvas"), { width: size, height: size });
    const lines = contextOf(tile);
    Object.assign(lines, { strokeStyle: colour, lineWidth: 1.1 * ratio, globalAlpha: 0.5 });
    for (const shift of [-size, 0, size]) {
      lines.moveTo(shift, size);
      lines.lineTo(shift + size, 0);
      if (crossed) {
        lines.moveTo(shift, 0);
        lines.lineTo(shift + size, size);
      }
    }
    lines.stroke();
    const pattern = /** @type {CanvasPattern} */ (context.createPattern(tile, "repeat"));
    pattern.setTransform(new DOMMatrix().scale(1 / ratio));
    return pattern;
  });
}
