// Requests to this server. One that wants to know who asks gets a token, which is asked for once and kept for this tab alone.

const KEY = "convoy-token";
const element = (id) => document.getElementById(id);
const refusals = new Map(); // the status of what was refused, by path: it is not asked for again with the same token

/** `fetch` with the token, if there is one. */
export async function ask(path, options = {}) {
  if (!options.method && refusals.has(path)) return new Response("", { status: refusals.get(path) });
  const token = sessionStorage.getItem(KEY);
  const response = await fetch(path, token ? { ...options, headers: { Authorization: `Bearer ${token}` } } : options);
  if (![401, 403].includes(response.status) || token !== sessionStorage.getItem(KEY)) return response; // or another is in use now
  refusals.set(path, response.status);
  if (response.status === 401) {
    show(token ? "The server does not know this token." : "This server wants to know who asks.");
  } else {
    const told = await response.clone().json().catch(() => ({}));
    show(`Not all of this page is to be had: ${told.error ?? "it was refused"}.`);
  }
  return response;
}

function show(text) {
  element("token-note").textContent = text;
  element("token").hidden = false;
}

/** Takes the token that is typed. */
export function start() {
  element("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = element("token-text");
    sessionStorage.setItem(KEY, field.value.trim());
    field.value = "";
    refusals.clear();
    element("token").hidden = true;
  });
}
