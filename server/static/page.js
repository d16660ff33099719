// The live page. One stream (/v1/live) carries everything; it is open only while the page is looked at.
// All texts that come from the server go in by textContent: an item's id may be anything.
"use strict";

const $ = (id) => document.getElementById(id);
const SMOOTH_MS = 30_000, KEPT = 900, FEW = 10;
const OUTCOMES = {
  applied: "counted and learned",
  amended: "changed an earlier reward of the same item",
  duplicate: "came twice and counted once",
  late: "came after the policy's window had closed",
  gone: "for a policy or an item that is no more",
  unfunded: "counted in the click rate, not for this bank to learn from",
  out_of_range: "beyond the policy's min and max",
  poison: "not readable",
};
const view = { policy: "", segment: "all", policies: [], live: null, samples: [], requests: [], all: false, decision: null };
let key = sessionStorage.getItem("api_key") || "";
let stream = null, wait_s = 1;

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });
const percent = (value) => `${(value * 100).toFixed(1).replace(/\.0$/, "")}%`;
const small = (value) => (value === null ? "–" : Math.abs(value) >= 100 ? number(value) : value.toPrecision(3));
const rate = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
const ms = (q) => (q === null ? "–" : q < 1 ? `${q.toFixed(2)} ms` : `${q.toFixed(0)} ms`);
const bytes = (value) => {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let i = 0;
  while (value >= 1000 && i < units.length - 1) { value /= 1000; i++; }
  return `${value < 10 && i ? value.toFixed(1) : value.toFixed(0)} ${units[i]}`;
};
const span = (s) => (s < 90 ? `${s.toFixed(0)} s` : s < 5400 ? `${(s / 60).toFixed(0)} min` : `${(s / 3600).toFixed(0)} h`);

function put(parent, tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

function say(text, kind) {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = `state ${kind}`;
}

// ------------------------------------------------------------------------------------------------------------ stream

function headers(more = {}) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function open() {
  if (stream) stream.abort();
  if (document.hidden) return;
  const mine = (stream = new AbortController());
  const query = new URLSearchParams({ policy: view.policy, segment: view.segment });
  try {
    const response = await fetch(`/v1/live?${query}`, { headers: headers(), signal: mine.signal, cache: "no-store" });
    if (response.status === 401 || response.status === 403) {
      const problem = await response.json();
      $("login-why").textContent = key ? problem.detail : "Its figures are for administrators.";
      $("login").hidden = false;
      say("Waiting for a key", "off");
      return;
    }
    if (!response.ok) throw new Error((await response.json()).detail);
    $("login").hidden = true;
    wait_s = 1;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", told = 0;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) take(event);
      told += events.length;
    }
    if (!told) throw new Error("it is ending");
    if (mine === stream) setTimeout(open, 50); // the server ends a stream after a minute
  } catch (error) {
    if (mine !== stream || error.name === "AbortError") return;
    say(`The server does not answer; trying again … (${error.message})`, "off");
    setTimeout(() => mine === stream && open(), wait_s * 1000);
    wait_s = Math.min(wait_s * 2, 15);
  }
}

function take(event) {
  const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
  if (!data) return;
  const live = JSON.parse(data);
  if (event.startsWith("event: problem")) return say(live.detail, "off");
  view.live = live;
  view.requests.push([live.time_ms, live.requests]);
  view.requests = view.requests.slice(-15);
  if (live.policy) {
    if (live.policy.name !== view.policy) { view.policy = live.policy.name; view.samples = []; }
    const last = view.samples.length ? view.samples[view.samples.length - 1][0] : -1;
    view.samples.push(...live.policy.history.filter((row) => row[0] > last));
    view.samples = view.samples.slice(-KEPT);
  }
  show(live);
}

function choose(policy, segment = "all") {
  Object.assign(view, { policy, segment, samples: [], all: false, decision: null });
  for (const id of ["answer", "tell", "tell-row", "told"]) $(id).hidden = true;
  history.replaceState(null, "", `#${encodeURIComponent(policy)}`);
  $("user").dataset.of = "";
  open();
}

// ----------------------------------------------------------------------------------------------------------- figures

function show(live) {
  const fresh = live.visible_ms.p50;
  say(fresh === null ? "Live" : `Live: a reward shows in the next choice within ${ms(fresh)}`, "on");
  tiles(live);
  $("none").hidden = live.policies.length > 0;
  $("policy").hidden = !live.policies.length;
  if (!live.policies.length) $("first").textContent = firstPolicy();
  policies(live);
  $("footer").textContent = `croupier ${live.version}, up ${span(live.uptime_s)}, ${live.shards} shard${live.shards > 1 ? "s" : ""}, event log ${bytes(live.log_bytes)}, parameters ${bytes(live.store_bytes)}`;
  if (!live.policy) {
    if (live.policies.length && view.policy) choose(live.policies[0].name);
    return;
  }
  const policy = live.policy;
  $("definition").textContent = definition(policy);
  charts(live, policy);
  outcomes(policy);
  segments(policy);
  arms(policy);
  asking(policy);
}

function tiles(live) {
  const [first, last] = [view.requests[0], view.requests[view.requests.length - 1]];
  const per_s = last[0] > first[0] ? ((last[1] - first[1]) * 1000) / (last[0] - first[0]) : null;
  const all = [
    ["Requests", per_s === null ? "…" : `${rate(Math.max(per_s, 0))}/s`, "recommend and feedback", false],
    ["Answer time", ms(live.recommend_ms.p50), `99 of 100 within ${ms(live.recommend_ms.p99)}`, false],
    ["Reward to choice", ms(live.visible_ms.p50), `99 of 100 within ${ms(live.visible_ms.p99)}`, live.visible_ms.p99 > 1000],
    ["Waiting to be learned", number(live.lag_records), live.lag_s ? `oldest ${span(live.lag_s)}` : "records in the log", live.lag_s > 5],
    ["Workers", number(live.workers), live.restarts ? `${number(live.restarts)} restarts so far` : "no restarts", live.workers === 0],
  ];
  const words = { log: "Event log", store: "Parameters", agent: "Agent", learner: "Learner" };
  const down = Object.entries(live.parts).filter(([, there]) => !there).map(([part]) => words[part]);
  const there = Object.keys(live.parts).map((part) => words[part].toLowerCase()).join(", ");
  all.push(["Health", down.length ? "Away" : "All there", down.length ? down.join(", ") : there, down.length > 0]);
  const holder = $("health");
  holder.replaceChildren();
  for (const [name, value, about, bad] of all) {
    const tile = put(holder, "div", null, { class: bad ? "tile bad" : "tile" });
    put(tile, "span", name);
    put(tile, "b", value);
    put(tile, "small", about);
  }
}

function policies(live) {
  const wanted = JSON.stringify(live.policies.map((p) => p.name));
  const holder = $("policies");
  if (holder.dataset.of !== wanted) {
    holder.dataset.of = wanted;
    holder.replaceChildren();
    for (const policy of live.policies) {
      const button = put(holder, "button", policy.name, { type: "button", "data-name": policy.name });
      put(button, "small", "");
      button.addEventListener("click", () => choose(policy.name));
    }
  }
  live.policies.forEach((policy, i) => {
    const button = holder.children[i];
    button.setAttribute("aria-pressed", String(policy.name === view.policy));
    button.lastChild.textContent = `${policy.algorithm} · ${number(policy.shown)} shown`;
  });
}

function definition(policy) {
  if (policy.algorithm === "diag-linucb" && !policy.clusters) return "diag-linucb: ranks the items of a graph, and has none yet.";
  const what = policy.algorithm === "diag-linucb"
    ? `ranks ${number(policy.arms_total)} items for a user's embedding, by what ${number(policy.clusters)} clusters of users liked`
    : `chooses among ${number(policy.arms_total)} items, each segment of users with estimates of its own`;
  const none = policy.default === null ? "unanswered items teach nothing" : `an item not answered by then counts as ${policy.default}`;
  return `${policy.algorithm}: ${what}. Rewards count for ${span(policy.window_s)}; ${none}.`;
}

function charts(live, policy) {
  const n = live.modes.length, samples = view.samples;
  const clicks = live.modes.map((mode, m) => ({ name: mode === policy.mode ? `${mode} (this policy's own)` : mode, style: m, points: [] }));
  const traffic = [{ name: "decisions", style: 0, points: [] }, { name: "rewards", style: 1, points: [] }];
  let start = 0, short = 0;
  samples.forEach((row, i) => {
    while (row[0] - samples[start][0] > SMOOTH_MS) start++;
    while (row[0] - samples[short][0] > 5000) short++;
    if (i === 0) return;
    const before = samples[start];
    clicks.forEach((line, m) => {
      const shown = row[1 + m] - before[1 + m];
      line.points.push([row[0], shown > 0 ? (row[1 + n + m] - before[1 + n + m]) / shown : null]);
    });
    const seconds = (row[0] - samples[short][0]) / 1000;
    if (seconds < 1) return;
    traffic.forEach((line, i) => {
      const at = row.length - 2 + i;
      line.points.push([row[0], Math.max(0, row[at] - samples[short][at]) / seconds]);
    });
  });
  rateChart.draw(clicks.filter((line) => line.points.some((p) => p[1] !== null)));
  trafficChart.draw(traffic);
}

function outcomes(policy) {
  const body = $("outcomes");
  body.replaceChildren();
  for (const [name, count] of Object.entries(policy.outcomes)) {
    if (!count && !["applied", "duplicate", "late"].includes(name)) continue;
    const row = put(body, "tr"), cell = put(row, "td", name.replaceAll("_", " "));
    put(cell, "small", OUTCOMES[name]);
    put(row, "td", number(count), { class: "n" });
  }
}

function segments(policy) {
  $("segment-label").hidden = policy.segments.length < 2;
  const wanted = JSON.stringify(policy.segments);
  if ($("segment").dataset.of !== wanted) {
    $("segment").dataset.of = wanted;
    $("segment").replaceChildren(...policy.segments.map((name) => new Option(name, name)));
  }
  // Where nobody belongs to "all", the first segment that there is says more.
  if (policy.segments.length && !policy.segments.includes(view.segment)) {
    view.segment = policy.segments[0];
    open();
  }
  $("segment").value = view.segment;
}

function arms(policy) {
  const shown = view.all ? policy.arms : policy.arms.slice(0, FEW);
  const most = Math.max(...policy.arms.map((arm) => arm.plays), 0);
  const of = policy.segments.length ? ` for users of segment “${policy.segment}”` : "";
  $("arms-about").textContent = policy.arms.length
    ? `${most ? `The ${number(shown.length)} items shown most${of}` : `Nothing was shown yet${of}: the first ${number(shown.length)} items`}, of ${number(policy.arms_total)}. Mean is the estimated reward; width is how unsure the estimate still is.`
    : policy.clusters
      ? "Nothing has been learned yet: ask for a recommendation below."
      : `It has no graph yet, and so no items to choose from: croupier graph build makes one, croupier policy graph ${policy.name} FILE.npz gives it to the policy.`;
  const body = $("arms"), chances = policy.arms.some((arm) => arm.probability !== null); // a graph's items have none
  $("chance").hidden = !chances;
  body.replaceChildren();
  for (const arm of shown) {
    const row = put(body, "tr");
    put(row, "td", arm.paused ? `${arm.id} (paused)` : arm.id);
    put(row, "td", small(arm.mean), { class: "n" });
    put(row, "td", small(arm.width), { class: "n" });
    if (chances) put(row, "td", arm.probability === null ? "–" : percent(arm.probability), { class: "n" });
    const plays = put(row, "td", null, { class: "n" });
    put(plays, "meter", null, { min: 0, max: most || 1, value: arm.plays, "aria-hidden": "true" });
    put(plays, "b", number(arm.plays));
    put(row, "td", rate(arm.rewards), { class: "n" });
  }
  $("more").hidden = policy.arms.length <= FEW;
  $("more").textContent = view.all ? `Show the first ${FEW}` : `Show ${policy.arms.length}`;
}

// ------------------------------------------------------------------------------------------------------------ try it

function curl(path, body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const auth = key ? ` -H "Authorization: Bearer $KEY"` : "";
  return `curl ${location.origin}${path}${auth} -H 'Content-Type: application/json' -d '${quoted}'`;
}

function firstPolicy() {
  const body = { algorithm: "banker", arms: ["a", "b", "c"], reward: { window: "30m", default: 0 } };
  return curl("/v1/policies/headlines", body).replace("curl ", "curl -X PUT ");
}

function asking(policy) {
  const user = $("user");
  if (user.dataset.of !== policy.name) {
    user.dataset.of = policy.name;
    const diag = policy.algorithm === "diag-linucb";
    $("user-label").firstChild.textContent = diag ? "User's clusters, or an embedding as [0.1, …] " : "User's segment ";
    user.value = diag ? "0" : view.segment;
    for (const option of $("mode").options) option.hidden = option.value === "thompson" && !diag && !policy.algorithm.startsWith("thompson");
    $("mode").value = "";
    asked();
  }
}

function question() {
  const body = { policy: view.policy }, text = $("user").value.trim();
  if (text && view.live?.policy?.algorithm !== "diag-linucb") body.user = { segment: text };
  else if (text.startsWith("[")) {
    try { body.user = { embedding: JSON.parse(text) }; } catch { body.user = { embedding: text }; }
  } else if (text) body.user = { clusters: text.split(/[ ,]+/).map(Number) };
  body.k = Number($("k").value);
  if ($("mode").value) body.mode = $("mode").value;
  return body;
}

function answered() {
  return { decision_id: view.decision.decision_id, item: $("item").value, reward: Number($("reward").value) };
}

function asked() { $("ask-curl").textContent = curl("/v1/recommend", question()); }
function told() { if (view.decision) $("tell-curl").textContent = curl("/v1/feedback", answered()); }

async function post(path, body, out) {
  out.hidden = false;
  try {
    const response = await fetch(path, {
      method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body),
    });
    const answer = await response.json();
    out.textContent = `${response.status} ${JSON.stringify(answer, null, 1)}`;
    return response.ok ? answer : null;
  } catch (error) {
    out.textContent = `The server does not answer: ${error.message}`;
    return null;
  }
}

$("ask").addEventListener("input", asked);
$("tell").addEventListener("input", told);
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  asked();
  const decision = await post("/v1/recommend", question(), $("answer"));
  view.decision = decision;
  for (const id of ["tell", "tell-row"]) $(id).hidden = !decision;
  $("told").hidden = true;
  if (decision) {
    $("item").replaceChildren(...decision.items.map((item) => new Option(item.id, item.id)));
    told();
  }
});
$("tell").addEventListener("submit", async (event) => {
  event.preventDefault();
  told();
  await post("/v1/feedback", answered(), $("told"));
});
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($(button.dataset.of).textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren($(button.dataset.of));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// ---------------------------------------------------------------------------------------------------- the page itself

function theme(dark) {
  document.documentElement.classList.toggle("dark", dark);
}

const system = matchMedia("(prefers-color-scheme: dark)");
const chosen = () => localStorage.getItem("theme");
theme(chosen() ? chosen() === "dark" : system.matches);
system.addEventListener("change", () => chosen() || theme(system.matches));
$("theme").addEventListener("click", () => {
  const dark = !document.documentElement.classList.contains("dark");
  localStorage.setItem("theme", dark ? "dark" : "light");
  theme(dark);
});
$("more").addEventListener("click", () => { view.all = !view.all; if (view.live?.policy) arms(view.live.policy); });
$("segment").addEventListener("change", (event) => {
  view.segment = $("user").value = event.target.value;
  asked();
  open();
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("api_key", key);
  $("key").value = "";
  open();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) stream?.abort();
  else open();
});
const rateChart = lineChart($("rate"), "Click rate", percent);
const trafficChart = lineChart($("traffic"), "Per second", rate);
try { view.policy = decodeURIComponent(location.hash.slice(1)); } catch { /* a hash that is no name */ }
open();
