"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const held = new Map();
  // Parts are read when they are looked at.
  const part = (id) => {
    if (!held.has(id)) held.set(id, JSON.parse(byId(`data-${id}`).textContent));
    return held.get(id);
  };
  const about = part("about"), index = part("index"), PARTS = about.parts;
  const state = { rows: [], at: -1, token: null, word: "", methods: new Set([0]) };
  const ROW = 46, LONGEST = 20000;

  // ── elements ──────────────────────────────────────────────────────────────────────────────────

  /** An element; strings among its children become text, never markup. */
  const el = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...present(children));
    return made;
  };
  const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== "");
  const svg = (tag, attributes = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  // Control characters are shown, and those that turn a line's direction named.
  const visible = (text) => text
    .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f]/g, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase()}⟩`)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f]/g, "\u2421");
  const number = (value, digits = 4) => value === null || value === undefined ? "–" : String(Number.isInteger(value) ? value : Number(Number(value).toPrecision(digits)));
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + number(Math.abs(value));
  const figures = (pairs) => el("dl", { class: "figures" }, pairs.filter(([, v]) => v !== undefined && v !== null && v !== "")
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));

  // ── what the parts hold ───────────────────────────────────────────────────────────────────────

  // Questions that were asked since the page was opened, and their examples, stand behind its own.
  const asked = { queries: [], examples: [], sheets: new Map() };
  const OWN = index.length;

  const query = (i) => {
    if (i >= OWN) return { ...asked.queries[i - OWN], place: i };
    const own = part(`queries-${Math.floor(i / PARTS.queries)}`), at = i % PARTS.queries;
    return { ...own.own[at], item: column(own.texts, at), place: i };
  };
  const example = (i) => i >= about.shown ? { ...asked.examples[i - about.shown], place: i } : ({ ...column(part(`examples-${Math.floor(i / PARTS.examples)}`), i % PARTS.examples), place: i });
  const column = (columns, at) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[at]]));

  /** Texts of training rows near a number, by their rows. */
  const documents = (n) => {
    const id = `documents-${n}`;
    if (!held.has(id)) held.set(id, byId(`data-${id}`) ? JSON.parse(byId(`data-${id}`).textContent) : {});
    return held.get(id);
  };
  const rowsBetween = (from, to) => {
    const own = [];
    for (let r = from; r < to; r++) own.push(documents(Math.floor(r / PARTS.examples))[r]);
    return own.join("");
  };

  const urls = new Map();
  const sheet = (id) => {
    if (!urls.has(id)) {
      const bytes = Uint8Array.from(atob(part(id)), (c) => c.charCodeAt(0));
      urls.set(id, URL.createObjectURL(new Blob([bytes], { type: "image/png" })));
    }
    return urls.get(id);
  };
  /** The sheet that holds an image, and its place there. */
  const place = (set, i) => asked.sheets.get(`${set}-${i}`) || [`${set}-sheet-${Math.floor(i / PARTS.sheet)}`, i % PARTS.sheet];
  const thumb = (set, i, said, pixels, zooms = true) => {
    const [height, width] = about.size, [from, within] = place(set, i);
    const made = el(zooms ? "button" : "div", zooms ? { type: "button", class: "thumb", "aria-label": `${said}; enlarge`, "aria-pressed": "false" }
      : { class: "thumb", role: "img", "aria-label": said });
    const draw = (size) => {
      const scale = size / Math.max(height, width), w = width * scale, h = height * scale;
      Object.assign(made.style, {
        width: `${w}px`, height: `${h}px`, backgroundImage: `url(${sheet(from)})`,
        backgroundSize: `${16 * w}px auto`, backgroundPosition: `${-(within % 16) * w}px ${-Math.floor(within / 16) * h}px`,
        boxSizing: "content-box",
      });
    };
    draw(pixels);
    if (zooms) made.addEventListener("click", () => {
      const large = made.getAttribute("aria-pressed") !== "true";
      made.setAttribute("aria-pressed", String(large));
      draw(large ? Math.max(3 * pixels, 160) : pixels);
    });
    return made;
  };

  // ── the list ──────────────────────────────────────────────────────────────────────────────────

  const titled = (q) => q.row < 0 ? "question" : `row ${q.row}`;
  const needle = (q) => [q.id, titled(q), q.text, q.label].filter((v) => v !== undefined).join(" ").toLowerCase();
  const needles = index.map(needle);
  const fine = (q) => about.fine.includes(q.verdict);
  const flagged = (q) => q.verdict && !fine(q);
  // What a page calls things; an audit's queries are problems.
  const WORDS = { queries: "queries", doubt: "answers in doubt", loss: "loss, nats", help: "Proponents: without them its loss would rise",
    hurt: "Opponents: without them it would fall", worth: "What these answers are worth", answer: "What this answer is worth", ...about.words };
  const STATES = {
    all: ["all", () => true],
    wrong: ["wrong predictions", (q) => q.right === false],
    right: ["right predictions", (q) => q.right === true],
    flagged: [WORDS.doubt, flagged],
    ...Object.fromEntries([...new Set(index.map((q) => q.verdict).filter(Boolean))].map((own) => [`verdict-${own}`, [own.replaceAll("_", " "), (q) => q.verdict === own]])),
  };
  const ORDERS = {
    row: ["as they come", (a, b) => index[a].row - index[b].row],
    loss: ["largest loss first", (a, b) => index[b].loss - index[a].loss],
    sure: ["smallest loss first", (a, b) => index[a].loss - index[b].loss],
  };
  const named = (q) => about.notes ? visible(q.id) : about.classes ? `class ${q.label}${q.right ? "" : `, taken for ${q.guess}`}` : q.text !== undefined ? visible(q.text) : titled(q);

  const filter = () => {
    const words = byId("search").value.toLowerCase().trim(), wanted = byId("class").value;
    const test = STATES[byId("state").value][1];
    state.rows = index.keys().toArray ? [...index.keys()] : index.map((_, i) => i);
    state.rows = state.rows.filter((i) => (!words || needles[i].includes(words)) && (wanted === "" || String(index[i].label) === wanted) && test(index[i]));
    state.rows.sort(ORDERS[byId("order").value][1]);
    byId("count").textContent = `${state.rows.length} of ${index.length} ${WORDS.queries}`;
    byId("rows").style.height = `${ROW * state.rows.length}px`;
    draw();
  };
  const draw = () => {
    const box = byId("list"), first = Math.max(0, Math.floor(box.scrollTop / ROW) - 5);
    const last = Math.min(state.rows.length, first + Math.ceil((box.clientHeight || 400) / ROW) + 10);
    byId("rows").replaceChildren(...state.rows.slice(first, last).map((i, n) => row(i, first + n)));
    const shown = byId(`query-${state.at}`);
    if (shown) box.setAttribute("aria-activedescendant", shown.id); else box.removeAttribute("aria-activedescendant");
  };
  const row = (i, at) => {
    const q = index[i], mark = q.right === false ? " ✗" : "";
    return el("div", {
      class: "row", role: "option", id: `query-${i}`, "aria-selected": String(i === state.at), "aria-posinset": at + 1,
      "aria-setsize": state.rows.length, style: `top:${ROW * at}px`, on: { click: () => open(i) },
    }, about.kind === "image" ? thumb("query", i, titled(q), 36, false) : null,
    el("div", {}, el("b", { dir: "auto" }, named(q) + mark), el("small", { dir: "auto" }, `${about.notes ? visible(q.text.slice(0, 60)) : q.id.slice(0, 12)}${q.loss === null ? "" : ` · loss ${number(q.loss, 3)}`}${flagged(q) ? ` · ${q.verdict}` : ""}`)));
  };
  const open = (i, quietly = false) => {
    state.at = i; state.token = null; state.word = "";
    if (!quietly) history.replaceState(null, "", `#query=${encodeURIComponent(index[i].id)}`);
    const at = state.rows.indexOf(i), box = byId("list");
    if (at >= 0 && (at * ROW < box.scrollTop || (at + 1) * ROW > box.scrollTop + box.clientHeight)) box.scrollTop = Math.max(0, at * ROW - ROW);
    draw();
    detail();
  };
  const step = (by) => {
    const at = state.rows.indexOf(state.at), next = Math.min(state.rows.length - 1, Math.max(0, at + by));
    if (state.rows.length) open(state.rows[next]);
  };

  // ── one query ─────────────────────────────────────────────────────────────────────────────────

  const detail = () => {
    const q = query(state.at), page = byId("detail");
    page.replaceChildren(...present([
      el("h2", { dir: "auto" }, q.row < 0 ? "Question" : about.kind === "text" ? (q.item.source || []).join("; ") || q.id : `Query ${q.row}`),
      el("div", { class: "bar-row" },
        el("button", { type: "button", on: { click: () => step(-1) } }, "Previous"),
        el("button", { type: "button", on: { click: () => step(1) } }, "Next"),
        el("button", { type: "button", id: "link", on: { click: copy } }, "Copy link"),
        el("button", { type: "button", id: "jsonl", on: { click: () => save("jsonl") } }, "Save JSONL"),
        el("button", { type: "button", id: "csv", on: { click: () => save("csv") } }, "Save CSV"),
        q.verdict ? el("span", { class: `tag ${fine(q) ? "right" : "warn"}` }, q.verdict.replaceAll("_", " ")) : null),
      el("div", { class: "asked" }, about.kind === "image" ? thumb("query", state.at, titled(q), 112) : null,
        el("div", { style: "min-width:0" }, said(q), el("small", {}, `id ${q.id}, ${titled(q)}`))),
      q.against ? el("p", { class: "dim", dir: "auto" }, `rather than: ${visible(q.against)}`) : null,
      about.kind === "text" ? tokensOf(q) : about.kind === "table" ? cells(q.item.values, null) : "",
      about.methods.length > 1 ? el("div", { class: "bar-row", role: "group", "aria-label": "Methods" }, about.methods.map((name, m) =>
        el("button", { type: "button", "aria-pressed": String(state.methods.has(m)), on: { click: () => { toggle(m); detail(); } } }, `${state.methods.has(m) ? "✓ " : ""}${name}`))) : null,
      q.said_of ? el("p", { class: "dim" }, `A score says ${visible(q.said_of)}.`) : null,
      ...methodsOf(q).map((m) => answers(q, m)),
      q.shares.length ? [el("h3", {}, "How its scores spread"), el("div", { class: "plots" }, histogram(q.histogram), cumulative(q.shares))] : null,
      el("h3", {}, WORDS.answer),
      figures(Object.entries(q.worth).map(([name, value]) => [name.replaceAll("_", " "), number(value, 3)]))]));
    if (about.kind === "text") shade();
  };
  /** Methods that are shown; a question that was asked has the run's own alone. */
  const methodsOf = (q) => [...state.methods].filter((m) => q.lists[m]).sort((a, b) => a - b);
  const toggle = (m) => {
    if (!state.methods.delete(m)) state.methods.add(m);
    if (!state.methods.size) state.methods.add(m);
  };
  const said = (q) => figures([
    ["label", q.label], ["prediction", q.guess === undefined ? null : `${q.guess}${q.right ? "" : " ✗"}`],
    ["probability of the label", q.p === undefined ? null : number(q.p, 3)],
    ["of the prediction", q.p_guess === undefined || q.right ? null : number(q.p_guess, 3)],
    ["target", q.target && q.target.map((v) => number(v)).join(", ")], ["said", q.said && q.said.map((v) => number(v)).join(", ")],
    ["tokens right", q.tokens_right === undefined ? null : `${Math.round(100 * q.tokens_right)} %`],
    [WORDS.loss, q.loss === null ? null : number(q.loss)],
  ]);
  const answers = (q, m) => {
    const own = q.lists[m], largest = Math.max(...own.map(([, score]) => Math.abs(score)), 1e-30);
    const side = (title, sign, kind) => {
      const entries = own.map((entry, at) => [...entry, at]).filter(([, score]) => sign * score > 0).sort((a, b) => sign * (b[1] - a[1]));
      const id = `${kind}-${m}`;
      return el("section", { "aria-labelledby": id }, el("h3", { id }, title), entries.length ?
        el("ol", {}, entries.map(([i, score, source, at], rank) => card(q, m, i, score, source, at, rank + 1, kind, largest))) : el("p", { class: "dim" }, "none"));
    };
    return el("div", {}, about.methods.length > 1 ? el("h3", {}, about.methods[m]) : null,
      el("div", { class: "sides" }, side(`▲ ${WORDS.help}`, 1, "help"), side(`▼ ${WORDS.hurt}`, -1, "hurt")),
      about.kind === "text" && m === 0 ? sharedWords(own) : null);
  };
  const card = (q, m, i, score, source, at, rank, kind, largest) => {
    const x = example(i), exact = source && source !== "estimate";
    const label = x.label === undefined ? null : el("span", { class: q.label !== undefined && x.label !== q.label ? "wrong" : "" }, `class ${x.label}`);
    return el("li", { class: `card ${kind}` }, about.kind === "image" ? thumb("example", i, `training example ${x.row}, class ${x.label}`, 56) : null, el("div", { class: "words" },
      el("div", { class: "head" }, el("span", { class: "dim" }, `#${rank}`), el("span", { class: "score" }, `${kind === "help" ? "▲" : "▼"} ${signed(score)}${about.unit ? ` ${about.unit}` : ""}`), label,
        el("small", {}, [source ? (about.notes ? source : exact ? `exact (${source})` : "estimated") : "", x.copies > 1 ? `${x.copies} copies act as one` : ""].filter(Boolean).join(" · "))),
      el("div", { class: "meter" }, el("i", { style: `width:${(100 * Math.abs(score) / largest).toFixed(1)}%` })),
      el("div", { class: "body" }, about.kind === "text" ? passage(x, m, at) : about.kind === "table" ? cells(x.values, q.item.values) : null,
        x.target ? el("span", {}, `target ${x.target.map((v) => number(v)).join(", ")}`) : null),
      el("small", {}, [(x.source || []).join("; "), x.row === null ? "" : `row ${x.row}`, x.id].filter(Boolean).join(" · ")), metadata(x)));
  };
  const metadata = (x) => (x.documents || []).filter((d) => Object.keys(d.metadata || {}).length).slice(0, 3).map((d) =>
    el("small", { dir: "auto" }, ` · ${Object.entries(d.metadata).map(([name, value]) => visible(`${name}: ${String(value).slice(0, 80)}`)).join(", ")}`));

  // ── rows of tables ────────────────────────────────────────────────────────────────────────────

  /** Columns and their values; beside a query's those that lie more than a deviation apart come first. */
  const cells = (values, beside) => {
    const apart = (c) => beside === null ? 0 : Math.abs(values[c] - beside[c]) / (about.spread[c] || 1);
    const order = values.map((_, c) => c).sort((a, b) => beside === null ? a - b : apart(b) - apart(a));
    const shown = order.slice(0, 12), rest = order.slice(12);
    const cell = (c) => el("span", { class: apart(c) > 1 ? "differs" : "" }, `${apart(c) > 1 ? "≠ " : ""}${about.columns ? about.columns[c] : `column ${c}`}: ${number(values[c], 3)}`);
    const box = el("div", { class: "cells" }, shown.map(cell));
    if (rest.length) box.append(el("button", { type: "button", on: { click: (e) => e.target.replaceWith(...rest.map(cell)) } }, `${rest.length} more`));
    return box;
  };

  // ── texts ─────────────────────────────────────────────────────────────────────────────────────

  const tokensOf = (q) => el("p", { class: "text open", dir: "auto", id: "asked" }, q.item.pieces.map((piece, t) => {
    const counts = q.item.counts[t] === "1", loss = (q.losses || [])[t];
    return counts ? el("button", { type: "button", class: "tok", "data-t": t, "aria-pressed": "false", title: loss === undefined || loss === null ? "" : `loss ${loss} nats`,
      on: { click: () => { state.token = state.token === t ? null : t; shade(); } } }, visible(piece)) : el("span", { class: "tok" }, visible(piece));
  }));
  const passage = (x, m, at) => {
    const whole = x.pieces.join(""), long = whole.length > LONGEST;
    const tokens = long ? [visible(whole.slice(0, LONGEST)), " …"] : x.pieces.map((piece, t) => el("span", { class: "tok", "data-t": t }, visible(piece)));
    const box = el("div", { class: "text", dir: "auto", "data-m": m, "data-at": at, tabindex: "0", role: "group", "aria-label": x.row === null ? "text of training rows" : `text of training row ${x.row}` }, tokens);
    box.addEventListener("click", (event) => pick(event.target));
    const [first, last, before, behind] = x.reach || [x.row, x.row, false, false], alone = first === last;
    if (alone && whole.length < 600) return box;
    const said = alone ? "more" : before || behind ? "more of the document" : "the whole document";
    const more = el("button", { type: "button", "aria-expanded": "false", on: { click: () => {
      const opened = box.classList.toggle("open");
      more.textContent = opened ? "less" : said;
      more.setAttribute("aria-expanded", String(opened));
      box.classList.toggle("whole", opened && !alone);
      box.querySelectorAll(".around").forEach((each) => each.remove());
      if (opened && !alone) {
        box.prepend(el("span", { class: "around" }, visible((before ? "… " : "") + rowsBetween(first, x.row))));
        box.append(el("span", { class: "around" }, visible(rowsBetween(x.row + 1, last + 1) + (behind ? " …" : ""))));
        // The text itself stays where it was, and what is before it is scrolled to.
        const begins = box.querySelector(".tok");
        box.scrollTop = begins ? begins.offsetTop - box.offsetTop : 0;
      }
    } } }, said);
    return el("div", { style: "min-width:0;flex:1" }, box, more);
  };
  const WORD = /[\p{L}\p{N}]+/gu;
  /** Words of a text and the tokens that each lies in. */
  const wordsOf = (pieces) => {
    const token = [];
    pieces.forEach((piece, t) => { for (let i = 0; i < piece.length; i++) token.push(t); });
    return [...pieces.join("").matchAll(WORD)].map((m) => ({ word: m[0].toLowerCase(), tokens: [...new Set(token.slice(m.index, m.index + m[0].length))] }));
  };
  /** The word that was clicked is marked in all texts; clicked again, it is not. */
  const pick = (target) => {
    if (!target.classList || !target.classList.contains("tok")) return;
    const box = target.closest(".text"), pieces = [...box.querySelectorAll(".tok")].map((each) => each.textContent);
    const own = wordsOf(pieces).find((each) => each.tokens.includes(Number(target.dataset.t)));
    state.word = own && own.word !== state.word ? own.word : "";
    mark();
  };
  const mark = () => {
    for (const box of byId("detail").querySelectorAll(".text")) {
      const tokens = [...box.querySelectorAll(".tok")], marked = new Set();
      if (state.word) wordsOf(tokens.map((each) => each.textContent)).filter((each) => each.word === state.word).forEach((each) => each.tokens.forEach((t) => marked.add(t)));
      tokens.forEach((each, t) => each.classList.toggle("marked", marked.has(t)));
    }
  };
  const pairsOf = (words) => words.slice(1).map((each, i) => [`${words[i].word} ${each.word}`, words[i].tokens.concat(each.tokens)]);
  /** Tokens of the first method's texts, the stronger the colour the more they speak to the token chosen. */
  const shade = () => {
    const q = query(state.at), known = new Set(pairsOf(wordsOf(q.item.pieces)).map(([pair]) => pair));
    for (const each of byId("asked").querySelectorAll("button.tok")) each.setAttribute("aria-pressed", String(Number(each.dataset.t) === state.token));
    for (const box of byId("detail").querySelectorAll(".text[data-at]")) {
      const tokens = [...box.querySelectorAll(".tok")], letters = box.dataset.m === "0" ? q.tokens[box.dataset.at] : undefined;
      const shared = new Set(pairsOf(wordsOf(tokens.map((each) => each.textContent))).filter(([pair]) => known.has(pair)).flatMap(([, own]) => own));
      const share = letters ? shares(letters, tokens.length) : [];
      tokens.forEach((each, t) => {
        const value = share[t] || 0;
        each.style.background = Math.abs(value) < 0.05 ? "" : `rgba(var(--${value > 0 ? "help" : "hurt"}), ${(0.45 * Math.abs(value)).toFixed(2)})`;
        each.title = letters ? `${signed(value)} of the strongest` : "";
        each.classList.toggle("shared", shared.has(t));
      });
    }
    mark();
  };
  const shares = (letters, width) => {
    const sums = new Array(width).fill(0);
    for (let i = 0; i < letters.length; i++) if (state.token === null || Math.floor(i / width) === state.token) sums[i % width] += letters.charCodeAt(i) - 106;
    const largest = Math.max(...sums.map(Math.abs), 1e-9);
    return sums.map((value) => value / largest);
  };
  /** Words that many of the strongest proponents have, and few of the texts that are shown at all. */
  const sharedWords = (own) => {
    const sets = own.filter(([, score]) => score > 0).map(([i]) => new Set(wordsOf(example(i).pieces).map((each) => each.word)));
    const others = own.filter(([, score]) => score < 0).map(([i]) => new Set(wordsOf(example(i).pieces).map((each) => each.word)));
    const count = new Map();
    sets.forEach((set) => set.forEach((word) => count.set(word, (count.get(word) || 0) + 1)));
    const usual = (about.shown ? part("examples-0").pieces : asked.examples.map((x) => x.pieces)).map((pieces) => pieces.join("").toLowerCase());
    const common = (word) => usual.filter((said) => said.includes(word)).length > usual.length / 2;
    const rate = (word) => count.get(word) / sets.length - others.filter((set) => set.has(word)).length / Math.max(1, others.length);
    const top = [...count.keys()].filter((word) => count.get(word) > 1 && word.length > 2 && !common(word)).sort((a, b) => rate(b) - rate(a) || count.get(b) - count.get(a)).slice(0, 12);
    return top.length ? el("p", {}, el("span", { class: "dim" }, "Words that proponents share: "), top.map((word, n) => [n ? " " : "", el("button", { type: "button", class: "tag",
      on: { click: () => { state.word = state.word === word ? "" : word; mark(); } } }, `${word} ×${count.get(word)}`)])) : null;
  };

  // ── plots ─────────────────────────────────────────────────────────────────────────────────────

  const text = (x, y, said, anchor = "start") => { const made = svg("text", { x, y, "text-anchor": anchor }); made.textContent = said; return made; };
  const histogram = ([low, high, counts]) => {
    const made = svg("svg", { viewBox: "0 0 320 130", role: "img", "aria-label": `Histogram of scores from ${number(low)} to ${number(high)}, heights logarithmic` });
    const most = Math.log1p(Math.max(...counts, 1)), wide = 300 / Math.max(1, counts.length);
    counts.forEach((count, i) => { const h = 90 * Math.log1p(count) / most; made.append(svg("rect", { class: "ink", x: 10 + i * wide, y: 100 - h, width: wide - 1, height: h })); });
    if (low < 0 && high > 0) { const x = 10 + 300 * -low / (high - low); made.append(svg("line", { class: "axis", x1: x, x2: x, y1: 5, y2: 104 })); }
    made.append(svg("line", { class: "axis", x1: 10, x2: 310, y1: 100, y2: 100 }), text(10, 116, number(low, 3)), text(310, 116, number(high, 3), "end"), text(160, 127, "score; heights are logarithmic", "middle"));
    return made;
  };
  const cumulative = (points) => {
    const made = svg("svg", { viewBox: "0 0 320 130", role: "img", "aria-label": points.length ? `The ${points[0][0]} largest scores hold ${Math.round(100 * points[0][1])} per cent of all influence, the ${points[points.length - 1][0]} largest all` : "no scores" });
    if (!points.length) return made;
    const last = Math.log(points[points.length - 1][0]) || 1, at = ([m, share]) => [10 + 300 * Math.log(m) / last, 100 - 90 * share];
    made.append(svg("line", { class: "axis", x1: 10, x2: 310, y1: 100, y2: 100 }), svg("polyline", { class: "line", points: points.map((p) => at(p).join(",")).join(" ") }),
      text(10, 116, "1"), text(310, 116, String(points[points.length - 1][0]), "end"), text(160, 127, "examples, strongest first; share of all influence", "middle"), text(10, 14, "100 %"), svg("line", { class: "axis", x1: 48, x2: 310, y1: 10, y2: 10 }));
    return made;
  };

  const curve = (name, told) => {
    const points = told.filter(([, loss]) => loss !== null), steps = points.map(([step]) => step), values = points.map(([, loss]) => loss);
    const low = Math.min(...values), high = Math.max(...values), first = steps[0], last = steps[steps.length - 1];
    const at = ([step, loss]) => [40 + 270 * (step - first) / (last - first || 1), 100 - 90 * (loss - low) / (high - low || 1)];
    return svg("svg", { viewBox: "0 0 320 130", role: "img", "aria-label": `Loss of ${name} from step ${first} to ${last}: ${number(values[0], 3)} to ${number(values[values.length - 1], 3)}` },
      svg("line", { class: "axis", x1: 40, x2: 310, y1: 100, y2: 100 }), svg("line", { class: "axis", x1: 40, x2: 40, y1: 10, y2: 100 }),
      svg("polyline", { class: "line", points: points.map((p) => at(p).join(",")).join(" ") }),
      text(36, 14, number(high, 3), "end"), text(36, 100, number(low, 3), "end"), text(40, 116, String(first)), text(310, 116, String(last), "end"), text(175, 127, `step of ${name}; loss`, "middle"));
  };

  // ── out of the page ───────────────────────────────────────────────────────────────────────────

  const copy = async (event) => {
    const link = location.href;
    try { await navigator.clipboard.writeText(link); event.target.textContent = "Copied"; }
    catch { window.prompt("The link to this query", link); }
  };
  const told = (i) => {
    const x = example(i);
    return { id: x.id, row: x.row, ...(x.label === undefined ? {} : { label: x.label }), ...(x.pieces ? { text: x.pieces.join("") } : {}) };
  };
  const exported = (i, m) => {
    const q = query(i), entry = ([at, score, source]) => ({ ...told(at), score, ...(source ? { found_by: source } : {}) });
    const own = { id: q.id, row: q.row < 0 ? null : q.row, loss: q.loss, ...(q.label === undefined ? {} : { label: q.label, prediction: q.guess }), ...(q.item.pieces ? { text: q.item.pieces.join("") } : {}) };
    return { query: own, method: about.methods[m], scores: about.scores,
      proponents: q.lists[m].filter(([, s]) => s > 0).map(entry), opponents: q.lists[m].filter(([, s]) => s < 0).reverse().map(entry) };
  };
  const COLUMNS = ["query_id", "query_row", "method", "rank", "train_id", "train_row", "score", "found_by"];
  const field = (value) => /[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
  /** The queries of the list, as filtered, with the methods that are shown. */
  const save = (kind) => {
    const lines = kind === "csv" ? [COLUMNS.join(",")] : [];
    for (const i of state.rows) for (const m of methodsOf(query(i))) {
      const own = exported(i, m);
      if (kind === "jsonl") { lines.push(JSON.stringify(own)); continue; }
      own.proponents.forEach((x, n) => lines.push([own.query.id, own.query.row, own.method, n + 1, x.id, x.row, x.score, x.found_by || ""].map(field).join(",")));
      own.opponents.forEach((x, n) => lines.push([own.query.id, own.query.row, own.method, -n - 1, x.id, x.row, x.score, x.found_by || ""].map(field).join(",")));
    }
    const url = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: kind === "csv" ? "text/csv" : "application/jsonl" }));
    const link = el("a", { href: url, download: `attributions.${kind}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  // ── other pages ───────────────────────────────────────────────────────────────────────────────

  const suspects = () => {
    const rows = part("suspects");
    byId("suspects").replaceChildren(...present([el("h2", {}, "Suspected labels"),
      rows.length ? el("p", { class: "dim" }, "Training examples that the model would lose most on if they alone were left out: labels that only they speak for. Look at them first where a label may be wrong.") :
        el("p", {}, "Labels of this run can't be suspected: it has no classes, or its index no curvature."),
      rows.length ? el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, el("tr", {}, ["", "example", "label", "prediction", "self-influence", "loss"].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, rows.map(([i, own, loss, guess], n) => {
          const x = example(i);
          return el("tr", {}, el("td", {}, `#${n + 1}`), el("td", {}, about.kind === "image" ? [thumb("example", i, `training example ${x.row}`, 56), el("br")] : null, el("small", {}, `row ${x.row} · ${x.id}`)),
            el("td", {}, String(x.label)), el("td", { class: guess === x.label ? "" : "wrong" }, `${guess}${guess === x.label ? "" : " ✗"}`), el("td", { class: "number" }, number(own)), el("td", { class: "number" }, number(loss)));
        })))) : null]));
  };
  const interval = (pair) => pair ? `[${pair.map((v) => number(v, 3)).join(", ")}]` : "";
  const worth = () => {
    const s = about.summary, recovery = Object.entries(s.recovery || {}).map(([name, value]) => [name.replaceAll("_", " "), number(value, 3)]);
    if (about.notes) {
      byId("about").replaceChildren(...present([el("h2", {}, WORDS.worth), figures(about.notes.figures), about.notes.warnings.map((said) => el("p", { class: "warn" }, said)),
        el("p", { class: "dim" }, `A score says ${about.scores}.`), el("details", {}, el("summary", {}, "All settings"), el("pre", { tabindex: "0" }, JSON.stringify(s.settings || {}, null, 1)))]));
      return;
    }
    byId("about").replaceChildren(...present([el("h2", {}, WORDS.worth),
      figures([["training examples", about.train], ["queries", about.queries], ["scores", about.scores], ["objective", about.objective], ["accuracy", s.accuracy && number(s.accuracy, 3)],
        ["held-out loss, nats", s.held_out_loss && number(s.held_out_loss, 3)], ["temperature", s.temperature && number(s.temperature, 3)]]),
      el("h3", {}, "Against retrained models"),
      s.methods && Object.keys(s.methods).length ? el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, el("tr", {}, ["method", "LDS", "95 % interval", "seconds"].map((n) => el("th", { scope: "col" }, n)))),
        el("tbody", {}, Object.entries(s.methods).sort((a, b) => b[1].lds - a[1].lds).map(([name, own]) => el("tr", {}, el("td", {}, name), el("td", { class: "number" }, number(own.lds, 3)), el("td", { class: "number" }, interval(own.lds_ci95)), el("td", { class: "number" }, number(own.seconds, 3)))),
          s.perfect_predictor ? el("tr", {}, el("td", {}, "a perfect predictor"), el("td", { class: "number" }, number(s.perfect_predictor, 3)), el("td"), el("td")) : null))) :
        el("p", { class: "warn" }, "No models were retrained for this run, so that nothing here was compared with the truth: give the config a bank."),
      s.too_small ? el("p", { class: "warn" }, s.too_small) : null,
      recovery.length ? [el("h3", {}, "Recovery, over all queries"), figures(recovery)] : null,
      Object.keys(about.curves || {}).length ? [el("h3", {}, "How it was trained"), el("div", { class: "plots" }, Object.entries(about.curves).map(([name, own]) => curve(name, own)))] : null,
      el("h3", {}, "Where it comes from"),
      figures([["made", s.date], ["on", s.device], ["seconds", s.seconds && number(s.seconds, 3)], ...Object.entries(about.versions)]),
      s.command ? el("pre", { tabindex: "0" }, s.command) : null,
      el("details", {}, el("summary", {}, "All settings"), el("pre", { tabindex: "0" }, JSON.stringify(s.settings || {}, null, 1)))]));
  };
  const show = (name) => {
    for (const button of document.querySelectorAll("nav button")) {
      if (button.dataset.page === name) button.setAttribute("aria-current", "page"); else button.removeAttribute("aria-current");
      byId(button.dataset.page).hidden = button.dataset.page !== name;
    }
    if (name === "suspects") suspects();
    if (name === "about") worth();
    if (name === "queries") draw();
  };

  // ── questions to a server ─────────────────────────────────────────────────────────────────────

  /** An answer's query and examples, behind those that are there. */
  const add = (told) => {
    const first = about.shown + asked.examples.length, at = index.length;
    const sheets = (set, columns, base, count) => {
      (columns.sheets || []).forEach((own, n) => held.set(`${set}-sheet-${base}-${n}`, own));
      if (columns.sheets) for (let i = 0; i < count; i++) asked.sheets.set(`${set}-${base + i}`, [`${set}-sheet-${base}-${Math.floor(i / PARTS.sheet)}`, i % PARTS.sheet]);
    };
    const count = told.examples.id.length, whole = ["sheets", "size", "spread"];
    const columns = (of) => Object.fromEntries(Object.entries(of).filter(([name]) => !whole.includes(name)));
    sheets("example", told.examples, first, count);
    sheets("query", told.texts, at, 1);
    about.spread = about.spread || told.texts.spread;
    about.size = about.size || told.texts.size;
    for (const [row, text] of Object.entries(told.documents || {})) documents(Math.floor(row / PARTS.examples))[row] = text;
    for (let i = 0; i < count; i++) asked.examples.push(column(columns(told.examples), i));
    const own = { ...told.queries[0], item: column(columns(told.texts), 0) };
    own.lists = own.lists.map((list) => list.map(([i, ...rest]) => [first + i, ...rest]));
    asked.queries.push(own);
    const brief = { ...own, text: own.item.pieces && own.item.pieces.join("").slice(0, 160) };
    index.push(brief);
    needles.push(needle(brief));
    for (const id of ["search", "class", "state"]) byId(id).value = id === "state" ? "all" : "";
    filter();
    show("queries");
    open(at);
  };
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  const call = async (path, options = {}) => {
    const answer = await fetch(path, { cache: "no-store", ...options });
    const told = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(told.error || `the server said ${answer.status}`);
    return told;
  };
  const encoded = (file) => new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("the file can't be read"));
    reader.readAsDataURL(file);
  });
  const body = async () => {
    const own = { form: "page", top: about.top }, value = (id) => byId(id).value;
    if (about.kind === "text") return { ...own, prompt: value("prompt"), ...(value("completion") ? { completion: value("completion") } : {}), ...(value("against") ? { against: value("against") } : {}) };
    const label = value("label").trim();
    if (label && !label.split(",").every((one) => one.trim() && Number.isFinite(Number(one)))) throw new Error("the label must be a number, or numbers with commas between them");
    if (label) { const numbers = label.split(",").map(Number); own.label = numbers.length === 1 ? numbers[0] : numbers; }
    return about.kind === "image" ? { ...own, image: await encoded(byId("image").files[0]) } : { ...own, row: value("values").trim().replace(/[\s,;]+/g, ",") };
  };
  let waiting = null;
  const ask = async () => {
    const tell = (said) => { byId("progress").textContent = said; };
    byId("send").disabled = true;
    try {
      let told = await call("/questions", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(await body()) });
      waiting = told.id;
      byId("cancel").hidden = false;
      while (["waiting", "working"].includes(told.state)) {
        const far = told.total ? ` ${Math.round(100 * told.done / told.total)} %` : "";
        tell(told.state === "waiting" ? `${told.ahead} before it, ${Math.round(told.seconds)} s` : `${told.stage || "thinking"}${far}, ${Math.round(told.seconds)} s`);
        await sleep(250);
        told = await call(`/questions/${encodeURIComponent(waiting)}`);
      }
      tell(told.state === "done" ? `answered in ${number(told.seconds, 2)} s` : told.state === "failed" ? told.error : "given up");
      if (told.state === "done") add(told.answer);
    } catch (error) { tell(error instanceof TypeError ? "the server can't be reached" : error.message); }
    waiting = null;
    byId("send").disabled = false;
    byId("cancel").hidden = true;
  };
  if (byId("ask")) {
    byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
    byId("cancel").addEventListener("click", () => { if (waiting) call(`/questions/${encodeURIComponent(waiting)}`, { method: "DELETE" }).catch(() => {}); });
  }

  // ── beginning ─────────────────────────────────────────────────────────────────────────────────

  const follow = () => {
    const wanted = new URLSearchParams(location.hash.slice(1)), page = wanted.get("page");
    if (page && byId(page) && document.querySelector(`nav [data-page="${CSS.escape(page)}"]`)) { show(page); return; }
    const at = index.findIndex((q) => q.id === wanted.get("query"));
    show("queries");
    if (wanted.get("query") && at < 0) byId("count").textContent = "The query of this link is not on this page.";
    if (at >= 0) open(at, true); else if (state.rows.length) open(state.rows[0], true);
    else byId("detail").replaceChildren(el("p", {}, byId("ask") ? "Ask something." : "No query."));
  };
  const options = (select, choices) => byId(select).append(...Object.entries(choices).map(([value, [said]]) => el("option", { value }, said)));
  options("state", Object.fromEntries(Object.entries(STATES).filter(([name]) => about.classes || !["right", "wrong"].includes(name))));
  options("order", ORDERS);
  if (about.classes) [...new Set(index.map((q) => q.label))].sort((a, b) => a - b).forEach((label) => byId("class").append(el("option", { value: label }, String(label))));
  else byId("by-class").hidden = true;
  byId("by-class").style.display = about.classes ? "" : "none";
  document.querySelector("[data-page=suspects]").hidden = !about.classes;
  document.querySelector("[data-page=queries]").textContent = WORDS.queries[0].toUpperCase() + WORDS.queries.slice(1);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["search", "class", "state", "order"]) byId(id).addEventListener("input", () => { byId("list").scrollTop = 0; filter(); });
  byId("list").addEventListener("scroll", draw);
  byId("list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -index.length, End: index.length }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => { history.replaceState(null, "", `#page=${button.dataset.page}`); show(button.dataset.page); if (button.dataset.page === "queries" && state.at < 0) follow(); });
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  addEventListener("hashchange", follow);
  addEventListener("resize", draw);
  filter();
  follow();
})();
