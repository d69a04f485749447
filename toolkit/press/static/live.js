// "Compute live" and "Open in JupyterLab", for pages that a Jupyter server serves at <base>/book/.
// Anywhere else (files, a plain web server) this script does nothing.
(() => {
  "use strict";
  const place = /^(.*\/)book\/(book\/.+)\.html$/.exec(location.pathname);
  const download = document.querySelector('a[href*="_sources/"][href$=".ipynb"]');
  if (!location.protocol.startsWith("http") || !place || !download) return;
  const [, base, page] = place.map(decodeURIComponent);
  const notebook = `${page}.ipynb`;
  const exercises = page.endsWith("_exercises");
  const FIGURE = "application/vnd.toolkit.figure+json";
  const TICKET = "application/vnd.toolkit.explorable+json";

  // ---------------------------------------------------------------- the server

  async function api(path, method = "GET", body = undefined, more = {}) {
    const token = /(?:^|; )_xsrf=([^;]+)/.exec(document.cookie)?.[1] ?? "";
    const answer = await fetch(`${base}api/${path}`, {
      method,
      credentials: "same-origin",
      headers: { "X-XSRFToken": token, "Content-Type": "application/json" },
      body: body && JSON.stringify(body),
      ...more,
    });
    if (!answer.ok) throw new Error(`the server answered ${answer.status} to ${method} ${path}`);
    return answer.status === 204 ? null : answer.json();
  }

  const encoded = (path) => path.split("/").map(encodeURIComponent).join("/");

  // One kernel over one socket; `run` resolves with what the code displayed.
  class Kernel {
    static async start() {
      const name = `live-${crypto.randomUUID()}`;
      const path = notebook.replace(/[^/]*$/, name); // not the notebook's: its own session stays
      const session = await api("sessions", "POST", {
        path, name, type: "console", kernel: { name: "python3" },
      });
      return new Kernel(session, await connected(session.kernel.id)).ready();
    }

    constructor(session, socket) {
      this.session = session;
      this.socket = socket;
      this.waiting = new Map();
      socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
      socket.onclose = () => this.lose(new Error("the kernel is gone"));
    }

    // The first answers of a kernel may come before its output channel is heard.
    async ready() {
      for (let i = 0; i < 100; i++) {
        const heard = this.run("print('ready')").then((output) => output.length > 0);
        const late = new Promise((resolve) => setTimeout(resolve, 3000, false));
        if (await Promise.race([heard, late])) return this;
      }
      throw new Error("the kernel does not answer");
    }

    run(code) {
      const id = crypto.randomUUID();
      const header = {
        msg_id: id, msg_type: "execute_request", version: "5.3",
        session: this.session.id, username: "", date: new Date().toISOString(),
      };
      const content = {
        code, silent: false, store_history: false, user_expressions: {},
        allow_stdin: false, stop_on_error: true,
      };
      const message = { header, content, parent_header: {}, metadata: {}, channel: "shell" };
      return new Promise((resolve, reject) => {
        this.waiting.set(id, { resolve, reject, outputs: [] });
        this.socket.send(JSON.stringify(message));
      });
    }

    receive({ header, parent_header: parent, content, channel }) {
      const job = this.waiting.get(parent?.msg_id);
      if (channel !== "iopub" || !job) return;
      const kind = header.msg_type;
      if (kind === "error") job.error = new Error(`${content.ename}: ${content.evalue}`);
      else if (content.data) job.outputs.push(content.data);
      else if (kind === "stream") job.outputs.push({ "text/plain": content.text });
      if (kind !== "status" || content.execution_state !== "idle") return;
      this.waiting.delete(parent.msg_id);
      if (job.error) job.reject(job.error);
      else job.resolve(job.outputs);
    }

    lose(error) {
      for (const job of this.waiting.values()) job.reject(error);
      this.waiting.clear();
      this.lost?.(error);
    }

    stop() {
      this.lost = null;
      this.socket.onclose = null;
      this.socket.close();
      this.lose(new Error("stopped"));
      // keepalive: also while the page closes
      return api(`sessions/${this.session.id}`, "DELETE", undefined, { keepalive: true })
        .catch(() => {}); // already ended on the server
    }
  }

  function connected(kernel) {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const id = crypto.randomUUID();
    const address = `${scheme}//${location.host}${base}api/kernels/${kernel}/channels?session_id=${id}`;
    const socket = new WebSocket(address);
    return new Promise((resolve, reject) => {
      socket.onopen = () => resolve(socket);
      socket.onerror = () => reject(new Error("no connection to the kernel"));
    });
  }

  // ---------------------------------------------------------------- the page

  const figures = [...document.querySelectorAll(".explorable")]
    .map((element) => element.explorable)
    .filter((explorable) => explorable?.spec.controls.length);
  let kernel = null;
  let bar;

  async function begin() {
    bar.busy("Starting a kernel …");
    try {
      kernel = await Kernel.start();
      kernel.lost = (error) => end(`${sentence(error)} The figures show stored states again.`);
      await kernel.run("from toolkit.explore.explorable import bridge, bridge_figure\nbridge()");
      const numbers = await tickets();
      await Promise.all(figures.map((figure, i) => figure.live((at) => ask(numbers[i], at))));
      bar.live("Live: every change is computed now.");
    } catch (error) {
      if (error.message !== "stopped") {
        end(`${sentence(error)} The figures show stored states.`);
      }
    }
  }

  // Run the chapter's cells until each figure of the page has told its number.
  async function tickets() {
    const { content } = await api(`contents/${encoded(notebook)}?type=notebook&content=1`);
    const cells = content.cells.filter((cell) => cell.cell_type === "code");
    const numbers = [];
    for (const [i, cell] of cells.entries()) {
      if (numbers.length === figures.length) break;
      bar.busy(`Running cell ${i + 1} of ${cells.length} …`);
      const outputs = await kernel.run(source(cell)).catch((error) => {
        if (error.message === "stopped") throw error;
        throw new Error(`cell ${i + 1} failed: ${error.message}`);
      });
      for (const data of outputs) {
        const ticket = data[TICKET];
        if (ticket && belongs(ticket, figures[numbers.length])) numbers.push(ticket.number);
      }
    }
    if (numbers.length < figures.length) throw new Error("the page and the chapter differ; build again");
    return numbers;
  }

  const source = (cell) => (Array.isArray(cell.source) ? cell.source.join("") : cell.source);

  function belongs(ticket, figure) {
    const names = figure.spec.controls.map((control) => control.name);
    return ticket.alt === figure.spec.alt && ticket.controls.join() === names.join();
  }

  async function ask(number, positions) {
    try {
      const outputs = await kernel.run(`bridge_figure(${number}, ${JSON.stringify(positions)})`);
      return outputs.find((data) => data[FIGURE])[FIGURE];
    } catch (error) {
      if (kernel) end(`${sentence(error)} The figures show stored states again.`);
      throw error;
    }
  }

  function end(message) {
    const old = kernel;
    kernel = null;
    for (const figure of figures) figure.live(null);
    bar.still(message);
    return old?.stop();
  }

  const sentence = (error) => {
    const text = error.message.split("\n")[0];
    return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
  };

  // ---------------------------------------------------------------- JupyterLab

  async function openLab(event) {
    if (!exercises) return; // the link leads to the chapter itself
    event.preventDefault();
    const target = await ownCopy().catch((error) => bar.still(sentence(error)));
    if (target) location.assign(`${base}lab/tree/${encoded(target)}`);
  }

  // Exercises open as the reader's own copy without solutions; a copy once made is kept.
  async function ownCopy() {
    const folder = "answers";
    const name = notebook.split("/").at(-1);
    const names = async (path) => (await api(`contents/${path}?content=1`)).content.map((f) => f.name);
    if (!(await names("")).includes(folder)) {
      await api(`contents/${folder}`, "PUT", { type: "directory" });
    }
    if (!(await names(folder)).includes(name)) {
      const content = await (await fetch(download.href)).json();
      await api(`contents/${folder}/${encodeURIComponent(name)}`, "PUT", { type: "notebook", content });
    }
    return `${folder}/${name}`;
  }

  // ---------------------------------------------------------------- the bar

  class Bar {
    constructor() {
      this.box = Object.assign(document.createElement("div"), { className: "live-bar" });
      this.status = document.createElement("span");
      this.status.setAttribute("role", "status");
      this.button = Object.assign(document.createElement("button"), { type: "button" });
      this.button.addEventListener("click", () => {
        if (kernel) end("");
        else begin();
      });
      this.link = Object.assign(document.createElement("a"), {
        href: `${base}lab/tree/${encoded(notebook)}`, textContent: "Open in JupyterLab",
      });
      this.link.addEventListener("click", openLab);
      this.still("");
      this.box.append(...(figures.length && !exercises ? [this.button] : []), this.link, this.status);
      const title = document.querySelector("article.bd-article h1");
      title?.after(this.box);
    }

    set(label, text, disabled = false) {
      this.button.textContent = label;
      this.button.disabled = disabled;
      this.status.textContent = text;
    }

    still(text) { this.set("Compute live", text); }
    busy(text) { this.set(kernel ? "Stop" : "Compute live", text, !kernel); }
    live(text) { this.set("Stop", text); }
  }

  api("status").then(() => {
    bar = new Bar();
    addEventListener("pagehide", () => kernel?.stop());
  }, () => {}); // not a Jupyter server: the page stays as it is
})();
