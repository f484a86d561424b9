// One desktop in one page. The page's own address is its only target: nothing is taken from parameters but the ticket,
// which is exchanged for a cookie at once. What the machine says is shown as text or not at all.
import RFB from "./novnc/core/rfb.js";
import KeyTable from "./novnc/core/input/keysym.js";
import keysyms from "./novnc/core/input/keysymdef.js";

const here = new URL(".", location.href); // …/stream/MACHINE/, without the query
const { name, clipboardBytesMax, viewOnly } = document.body.dataset;
const $ = (id) => document.getElementById(id);

// Why the edge ended a stream (its table is gateway/session.py). `again` is what the button says, if it can help.
const CLOSED = {
  4001: { title: `${name} was stopped`, text: "Its disk is kept. Once it runs again, open it with a new link." },
  4002: { title: `${name} was deleted`, text: "Nothing of it is kept." },
  4003: { title: "Opened somewhere else", text: `Since {time} this desktop is shown in another window or on another device.`, again: "Take it back" },
  4004: { title: "Access has ended", text: "The link that opened this desktop is no longer valid. Ask for a new one." },
  4005: { retry: "The desktop doesn't answer." },
  4006: { retry: "The picture couldn't get through." },
  4007: { title: "This page made a mistake", text: "It sent something that isn't part of the protocol.", again: "Try again" },
  4008: { retry: "The service restarts." },
};
const BACKOFF_MS = [200, 400, 800, 1500, 2500, 4000, 5000];

let rfb = null;
let socket = null;
let left = false; // the person ended the visit: nothing reconnects
let shown = false; // a picture was seen
let attempt = 0;
let awaySince = 0;
let retryTimer = 0;

// ---------------------------------------------------------------- what is said over the picture

function veil(title, text, button, act) {
  $("veil").hidden = false;
  $("veil-title").textContent = title;
  $("status").textContent = text;
  $("veil-button").hidden = !button;
  $("veil-button").textContent = button || "";
  $("veil-button").onclick = act || null;
  if (button) {
    $("veil-button").focus();
  }
}

function finish({ title, text, next, ended_at: endedAt, again }) {
  clearTimeout(retryTimer);
  ready(false);
  note("");
  word(0, "ended");
  $("steps").hidden = steps.size && ![...steps.values()].some(({ row }) => row.className);
  $("END_SESSION_BUTTON").hidden = !again;
  const clock = (when) => when.toLocaleString([], { dateStyle: when.toDateString() === new Date().toDateString() ? undefined : "medium", timeStyle: "short" });
  const said = [text, next].filter(Boolean).join(" ").replace("{time}", clock(endedAt ? new Date(endedAt * 1000) : new Date()));
  veil(title, said, again, again ? () => { attempt = 0; awaySince = 0; connect(); } : null);
}

const steps = new Map();

function step(id, label, state) {
  const now = performance.now();
  if (!steps.has(id)) {
    const row = document.createElement("li");
    const ms = document.createElement("span");
    ms.className = "ms";
    row.append(label, ms);
    $("steps").append(row);
    steps.set(id, { row, ms, began: now });
  }
  const { row, ms, began } = steps.get(id);
  row.classList.toggle("failed", state === "failed");
  ms.textContent = state === "begun" ? "…" : state === "done" ? `${Math.round(now - began)} ms` : state;
}

let noteTimer = 0;

function note(text, ms) {
  clearTimeout(noteTimer);
  $("note").hidden = !text;
  $("note-text").textContent = text;
  if (ms) {
    noteTimer = setTimeout(() => note(""), ms);
  }
}

$("note-ok").addEventListener("click", () => { note(""); rfb?.focus(); });

// ---------------------------------------------------------------- getting in

async function enter() {
  const ticket = new URLSearchParams(location.search).get("ticket");
  if (!ticket) {
    return null; // a reload: the cookie is enough
  }
  const answer = await fetch(new URL("enter", here), { method: "POST", body: ticket, headers: { "Content-Type": "text/plain" } });
  if (!answer.ok) {
    return answer.json();
  }
  history.replaceState(null, "", here.pathname);
  return null;
}

async function start() {
  if (!window.isSecureContext) {
    note("This page came over plain http, so the browser keeps the clipboard to itself. Ask for the https link.");
  }
  step("link", "Link", "begun");
  try {
    const refused = await enter();
    if (refused) {
      step("link", "Link", "failed");
      finish(refused);
      return;
    }
  } catch {
    step("link", "Link", "failed");
    finish({ title: "The service doesn't answer", text: "The page was loaded, but what it asked for didn't arrive.", again: "Try again" });
    $("veil-button").onclick = () => location.reload();
    return;
  }
  step("link", "Link", "done");
  connect();
}

// ---------------------------------------------------------------- the stream

function connect() {
  clearTimeout(retryTimer);
  left = false;
  step("socket", "Connection", "begun");
  const address = new URL("rfb", here);
  address.protocol = address.protocol.replace("http", "ws");
  const mine = new WebSocket(address);
  socket = mine;
  // Ours is heard before noVNC's, which takes the canvas away.
  mine.addEventListener("open", () => { step("socket", "Connection", "done"); step("display", "Display", "begun"); });
  mine.addEventListener("close", (event) => { if (socket === mine) { closed(event.code); } });
  try {
    rfb = new RFB($("screen"), mine, { shared: true });
  } catch {
    finish({ title: "This browser can't show a desktop", text: "It lacks a part that the picture needs. Any current Chrome, Edge, Firefox or Safari will do." });
    return;
  }
  const view = rfb;
  view.background = "transparent";
  view.viewOnly = viewOnly === "true";
  view.addEventListener("connect", () => { step("display", "Display", "done"); step("picture", "First picture", "begun"); pictured(view); });
  view.addEventListener("clipboard", (event) => fromDesktop(event.detail.text));
  applyView();
}

const probe = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });

function painted(canvas) {
  probe.clearRect(0, 0, 1, 1);
  probe.drawImage(canvas, canvas.width >> 1, canvas.height >> 1, 1, 1, 0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data[3] > 0;
}

// noVNC tells of the connection, not of the first picture: an empty canvas is transparent.
function pictured(view) {
  if (view !== rfb) {
    return;
  }
  const canvas = $("screen").querySelector("canvas");
  if (!canvas || !canvas.width || !painted(canvas)) {
    requestAnimationFrame(() => pictured(view));
    return;
  }
  step("picture", "First picture", "done");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `Desktop of ${name}. It is a picture: its text can't be read aloud. Control, Alt and Shift together leave it.`);
  $("still").hidden = true;
  $("veil").hidden = true;
  $("steps").hidden = true;
  ready(true);
  if (!shown && !localStorage.getItem("millstream.chord")) {
    localStorage.setItem("millstream.chord", "told");
    note("Ctrl+Alt+Shift leaves the desktop and brings you back to the buttons above.", 8000);
  }
  shown = true;
  attempt = 0;
  awaySince = 0;
  $("END_SESSION_BUTTON").hidden = false;
  if (!$("TOOLBAR").contains(document.activeElement)) {
    view.focus();
  }
  for (const wait of [0, 300, 600, 900]) {
    setTimeout(measure, wait);
  }
}

function closed(code) {
  socket = null;
  const canvas = $("screen").querySelector("canvas");
  if (shown && canvas && canvas.width) {
    const still = $("still");
    still.width = canvas.width;
    still.height = canvas.height;
    still.getContext("2d").drawImage(canvas, 0, 0);
    still.hidden = false;
  }
  rfb = null;
  ready(false);
  if (left) {
    return;
  }
  const why = CLOSED[code] || {};
  if (why.title) {
    finish(why);
    return;
  }
  awaySince = awaySince || Date.now();
  word(0, "away");
  const wait = BACKOFF_MS[Math.min(attempt, BACKOFF_MS.length - 1)];
  attempt += 1;
  retryTimer = setTimeout(again, wait);
  tell(why.retry);
}

// A refused WebSocket says nothing of why: ask first, and stop where trying again is pointless.
async function again() {
  try {
    const answer = await fetch(new URL("state", here), { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (answer.ok || answer.status >= 500 && answer.status !== 501 || answer.status === 429) {
      connect();
      return;
    }
    finish({ ...await answer.json(), again: answer.status === 409 ? "Look again" : undefined });
  } catch {
    closed(0);
  }
}

function tell(reason) {
  const seconds = Math.round((Date.now() - awaySince) / 1000);
  $("veil").classList.toggle("light", shown);
  veil(shown ? `Reconnecting… ${seconds} s` : `Opening ${name}`, [reason, shown ? "The desktop and its programs go on." : "Trying again."].filter(Boolean).join(" "));
}

setInterval(() => {
  if (awaySince && shown && $("veil-title").textContent.startsWith("Reconnecting")) {
    $("veil-title").textContent = `Reconnecting… ${Math.round((Date.now() - awaySince) / 1000)} s`;
  }
}, 1000);

function ready(yes) {
  for (const id of ["CLIPBOARD_BUTTON", "KEYS_BUTTON", "SETTINGS_BUTTON", "FULLSCREEN_BUTTON", "QUALITY_BUTTON"]) {
    $(id).disabled = !yes;
  }
  $("veil").classList.toggle("light", false);
  if (!yes) {
    closePanels();
  }
}

// ---------------------------------------------------------------- panels

const panels = [...document.querySelectorAll("[aria-controls]")].map((button) => [button, $(button.getAttribute("aria-controls"))]);

function closePanels(except) {
  for (const [button, panel] of panels) {
    if (panel !== except) {
      panel.hidden = true;
      button.setAttribute("aria-expanded", "false");
    }
  }
}

for (const [button, panel] of panels) {
  button.addEventListener("click", () => {
    closePanels(panel);
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) {
      panel.style.left = `${Math.max(8, Math.min(button.offsetLeft, innerWidth - panel.offsetWidth - 8))}px`;
      panel.querySelector("textarea:not([readonly]), input:checked, button")?.focus();
      if (panel.id === "view") {
        showSize();
      }
    }
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      closePanels();
      button.focus();
    }
  });
}
$("screen").addEventListener("pointerdown", () => closePanels(), true);

// The way out of the canvas, which takes every other key.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.altKey && event.shiftKey && $("screen").contains(document.activeElement)) {
    event.preventDefault();
    event.stopImmediatePropagation();
    window.dispatchEvent(new Event("blur")); // noVNC lets go of all keys, so none stays down on the desktop
    (document.querySelector(".tools button:not(:disabled)") || $("END_SESSION_BUTTON")).focus();
    note("You are at the buttons. Tab moves on; click the picture to go back.", 5000);
  }
}, true);

// ---------------------------------------------------------------- clipboard

let lastIn = null;
let lastOut = null;
let seamless = false;

function sizeOf(bytes) {
  return bytes < 1000 ? `${bytes} bytes` : bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function toDesktop(text) {
  // Lines end with two bytes on the way, so they are counted so.
  const bytes = new TextEncoder().encode(text.replace(/\r\n|\r|\n/g, "\r\n")).length;
  const room = clipboardBytesMax - 64; // its envelope
  if (bytes > room) {
    return `${sizeOf(bytes)}; ${sizeOf(room)} allowed, so nothing was sent.`;
  }
  lastIn = text;
  rfb.clipboardPasteFrom(text);
  return "Sent. Paste it on the desktop.";
}

async function fromDesktop(text) {
  lastOut = text;
  $("from-desktop").value = text;
  if (seamless && document.hasFocus()) {
    try {
      await navigator.clipboard.writeText(text);
      lastIn = text; // ours already: don't send it back
    } catch {
      // It stays in the panel.
    }
  }
}

async function pull() {
  if (!seamless || !rfb || viewOnly === "true") {
    return;
  }
  try {
    const text = await navigator.clipboard.readText();
    if (text && rfb && text !== lastIn && text !== lastOut) {
      const said = toDesktop(text);
      if (!said.startsWith("Sent")) {
        note(`Clipboard: ${said}`, 8000);
      }
    }
  } catch {
    // Not allowed at the moment, or no text: the panel still works.
  }
}

function showSeamless(possible) {
  $("seamless-offer").hidden = !possible || seamless;
  $("seamless-state").hidden = !seamless;
  $("seamless-not").hidden = possible;
}

async function canShare() {
  try {
    return Boolean(navigator.clipboard?.readText) && (await navigator.permissions.query({ name: "clipboard-read" })).state !== "denied";
  } catch {
    return false; // browsers that ask at each reading: by hand is kinder
  }
}

async function share(on) {
  seamless = on;
  if (on) {
    try {
      await navigator.clipboard.readText();
    } catch {
      seamless = false;
    }
  }
  localStorage.setItem("millstream.clipboard", seamless ? "shared" : "by hand");
  showSeamless(await canShare());
  await pull();
}

$("seamless-on").addEventListener("click", () => share(true));
$("seamless-off").addEventListener("click", () => share(false));
$("PASTE_REMOTE_BUTTON").addEventListener("click", () => { $("clipboard-note").textContent = toDesktop($("to-desktop").value); });
$("COPY_LOCAL_BUTTON").addEventListener("click", async () => {
  const box = $("from-desktop");
  try {
    await navigator.clipboard.writeText(box.value);
    $("copy-note").textContent = "Copied.";
  } catch {
    box.select();
    $("copy-note").textContent = "Marked: copy it with Ctrl+C.";
  }
});
window.addEventListener("focus", pull);
$("screen").addEventListener("pointerenter", pull);
$("screen").addEventListener("focusin", pull);
canShare().then(async (possible) => {
  const granted = possible && (await navigator.permissions.query({ name: "clipboard-read" })).state === "granted";
  seamless = granted && localStorage.getItem("millstream.clipboard") === "shared";
  showSeamless(possible);
});

// ---------------------------------------------------------------- keys

const SYMS = {
  ControlLeft: KeyTable.XK_Control_L, AltLeft: KeyTable.XK_Alt_L, Delete: KeyTable.XK_Delete, Tab: KeyTable.XK_Tab,
  F4: KeyTable.XK_F4, Escape: KeyTable.XK_Escape, MetaLeft: KeyTable.XK_Super_L, PrintScreen: KeyTable.XK_Print,
};

for (const button of document.querySelectorAll("[data-keys]")) {
  button.addEventListener("click", () => {
    const codes = button.dataset.keys.split(" ");
    codes.forEach((code) => rfb.sendKey(SYMS[code], code, true));
    codes.reverse().forEach((code) => rfb.sendKey(SYMS[code], code, false));
  });
}

const CONTROL = { "\n": KeyTable.XK_Return, "\t": KeyTable.XK_Tab };

let typing = false;

$("type-now").addEventListener("click", async () => {
  if (typing) {
    return; // the button keeps the focus, so it isn't disabled
  }
  typing = true;
  const letters = [...$("type-text").value.replace(/\r\n?/g, "\n")];
  let typed = 0;
  for (const letter of letters) {
    if (!rfb) {
      break;
    }
    rfb.sendKey(CONTROL[letter] || keysyms.lookup(letter.codePointAt(0)), null);
    typed += 1;
    // A display learns letters that its layout lacks one by one: give it the time.
    await new Promise((done) => setTimeout(done, letter > "~" ? 40 : 8));
    $("type-note").textContent = `${typed} of ${letters.length}`;
  }
  $("type-note").textContent = typed === letters.length ? `Typed ${typed}.` : `Stopped after ${typed} of ${letters.length}.`;
  typing = false;
});

// ---------------------------------------------------------------- view

const views = [...document.querySelectorAll("input[name=view]")];

function applyView() {
  const view = views.find((one) => one.checked).value;
  rfb.resizeSession = view === "follow";
  rfb.scaleViewport = view !== "one";
}

function showSize() {
  const canvas = $("screen").querySelector("canvas");
  $("size").textContent = canvas ? `${canvas.width} × ${canvas.height} pixels` : "not shown";
}

const remembered = localStorage.getItem("millstream.view");
for (const one of views) {
  one.checked = remembered ? one.value === remembered : one.checked;
  one.addEventListener("change", () => {
    localStorage.setItem("millstream.view", one.value);
    applyView();
    setTimeout(showSize, 500);
  });
}

if (document.fullscreenEnabled) {
  $("FULLSCREEN_BUTTON").addEventListener("click", async () => {
    if (document.fullscreenElement) {
      await document.exitFullscreen();
      return;
    }
    await document.documentElement.requestFullscreen();
    await navigator.keyboard?.lock?.().catch(() => {}); // Alt+Tab and friends reach the desktop, where browsers can
  });
  document.addEventListener("fullscreenchange", () => {
    $("FULLSCREEN_BUTTON").textContent = document.fullscreenElement ? "Leave full screen" : "Full screen";
  });
} else {
  $("FULLSCREEN_BUTTON").hidden = true;
}

// ---------------------------------------------------------------- quality: there and back, in a word

const trips = [];
let missed = 0;

function word(level, text) {
  $("QUALITY_BUTTON").dataset.level = level;
  $("quality-word").textContent = text;
}

async function measure() {
  if (!rfb || document.hidden) {
    return;
  }
  const view = rfb;
  const began = performance.now();
  try {
    await fetch(new URL("state", here), { cache: "no-store", signal: AbortSignal.timeout(6000) });
    missed = 0;
    trips.push(performance.now() - began);
    trips.splice(0, trips.length - 5);
    const trip = [...trips].sort((a, b) => a - b)[trips.length >> 1];
    const [level, text] = trip < 80 ? [3, "good"] : trip < 200 ? [2, "fair"] : [1, "poor"];
    if (rfb === view) {
      word(level, text);
      $("quality-text").textContent = `${Math.round(trip)} ms to the service and back.`;
    }
  } catch {
    missed += 1;
    if (missed > 1 && rfb === view) {
      missed = 0;
      socket?.close(); // a dead network doesn't say so by itself
    }
  }
}

setInterval(measure, 5000);

// ---------------------------------------------------------------- end

$("end-not").addEventListener("click", () => { closePanels(); rfb?.focus(); });
$("end-now").addEventListener("click", async () => {
  left = true;
  clearTimeout(retryTimer);
  socket?.close(1000);
  await fetch(new URL("leave", here), { method: "POST" }).catch(() => {});
  finish({ title: "You have left", text: `${name} goes on running. Open it again with a new link.` });
});

if (viewOnly === "true") {
  $("CLIPBOARD_BUTTON").hidden = true;
  $("KEYS_BUTTON").hidden = true;
  note("You are watching: what you type and click has no effect.");
}

start();
