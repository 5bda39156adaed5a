// The page: wires link, cards, keyboard and learning curve.

import { Link, call } from "./link.js";
import { Cards, fill } from "./cards.js";
import { Drive } from "./drive.js";
import { drawCurve } from "./curve.js";

const $ = (id) => document.getElementById(id);
const robots = new Map(); // name -> what status and states say of it
const trying = new Set(); // robots this page wants to take over
const TAKE_MS = 8000;
let chosen = "";
let link = null;
let drive = null;
let cards = null;

function robot(name = chosen) {
  return robots.get(name) ?? null;
}

function note(text) {
  const line = document.createElement("p");
  line.className = "note";
  line.textContent = text;
  $("notes").append(line);
  while ($("notes").children.length > 4) $("notes").firstElementChild.remove();
  setTimeout(() => line.remove(), 6000);
}

function show(name) {
  const known = robot(name);
  if (known) cards.show(known, name === chosen);
}

function choose(name) {
  if (name === chosen || !robots.has(name)) return;
  drive.rest();
  const before = chosen;
  chosen = name;
  show(before);
  show(name);
}

function merge(name, news) {
  robots.set(name, { ...robots.get(name), ...news });
  if (!chosen) chosen = name;
  show(name);
}

// The stamp of the newest state and its rest here show the robot how long this was on its way.
function command(name, action) {
  const { seen_s, came } = robot(name)?.seen ?? { seen_s: 0, came: performance.now() };
  const rested_ms = performance.now() - came;
  link.send({ type: "command", robot: name, action, seen_s, rested_ms });
}

// --- what a person does ---------------------------------------------------------------------

async function ask(name, event, success) {
  const body = { event, client: link.client };
  if (success !== undefined) body.success = success;
  const answer = await call("POST", `/api/robots/${encodeURIComponent(name)}/ask`, body);
  if (!answer.ok) throw new Error(answer.error);
  if (answer.mode) merge(name, { mode: answer.mode, asked: { boot: robot(name).boot, at_s: answer.answered_s } });
}

// Somebody who holds the robot may let go in a moment: keep trying, until asked a second time.
async function claim(name) {
  const until = performance.now() + TAKE_MS;
  trying.add(name);
  try {
    for (let told = false; trying.has(name); told = true) {
      try {
        return await call("POST", `/api/robots/${encodeURIComponent(name)}/claim`, { client: link.client });
      } catch (error) {
        if (error.status !== 409 || performance.now() > until) throw error;
        if (!told) note(`${error.message} Taking it over as soon as it is free.`);
      }
      await new Promise((done) => setTimeout(done, 120));
    }
    return null;
  } finally {
    trying.delete(name);
  }
}

async function take(name) {
  if (trying.delete(name) || !(await claim(name))) return;
  drive.forget(name);
  merge(name, { mine: true });
  const mode = robot(name).mode;
  if (cards.modes[mode]?.includes("hold")) await ask(name, "hold");
}

async function giveUp(name) {
  merge(name, { mine: false });
  await call("POST", `/api/robots/${encodeURIComponent(name)}/yield`, { client: link.client });
}

const DEEDS = {
  take,
  demonstrate: (name) => ask(name, "demonstrate"),
  recover: (name) => ask(name, "recover"),
  correct: (name) => ask(name, "correct"),
  hand_back: async (name) => {
    if (cards.modes[robot(name).mode]?.includes("hand_back")) await ask(name, "hand_back");
    await giveUp(name);
  },
  success: (name) => ask(name, "done", true),
  failure: (name) => ask(name, "done", false),
  release: (name) => ask(name, "release"),
  estop: async (name) => {
    link.send({ type: "estop", robot: name }); // the fast way; the other one is answered
    await call("POST", `/api/robots/${encodeURIComponent(name)}/ask`, { event: "estop" });
  },
};

async function act(name, what) {
  if (!robots.has(name)) return;
  try {
    await DEEDS[what](name);
  } catch (error) {
    note(`${name}: ${error.message}`);
  }
}

// --- keyboard -------------------------------------------------------------------------------

const KEYS = {
  Space: "take", KeyB: "demonstrate", KeyR: "recover", KeyC: "correct", KeyH: "hand_back",
  KeyY: "success", KeyN: "failure", KeyL: "release",
};

function keydown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  if (event.code === "Escape") {
    event.preventDefault();
    const targets = event.shiftKey || !chosen ? [...robots.keys()] : [chosen];
    for (const name of targets) act(name, "estop");
    return;
  }
  if (drive.down(event)) return event.preventDefault();
  if (/^Digit[1-9]$/.test(event.code)) {
    const name = cards.names()[Number(event.code.slice(5)) - 1];
    if (name) {
      choose(name);
      cards.cards.get(name).root.focus();
    }
    return;
  }
  const what = KEYS[event.code];
  const pressing = event.code === "Space" && event.target.tagName === "BUTTON";
  if (!what || event.repeat || pressing || !chosen) return;
  event.preventDefault();
  if (cards.mayAsk(robot(), what)) act(chosen, what);
}

// Nobody looks any more: no motion, hold, and let somebody else take over.
function leave() {
  drive.rest();
  trying.clear();
  for (const [name, known] of robots) {
    if (!known.mine) continue;
    const hold = cards.modes[known.mode]?.includes("hold");
    Promise.resolve(hold && known.mode !== "auto" ? ask(name, "hold") : null)
      .catch((error) => note(`${name}: ${error.message}`))
      .finally(() => giveUp(name).catch((error) => note(`${name}: ${error.message}`)));
    note(`${name} was given up: this window lost the keyboard`);
  }
}

// --- what the server says ---------------------------------------------------------------------

function status(news) {
  $("run").textContent = news.run || "user-system";
  $("phase").textContent = news.phase ?? "";
  const f = news.figures ?? {};
  const percent = (value) => (value === undefined || value === null ? "–" : `${Math.round(100 * value)} %`);
  const spool = [...robots.values()].reduce((sum, r) => sum + (r.figures?.spool_fragments ?? 0), 0);
  const round = (value, digits = 0) => (value === undefined || value === null ? "–" : value.toFixed(digits));
  fill($("figures"), [
    ["env steps", round(f.env_steps)], ["success", percent(f.success_rate)],
    ["interventions", percent(f.intervention_rate)], ["version", news.version ?? "–"],
    ["updates/s", round(f.updates_per_s)], ["spool", spool],
  ]);
  for (const known of news.robots ?? []) {
    const { mode, holder, help, version, figures, ...rest } = known;
    const heard = robots.get(known.name)?.sequence !== undefined;
    merge(known.name, heard && known.online ? { ...rest, holder } : { ...known });
  }
  $("empty").hidden = robots.size > 0;
  drawCurve($("curve"), $("axis"), news.curve ?? []);
  $("link").textContent = news.away ? `hub: ${news.away}` : "live";
  $("link").classList.toggle("up", !news.away);
}

// A state may arrive after the answer that made its mode the one before.
function older(state) {
  const asked = robot(state.name)?.asked;
  return asked !== undefined && asked.boot === state.boot && state.seen.seen_s < asked.at_s;
}

function message(news) {
  if (news.type === "states") {
    for (const state of news.states) {
      const seen = { seen_s: state.figures.sent_s ?? 0, came: performance.now() };
      const news = { ...state, name: state.robot, online: true, seen };
      if (older(news)) delete news.mode;
      merge(state.robot, news);
    }
  } else if (news.type === "status") {
    status(news);
  } else if (news.type === "lost") {
    merge(news.robot, { mine: false });
    note(`${news.robot}: ${news.text}`);
  } else if (news.type === "error") {
    note(news.text);
  }
}

async function frame(head, jpeg) {
  try {
    await cards.draw(head, jpeg);
  } catch (error) {
    note(`${head.robot} ${head.camera}: a picture that cannot be shown (${error.message})`);
  }
  link.send({ type: "ack", robot: head.robot, camera: head.camera });
}

function up(is) {
  $("link").textContent = is ? "live" : "not connected, trying again";
  $("link").classList.toggle("up", is);
  if (!is) for (const name of robots.keys()) merge(name, { mine: false });
}

// --- beginning ----------------------------------------------------------------------------------

async function start(me) {
  $("login").hidden = true;
  $("page").hidden = false;
  $("who").textContent = `${me.name}, ${me.role}`;
  cards.modes = me.modes;
  cards.mayDrive = me.role !== "viewer";
  link = new Link({ message, frame, up, unauthorized: () => location.reload() });
  await link.open();
}

async function login(name, token) {
  await call("POST", "/api/login", { operator: name, token });
  await start(await call("GET", "/api/me"));
}

async function begin() {
  cards = new Cards($("robots"), $("card"), { choose, act });
  drive = new Drive(command, robot);
  addEventListener("keydown", keydown);
  addEventListener("keyup", (event) => drive.up(event));
  addEventListener("blur", leave);
  document.addEventListener("visibilitychange", () => document.hidden && leave());
  $("logout").addEventListener("click", async () => {
    link.close();
    await call("POST", "/api/logout", {});
    location.reload();
  });
  $("login-form").addEventListener("submit", (event) => {
    event.preventDefault();
    login($("login-name").value, $("login-token").value).catch((error) => {
      $("login-error").textContent = error.message;
    });
  });
  const [name, ...rest] = decodeURIComponent(location.hash.slice(1)).split(":");
  history.replaceState(null, "", location.pathname); // the secret must not stay in the address
  try {
    if (name && rest.length) return await login(name, rest.join(":"));
    return await start(await call("GET", "/api/me"));
  } catch (error) {
    $("login").hidden = false;
    if (error.status !== 401) $("login-error").textContent = error.message;
    $("login-name").focus();
  }
}

begin();
