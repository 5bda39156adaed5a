// One card per robot: picture, mode, what it needs, and what may be done about it.

const STOPPED = new Set(["fault", "estop"]);
const WORDS = {
  hold: "hold", reset: "reset", demo: "demonstration", auto: "autonomous", eval: "evaluation",
  rewind: "rewind", recovery: "recovery", correction: "correction", handback: "handing back",
  fault: "FAULT", estop: "STOPPED",
};
const STALE_MS = 2000;
const STALE_S = 10; // the head says every second which weights are the newest

// What the robot's host knows of its link; what it does not know is left out.
function linkOf(figures) {
  const trip = figures.rtt_ms ?? figures.base_rtt_ms;
  const said = [];
  if (trip !== undefined && trip !== null) said.push(`${Math.round(trip)} ms`);
  if (figures.rate_mbit_s) said.push(`${Number(figures.rate_mbit_s.toPrecision(2))} Mbit/s`);
  if (figures.loss) said.push(`${(100 * figures.loss).toFixed(1)} % lost`);
  const held = ["experience", "behind", "video", "weights"].filter((lane) => figures[`held_${lane}`]);
  if (held.length) said.push(`held back: ${held.join(", ")}`);
  return said.join(", ");
}

export class Cards {
  // on: { choose(name), act(name, what) }; modes: mode -> events a holder may ask for
  constructor(parent, template, on) {
    this.parent = parent;
    this.template = template;
    this.on = on;
    this.cards = new Map();
    this.modes = {};
    this.mayDrive = false;
    setInterval(() => this.age(), 500);
  }

  ensure(name) {
    const known = this.cards.get(name);
    if (known) return known;
    const root = this.template.content.firstElementChild.cloneNode(true);
    const part = (selector) => root.querySelector(selector);
    const card = {
      root, views: part(".views"), canvases: new Map(), drawnAt: 0,
      name: part(".name"), number: part(".number"), mode: part(".mode"), holder: part(".holder"),
      help: part(".help"), facts: part(".facts"), buttons: [...root.querySelectorAll("[data-do]")],
    };
    root.dataset.robot = name;
    root.setAttribute("aria-label", `Robot ${name}`);
    card.name.textContent = name;
    root.addEventListener("focus", () => this.on.choose(name));
    root.addEventListener("pointerdown", () => this.on.choose(name));
    for (const button of card.buttons) {
      button.addEventListener("click", () => this.on.act(name, button.dataset.do));
    }
    this.cards.set(name, card);
    this.order();
    return card;
  }

  // By name, so that a robot keeps its place and its number whoever spoke first.
  names() {
    return [...this.cards.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  }

  order() {
    for (const [i, name] of this.names().entries()) {
      const card = this.cards.get(name);
      card.number.textContent = String(i + 1);
      this.parent.append(card.root);
    }
  }

  // robot: { name, mode, mine, holder, help, fault, purpose, episode, step, version, online, ... }
  show(robot, chosen) {
    const card = this.ensure(robot.name);
    const stopped = STOPPED.has(robot.mode);
    card.root.classList.toggle("chosen", chosen);
    card.root.classList.toggle("offline", !robot.online);
    card.root.classList.toggle("stopped", stopped);
    card.mode.textContent = robot.online ? WORDS[robot.mode] ?? robot.mode : "offline";
    card.mode.dataset.mode = robot.mode;
    card.holder.textContent = robot.mine ? "you hold it" : robot.holder ? `held by ${robot.holder}` : "";
    card.holder.classList.toggle("mine", Boolean(robot.mine));
    const help = robot.online ? robot.help || robot.fault || "" : `last seen ${robot.last_seen_s} s ago`;
    if (card.help.textContent !== help) card.help.textContent = help;
    this.facts(card, robot);
    for (const button of card.buttons) button.disabled = !this.possible(robot, button.dataset.do);
  }

  facts(card, robot) {
    const last = robot.figures?.last_success;
    const rows = [
      ["task", robot.task], ["for", robot.purpose], ["episode", robot.episode?.split("-").pop()],
      ["step", robot.step], ["version", versionOf(robot)],
      ["last", last === undefined || last === null ? "" : last > 0 ? "success" : "failure"],
      ["action age", age(robot.figures?.action_age_p99_ms)],
      ["spool", robot.figures?.spool_fragments], ["link", linkOf(robot.figures ?? {})],
      ["rate", robot.rate ? `${robot.rate.toFixed(1)}×` : ""],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "");
    fill(card.facts, rows);
  }

  // A key asks for whatever its holder wants: the mode shown may be older than the robot's, and an
  // answer that says why not is better than a key that does nothing.
  mayAsk(robot, what) {
    const driving = this.mayDrive && robot.online && robot.mine;
    return what === "take" ? this.possible(robot, what) : Boolean(driving);
  }

  possible(robot, what) {
    if (what === "estop") return true; // a stop that is pressed twice is still a stop
    if (!this.mayDrive || !robot.online) return false;
    if (what === "take") return !robot.mine;
    if (!robot.mine) return false;
    const events = this.modes[robot.mode] ?? [];
    if (what === "demonstrate") return events.includes(what) && robot.purpose === "collect";
    if (what === "success" || what === "failure") return events.includes("done");
    return events.includes(what) || (what === "hand_back" && robot.mode === "auto");
  }

  async draw(head, jpeg) {
    const card = this.ensure(head.robot);
    const picture = await createImageBitmap(jpeg);
    let canvas = card.canvases.get(head.camera);
    if (!canvas) {
      canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Camera ${head.camera} of ${head.robot}`);
      card.views.querySelector(".dark")?.remove();
      card.views.append(canvas);
      card.canvases.set(head.camera, canvas);
    }
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
    canvas.dataset.sequence = head.sequence;
    card.drawnAt = performance.now();
  }

  age() {
    for (const card of this.cards.values()) {
      const old = card.canvases.size > 0 && performance.now() - card.drawnAt > STALE_MS;
      card.views.classList.toggle("stale", old);
    }
  }
}

// The version it acts with, and for how long it has got no newer one, nor heard that there is none.
function versionOf(robot) {
  const seconds = robot.figures?.weights_stale_s;
  const stale = seconds >= STALE_S && robot.mode !== "eval"; // that judges one version, however old
  return stale ? `${robot.version}, ${Math.round(seconds)} s stale` : robot.version;
}

function age(ms) {
  return ms === undefined || ms === null ? "" : `${Math.round(ms)} ms`;
}

export function fill(list, rows) {
  while (list.children.length > rows.length) list.lastElementChild.remove();
  rows.forEach(([name, value], i) => {
    let row = list.children[i];
    if (!row) {
      row = document.createElement("div");
      row.append(document.createElement("dt"), document.createElement("dd"));
      list.append(row);
    }
    if (row.firstChild.textContent !== name) row.firstChild.textContent = name;
    const text = String(value);
    if (row.lastChild.textContent !== text) row.lastChild.textContent = text;
  });
}
