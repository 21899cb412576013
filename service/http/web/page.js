// The page: what is served, and the parts put together.

import { ask, start as takeToken } from "./ask.js";
import * as live from "./live.js";
import * as playground from "./playground.js";

const element = (id) => document.getElementById(id);
let served = "";

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

const SCORES = { unknown: "scores of unknown kind: nothing says that they are probabilities" };
const EACH = { sigmoid: ", of the second label", multilabel: ", of each label by itself" };

const gives = ({ scores, activation }) => scores && (SCORES[scores] || scores + (EACH[activation] || ""));

function facts(version) {
  const list = make("dl");
  const rows = [
    ["version", version.version],
    ["takes", version.input],
    ["labels", version.label_count],
    ["gives", gives(version)],
    ["runs on", `${version.provider}, ${version.precision}, ${version.threads} thread${version.threads === 1 ? "" : "s"}`],
    ["batches", `up to ${version.max_batch_items} images`],
    ["pictures", version.fitting],
    ["network", version.network],
    ["imported from", version.source],
    ["pixels as in training", version.pixels],
    [version.source ? "measured on" : "trained on", version.data || undefined],
    ["accuracy", version.accuracy === undefined || version.accuracy === null ? undefined : `${(100 * version.accuracy).toFixed(2)} % of its test pictures`],
    ["digest", version.digest.slice(0, 16)],
  ];
  for (const [name, value] of rows) if (value !== undefined) list.append(make("dt", name), make("dd", value));
  return list;
}

function card(model) {
  const box = make("article", undefined, "card");
  const aliases = Object.entries(model.aliases).map(([alias, version]) => `${alias} is version ${version}`);
  box.append(make("h3", model.name));
  if (aliases.length) box.append(make("p", aliases.join(", "), "faint"));
  const shares = Object.entries(model.shares).map(([version, share]) => `${Number((100 * share).toFixed(2))}\u00a0% to version ${version}`);
  if (model.versions.length > 1 && shares.length) box.append(make("p", `requests that name no version: ${shares.join(", ")}`, "faint"));
  if (model.idle.length) box.append(make("p", `in the repository, not served: ${model.idle.join(", ")}`, "faint"));
  model.versions.forEach((version, index) => {
    if (index) box.append(make("hr"));
    box.append(facts(version));
  });
  const [latest] = model.versions;
  const names = latest.labels_are_numbers ? `numbered 0 to ${latest.label_count - 1}` : latest.labels.join(", ");
  box.append(make("p", latest.labels_are_numbers || latest.labels.length === latest.label_count ? names : `${names}, …`, "labels"));
  return box;
}

async function models() {
  const response = await ask("page/models", { cache: "no-store", signal: AbortSignal.timeout(5000) });
  const text = await response.text();
  if (!response.ok || text === served) return;
  served = text;
  const found = JSON.parse(text);
  element("version").textContent = found.convoy;
  element("model-cards").replaceChildren(...(found.models.length ? found.models.map(card) : [make("p", "No model is served. Export one into the repository: convoy export RUN --repository DIR", "faint")]));
  element("troubles").replaceChildren(...found.troubles.map(({ name, version, state, reason }) => make("p", `${name}${version && ` version ${version}`}: ${state.toLowerCase()}${reason ? `: ${reason}` : ""}`, state === "LOADING" ? "faint" : "notice")));
  const select = element("live-model");
  const chosen = select.value;
  select.replaceChildren(new Option("all models", ""), ...found.models.map(({ name }) => new Option(name, name)));
  if (found.models.some(({ name }) => name === chosen)) select.value = chosen;
  playground.offer(found.models);
}

async function state(answers) {
  const pill = element("state");
  let text = "not reachable";
  let kind = "pill bad";
  if (answers) {
    try {
      const response = await ask("readyz", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      text = response.ok ? "ready" : (await response.text()).trim();
      kind = response.ok ? "pill good" : "pill bad";
      await models();
    } catch { /* said below */ }
  }
  if (pill.textContent !== text) pill.textContent = text;
  pill.className = kind;
}

takeToken();
playground.start();
live.start(state);
