"use strict";
// All addresses are relative to the page's own, which contains the secret.
const $ = (id) => document.getElementById(id);
const LOOK_EVERY_MS = 300;
let choices = null;
let job = null; // the job that this page follows
let sending = null; // the upload under way

const sizeOf = (bytes) => (bytes < 1e5 ? (bytes / 1e3).toFixed(1) + " kB" : (bytes / 1e6).toFixed(2) + " MB");
const given = { model: [], calib: [], preset: [] }; // chosen or dropped files, each with its path below its folder

// Skip hidden files that an operating system adds to folders.
const wanted = ({ path }) => !path.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");
const chosen = (input) => [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));

async function below(entry) {
  if (entry.isFile) {
    return [{ path: entry.fullPath.slice(1), file: await new Promise((done, fail) => entry.file(done, fail)) }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail)); // at most 100 per call
    if (!some.length) return found;
    for (const one of some) found.push(...(await below(one)));
  }
}

function give(kind, found) {
  given[kind] = found.filter(wanted);
  check();
}

function takes(kind) {
  const [one, folder] = [$(kind), $(kind + "-folder")];
  one.addEventListener("input", () => { folder.value = ""; give(kind, chosen(one)); });
  folder.addEventListener("input", () => { one.value = ""; give(kind, chosen(folder)); });
  const box = one.parentElement;
  box.addEventListener("dragover", (event) => event.preventDefault());
  box.addEventListener("drop", async (event) => {
    event.preventDefault(); // the default action would treat a folder as a file
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    one.value = folder.value = "";
    try {
      give(kind, (await Promise.all(entries.map(below))).flat());
    } catch (error) {
      fail(`what was dropped cannot be read: ${error.message}`);
    }
  });
}

async function call(method, address, values) {
  const body = values === undefined ? undefined : JSON.stringify(values);
  const answer = await fetch(address, { method, body });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function show(state) {
  const busy = state === "uploading" || state === "running";
  $("asked").disabled = busy;
  $("run").hidden = busy;
  $("working").hidden = !busy;
  $("failed").hidden = state !== "failed";
  $("result").hidden = state !== "done";
  if (!busy) check();
  const shown = { uploading: "working", failed: "failed", done: "result" }[state];
  if (shown) $(shown).scrollIntoView({ block: "nearest" });
}

function fail(why) {
  $("why").textContent = why;
  show("failed");
}

function step(what, done, total) {
  const told = !total || what.includes(", "); // the step itself says how far it is
  $("doing").textContent = told ? what : `${what}: ${done} of ${total}`;
  if (total) {
    $("bar").max = total;
    $("bar").value = done;
  } else {
    $("bar").removeAttribute("value");
  }
}

function check() {
  for (const id of ["model", "calib"]) {
    const own = given[id];
    const box = $(id).parentElement;
    const told = box.querySelector(".chosen");
    told.dataset.empty ??= told.textContent;
    box.classList.toggle("full", own.length > 0);
    const names = own.slice(0, 3).map(({ path }) => path).join(", ") + (own.length > 3 ? ", ..." : "");
    const size = own.reduce((sum, { file }) => sum + file.size, 0);
    const count = `${own.length} ${own.length === 1 ? "file" : "files"}`;
    told.textContent = own.length ? `${names} (${count}, ${sizeOf(size)})` : told.dataset.empty;
  }
  const zeros = Math.round(100 * choices.most_sparsity * $("level").value);
  $("level-told").textContent = zeros ? `int8, and ${zeros} % of the weights zero` : "int8";
  $("advice").textContent = zeros
    ? "Pruning takes longer. Zeros make the file smaller once it is zipped, and faster on hardware that skips them."
    : "";
  const own = $("preset").value === "file";
  $("own").hidden = !own;
  const ready = given.model.length && given.calib.length && (!own || given.preset.length);
  $("run").disabled = !ready;
}

function send({ path, file }, address, told) {
  return new Promise((resolve, reject) => {
    const request = (sending = new XMLHttpRequest());
    request.upload.onprogress = (event) => told(event.loaded);
    request.onload = () =>
      request.status === 200 ? resolve() : reject(new Error(JSON.parse(request.responseText).error));
    request.onerror = () => reject(new Error(`${path} could not be sent; it may be larger than the server accepts`));
    request.onabort = () => reject(new Error("cancelled"));
    request.open("PUT", address);
    request.send(file);
  });
}

async function upload(key) {
  const kinds = ["model", "calib", ...($("preset").value === "file" ? ["preset"] : [])];
  const all = kinds.flatMap((kind) => given[kind].map((one) => [kind, one]));
  const total = all.reduce((sum, [, { file }]) => sum + file.size, 0);
  if (total > choices.limit) {
    throw new Error(`the files are ${sizeOf(total)}; the server accepts ${sizeOf(choices.limit)} (--max-upload)`);
  }
  let sent = 0;
  for (const [i, [kind, one]] of all.entries()) {
    const told = (loaded) => {
      step(`sending file ${i + 1} of ${all.length}`);
      $("bar").max = total;
      $("bar").value = sent + loaded;
    };
    const address = one.path.split("/").map(encodeURIComponent).join("/");
    await send(one, `jobs/${key}/files/${kind}/${address}`, told);
    sent += one.file.size;
  }
}

async function compress() {
  show("uploading");
  step("sending files");
  let mine = (job = null);
  try {
    mine = job = (await call("POST", "jobs")).key;
    await upload(mine);
    const asked = { target: $("target").value, preset: $("preset").value, level: Number($("level").value) };
    if ($("length").value) asked.length = Number($("length").value);
    if ($("search").value) asked.search_seconds = Number($("search").value);
    if ($("accept").checked) asked.accept = true;
    await call("POST", `jobs/${mine}/run`, asked);
    await follow();
  } catch (error) {
    if (job === mine) fail(error.message); // otherwise it was cancelled
  }
}

async function follow() {
  for (const mine = job; job === mine; await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS))) {
    const told = await call("GET", `jobs/${mine}`);
    if (job !== mine) return;
    if (told.state === "failed") return fail(told.error);
    if (told.state === "done") return finish(told);
    show(told.state);
    step(...(told.step.length ? told.step : ["reading the model"]));
  }
}

async function cancel() {
  const mine = job;
  job = null;
  sending?.abort();
  if (mine !== null) await call("DELETE", `jobs/${mine}`).catch(() => {});
  show("none");
}

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

async function finish(told) {
  const place = `jobs/${told.key}/outputs/`;
  const report = await call("GET", place + "report.json");
  const written = report.outputs.reduce((sum, artifact) => sum + artifact.bytes, 0);
  const { tokens, decoding } = report;
  const { float_ms: before, ms: after, speedup } = report.latency;
  const figures = [
    ["size", `${sizeOf(report.input_bytes)} → ${sizeOf(written)}`],
    ["bits a weight", report.bits_per_weight === null ? null : report.bits_per_weight.toFixed(2)],
    ["SQNR of the outputs", report.sqnr_db === null ? null : report.sqnr_db.toFixed(1) + " dB"],
    ["same answer as the float model", report.agreement === null ? null : (100 * report.agreement).toFixed(1) + " %"],
    ["perplexity", tokens.perplexity === undefined ? null
      : `${tokens.float_perplexity.toPrecision(4)} → ${tokens.perplexity.toPrecision(4)} (${(100 * tokens.perplexity_rise).toFixed(1)} %)`],
    ["divergence", tokens.kl_nats === undefined ? null : `${tokens.kl_nats.toPrecision(3)} nats`],
    ...["token", "prompt"].filter((part) => decoding[part]).map((part) => [
      part === "token" ? "a token" : `a prompt of ${decoding.prompt_tokens}`,
      `${decoding[part].speedup.toFixed(2)}x (${decoding[part].float_ms.toFixed(2)} → ${decoding[part].ms.toFixed(2)} ms)`]),
    ["speed", speedup === undefined ? null : `${speedup.toFixed(2)}x (${before.toFixed(2)} → ${after.toFixed(2)} ms)`],
  ];
  $("figures").replaceChildren(...figures.filter(([, value]) => value !== null).map(
    ([name, value]) => element("div", null, element("dt", name), element("dd", value))));
  const links = [...told.outputs, { name: "report.json" }].map(({ name, bytes }) => {
    const link = element("a", name);
    link.href = place + encodeURIComponent(name);
    link.download = name;
    return element("li", null, link, bytes === undefined ? "" : ` ${sizeOf(bytes)}`);
  });
  $("outputs").replaceChildren(...links);
  const { level, reasons, next } = report.verdict;
  $("verdict").textContent = { ready: "Done: download the result", caution: "Done, but look closer" }[level] ?? "Done, but not good enough";
  $("verdict").className = level;
  $("against").textContent = level === "ready" ? "" : `${reasons.join("; ")}. Next: ${next}`;
  $("report").href = $("report-frame").src = place + "report.html";
  show("done");
}

async function begin() {
  choices = await call("GET", "choices");
  for (const id of ["target", "preset"]) $(id).append(...choices[id].map((name) => new Option(name, name)));
  $("preset").querySelector("[value=file]").text = "own file (YAML)";
  takes("model");
  takes("calib");
  $("preset-file").addEventListener("input", () => give("preset", chosen($("preset-file"))));
  $("ask").addEventListener("input", check);
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); compress(); });
  $("cancel").addEventListener("click", cancel);
  const current = await call("GET", "jobs/current");
  check();
  if (current.state === "running" || current.state === "done") {
    job = current.key;
    await follow();
  }
}

begin().catch((error) => fail(error.message));
