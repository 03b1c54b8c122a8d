"use strict";
// What a person sees of an index: a photo goes to /search, and each match is shown with its crop.

const at = id => document.getElementById(id);
const MOST_BYTES = 20e6;
let token = "";
let asked = 0; // Of several searches only the last is shown.
let pictures = []; // Addresses of crops, given back once others are shown.

function element(name, words, className) {
  const made = document.createElement(name);
  if (words !== undefined) made.textContent = words;
  if (className) made.className = className;
  return made;
}

function say(words, bad = false) {
  at("status").textContent = words;
  at("status").className = bad ? "bad" : "";
}

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) at("token-row").hidden = false;
  const body = await answer.json().catch(() => ({}));
  throw new Error(body.detail || `the server answered ${answer.status}`);
}

async function showIndex() {
  try {
    const about = await (await ask("index")).json();
    const size = about.index.embeddings.toLocaleString("en");
    at("about").textContent = `${size} ${about.of} by ${about.network}`;
    const kept = Object.keys(about.kept);
    at("kept").textContent = kept.length ? `Columns: ${kept.join(", ")}, id, key` : "Columns: id, key";
    say("");
    return true;
  } catch (error) {
    at("about").textContent = "";
    say(error.message, true);
    return false;
  }
}

function boxOf(box, photo, number, count) {
  const made = element("button");
  made.type = "button";
  made.setAttribute("aria-label", `Face ${number + 1} of ${count}`);
  const shares = {
    left: box.x1 / photo.width, top: box.y1 / photo.height,
    width: (box.x2 - box.x1) / photo.width, height: (box.y2 - box.y1) / photo.height,
  };
  for (const [side, share] of Object.entries(shares)) made.style[side] = `${100 * share}%`;
  return made;
}

function inWords(probability) {
  if (probability === null) return "not calibrated";
  return probability > 0.9995 ? "> 99.9 %" : `${(100 * probability).toFixed(1)} %`;
}

function markOf(same) {
  if (same === null) return element("span", "undecided", "mark open");
  return same ? element("span", "same person", "mark yes") : element("span", "not the same", "mark no");
}

async function showCrop(place, match, mine) {
  try {
    const address = URL.createObjectURL(await (await ask(match.picture)).blob());
    if (mine !== asked) return URL.revokeObjectURL(address);
    pictures.push(address);
    const image = element("img");
    image.src = address;
    image.alt = `Crop of ${match.id}`;
    place.replaceChildren(image);
  } catch (error) {
    place.textContent = "no picture";
    place.title = error.message;
  }
}

function cardOf(match, mine) {
  const card = element("li"), crop = element("div", "…", "crop"), about = element("div", undefined, "about");
  about.append(element("b", match.similarity.toFixed(3)), element("span", " similarity"), element("br"));
  about.append(element("span", `probability ${inWords(match.probability)}`), element("br"), markOf(match.same));
  about.append(element("div", match.id, "key"));
  for (const [name, value] of Object.entries(match.kept)) about.append(element("div", `${name}: ${value}`));
  card.append(crop, about);
  showCrop(crop, match, mine);
  return card;
}

function showMatches(answer, number, mine) {
  pictures.splice(0).forEach(URL.revokeObjectURL);
  const { queries } = answer.photos[0], { decision } = answer;
  at("matches").replaceChildren(...queries[number].matches.map(one => cardOf(one, mine)));
  at("decision").textContent = decision.threshold === null
    ? `No decision: ${decision.reason}`
    : `Accepted from a similarity of ${decision.threshold.toFixed(3)} on, at which at most a share of `
      + `${decision.rate} of strangers is taken for somebody. Probabilities have a prior of ${decision.prior}.`;
  [...at("boxes").children].forEach((one, place) => one.setAttribute("aria-pressed", place === number));
}

function show(answer, mine) {
  const photo = answer.photos[0];
  at("found").hidden = false;
  at("boxes").replaceChildren();
  at("matches").replaceChildren();
  at("hint").textContent = photo.queries.length > 1 ? "Choose a face to see its matches." : "";
  if (!photo.queries.length) {
    at("decision").textContent = `Nothing was searched for: ${photo.reason || photo.error.message}`;
    return say("No matches.");
  }
  photo.queries.forEach((query, number) => {
    if (!query.box) return;
    const made = boxOf(query.box, photo, number, photo.queries.length);
    made.addEventListener("click", () => showMatches(answer, number, mine));
    at("boxes").append(made);
  });
  showMatches(answer, 0, mine);
  const faces = photo.queries[0].box ? `${photo.queries.length} face${photo.queries.length > 1 ? "s" : ""}, ` : "";
  say(`${faces}${photo.queries[0].matches.length} matches.`);
}

async function search(file) {
  const mine = ++asked;
  if (!file) return;
  if (file.size > MOST_BYTES) return say("The photo is too large for this page: at most 20 MB.", true);
  say("Searching …");
  URL.revokeObjectURL(at("shown").src);
  at("shown").src = URL.createObjectURL(file);
  const body = new FormData(), query = new URLSearchParams({ k: at("k").value || "10" });
  body.append("photo", file, file.name);
  if (at("where").value.trim()) query.set("where", at("where").value.trim());
  try {
    const answer = await (await ask(`search?${query}`, { method: "POST", body })).json();
    if (mine === asked) show(answer, mine);
  } catch (error) {
    if (mine !== asked) return;
    at("found").hidden = true;
    say(error.message, true);
  }
}

const chosen = () => at("file").files[0];
at("ask").addEventListener("submit", event => { event.preventDefault(); search(chosen()); });
at("file").addEventListener("change", () => search(chosen()));
for (const name of ["k", "where"]) at(name).addEventListener("change", () => search(chosen()));

const drop = at("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, event => { event.preventDefault(); drop.classList.add("over"); });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  at("file").files = event.dataTransfer.files;
  search(chosen());
});

async function useToken() {
  token = at("token").value.trim();
  if (await showIndex()) {
    at("token-row").hidden = true;
    at("file").focus();
    search(chosen());
  }
}
at("token-row").addEventListener("submit", event => { event.preventDefault(); useToken(); });
showIndex();
