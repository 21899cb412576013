// The playground: a picture from a file, the clipboard or the pen, and what the model says to it.

import { ask as request } from "./ask.js";

const element = (id) => document.getElementById(id);
const SIDE = 280; // of the drawing area, in pixels
const MARGIN = 0.12; // round a drawing, as a share of it
const METHODS = { class_activation: "what each place added to its score", occlusion: "how the answer changed when a patch hid the place" };
const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.1 ? 2 : 1)} %`;

let models = [];
let chosen = null; // the file of the tab "Picture"
let sketch = null; // the picture of the tab "Draw", as it is sent
let asked = 0;
let taken = 0;
let waiting = null;
const pen = { down: false, x: 140, y: 140, drawn: false };

const paper = () => element("canvas").getContext("2d", { willReadFrequently: true });
const drawing = () => element("tab-draw").getAttribute("aria-pressed") === "true";

/** Tells the playground what is served. */
export function offer(list) {
  models = list.filter((model) => model.versions[0].takes_pictures);
  const select = element("model");
  const chosen = select.value;
  select.replaceChildren(...models.flatMap((model) => [option(model.name, ""), ...(model.versions.length > 1 ? model.versions.map((each) => option(model.name, each.version)) : [])]));
  if ([...select.options].some((each) => each.value === chosen)) select.value = chosen;
  select.disabled = !models.length;
  if (!models.length) select.append(new Option(list.length ? "no model that takes pictures" : "no model is served"));
  hint();
}

function option(name, version) {
  return new Option(version ? `${name}, version ${version}` : name, version ? `${name}/${version}` : name);
}

function chosenModel() {
  const [name, version] = element("model").value.split("/");
  const model = models.find((each) => each.name === name);
  return model && (model.versions.find((each) => String(each.version) === version) || model.versions[0]);
}

function hint() {
  const facts = chosenModel();
  element("hint").textContent = facts ? `Takes ${facts.input}${facts.shape ? "; any picture is brought to that" : ", PNG or JPEG"}. It knows ${facts.label_count} labels, and gives one of them to everything.` : "";
}

/** Asks about the picture of the tab that is open; without one nothing is left of the answer to another. */
async function ask() {
  const turn = ++asked;
  const picture = drawing() ? sketch : chosen;
  if (!picture || element("model").disabled) {
    forget();
    return;
  }
  const answer = await send("classify", chosenPath(), picture);
  if (turn !== asked) return;
  if (answer.error) fail(answer.error);
  else {
    show(answer);
    offerExplanation(turn, picture);
  }
}

/** The server's answer, or an object with `error` alone. */
async function send(what, path, picture) {
  try {
    const response = await request(`page/${what}/${path}`, { method: "POST", body: picture });
    const told = (response.headers.get("content-type") || "").startsWith("application/json");
    return told ? await response.json() : { error: refusal(response) };
  } catch {
    return { error: "The server does not answer." };
  }
}

function chosenPath() {
  return element("model").value.split("/").map(encodeURIComponent).join("/");
}

/** The button beside the answer that is shown, to the request of this turn. */
function offerExplanation(turn, picture) {
  const button = element("explain"), path = chosenPath();
  button.hidden = !chosenModel()?.explains;
  button.disabled = false;
  button.textContent = "Show why";
  element("why").hidden = true;
  button.onclick = async () => {
    button.disabled = true;
    button.textContent = "Looking ...";
    const found = await send("explain", path, picture);
    if (turn !== asked) return;
    button.disabled = false;
    button.hidden = !found.error;
    button.textContent = "Show why";
    element("overlay").hidden = Boolean(found.error);
    if (!found.error) element("overlay").src = found.overlay;
    element("why-text").textContent = found.error ?? `Red spoke for “${found.label}”, blue against it: ${METHODS[found.method]}.`;
    element("why").hidden = false;
  };
}

/** What an answer says that is not the server's own: some proxy before it gave it. */
function refusal({ status, statusText }) {
  return status === 413 ? "This picture is too large to be sent." : `Instead of the server's answer came: ${status} ${statusText}`;
}

function forget() {
  element("error").hidden = element("answer").hidden = true;
  element("empty").hidden = false;
}

function fail(message) {
  element("error").textContent = message;
  element("error").hidden = false;
  element("answer").hidden = true;
  element("empty").hidden = true;
}

/** A label with its probability; faint below the threshold of a model whose labels are true or not each by itself. */
function bar({ label, probability }, threshold) {
  const row = document.createElement("li");
  const [name, track, value] = ["name", "track", "value"].map((kind) => Object.assign(document.createElement("span"), { className: kind }));
  const fill = Object.assign(document.createElement("div"), { className: "fill" });
  name.textContent = label;
  value.textContent = percent(probability);
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  row.append(name, track, value);
  row.classList.toggle("faint", threshold !== null && probability < threshold);
  return row;
}

/** The name of one of several answers, above its bars. */
function heading(name) {
  return Object.assign(document.createElement("li"), { className: "head", textContent: name });
}

function show(answer) {
  element("error").hidden = element("empty").hidden = true;
  element("answer").hidden = false;
  const [first] = answer.predictions;
  element("best").textContent = first.label;
  element("sure").textContent = percent(first.probability);
  element("bars").replaceChildren(
    ...(answer.head ? [heading(answer.head)] : []),
    ...answer.predictions.map((found) => bar(found, answer.threshold)),
    ...answer.heads.flatMap((head) => [heading(head.name), ...head.predictions.map((found) => bar(found, head.threshold))]),
  );
  const [height, width, channels] = answer.shape || [0, 0, 0];
  element("seen").hidden = !answer.seen;
  if (answer.seen) element("seen").src = answer.seen;
  element("seen").classList.toggle("large", width >= 140);
  element("seen-shape").textContent = answer.seen ? `${height} x ${width} pixels, ${channels === 1 ? "gray" : "color"}` : "what its graph makes of the picture";
  element("phases").replaceChildren(...Object.entries(answer.phases_ms).map(([phase, ms]) => {
    const row = document.createElement("div");
    const [name, value] = [document.createElement("span"), document.createElement("span")];
    name.textContent = phase;
    value.textContent = `${ms.toFixed(2)} ms`;
    row.append(name, value);
    return row;
  }));
  element("answered-by").textContent = `${answer.model}, version ${answer.version}`;
}

/** Reads a file at once: what is sent later is what is shown now, whatever becomes of the file. */
async function take(file) {
  if (!file) return;
  const turn = ++taken;
  const content = await file.arrayBuffer().catch(() => null);
  if (turn !== taken) return;
  chosen = content && new Blob([content], { type: file.type });
  preview();
  choose(false);
  if (!chosen) fail("This file cannot be read: choose it again.");
}

function preview() {
  const image = element("preview");
  const shown = (yes) => { image.hidden = !yes; element("drop-text").hidden = yes; image.classList.toggle("tiny", image.naturalWidth < 112); };
  URL.revokeObjectURL(image.src);
  image.onload = () => shown(true);
  image.onerror = () => shown(false); // no picture, or of a format that the browser does not know, such as TIFF: the server may
  image.src = chosen ? URL.createObjectURL(chosen) : "data:,";
}

function choose(draw) {
  element("tab-draw").setAttribute("aria-pressed", String(draw));
  element("tab-file").setAttribute("aria-pressed", String(!draw));
  element("pane-draw").hidden = !draw;
  element("pane-file").hidden = draw;
  ask();
}

function clear() {
  const context = paper();
  context.fillStyle = element("dark").checked ? "#fff" : "#000";
  context.fillRect(0, 0, SIDE, SIDE);
  pen.drawn = false;
  clearTimeout(waiting);
  sketch = null;
  ask();
}

function invert() {
  const context = paper();
  context.globalCompositeOperation = "difference";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIDE, SIDE);
  context.globalCompositeOperation = "source-over";
  if (pen.drawn) soon();
}

/** Asks about the drawing once the pen has rested. */
function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(() => framed().toBlob((blob) => {
    if (!pen.drawn) return; // cleared meanwhile
    sketch = blob;
    ask();
  }, "image/png"), 120);
}

function line(x, y) {
  const context = paper();
  context.strokeStyle = element("dark").checked ? "#000" : "#fff";
  context.lineWidth = Number(element("pen").value);
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(pen.x, pen.y);
  context.lineTo(x + 0.01, y);
  context.stroke();
  pen.drawn = true;
  soon();
}

/** The drawing in the middle of a square that it nearly fills, as the pictures of handwriting data sets are. */
function framed() {
  const canvas = element("canvas");
  const { data } = paper().getImageData(0, 0, SIDE, SIDE);
  const ground = element("dark").checked ? 255 : 0;
  let [left, top, right, bottom] = [SIDE, SIDE, 0, 0];
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      if (Math.abs(data[4 * (y * SIDE + x)] - ground) < 64) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
  }
  const side = Math.max(right - left, bottom - top, 1) * (1 + 2 * MARGIN);
  const made = document.createElement("canvas");
  made.width = made.height = SIDE;
  const context = made.getContext("2d");
  context.fillStyle = element("dark").checked ? "#fff" : "#000";
  context.fillRect(0, 0, SIDE, SIDE);
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, (left + right - side) / 2, (top + bottom - side) / 2, side, side, 0, 0, SIDE, SIDE);
  return made;
}

/** Shows where the pen is, for those who draw without seeing a pointer there. */
function cursor() {
  const ring = element("ring");
  ring.style.left = `${(100 * pen.x) / SIDE}%`;
  ring.style.top = `${(100 * pen.y) / SIDE}%`;
  ring.style.width = `${(100 * element("pen").value) / SIDE}%`;
  ring.classList.toggle("down", pen.down);
  element("canvas").title = pen.down ? "pen down" : "pen up";
}

function position(event) {
  const box = element("canvas").getBoundingClientRect();
  return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
}

function draw() {
  const canvas = element("canvas");
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.down = true;
    [pen.x, pen.y] = position(event);
    line(pen.x, pen.y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!pen.down || !event.buttons) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const [x, y] = position(each);
      line(x, y);
      [pen.x, pen.y] = [x, y];
    }
  });
  canvas.addEventListener("pointerup", () => { pen.down = false; });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] }[event.key];
    if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) line(pen.x, pen.y);
    } else if (step) {
      const [x, y] = [pen.x + step[0], pen.y + step[1]].map((at) => Math.min(272, Math.max(8, at)));
      if (pen.down) line(x, y);
      [pen.x, pen.y] = [x, y];
    } else return;
    cursor();
    event.preventDefault();
  });
  canvas.addEventListener("focus", cursor);
  element("pen").addEventListener("input", cursor);
  element("clear").addEventListener("click", clear);
  element("dark").addEventListener("change", invert);
  clear();
}

/** Makes the playground ready. */
export function start() {
  element("file").addEventListener("change", ({ target }) => {
    take(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => { // anywhere: beside the box the browser would leave the page for the picture
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      element("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => take([...event.clipboardData.files].find((each) => each.type.startsWith("image/"))));
  element("tab-file").addEventListener("click", () => choose(false));
  element("tab-draw").addEventListener("click", () => choose(true));
  element("model").addEventListener("change", () => { hint(); ask(); });
  draw();
}
