// The playground: a picture from a file, the clipboard or the pen, and what the model says to it.

const element = (id) => document.getElementById(id);
const SIDE = 280; // of the drawing area, in pixels
const MARGIN = 0.12; // round a drawing, as a share of it
const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.1 ? 2 : 1)} %`;

let models = [];
let picture = null; // the blob that was sent last
let asked = 0;
let waiting = null;
const pen = { down: false, x: 140, y: 140, drawn: false };

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
  element("hint").textContent = facts ? `Takes ${facts.input}; any picture is brought to that. It knows ${facts.label_count} labels, and gives one of them to everything.` : "";
}

async function ask() {
  const name = element("model").value;
  if (!picture || element("model").disabled) return;
  const turn = ++asked;
  let body;
  try {
    const path = name.split("/").map(encodeURIComponent).join("/");
    const response = await fetch(`/page/classify/${path}`, { method: "POST", body: picture });
    body = await response.json();
    if (!response.ok) throw new Error(body.error || response.statusText);
  } catch (error) {
    if (turn === asked) fail(error instanceof TypeError ? "The server does not answer." : error.message);
    return;
  }
  if (turn === asked) show(body);
}

function fail(message) {
  element("error").textContent = message;
  element("error").hidden = false;
  element("answer").hidden = true;
  element("empty").hidden = true;
}

function show(answer) {
  element("error").hidden = element("empty").hidden = true;
  element("answer").hidden = false;
  const [first] = answer.predictions;
  element("best").textContent = first.label;
  element("sure").textContent = percent(first.probability);
  element("bars").replaceChildren(...answer.predictions.map(({ label, probability }) => {
    const row = document.createElement("li");
    const [name, track, value] = ["name", "track", "value"].map((kind) => Object.assign(document.createElement("span"), { className: kind }));
    const fill = Object.assign(document.createElement("div"), { className: "fill" });
    name.textContent = label;
    value.textContent = percent(probability);
    fill.style.width = `${100 * probability}%`;
    track.append(fill);
    row.append(name, track, value);
    return row;
  }));
  const [height, width, channels] = answer.shape;
  element("seen").src = answer.seen;
  element("seen").classList.toggle("large", width >= 140);
  element("seen-shape").textContent = `${height} x ${width} pixels, ${channels === 1 ? "gray" : "color"}`;
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

function take(file) {
  if (!file) return;
  picture = file;
  const image = element("preview");
  URL.revokeObjectURL(image.src);
  image.onload = () => { image.hidden = false; element("drop-text").hidden = true; image.classList.toggle("tiny", image.naturalWidth < 112); };
  image.onerror = () => { image.hidden = true; element("drop-text").hidden = false; }; // a format that the browser does not know, such as TIFF: the server may
  image.src = URL.createObjectURL(file);
  ask();
}

function choose(draw) {
  element("tab-draw").setAttribute("aria-pressed", String(draw));
  element("tab-file").setAttribute("aria-pressed", String(!draw));
  element("pane-draw").hidden = !draw;
  element("pane-file").hidden = draw;
}

function clear() {
  const context = element("canvas").getContext("2d");
  context.fillStyle = element("dark").checked ? "#fff" : "#000";
  context.fillRect(0, 0, SIDE, SIDE);
  pen.drawn = false;
  cursor();
}

function line(x, y) {
  const context = element("canvas").getContext("2d");
  context.strokeStyle = element("dark").checked ? "#000" : "#fff";
  context.lineWidth = Number(element("pen").value);
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(pen.x, pen.y);
  context.lineTo(x + 0.01, y);
  context.stroke();
  pen.drawn = true;
  clearTimeout(waiting);
  waiting = setTimeout(() => framed().toBlob((blob) => { picture = blob; ask(); }, "image/png"), 120);
}

/** The drawing in the middle of a square that it nearly fills, as the pictures of handwriting data sets are. */
function framed() {
  const canvas = element("canvas");
  const { data } = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, SIDE, SIDE);
  const paper = element("dark").checked ? 255 : 0;
  let [left, top, right, bottom] = [SIDE, SIDE, 0, 0];
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      if (Math.abs(data[4 * (y * SIDE + x)] - paper) < 64) continue;
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

function cursor() {
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
      cursor();
    } else if (step) {
      const [x, y] = [pen.x + step[0], pen.y + step[1]].map((at) => Math.min(272, Math.max(8, at)));
      if (pen.down) line(x, y);
      [pen.x, pen.y] = [x, y];
    } else return;
    event.preventDefault();
  });
  element("clear").addEventListener("click", clear);
  element("dark").addEventListener("change", clear);
  clear();
}

/** Makes the playground ready. */
export function start() {
  const drop = element("drop");
  element("file").addEventListener("change", (event) => take(event.target.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) { choose(false); take(file); }
  });
  element("tab-file").addEventListener("click", () => choose(false));
  element("tab-draw").addEventListener("click", () => choose(true));
  element("model").addEventListener("change", () => { hint(); ask(); });
  draw();
}
