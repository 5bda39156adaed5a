// Keyboard driving with a deadman: motion only while a key is held.

const MOVES = { KeyW: [0, 1], KeyS: [0, -1], KeyA: [1, 1], KeyD: [1, -1], KeyQ: [2, 1], KeyE: [2, -1] };
const SPEED = 0.5;
const SLOW = 0.125;
const DRIVEN = new Set(["demo", "recovery", "correction"]);

export class Drive {
  // send(robot, action); robot(): { name, action, mode, mine } of the chosen robot, or null
  constructor(send, robot) {
    this.send = send;
    this.robot = robot;
    this.held = new Set();
    this.gripper = new Map(); // robot -> wanted value; absent: as it is
    this.slow = false;
    this.idle = 0;
    setInterval(() => this.tick(), 50);
  }

  down(event) {
    this.slow = event.shiftKey;
    const robot = this.driven();
    if (!robot) return false;
    if (event.code === "KeyG") {
      if (!event.repeat) this.grip(robot);
      return true;
    }
    if (!(event.code in MOVES)) return false;
    if (!event.repeat) {
      this.held.add(event.code);
      this.push(robot);
    }
    return true;
  }

  up(event) {
    this.slow = event.shiftKey;
    if (!this.held.delete(event.code)) return;
    const robot = this.driven();
    if (robot) this.push(robot);
  }

  // All keys count as released: the window lost the keyboard.
  rest() {
    const moving = this.held.size > 0;
    this.held.clear();
    const robot = this.driven();
    if (moving && robot) this.push(robot);
  }

  forget(name) {
    this.gripper.delete(name);
  }

  driven() {
    const robot = this.robot();
    return robot && robot.mine && DRIVEN.has(robot.mode) ? robot : null;
  }

  // Twenty commands a second while a key is held; four of no motion otherwise, which say that
  // somebody is still there.
  tick() {
    const robot = this.driven();
    if (!robot) return this.held.clear();
    this.idle = this.held.size ? 0 : this.idle + 1;
    if (this.idle % 5 === 0) this.push(robot);
  }

  grip(robot) {
    if (!robot.action) return;
    const i = robot.action.delta.indexOf(false);
    if (i < 0) return;
    const [low, high] = [robot.action.low[i], robot.action.high[i]];
    const now = this.gripper.get(robot.name) ?? high;
    this.gripper.set(robot.name, now === high ? low : high);
    this.push(robot);
  }

  push(robot) {
    if (!robot.action) return; // comes with the status, which may follow the first states
    const { delta, low, high } = robot.action;
    const moved = delta.map((d, i) => (d ? i : -1)).filter((i) => i >= 0);
    const action = delta.map((d) => (d ? 0 : null));
    const gripper = delta.indexOf(false);
    if (gripper >= 0 && this.gripper.has(robot.name)) action[gripper] = this.gripper.get(robot.name);
    for (const code of this.held) {
      const [axis, sign] = MOVES[code];
      const i = moved[axis];
      if (i === undefined) continue;
      action[i] += (this.slow ? SLOW : SPEED) * (sign > 0 ? high[i] : low[i]);
    }
    this.send(robot.name, action);
  }
}
