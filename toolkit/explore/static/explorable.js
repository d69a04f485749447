// Brings the site's figures and predictions to life without a kernel or a network.
// A figure is <figure class="explorable" data-spec data-blob>; packing.py writes the blob.
(() => {
  "use strict";
  const PLOTLY = new URL("offline/plotly.min.js", document.currentScript.src).href;
  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };
  const NEAR = "600px"; // how close to the viewport a figure must be before it is drawn

  // ---------------------------------------------------------------- the packed states

  async function unpack(blob) {
    const zipped = Uint8Array.from(atob(blob), (letter) => letter.charCodeAt(0));
    const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const length = new DataView(bytes.buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
    let offset = 4 + length;
    for (const entry of header.arrays) {
      const shapes = entry.shape.length && Array.isArray(entry.shape[0])
        ? entry.shape : Array(entry.count).fill(entry.shape);
      const sizes = shapes.map((shape) => shape.reduce((a, b) => a * b, 1));
      const total = sizes.reduce((a, b) => a + b, 0);
      const codes = undelta(bytes.subarray(offset, offset + 2 * total), entry.delta, sizes);
      const numbers = Float64Array.from(codes, (code) => number(code, entry));
      let start = 0;
      entry.pool = shapes.map((shape, i) => {
        const flat = numbers.subarray(start, (start += sizes[i]));
        return shape.length < 2 ? flat : rows(flat, shape);
      });
      offset += 2 * total;
    }
    return (state) => assemble(header, state);
  }

  function undelta(planes, delta, sizes) {
    const total = planes.length / 2;
    const codes = new Uint16Array(total);
    for (let i = 0; i < total; i++) codes[i] = planes[i] + 256 * planes[total + i];
    if (delta === "along") {
      let i = 0;
      for (const size of sizes) {
        for (const end = i + size, first = i; i < end; i++) if (i > first) codes[i] += codes[i - 1];
      }
    } else if (delta === "across") {
      for (let i = sizes[0]; i < total; i++) codes[i] += codes[i - sizes[0]];
    }
    return codes;
  }

  function number(code, { low, step, log }) {
    if (code === 65535) return NaN;
    if (!log) return low + code * step;
    return code === 0 ? 0 : Math.exp(low + (code - 1) * step);
  }

  function rows(flat, shape) {
    const width = flat.length / shape[0];
    return Array.from({ length: shape[0] }, (_, i) => {
      const row = flat.subarray(i * width, (i + 1) * width);
      return shape.length > 2 ? rows(row, shape.slice(1)) : row;
    });
  }

  function assemble(header, state) {
    const figure = { data: [], layout: {} };
    for (const { path, pool, index } of header.values.concat(header.arrays)) {
      const place = index ? index[state] : 0;
      if (place < 0) continue;
      let node = figure;
      path.slice(0, -1).forEach((key, depth) => {
        node = node[key] ??= typeof path[depth + 1] === "number" ? [] : {};
      });
      const value = pool[place];
      // plotly may write into what it is given; large arrays it only reads
      node[path.at(-1)] = Array.isArray(value) && value.length < 20 ? structuredClone(value) : value;
    }
    return figure;
  }

  // ---------------------------------------------------------------- the look

  const darkSystem = matchMedia("(prefers-color-scheme: dark)");

  function mode() {
    const chosen = document.documentElement.dataset.theme;
    return chosen === "dark" || chosen === "light" ? chosen : darkSystem.matches ? "dark" : "light";
  }

  function template(look, colours) {
    const axis = {
      ...look.axis, gridcolor: colours.grid, linecolor: colours.muted, tickcolor: colours.muted,
    };
    const flat = { ...axis, backgroundcolor: "rgba(0,0,0,0)" };
    const map = { colorscale: look.colorscale.sequential, colorbar: look.colorbar };
    return {
      data: {
        ...Object.fromEntries(look.maps.map((type) => [type, [map]])),
        bar: [{ error_x: { color: colours.ink }, error_y: { color: colours.ink } }],
      },
      layout: {
        ...look.layout,
        font: { ...look.layout.font, color: colours.ink },
        hoverlabel: { bgcolor: colours.hover, font: { size: 12, color: colours.ink } },
        colorway: colours.colours,
        colorscale: look.colorscale,
        coloraxis: { colorbar: look.colorbar },
        xaxis: axis,
        yaxis: axis,
        scene: {
          xaxis: flat, yaxis: flat, zaxis: flat,
          camera: { eye: { x: 1.5, y: 1.5, z: 1.1 }, center: { x: 0, y: 0, z: -0.15 } },
        },
      },
    };
  }

  // The light colours that a figure names itself, and what becomes of them in the dark.
  function darkened(look) {
    const names = ({ ink, muted, grid, hover, colours }) => [ink, muted, grid, hover, ...colours];
    const dark = names(look.dark);
    return new Map(names(look.light).map((colour, i) => [rgb(colour), rgb(dark[i])]));
  }

  function rgb(hex) {
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",");
  }

  function recolour(node, swap) {
    if (typeof node === "string") {
      if (/^#[0-9a-f]{6}$/i.test(node)) return swap.has(rgb(node)) ? `rgb(${swap.get(rgb(node))})` : node;
      const [, colour, alpha] = /^rgba\((\d+, ?\d+, ?\d+),(.*)\)$/.exec(node) ?? [];
      const dark = colour && swap.get(colour.replaceAll(" ", ""));
      return dark ? `rgba(${dark},${alpha})` : node;
    }
    if (!node || typeof node !== "object" || ArrayBuffer.isView(node)) return node;
    if (Array.isArray(node)) {
      return node.length && ArrayBuffer.isView(node[0]) ? node : node.map((item) => recolour(item, swap));
    }
    return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, recolour(item, swap)]));
  }

  // On a phone panels side by side stand below each other, and long titles break into lines.
  function fitted({ data, layout }, { clientWidth: width, clientHeight: height }, columns) {
    if (width > 540) return { data, layout };
    if (columns > 1) layout = stacked(layout, columns);
    const wrapped = (axis, pixels) => {
      const text = axis?.title?.text;
      if (!text || text.includes("<")) return axis;
      const size = Math.floor(pixels / 7.5); // letters of 13 pixels
      return { ...axis, title: { ...axis.title, text: wrap(text, size) } };
    };
    const axes = axesOf(layout, "[xy]").map((name) => {
      const [low, high] = domain(layout[name]);
      const room = name[0] === "x" ? width - 70 : height - 110;
      return [name, wrapped(layout[name], room * (high - low))];
    });
    const result = { ...wrapped(layout, width - 70), ...Object.fromEntries(axes) };
    if (result.title?.text) {
      const lines = result.title.text.split("<br>").length;
      const panels = layout.annotations?.some(heads) ?? false;
      const top = 14 + 21 * (lines + legendRows(data, layout, width - 72) + panels);
      result.margin = { ...layout.margin, t: top };
      if (lines > 1) result.title.pad = { t: 20 }; // plotly draws these 12 pixels higher
    }
    return { data, layout: result };
  }

  // About how many rows a legend above the figure takes; explorable.py counts alike.
  function legendRows(data, layout, width) {
    const traces = data.filter((trace) => trace.showlegend !== false);
    const names = traces.filter((trace) => trace.name).map((trace) => trace.name.length);
    if (layout.showlegend === false || traces.length < 2 || !names.length) return 0;
    return Math.ceil(names.length / Math.max(1, Math.floor(width / (52 + 6.5 * Math.max(...names)))));
  }

  const heads = (note) => note.yref === "paper" && note.y > 0.98; // the title of a panel

  const axesOf = (layout, letter) =>
    Object.keys(layout).filter((name) => new RegExp(`^${letter}axis\\d*$`).test(name));
  const domain = (axis) => axis.domain ?? [0, 1];

  function stacked(layout, columns) {
    const across = axesOf(layout, "x").sort((a, b) => domain(layout[a])[0] - domain(layout[b])[0]);
    const gap = 0.4 / columns;
    const high = (1 - gap * (columns - 1)) / columns;
    const slot = (i) => [1 - i * (high + gap) - high, 1 - i * (high + gap)];
    const result = { ...layout };
    across.forEach((name) => (result[name] = { ...layout[name], domain: [0, 1] }));
    axesOf(layout, "y").forEach((name) => {
      const column = Math.max(0, across.indexOf((layout[name].anchor ?? "x").replace("x", "xaxis")));
      result[name] = { ...layout[name], domain: slot(column), showticklabels: true };
    });
    result.annotations = layout.annotations?.map((note) => {
      if (!heads(note) || note.xref !== "paper") return note;
      const column = across.findIndex((name) => note.x <= domain(layout[name])[1]);
      return { ...note, x: 0.5, y: slot(Math.max(0, column))[1] };
    });
    const top = layout.legend?.y;
    if (top) result.legend = { ...layout.legend, y: 1 + (top - 1) / columns };
    return result;
  }

  function wrap(text, size) {
    return text.split(" ").reduce((lines, word) => {
      const last = lines.at(-1);
      if (last && last.length + word.length < size) lines[lines.length - 1] = `${last} ${word}`;
      else lines.push(word);
      return lines;
    }, []).join("<br>");
  }

  function dressed(figure, element, columns) {
    const look = globalThis.explorableTheme;
    const dark = mode() === "dark";
    const { data, layout } = fitted(
      dark ? recolour(figure, darkened(look)) : figure, element, columns);
    const touch = matchMedia("(pointer: coarse)").matches; // dragging scrolls the page there
    return [data, {
      ...layout,
      template: template(look, dark ? look.dark : look.light),
      width: undefined, height: element.clientHeight, autosize: true,
      uirevision: "kept", // a zoom outlives the slider
      ...(touch && { dragmode: false }),
    }];
  }

  // ---------------------------------------------------------------- one figure

  let plotly;
  function loadPlotly() {
    plotly ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = PLOTLY;
      script.onload = resolve;
      script.onerror = () => reject(new Error("plotly.js could not be loaded"));
      document.head.append(script);
    });
    return plotly;
  }

  class Explorable {
    constructor(element) {
      this.element = element;
      this.frame = element.querySelector(".explorable-figure");
      this.spec = JSON.parse(element.dataset.spec);
      this.positions = Object.fromEntries(this.spec.controls.map(({ name, start }) => [name, start]));
      this.outputs = {};
      this.ask = null; // set by live.js: positions -> { figure, texts } from a kernel
      if (this.spec.controls.length) element.prepend(this.controls());
      element.explorable = this;
      new IntersectionObserver((seen, observer) => {
        if (!seen.some((entry) => entry.isIntersecting)) return;
        observer.disconnect();
        this.begin().catch((error) => this.fail(error));
      }, { rootMargin: NEAR }).observe(element);
    }

    controls() {
      const box = make("div", { className: "explorable-controls" });
      for (const control of this.spec.controls) {
        box.append(control.kind === "slider" ? this.slider(control) : this.choice(control));
      }
      return box;
    }

    slider({ name, label, texts, start }) {
      const id = unique(name);
      const input = make("input", { type: "range", id, min: 0, max: texts.length - 1, step: 1 });
      input.value = start;
      input.name = name;
      const output = make("output", { className: "explorable-value", htmlFor: id });
      this.outputs[name] = (text) => {
        output.textContent = text;
        input.setAttribute("aria-valuetext", text);
        input.style.setProperty("--share", input.value / input.max);
      };
      this.outputs[name](texts[start]);
      input.addEventListener("input", () => this.set(name, Number(input.value), texts));
      const caption = make("label", { htmlFor: id, textContent: label });
      const box = make("div", { className: "explorable-control" });
      box.append(caption, output, input);
      return box;
    }

    choice({ name, label, texts, start }) {
      const id = unique(name);
      const box = make("fieldset", { className: "explorable-control explorable-choice" });
      const options = make("div", { className: "explorable-options" });
      box.append(make("legend", { textContent: label }), options);
      texts.forEach((text, i) => {
        const input = make("input", { type: "radio", name: id, value: i, checked: i === start });
        input.addEventListener("change", () => this.set(name, i, texts));
        const option = make("label");
        option.append(input, make("span", { textContent: text }));
        options.append(option);
      });
      this.outputs[name] = () => {};
      return box;
    }

    set(name, position, texts) {
      this.positions[name] = position;
      if (Number.isInteger(position)) this.outputs[name](texts[position]);
      this.refresh();
    }

    async begin() {
      [this.figureOf] = await Promise.all([unpack(this.element.dataset.blob), loadPlotly()]);
      this.plot = make("div", { className: "explorable-plot" });
      this.frame.append(this.plot);
      await this.refresh();
      this.element.classList.add("is-drawn");
    }

    // The last control changes fastest, as in Explorable.states().
    state() {
      return this.spec.controls.reduce(
        (state, { name, texts }) => state * texts.length + Math.round(this.positions[name]), 0);
    }

    // At most one figure is on its way; changes meanwhile are answered by one more, the newest.
    async refresh() {
      if (!this.plot) return;
      this.stale = true;
      if (this.busy) return;
      this.busy = true;
      try {
        while (this.stale) {
          this.stale = false;
          await this.draw();
          if (this.stale) await new Promise(requestAnimationFrame);
        }
      } finally {
        this.busy = false;
      }
    }

    async draw() {
      const asked = JSON.stringify(this.positions);
      // a kernel that fails says so in the bar, and the stored state stands in
      const computed = this.ask && (await this.ask({ ...this.positions }).catch(() => null));
      const { figure, texts } = computed ?? { figure: this.figureOf(this.state()) };
      this.last = figure;
      for (const [name, text] of Object.entries(texts ?? {})) this.outputs[name](text);
      await this.paint();
      this.element.dataset.drawn = asked;
      this.element.dispatchEvent(new CustomEvent("explorable:drawn", { bubbles: true }));
    }

    async paint() {
      if (!this.last) return;
      const figure = dressed(this.last, this.frame, this.spec.columns);
      await globalThis.Plotly.react(this.plot, ...figure, CONFIG);
    }

    fail(error) {
      console.error(error);
      const note = `The figure stays still: ${error.message}.`;
      this.element.append(make("p", { className: "explorable-note", textContent: note }));
    }

    // Live: sliders take steps between the stored values where the kernel accepts them.
    live(ask) {
      this.ask = ask;
      for (const { name, texts, continuous } of this.spec.controls) {
        const input = this.element.querySelector(`input[type=range][name="${CSS.escape(name)}"]`);
        if (!input) continue;
        input.step = ask && continuous ? 0.25 : 1; // the browser moves the value to a whole step
        this.positions[name] = Number(input.value);
        if (!ask) this.outputs[name](texts[this.positions[name]]);
      }
      this.element.classList.toggle("is-live", Boolean(ask));
      return this.refresh();
    }
  }

  // ---------------------------------------------------------------- a prediction

  function prediction(element) {
    const answer = element.querySelector("details");
    const button = make("button", { type: "button", textContent: "Check my prediction" });
    const verdict = make("p", { className: "prediction-verdict" });
    verdict.setAttribute("role", "status");
    button.disabled = true;
    answer.hidden = true;
    answer.before(button, verdict);
    element.addEventListener("change", () => (button.disabled = false));
    button.addEventListener("click", () => {
      const chosen = element.querySelector("input:checked").value;
      const right = chosen === element.dataset.answer;
      verdict.textContent = right ? "Right." : "Not this time.";
      element.dataset.verdict = right ? "right" : "wrong";
      answer.hidden = false;
      answer.open = true;
    });
  }

  // ---------------------------------------------------------------- the page

  let made = 0;
  const unique = (name) => `explorable-${name}-${(made += 1)}`;

  function make(tag, { htmlFor, ...properties } = {}) {
    const element = Object.assign(document.createElement(tag), properties);
    if (htmlFor) element.setAttribute("for", htmlFor);
    return element;
  }

  function start() {
    const all = [...document.querySelectorAll(".explorable[data-blob]")].map((e) => new Explorable(e));
    document.querySelectorAll(".prediction").forEach(prediction);
    const repaint = () => all.forEach((explorable) => explorable.paint());
    new MutationObserver(repaint).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    darkSystem.addEventListener("change", repaint);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
