"use strict";
// Counts are of the whole corpus, exact at every step of the slider (forgetting/inspection/summary.py). Of the examples,
// which are a sample, the text is shown: a token is positive from the step `positive` on, and negative before `kept`.
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");
const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)}%` : "–");
const short = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
let step = data.own;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- Examples: decoded and built when they come near the window ----

function array(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);
}

function decode(example) {
  if (example.state) return;
  const nlls = (text) => Array.from(array(text, Uint16Array), (value) => value * data.unit);
  example.base = nlls(example.base);
  example.reference = nlls(example.reference);
  example.score = example.score ? array(example.score, Float32Array)
    : example.base.map((value, t) => Math.round((value - example.reference[t]) / data.unit) * data.unit);
  example.rank = array(example.rank, Uint32Array);
  example.positive = array(example.positive, Uint8Array);
  example.kept = example.kept ? array(example.kept, Uint8Array) : example.positive;
  example.noise = example.noise ? array(example.noise, Uint8Array) : null;
  example.state = (t) => (example.positive[t] <= step ? "positive" : example.kept[t] > step ? "negative" : "ignored");
}

function negativeFraction(example) {
  decode(example);
  return example.kept.reduce((sum, kept) => sum + (kept > step), 0) / example.kept.length;
}

function appendText(parent, text) {
  text.split("\n").forEach((line, place) => {
    if (place) parent.append(make("i", "newline"), "\n");
    parent.append(line);
  });
}

function build(article, example) {
  decode(example);
  const prompts = new Set(example.prompts);
  article.append(make("span", "head"));
  article.tokens = [];
  example.pieces.forEach((text, place) => {
    const span = make("span", prompts.has(place) ? "prompt" : "");
    appendText(span, text);
    if (!prompts.has(place)) {
      const t = article.tokens.length;
      span.classList.add(example.score[t] < 0 ? "down" : "up");
      if (text === "") span.classList.add("byte");
      span.style.setProperty("--strength", `${Math.round(100 * Math.min(1, Math.abs(example.score[t]) / data.colorLimit))}%`);
      if (example.noise && example.noise[t]) span.dataset.noise = "";
      span.tabIndex = -1;
      span.place = t;
      article.tokens.push(span);
    }
    article.append(span);
  });
}

function show(article) {
  const example = article.example;
  if (!article.tokens) build(article, example);
  if (article.step === step) return;
  article.step = step;
  article.firstChild.textContent = `${example.source} · example ${count(example.id)} · mean score ${short(example.mean)} · ` +
    `${(100 * negativeFraction(example)).toFixed(0)}% negative` + (example.named ? " · names of tokens, not their text" : "");
  article.tokens.forEach((span, t) => {
    const state = example.state(t);
    if (span.dataset.state !== state) span.dataset.state = state;
  });
}

function describe(span) {
  const { example } = span.parentNode, t = span.place;
  const kind = data.noise ? (example.noise && example.noise[t] ? ` · known noise: ${data.noise.names[example.noise[t] - 1]}` : " · no known noise") : "";
  const from = data.rhos[example.positive[t]];
  get("detail").textContent = `“${span.textContent.replaceAll("\n", "↵")}” ${example.state(t)} · score ${short(example.score[t])} · ` +
    `nll ${short(example.base[t])} base, ${short(example.reference[t])} reference · rank ${count(example.rank[t])} of ${count(data.total)}` +
    (from === undefined ? "" : ` · positive from ρ = ${rhoText(example.positive[t])}`) + kind;
}

const articles = data.examples.map((example) => {
  const article = make("article");
  article.tabIndex = 0;
  article.example = example;
  return article;
});
const near = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { near.add(target); show(target); } else near.delete(target);
  }
}, { rootMargin: "600px" });

// ---- The whole corpus ----

function rhoText(at) {
  const rho = data.rhos[at];
  if (at !== data.own || data.scoreThreshold === null) return String(rho);
  return `${short(rho)} (score > ${short(data.scoreThreshold)})`;
}

function fillTable(id, groups) {
  get(id).replaceChildren(...groups.map((group) => {
    const negative = group.total - group.kept[step];
    const row = make("tr"), chart = make("td", "chart"), bar = make("i");
    bar.style.width = `${100 * negative / group.total}%`;
    chart.append(bar);
    row.append(make("td", "", group.name), chart, make("td", "number", percent(negative, group.total)),
      make("td", "number", `${count(negative)} of ${count(group.total)}`));
    return row;
  }));
}

function showNoise(negative) {
  const { kinds } = data.noise;
  const total = kinds.reduce((sum, kind) => sum + kind.total, 0);
  const found = kinds.reduce((sum, kind) => sum + kind.total - kind.kept[step], 0);
  const byKind = kinds.map((kind) => `${kind.name} ${percent(kind.total - kind.kept[step], kind.total)}`).join(", ");
  get("noise").textContent = `Known noise: ${percent(total, data.total)} of the response tokens. Negative tokens find it with ` +
    `precision ${percent(found, negative)} and recall ${percent(found, total)} (${byKind}); ` +
    `AUC of the score ${data.noise.auc === null ? "–" : data.noise.auc.toFixed(3)}.`;
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  get("histogram").append(element);
  return element;
}

const { low, high, counts, thresholds } = data.histogram;
const place = (score) => 100 * (Math.min(high, Math.max(low, score)) - low) / (high - low);
const highest = Math.max(...counts), width = 100 / counts.length;
counts.forEach((number, bin) => shape("rect", {
  x: bin * width, width: 0.92 * width, y: 30 - 30 * number / highest, height: 30 * number / highest,
  class: low + (bin + 0.5) * (high - low) / counts.length < 0 ? "down" : "up",
}));
shape("line", { class: "zero", x1: place(0), x2: place(0), y1: 0, y2: 30 });
const thresholdLine = shape("line", { y1: 0, y2: 30 });
get("low").textContent = `≤ ${short(low)}`;
get("high").textContent = `≥ ${short(high)}`;

function mark() {
  step = Number(get("rho").value);
  const negative = data.total - data.all.kept[step], positive = data.all.positive[step];
  get("rho").setAttribute("aria-valuetext", rhoText(step));
  get("counts").textContent = `ρ = ${rhoText(step)}${step === data.own ? ", the experiment's" : ""}: ` +
    `${count(positive)} positive (${percent(positive, data.total)}), ${count(negative)} negative (${percent(negative, data.total)})` +
    (data.forgetFraction === null ? "" : `, ${count(data.total - positive - negative)} ignored`) +
    (data.positiveSequences ? `; ${count(data.positiveSequences[step])} of ${count(data.numExamples)} responses positive` : "");
  const threshold = thresholds ? thresholds[step] : null;
  const ranked = data.granularity === "sequence" ? "Mean scores of all responses" : "Scores of all response tokens";
  get("histogram-title").textContent = `${ranked}; dashed: 0` +
    (threshold === null ? ". Each response has a threshold of its own." : `; line: the lowest positive, ${short(threshold)}.`);
  thresholdLine.style.display = threshold === null ? "none" : "";
  if (threshold !== null) for (const end of ["x1", "x2"]) thresholdLine.setAttribute(end, place(threshold));
  if (data.noise) showNoise(negative);
  fillTable("sources", data.sources);
  fillTable("positions", data.positions);
  fillTable("types-negative", data.types.negative);
  fillTable("types-kept", data.types.kept);
  near.forEach(show);
}

// ---- Filter, sort, keys ----

const ORDERS = {
  corpus: (example) => example.id,
  low: (example) => example.mean,
  high: (example) => -example.mean,
  negative: (example) => -negativeFraction(example),
  mixed: (example) => Math.abs(negativeFraction(example) - 0.5),
};

function arrange() {
  const text = get("search").value.toLowerCase(), source = get("source").value, key = ORDERS[get("sort").value];
  const keys = new Map(articles.map((article) => [article, key(article.example)]));
  articles.sort((one, other) => keys.get(one) - keys.get(other) || one.example.id - other.example.id);
  for (const article of articles) {
    const { example } = article;
    if (text && example.text === undefined) example.text = example.pieces.join("").toLowerCase();
    article.hidden = (source !== "" && example.source !== source) || (text !== "" && !example.text.includes(text));
  }
  get("examples").append(...articles);
  const number = articles.filter((article) => !article.hidden).length;
  get("shown").textContent = `${count(number)} of ${count(articles.length)} shown`;
}

function move(by) {
  const shown = articles.filter((article) => !article.hidden);
  const current = shown.indexOf(document.activeElement.closest("article"));
  const next = shown[current < 0 ? 0 : current + by];
  if (!next) return;
  document.documentElement.style.setProperty("--bar", `${get("bar").offsetHeight}px`);
  next.focus({ preventScroll: true });
  next.scrollIntoView();
}

function moveToken(by) {
  const article = document.activeElement.closest("article");
  if (!article || !article.tokens) return false;
  const current = article.tokens.indexOf(document.activeElement);
  const next = article.tokens[current < 0 ? 0 : current + by];
  if (next) next.focus();
  return true;
}

function moveSlider(by) {
  get("rho").value = step + by;
  mark();
}

const KEYS = {
  j: () => move(1), k: () => move(-1), "[": () => moveSlider(-1), "]": () => moveSlider(1),
  "/": () => get("search").focus(), "?": () => get("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || get("help").open) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    if (moveToken(event.key === "ArrowRight" ? 1 : -1)) event.preventDefault();
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
for (const kind of ["mouseover", "focusin"]) {
  get("examples").addEventListener(kind, (event) => {
    const span = event.target.closest("[data-state]");
    if (span) describe(span);
  });
}
get("rho").addEventListener("input", mark);
get("rho").addEventListener("change", arrange);
for (const id of ["source", "sort", "search"]) get(id).addEventListener("input", arrange);
get("ask").addEventListener("click", KEYS["?"]);
get("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
});

// ---- Start: what the address asks for, such as #rho=0.5&source=alpaca&sort=low&search=word&theme=dark ----

const isWhole = data.examples.length === data.numExamples;
get("about").textContent = `${isWhole ? "All" : `A sample of ${count(data.examples.length)} of`} ${count(data.numExamples)} examples` +
  `${isWhole ? "" : ", spread evenly over sources and mean scores"}. Counts, histogram and tables are of all ` +
  `${count(data.total)} response tokens; ${percent(data.above * data.total, data.total)} have a score above 0. Score: ${data.scoreName}; ` +
  `ranked: ${data.granularity === "sequence" ? "whole responses by their mean score" : data.scope === "example" ? "the tokens of each response" : "all response tokens"}` +
  (data.forgetFraction === null ? "." : `; of the rest the lowest ${100 * data.forgetFraction}% are negative.`);
get("detail").textContent = "Point at a token, or press j and then →.";
const legend = (text, state, isNoise = false) => {
  const span = make("span", "", text);
  span.dataset.state = state;
  if (isNoise) span.dataset.noise = "";
  return span;
};
get("legend").append(`Score ≤ −${short(data.colorLimit)} `, make("span", "scale"), ` ≥ ${short(data.colorLimit)}; `,
  legend("positive", "positive"), ", ", legend("negative", "negative"), ", ",
  ...(data.forgetFraction === null ? [] : [legend("ignored", "ignored"), ", "]),
  ...(data.noise ? [legend("known noise", "positive", true), ", "] : []), make("span", "prompt", "gray: prompt"));
for (const id of ["types-negative", "types-kept"]) get(id).previousElementSibling.append(` (with ${count(data.types.least)} or more)`);
if (innerWidth < 640) for (const details of document.querySelectorAll("details")) details.open = false;
for (const name of [...new Set(data.examples.map((example) => example.source))].sort()) {
  const option = make("option", "", name);
  option.value = name;
  get("source").append(option);
}
get("rho").max = data.rhos.length - 1;
const asked = new URLSearchParams(location.hash.slice(1));
const askedStep = asked.has("rho") ? data.rhos.indexOf(Number(asked.get("rho"))) : data.own;
get("rho").value = askedStep < 0 ? data.own : askedStep;
if (askedStep < 0) get("detail").textContent = `The slider has no ρ = ${asked.get("rho")}: the experiment's is shown.`;
for (const id of ["source", "sort", "search"]) if (asked.has(id)) get(id).value = asked.get(id);
if (asked.has("theme")) document.documentElement.dataset.theme = asked.get("theme");
mark();
arrange();
for (const article of articles) observer.observe(article);
