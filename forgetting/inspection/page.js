"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const marked = [];
for (const source of data.sources) {
  const option = document.createElement("option");
  option.value = option.textContent = source.name;
  get("source").append(option);
}
const articles = data.examples.map((example) => {
  const article = document.createElement("article");
  let target = 0;
  example.texts.forEach((text, place) => {
    const span = document.createElement("span");
    span.textContent = (text || "·").replaceAll("\n", "↵\n");
    if (example.mask[place]) {
      const t = target++;
      const detail = `score ${example.score[t]}, nll base ${example.base[t]}, reference ${example.reference[t]}, ` +
        `rank ${example.rank[t]} of ${data.total}`;
      span.tabIndex = 0;
      for (const event of ["mouseover", "focus"]) span.addEventListener(event, () => { get("detail").textContent = detail; });
      marked.push([span, example.first[t], example.kept[t]]);
    } else span.className = "prompt";
    article.append(span);
  });
  get("examples").append(article);
  return [article, example];
});
function mark() {
  const step = Number(get("rho").value);
  const negative = data.total - data.kept[step];
  get("value").textContent = data.steps[step].toFixed(2);
  get("counts").textContent = `${data.positive[step]} positive, ${negative} negative, ` +
    `${data.kept[step] - data.positive[step]} ignored of ${data.total} response tokens; score > 0: ${data.above.toFixed(2)}`;
  get("bysource").replaceChildren(...data.sources.map((source) => {
    const item = document.createElement("li");
    item.textContent = `${source.name}: ${source.positive[step]} positive of ${source.total}`;
    return item;
  }));
  for (const [span, first, kept] of marked) span.className = first <= step ? "positive" : kept > step ? "negative" : "ignored";
}
function filter() {
  const text = get("search").value.toLowerCase();
  for (const [article, example] of articles) article.hidden =
    (get("source").value !== "" && example.source !== get("source").value) ||
    !example.texts.join("").toLowerCase().includes(text);
}
const asked = new URLSearchParams(location.hash.slice(1));
get("rho").value = Math.round(Number(asked.get("rho") || data.rho) * 100) - 1;
get("source").value = asked.get("source") || "";
get("rho").addEventListener("input", mark);
get("source").addEventListener("input", filter);
get("search").addEventListener("input", filter);
mark();
filter();
