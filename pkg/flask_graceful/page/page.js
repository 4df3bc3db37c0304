// The status page. The server sends the whole state a few times a second; what is drawn follows from
// it and from the states before. When the stream ends the browser opens the next one by itself, and
// all that the page knows stays.
"use strict";

const SPAN = 60;        // seconds that the drawing shows
const KEPT = 8;         // seconds for which a generation is shown when it has gone
const SILENT = 1500;    // milliseconds without a word until the page says so
const POLL = 1000;      // milliseconds between questions when there is no stream
const AGAIN = 5000;     // milliseconds until a stream is tried again
const MOST_EVENTS = 50;
const NAMES = { running: "serving", relieved: "draining", delaying: "draining", shutting_down: "draining" };
const KINDS = ["active", "idle", "new", "taken"];

const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const generations = new Map();  // number -> what is known of it
let heard = 0;                  // when the last state came, by this computer's clock
let skew = null;                // the server's clock minus this computer's, in seconds
let by = 0;                     // the process that has sent it
let known = null;               // restarts that were told, by their beginning

// The way in.

let source = null, poller = 0, again = 0, isPolling = false;

function open() {
  clearTimeout(again);
  if (source || document.hidden) return;
  source = new EventSource("events");
  source.onmessage = (event) => { stopPolling(); take(JSON.parse(event.data)); };
  source.onerror = () => {
    // While it is connecting the browser tries again by itself.
    if (!source || source.readyState !== EventSource.CLOSED) return;
    source = null;
    if (!poller) poller = setInterval(poll, POLL);
    again = setTimeout(open, AGAIN);
  };
}

async function poll() {
  // One after the other: each occupies a thread until the service has answered.
  if (isPolling) return;
  isPolling = true;
  try {
    const answer = await fetch("state");
    if (answer.ok) take(await answer.json());
  } catch { /* nobody answers now: the link says so */ }
  isPolling = false;
}

function stopPolling() { clearInterval(poller); poller = 0; }

function close() {
  if (source) source.close();
  source = null;
  clearTimeout(again);
  stopPolling();
}

document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
addEventListener("pagehide", close);
addEventListener("pageshow", open);

// What was said.

const now = () => Date.now() / 1000 + (skew ?? 0);

function take(state) {
  heard = performance.now();
  // The least delay is the best measure.
  const measured = state.now - Date.now() / 1000;
  skew = skew === null || Math.abs(measured - skew) > 1 ? measured : Math.max(skew, measured);
  $("trouble").hidden = !state.error;
  if (state.error) { $("trouble").textContent = state.error; return; }
  const status = state.status;
  if (by && by !== state.by) tell(`this page goes on with process ${state.by}`);
  by = state.by;
  note(status);
  showService(status);
  showGenerations();
  showRestarts(status.restarts);
}

/** Take in what the processes do, by generations. */
function note(status) {
  const isFirst = generations.size === 0;
  const found = new Map();
  for (const worker of status.workers) {
    if (!found.has(worker.generation)) found.set(worker.generation, []);
    found.get(worker.generation).push(worker);
  }
  for (const [number, workers] of [...found].sort((a, b) => a[0] - b[0])) {
    let one = generations.get(number);
    if (!one || (one.state === "gone" && !sharesPid(one, workers))) {
      if (one) one.node.remove();
      one = { number, state: "", samples: [], since: {}, node: newNode(number) };
      generations.set(number, one);
    }
    one.workers = workers;
    one.seen = now();
    one.total = total(workers);
    one.samples.push([now(), one.total.connections, one.total.requests]);
    while (one.samples[0][0] < now() - SPAN - 1) one.samples.shift();
    enter(one, stateOf(workers), isFirst);
  }
  for (const one of generations.values()) {
    if (found.has(one.number)) continue;
    if (one.state !== "gone") enter(one, "gone", false);
    else if (now() - one.since.gone > SPAN + KEPT) generations.delete(one.number);
  }
  noteRestarts(status.restarts);
}

const sharesPid = (one, workers) => workers.some((a) => one.workers.some((b) => a.pid === b.pid));

function stateOf(workers) {
  const names = workers.map((one) => NAMES[one.state] || one.state);
  return ["serving", "ready", "booting", "draining"].find((name) => names.includes(name)) || names[0];
}

function total(workers) {
  const sum = { requests: null, connections: null, in: 0, out: 0, watching: 0, rss: 0, parts: {} };
  for (const one of workers) {
    sum.rss += one.rss || 0;
    if (!one.connections) continue;
    // Those who watch are not what is watched.
    sum.watching += one.watching;
    sum.requests += one.requests - one.watching;
    sum.in += one.moved.in;
    sum.out += one.moved.out;
    for (const kind of KINDS) {
      const count = Math.max(0, one.connections[kind] - (kind === "active" ? one.watching : 0));
      sum.parts[kind] = (sum.parts[kind] || 0) + count;
      sum.connections += count;
    }
  }
  if (sum.requests !== null) sum.requests = Math.max(0, sum.requests);
  return sum;
}

/** A generation is in this state from now on. */
function enter(one, state, isFirst) {
  if (one.state === state) return;
  const before = one.state;
  one.state = state;
  one.since[state] = now();
  if (isFirst) return;
  const name = `generation ${one.number}`, pids = one.workers.map((w) => w.pid).join(" ");
  const { requests, connections } = one.total;
  const left = requests === null ? "" : `: ${many(requests, "request")}, ${many(connections, "connection")}`;
  if (state === "booting") tell(`${name} boots, pid ${pids}`);
  if (state === "serving") tell(before === "draining" ? `${name} serves again` : `${name} serves, pid ${pids}`);
  if (state === "draining") tell(`${name} drains${left}`);
  if (state === "gone") tell(before === "booting" ? `${name} has ended` : `${name} has gone`);
}

function noteRestarts(restarts) {
  const told = new Set(restarts.filter((one) => one.error).map((one) => one.at));
  for (const one of restarts) {
    if (one.error && known && !known.has(one.at)) tell(`restart failed: ${one.error}`);
  }
  known = told;
  lanes = restarts;
}

function tell(text) {
  const line = document.createElement("li"), at = document.createElement("time");
  at.textContent = clock(now());
  line.append(at, text);
  $("events").prepend(line);
  while ($("events").children.length > MOST_EVENTS) $("events").lastChild.remove();
}

// What is seen.

const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const clock = (time) => new Date(time * 1000).toTimeString().slice(0, 8);
const megabytes = (bytes) => (bytes ? `${(bytes / 1048576).toFixed(0)} MB` : "–");
const shown = (value) => (value === null || value === undefined ? "–" : String(value));

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(2)} s`;
  if (value < 120) return `${value.toFixed(0)} s`;
  if (value < 7200) return `${(value / 60).toFixed(0)} min`;
  return value < 172800 ? `${(value / 3600).toFixed(0)} h` : `${(value / 86400).toFixed(0)} d`;
}

function age(value) {
  return value === null ? "–" : value < 10 ? `${value.toFixed(1)} s` : seconds(value);
}

/** Change what a node says only when that is new: a selection in it stays, and nothing is read twice. */
function say(node, text) { if (node.textContent !== text) node.textContent = text; }

function showService(status) {
  say($("service"), `pid ${status.pid} · generation ${status.generation} · ${status.addresses.join(" ")}`);
  say($("kill"), `kill -1 ${status.pid}`);
  let watching = 0;
  for (const one of generations.values()) if (one.state !== "gone") watching += one.total.watching;
  say($("footer"), `${many(watching, "viewer")} of this page, counted above only where connections move. The page is served by process ${by}.`);
}

function newNode(number) {
  const node = $("generation").content.firstElementChild.cloneNode(true);
  node.dataset.generation = number;
  node.querySelector("h3").textContent = `Generation ${number}`;
  return node;
}

function showGenerations() {
  const list = $("generations");
  let before = null;
  for (const number of [...generations.keys()].sort((a, b) => a - b)) {
    const one = generations.get(number);
    if (one.state === "gone" && now() - one.since.gone > KEPT) {
      one.node.remove();
      continue;
    }
    const next = before ? before.node.nextElementSibling : list.firstElementChild;
    if (next !== one.node) list.insertBefore(one.node, next);
    showOne(one, before);
    before = one;
  }
}

function showOne(one, before) {
  const node = one.node, at = (query) => node.querySelector(query), isGone = one.state === "gone";
  node.className = `generation ${one.state === "ready" ? "booting" : one.state}`;
  say(at(".state"), one.state);
  say(at(".requests"), isGone ? "0" : shown(one.total.requests));
  say(at(".connections"), isGone ? "0" : shown(one.total.connections));
  for (const kind of KINDS) {
    const count = isGone ? 0 : one.total.parts[kind];
    say(at(`.states .${kind} b`), shown(count));
    at(`.bar .${kind}`).style.flexBasis = one.total.connections && !isGone ? `${(100 * (count || 0)) / one.total.connections}%` : "0";
  }
  const body = at("tbody");
  while (body.rows.length > one.workers.length) body.deleteRow(-1);
  one.workers.forEach((worker, index) => {
    const row = body.rows[index] || body.insertRow(), own = total([worker]);
    row.className = isGone ? "over" : "";
    const cells = isGone
      ? [worker.pid, "gone", "0", "0", "–"]
      : [worker.pid, age(worker.age), shown(own.requests), shown(own.connections), megabytes(worker.rss)];
    cells.forEach((text, column) => say(row.cells[column] || row.insertCell(), String(text)));
  });
  showMoved(one, before, at(".moved"));
}

/** The connections that have come from the generation on its left. */
function showMoved(one, before, node) {
  node.hidden = !before || one.state === "booting" || one.state === "ready";
  if (node.hidden) return;
  const count = movedTo(one.number, before);
  if (count !== one.moved) one.movedAt = now();
  one.moved = count;
  say(node.querySelector(".count"), String(count));
  say(node.querySelector(".what"), `${count === 1 ? "connection" : "connections"} moved`);
  node.classList.toggle("flows", before.state === "draining" && now() - one.movedAt < 1.5);
}

function showRestarts(restarts) {
  const body = $("restarts").tBodies[0];
  $("restarts").hidden = restarts.length === 0;
  $("no-restarts").hidden = restarts.length > 0;
  const rows = [];
  for (const one of restarts) {
    const isOpen = one.over === null;
    // What is not over yet is counted on.
    const run = isOpen ? `${Math.max(0, now() - one.at).toFixed(0)} s …` : seconds(one.over);
    const ready = one.ready === null ? (isOpen ? run : "–") : seconds(one.ready);
    const moved = one.error || one.ready === null ? "–" : String(movedTo(one.generation, generations.get(one.generation - 1)));
    rows.push(["", [clock(one.at), String(one.generation), ready, one.ready === null ? "–" : run, moved]]);
    if (one.error) rows.push(["why", [`failed after ${seconds(one.over)}: ${one.error}`]]);
  }
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach(([name, texts], index) => {
    const row = body.rows[index] || body.insertRow();
    row.className = name;
    while (row.cells.length > texts.length) row.deleteCell(-1);
    texts.forEach((text, column) => say(row.cells[column] || row.insertCell(), text));
    row.cells[0].colSpan = name ? 5 : 1;
  });
}

/** The connections that have moved to a generation. Processes that have gone are in the service's
 *  memory, the others say it themselves. */
function movedTo(number, old) {
  const restart = lanes.find((one) => one.generation === number && !one.error);
  if (!restart) return generations.get(number)?.total.in ?? 0;
  return restart.moved + (old && old.state !== "gone" ? old.total.out : 0);
}

// The drawing: a lane for each generation, its state below, its connections above.

let lanes = [];  // the restarts

/** When each generation was in which state: as the service remembers it, and as it was seen. */
function spans() {
  const found = new Map();
  for (const one of generations.values()) {
    const first = one.workers[0], began = one.seen - (first && first.age !== null ? Math.max(...one.workers.map((w) => w.age || 0)) : 0);
    const span = { began: Math.min(began, one.since.booting ?? one.seen), served: one.since.serving ?? null, drained: one.since.draining ?? null, gone: one.since.gone ?? null, one };
    if (span.served === null && one.since.draining) span.served = span.began;
    if (one.since.serving && !one.since.booting) span.served = span.began;
    found.set(one.number, span);
  }
  for (const restart of lanes) {
    if (restart.error) continue;
    const number = restart.generation, span = found.get(number) || {};
    span.began = restart.at;
    if (restart.ready !== null) span.served = restart.at + restart.ready;
    found.set(number, span);
    const old = found.get(number - 1) || {};
    if (restart.ready !== null) old.drained = restart.at + restart.ready;
    if (restart.over !== null && old.drained) old.gone = restart.at + restart.over;
    if (old.began === undefined) old.began = old.served = 0;
    if (!found.has(number - 1) && old.drained) found.set(number - 1, old);
  }
  return found;
}

function draw() {
  const canvas = $("time"), width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const pen = canvas.getContext("2d"), end = now(), from = end - SPAN, left = 52, foot = 20;
  const x = (time) => left + ((Math.max(time, from) - from) / SPAN) * (width - left);
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `11px ${colour("mono")}`;
  drawTicks(pen, colour, x, end, width, height, foot);
  const open = [...spans()].filter(([, one]) => (one.gone ?? end) > from).sort((a, b) => a[0] - b[0]).slice(-4);
  const most = Math.max(1, ...open.map(([, one]) => Math.max(0, ...(one.one ? one.one.samples : []).map((s) => s[1] || 0))));
  const lane = Math.min(56, (height - foot) / Math.max(2, open.length));
  open.forEach(([number, one], index) => {
    const base = height - foot - 4 - index * lane;
    pen.fillStyle = colour("quiet");
    pen.textAlign = "left";
    pen.fillText(`gen ${number}`, 0, base + 3);
    const stops = [["booting", one.began], ["serving", one.served], ["draining", one.drained], ["", one.gone ?? end]].filter((stop) => stop[1] !== null && stop[1] !== undefined);
    for (let i = 0; i + 1 < stops.length; i++) {
      const [name, since] = stops[i], until = stops[i + 1][1];
      if (until <= from || !name) continue;
      pen.fillStyle = colour(name);
      const wide = Math.max(2, x(until) - x(since));
      pen.fillRect(x(since), base, wide, 3);
      pen.save();
      pen.beginPath();
      pen.rect(x(since), 0, wide, height);
      pen.clip();
      drawArea(pen, one, x, base, lane - 12, most);
      pen.restore();
    }
  });
  for (const one of lanes) {
    if (!one.error || one.at + one.over < from) continue;
    pen.fillStyle = colour("failed");
    pen.fillRect(x(one.at), 2, Math.max(3, x(one.at + one.over) - x(one.at)), 3);
  }
}

function drawTicks(pen, colour, x, end, width, height, foot) {
  pen.strokeStyle = colour("line");
  pen.fillStyle = colour("quiet");
  pen.lineWidth = 1;
  pen.textAlign = "center";
  const step = width < 500 ? 20 : 10;
  for (let time = Math.ceil((end - SPAN) / step) * step; time < end; time += step) {
    const place = Math.round(x(time)) + 0.5;
    pen.beginPath();
    pen.moveTo(place, 0);
    pen.lineTo(place, height - foot);
    pen.stroke();
    if (place > 60 && place < width - 26) pen.fillText(clock(time), place, height - 5);
  }
}

function drawArea(pen, span, x, base, height, most) {
  const samples = span.one ? span.one.samples.filter((one) => one[1] !== null) : [];
  if (samples.length < 2) return;
  pen.beginPath();
  pen.moveTo(x(samples[0][0]), base);
  let last = 0;
  for (const [time, count] of samples) {
    // A step: what was counted lasts until the next count.
    pen.lineTo(x(time), base - last);
    last = Math.max((height * count) / most, count ? 2 : 0);
    pen.lineTo(x(time), base - last);
  }
  const until = span.one.state === "gone" ? samples[samples.length - 1][0] : now();
  pen.lineTo(x(until), base - last);
  pen.lineTo(x(until), base);
  pen.closePath();
  pen.globalAlpha = 0.28;
  pen.fill();
  pen.globalAlpha = 1;
}

// The clock.

let drawn = 0;

function frame(time) {
  requestAnimationFrame(frame);
  if (time - drawn < (still.matches ? 1000 : 66)) return;
  drawn = time;
  draw();
  const isSilent = performance.now() - heard > SILENT;
  const state = !heard ? "waiting" : isSilent ? "away" : source ? "live" : "polling";
  if ($("link").dataset.state !== state) $("link").dataset.state = state;
  say($("link-text"), { waiting: "connecting", away: "no answer, trying on", live: "live", polling: "asks each second" }[state]);
}

// What is drawn is not to wait for the next time when it looks different now.
new ResizeObserver(draw).observe($("time"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// The token is in a cookie by now, and not to stay in the address.
if (location.search) history.replaceState(null, "", location.pathname);
open();
requestAnimationFrame(frame);
