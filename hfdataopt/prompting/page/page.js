"use strict";
const at = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token") || "";
const WAIT = 700, BEAT = 2000, RETRY = 1000; // milliseconds: no pair yet, a pair on screen, no connection
const IDLE = 5 * 60 * 1000; // after so long without a sign of the person their pair is left to others
const GUARD = 300; // nobody judges a pair this fast: a second press of a key was meant for the pair before
const KEYS = { ArrowLeft: "left", "1": "left", ArrowRight: "right", "2": "right", t: "tie", s: "skip", u: "undo" };
const criterion = JSON.parse(at("settings").textContent).criterion || "Which answer is better?";
const buttons = [...document.querySelectorAll("#votes button")];
let shown = null, undo = null, busy = false, ready = false, over = false, timer = 0, lastSign = Date.now();
let turns = 0;
const urls = [];

function remembered(name, make) {
  let value = null;
  try { value = localStorage.getItem(name); } catch { /* storage is off: this tab is a person of its own */ }
  return value ?? make();
}
function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* as above */ }
}
const session = remembered("session", () =>
  [...crypto.getRandomValues(new Uint8Array(6))].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
remember("session", session);
at("name").value = remembered("name", () => "");
at("criterion").textContent = document.title = criterion;

function say(text) { if (at("status").textContent !== text) at("status").textContent = text; }

async function ask(path, body) {
  const answer = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: { Authorization: "Bearer " + token, "X-Session": session, "X-Name": encodeURIComponent(at("name").value) },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store", signal: AbortSignal.timeout(60000),
  });
  if (!answer.ok) throw Object.assign(new Error(answer.statusText), { status: answer.status });
  return answer;
}

function fill(element, turns) {
  element.replaceChildren(...turns.flatMap((turn) => {
    const text = document.createElement("div");
    text.className = "text"; text.dir = "auto"; text.textContent = turn.text || "(empty)";
    if (!turn.role) return [text];
    const role = document.createElement("div");
    role.className = "role"; role.textContent = turn.role;
    return [role, text];
  }));
  element.scrollTop = 0;
}

async function picture(key, side) {
  const url = URL.createObjectURL(await (await ask(`image/${key}/${side}`)).blob());
  urls.push(url);
  const element = document.createElement("img");
  element.alt = `Answer ${side + 1}`; element.src = url;
  await element.decode().catch(() => {});
  return element;
}

async function put(pair) {
  const turn = ++turns;
  shown = null; ready = false;
  settle();
  const before = urls.splice(0);
  const pictures = await Promise.all(pair.answers.map((answer, side) => answer === null && picture(pair.key, side)));
  if (turn !== turns) return; // another pair came while images were on their way
  before.forEach((url) => URL.revokeObjectURL(url));
  fill(at("prompt"), pair.prompt);
  pair.answers.forEach((answer, side) =>
    answer === null ? at(`answer${side}`).replaceChildren(pictures[side]) : fill(at(`answer${side}`), answer));
  shown = pair.key;
  document.body.dataset.pair = pair.key;
  setTimeout(() => { if (shown === pair.key) { ready = true; settle(); } }, GUARD);
}

function settle() {
  at("main").hidden = !shown;
  for (const button of buttons)
    button.disabled = busy || over || (button.dataset.word === "undo" ? !undo : !shown || !ready);
  at("finish").disabled = over;
  document.body.dataset.state = over ? "over" : busy ? "busy" : shown && ready ? "ready" : "waiting";
}

async function take(view, note) {
  undo = view.undo;
  const votes = view.votes ?? 0;
  at("count").textContent = view.of ? `${votes} of ${view.of} votes` : `${votes} votes`;
  at("progress").hidden = !view.of;
  if (view.of) { at("progress").max = view.of; at("progress").value = votes; }
  at("best").hidden = view.best == null;
  if (view.best != null && at("best-text").dataset.text !== view.best) {
    at("best-text").dataset.text = view.best;
    fill(at("best-text"), [{ role: "", text: view.best }]);
  }
  over = view.over;
  if (over || !view.pair) {
    shown = null;
    delete document.body.dataset.pair;
    say(over ? "All done. Thank you." : view.finished ? "It is ending …"
      : (note || "") + "No pair is free at the moment: the next one is being made, or others have it. It will appear here.");
  } else {
    if (view.pair.key !== shown) { await put(view.pair); say(note || "A new pair."); }
    else if (note || at("status").dataset.lost) say(note || "Connected again.");
  }
  delete at("status").dataset.lost;
  if (over) { at("best").open = true; document.querySelector("#best summary").textContent = "Best prompt"; }
}

function lost(error) {
  at("status").dataset.lost = "1";
  say(error.status === 403 ? "This link is not valid any more. Open the link that the program printed."
    : "No connection. Trying again …");
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function plan(ms) { clearTimeout(timer); if (!over) timer = setTimeout(poll, ms); }

async function poll() {
  if (busy) return;
  if (shown && Date.now() - lastSign > IDLE) return plan(BEAT);
  try {
    const view = await (await ask("look")).json();
    if (!busy) await take(view, "");
    plan(shown ? BEAT : WAIT);
  } catch (error) { lost(error); plan(RETRY); }
  settle();
}

const NOTES = {
  left: "Kept: 1 is better.", right: "Kept: 2 is better.", tie: "Kept: tie.", skip: "Skipped.", undo: "Your last vote is taken back.",
};

async function send(word) {
  const key = word === "undo" ? undo : shown;
  if (busy || over || !key || (word !== "undo" && !ready)) return;
  busy = true;
  settle();
  clearTimeout(timer);
  say("Saving …");
  for (;;) {
    try {
      const view = await (await ask(word === "undo" ? "undo" : "vote", { pair: key, word })).json();
      if (view.result === "later") { await pause(200); continue; }
      if (view.result !== "counted" && view.pair?.key === shown) shown = null;
      await take(view, view.result === "counted" ? NOTES[word] + " "
        : view.result === "already" ? "This pair had a vote already; yours is not counted. " : "This vote was not counted. ");
      break;
    } catch (error) {
      lost(error);
      if (error.status >= 400 && error.status < 500) break;
      await pause(RETRY);
    }
  }
  busy = false;
  settle();
  plan(shown ? BEAT : WAIT);
}

for (const button of buttons) button.addEventListener("click", () => send(button.dataset.word));
document.addEventListener("keydown", (event) => {
  const word = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!word || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  event.preventDefault();
  send(word);
});
for (const sign of ["keydown", "pointerdown", "pointermove", "wheel", "scroll", "touchstart"])
  document.addEventListener(sign, () => { lastSign = Date.now(); }, { passive: true, capture: true });
at("name").addEventListener("change", () => remember("name", at("name").value));
at("finish").addEventListener("click", async () => {
  if (!confirm("End it for everybody? All votes are kept.")) return;
  try { await take(await (await ask("finish", {})).json(), ""); } catch (error) { lost(error); }
  settle();
});
poll();
