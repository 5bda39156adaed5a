// Talks to the server: JSON over HTTP, and one websocket that comes back when it breaks.

export async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const value = await answer.json();
  if (!answer.ok) {
    const error = new Error(value.error?.text ?? `the server answered ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return value;
}

export class Link {
  // on: { message(object), frame(head, jpeg), up(bool), unauthorized() }
  constructor(on) {
    this.on = on;
    this.client = "";
    this.closed = false;
    this.delay = 300;
    setInterval(() => this.send({ type: "alive" }), 500);
  }

  async open() {
    try {
      const { ticket } = await call("POST", "/api/ticket", {});
      const scheme = location.protocol === "https:" ? "wss" : "ws";
      this.socket = new WebSocket(`${scheme}://${location.host}/ws?ticket=${encodeURIComponent(ticket)}`);
    } catch (error) {
      if (error.status === 401) return this.on.unauthorized();
      return this.again();
    }
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (event) => this.receive(event.data);
    this.socket.onclose = () => this.again();
  }

  again() {
    this.client = "";
    this.on.up(false);
    if (this.closed) return;
    setTimeout(() => this.open(), this.delay * (0.5 + Math.random()));
    this.delay = Math.min(5000, this.delay * 2);
  }

  close() {
    this.closed = true;
    this.socket?.close();
  }

  receive(data) {
    if (typeof data !== "string") {
      const length = new DataView(data).getUint32(0, true);
      const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
      return this.on.frame(head, new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
    }
    const message = JSON.parse(data);
    if (message.type === "welcome") {
      this.client = message.client;
      this.delay = 300;
      this.on.up(true);
    }
    this.on.message(message);
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }
}
