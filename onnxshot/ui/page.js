// All addresses are relative to the page's own, which contains the secret.
import { allBytes, chosen, dropped, isModel, kindsOf, sizeOf, withModel } from "./dropped.js";
import { listen } from "./help.js";
import { inputsOf } from "./onnx_inputs.js";
import { Gone, call, send } from "./requests.js";
import { showResult } from "./result.js";

const $ = (id) => document.getElementById(id);
const LOOK_EVERY_MS = 300;
const TRIES = 5; // of a server that does not answer, before that is told
const OPTIONS = ["target", "effort", "level", "length", "min_sqnr", "min_agreement", "max_size", "max_latency", "search", "accept"];
const GOALS = { min_sqnr: 1, min_agreement: 0.01, max_size: 1, max_latency: 1 }; // what a field is multiplied by
const TARGETS = { // short, as a narrow box must hold them: the explanation says more
  ort: "ONNX Runtime", "ort-avx2": "older CPUs", openvino: "Intel CPUs", tensorrt: "NVIDIA GPUs", portable: "any of them",
};
const EFFORTS = { fast: "fast", balanced: "balanced", best: "best, slow" };
const given = { model: [], calib: [], preset: [] }; // chosen or dropped files, each with its path below its folder
let choices = null;
let job = null; // the job that this page follows
let state = "none"; // none, uploading, running, failed or done
let sending = null; // the upload under way
let guessed = null; // what the server makes of the files; null while it is not known
let guesses = 0;
let preferred = false; // whether the preset was chosen by hand

// What is on the page.

function show(now) {
  state = now;
  const busy = now === "uploading" || now === "running";
  for (const one of $("asked").querySelectorAll("input, select, textarea")) one.disabled = busy;
  $("run").hidden = $("before").hidden = $("lacking").hidden = busy;
  $("working").hidden = !busy;
  $("cancel").disabled = false;
  $("failed").hidden = now !== "failed";
  $("result").hidden = now !== "done";
  if (!busy) {
    document.title = { done: "Done - onnxshot", failed: "Failed - onnxshot" }[now] ?? "onnxshot";
    check();
  }
}

function look(id) {
  $(id).scrollIntoView({ block: "nearest" });
  $(id).focus({ preventScroll: true });
}

function fail(error) {
  $("why").textContent = sentence(error.message);
  $("remedy").textContent = error.hint ? `What to do: ${error.hint}` : "";
  show("failed");
  look("failed");
}

function notice(text) {
  $("noticed").textContent = text;
  $("notice").hidden = false;
  $("notice").scrollIntoView({ block: "nearest" });
}

function step(what, done, total, seconds) {
  const told = !total || what.includes(", "); // the step itself says how far it is
  const text = told ? what : `${what}: ${done} of ${total}`;
  if ($("doing").textContent !== text) $("doing").textContent = text;
  if (total) bar(done, total);
  else $("bar").removeAttribute("value");
  $("elapsed").textContent = seconds ? `${Math.round(seconds)} s so far. The run goes on if this page is closed.` : "";
  document.title = `${total ? Math.floor((100 * done) / total) + " % " : ""}${what} - onnxshot`;
}

function bar(done, total) {
  $("bar").max = total;
  $("bar").value = done;
}

function told(id) {
  const own = given[id];
  const box = $(id).parentElement;
  const text = box.querySelector(".chosen");
  text.dataset.empty ??= text.textContent;
  box.classList.toggle("full", own.length > 0);
  const names = own.slice(0, 3).map(({ path }) => path).join(", ") + (own.length > 3 ? ", ..." : "");
  const count = `${own.length} ${own.length === 1 ? "file" : "files"}`;
  text.textContent = own.length ? `${names} (${count}, ${sizeOf(allBytes(own))})` : text.dataset.empty;
}

function line(text, kind) {
  return Object.assign(document.createElement("p"), { textContent: text, className: kind });
}

// What should be known before the run: [text, whether the run cannot begin].
function before() {
  const found = [];
  const { text, blocked } = choices.unproven[$("target").value];
  if (text) found.push([text, blocked]);
  const goals = ["min_sqnr", "max_size", "max_latency"].some((id) => $(id).value);
  if ($("target").value === "openvino" && goals && !Number($("level").value)) {
    found.push(["A goal is searched for in ONNX Runtime only: leave the goals empty, or choose ort or portable.", true]);
  }
  const misfit = guessed?.misfits[$("preset").value];
  if (misfit) found.push([`The preset ${$("preset").value} does not fit: ${misfit}.`, false]);
  for (const problem of guessed?.problems ?? []) found.push([sentence(problem), guessed.blocked]);
  const size = allBytes([...modelFiles(), ...given.calib]);
  if (size > choices.limit) {
    found.push([`The files are ${sizeOf(size)}, and this server takes ${sizeOf(choices.limit)}: give fewer samples, or start it with a larger --max-upload.`, true]);
  }
  if (state === "done") found.push(["The next run removes the result below: download it first.", false]);
  return found;
}

// Names of files keep their first letter.
const sentence = (text) => text.replace(/^[a-z]+(?=[ ,:;])/, (word) => word[0].toUpperCase() + word.slice(1)) + (/[.!?]$/.test(text) ? "" : ".");

function check() {
  for (const id of ["model", "calib"]) told(id);
  const zeros = Math.round(100 * choices.most_sparsity * $("level").value);
  $("level-told").textContent = zeros ? `int8, and ${zeros} % of the weights zero` : "int8";
  $("advice").hidden = !zeros;
  $("advice").textContent = "Pruning takes longer. Zeros make the file smaller once it is zipped, and faster on hardware that skips them.";
  $("checked").hidden = !zeros;
  $("effort").options[0].text = `as usual: ${$("level").value < 0.5 ? "balanced" : "best"}`;
  const own = $("preset").value === "file";
  $("own").hidden = !own;
  $("texts").hidden = !Object.keys(kindsOf(given.calib)).some((kind) => [".txt", ".md", ".jsonl", ".tsv"].includes(kind));
  const found = before();
  $("before").replaceChildren(...found.map(([text, blocks]) => line(text, blocks ? "blocks" : "warns")));
  const lacking = [
    !given.model.some(isModel) && "a model", !given.calib.length && "samples",
    own && !given.preset.length && !$("preset-text").value.trim() && "a preset file",
  ].filter(Boolean);
  $("lacking").textContent = lacking.length ? `Still needed: ${lacking.join(", ")}.` : "";
  $("run").disabled = lacking.length > 0 || guessed === null || found.some(([, blocks]) => blocks);
}

// What was dropped, and what that means.

function give(kind, files) {
  given[kind] = files;
  $("notice").hidden = true; // what it says, or what went wrong, was of other files
  if (state === "failed") show("none");
  if (kind === "preset") check();
  else {
    if (kind === "model") pick();
    guess();
  }
}

// Of several models, the one that was picked and what belongs to it.
const modelFiles = () => withModel(given.model, $("which").value);

function pick() {
  const models = given.model.filter(isModel).map(({ path }) => path).sort();
  $("which").replaceChildren(...models.map((path) => new Option(path, path)));
  $("which").value = models.find((path) => /(^|\/)model\.onnx$/.test(path)) ?? models[0] ?? "";
  $("several").hidden = models.length < 2;
}

async function guess() {
  const mine = ++guesses;
  guessed = null;
  check();
  const files = modelFiles();
  const models = files.filter(isModel);
  const asked = { beside: kindsOf(files), samples: kindsOf(given.calib) };
  const problems = [];
  try {
    if (models.length === 1) asked.graph = await inputsOf(models[0].file);
  } catch (error) {
    problems.push(`${models[0].path} is not an ONNX file: ${error.message}. Export or copy it again`);
  }
  let made;
  try {
    made = await call("POST", "guess", asked);
  } catch (error) {
    if (mine === guesses) fail(error);
    made = { preset: "none", why: "", misfits: {}, own: "", problems: [], blocked: false, inputs: [] };
  }
  if (mine !== guesses) return; // other files were dropped meanwhile
  guessed = { ...made, problems: [...problems, ...made.problems], blocked: made.blocked || problems.length > 0 };
  $("inputs").hidden = !made.inputs.length;
  $("inputs").textContent = `It takes ${made.inputs.slice(0, 4).join("; ")}${made.inputs.length > 4 ? `; and ${made.inputs.length - 4} more` : ""}`;
  $("guess").hidden = !made.why;
  $("guess").textContent = made.why;
  offer();
  if (made.own && !$("preset-text").dataset.edited) $("preset-text").value = made.own;
  check();
}

// The presets that fit come first. What was chosen by hand stays.
function offer() {
  const kept = preferred ? $("preset").value : guessed?.preset ?? "none";
  const named = (name) => new Option({ none: "none (arrays, texts, sounds)", file: "own file (YAML)" }[name] ?? name, name);
  const misfits = guessed?.misfits ?? {};
  const group = (label, names) => Object.assign(document.createElement("optgroup"), { label, hidden: !names.length });
  const [fit, not] = [choices.preset.filter((name) => !misfits[name]), choices.preset.filter((name) => misfits[name])];
  const groups = not.length ? [group("Fits", fit), group("Does not fit", not)] : [$("preset")];
  if (not.length) $("preset").replaceChildren(...groups);
  else $("preset").replaceChildren();
  for (const [i, names] of [fit, not].entries()) if (names.length) groups[i].append(...names.map(named));
  $("preset").value = kept;
  about();
}

function about() {
  $("preset-about").textContent = choices.about[$("preset").value] ?? "";
}

function takes(kind) {
  const [one, folder] = [$(kind), $(kind + "-folder")];
  one.addEventListener("input", () => { folder.value = ""; give(kind, chosen(one)); });
  folder.addEventListener("input", () => { one.value = ""; give(kind, chosen(folder)); });
}

// A drop beside the boxes would make the browser leave the page: what was dropped is sorted instead.
function drops() {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault(); // the default action would treat a folder as a file, or open it
    if (state === "uploading" || state === "running") return;
    const box = event.target.closest(".drop")?.querySelector("input");
    try {
      const files = await dropped(event);
      const kind = box?.id ?? (files.some(isModel) ? "model" : "calib");
      if (!files.length) return;
      $(kind).value = $(kind + "-folder").value = "";
      give(kind, files);
    } catch (error) {
      fail({ message: `What was dropped cannot be read: ${error.message}`, hint: "choose it with the box instead" });
    }
  });
}

// A run.

async function upload(key) {
  const own = given.preset.length || $("preset").value !== "file"
    ? given.preset : [{ path: "preset.yaml", file: new Blob([$("preset-text").value]) }];
  const kinds = { model: modelFiles(), calib: given.calib, preset: $("preset").value === "file" ? own : [] };
  const all = Object.entries(kinds).flatMap(([kind, files]) => files.map((one) => [kind, one]));
  const total = allBytes(all.map(([, one]) => one));
  let sent = 0;
  for (const [i, [kind, one]] of all.entries()) {
    step(`sending file ${i + 1} of ${all.length}, ${sizeOf(total)} in all; stay on this page`);
    const address = one.path.split("/").map(encodeURIComponent).join("/");
    await send(one, `jobs/${key}/files/${kind}/${address}`, (request) => { sending = request; }, (loaded) => bar(sent + loaded, total || 1));
    sent += one.file.size;
  }
}

function asked() {
  const values = { target: $("target").value, preset: $("preset").value, level: Number($("level").value) };
  if ($("effort").value) values.effort = $("effort").value;
  if (!$("texts").hidden && $("length").value) values.length = Number($("length").value);
  for (const [id, factor] of Object.entries(GOALS)) if ($(id).value) values[id] = Number($(id).value) * factor;
  if ($("search").value) values.search_seconds = Number($("search").value);
  if ($("accept").checked) values.accept = true;
  return values;
}

async function compress() {
  $("notice").hidden = true;
  show("uploading");
  step("sending files");
  look("working");
  look("doing");
  let mine = (job = null);
  try {
    if ((await call("GET", "jobs/current")).state === "running") return await join();
    mine = job = (await call("POST", "jobs")).key;
    await upload(mine);
    await call("POST", `jobs/${mine}/run`, asked());
    await follow();
  } catch (error) {
    if (job !== mine) return; // it was cancelled
    await call("GET", "jobs/current").then(() => fail(error), fail); // a server that is gone is the reason
    if (mine !== null && !(error instanceof Gone)) await call("DELETE", `jobs/${mine}`).catch(() => {}); // what was sent
  }
}

async function follow() {
  let silent = 0;
  for (const mine = job; job === mine; await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS))) {
    let told;
    try {
      told = await call("GET", "jobs/current");
      silent = 0;
    } catch (error) {
      if (!(error instanceof Gone) || ++silent >= TRIES) throw error;
      continue;
    }
    if (job !== mine) return;
    if (told.key !== mine) return over();
    if (told.state === "failed") return fail({ message: told.error, hint: told.hint });
    if (told.state === "done") return finish(told);
    if (state !== "running") {
      show("running");
      look("doing");
    }
    const [what, done, total] = told.step.length ? told.step : ["reading the model"];
    step(what, done, total, told.seconds);
  }
}

// Another tab has cancelled the run, or begun another since.
function over() {
  job = null;
  show("none");
  notice("This run is over: in another tab it was cancelled, or another was begun.");
}

async function finish(told) {
  const place = `jobs/${told.key}/outputs/`;
  showResult(told, await call("GET", place + "report.json"), place);
  show("done");
  look("result");
  look("verdict");
}

async function cancel() {
  const [mine, was] = [job, state];
  job = null;
  $("cancel").disabled = true;
  step("cancelling");
  sending?.abort();
  try {
    if (mine !== null) await call("DELETE", `jobs/${mine}`);
  } catch (error) {
    if (error.status !== 404) return fail(error);
  }
  show("none");
  notice(`Cancelled. ${was === "uploading" ? "The upload" : "The run"} was ended, and what was sent or made was removed: nothing is kept.${given.model.length ? " What you chose is still above." : ""}`);
  $("run").focus({ preventScroll: true });
}

// Follow what another tab, or this page before it was loaded again, has begun.
async function join(wanted = ["running", "done", "failed"]) {
  const current = await call("GET", "jobs/current");
  if (!wanted.includes(current.state) || current.key === job) return;
  const model = current.asked.model;
  if (!model) return; // its files never came
  job = current.key;
  notice(`This is the run of ${model} for ${current.asked.target}, begun in another tab or before this page was loaded.`);
  await follow();
}

function leaving() {
  window.addEventListener("beforeunload", (event) => {
    if (state === "uploading") event.preventDefault(); // the browser asks
  });
  window.addEventListener("pagehide", () => {
    if (state !== "uploading") return;
    if (job !== null) fetch(`jobs/${job}`, { method: "DELETE", keepalive: true });
    sessionStorage.setItem("left", "while sending");
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && state !== "uploading" && state !== "running") join(["running"]).catch(() => {}); // of another tab
  });
}

function remember() {
  const values = Object.fromEntries(OPTIONS.map((id) => [id, $(id).type === "checkbox" ? $(id).checked : $(id).value]));
  sessionStorage.setItem("options", JSON.stringify(values));
}

function recall() {
  const values = JSON.parse(sessionStorage.getItem("options") ?? "{}");
  for (const id of OPTIONS.filter((id) => id in values)) $(id)[$(id).type === "checkbox" ? "checked" : "value"] = values[id];
  $("goals").open = [...$("goals").querySelectorAll("input")].some((one) => (one.type === "checkbox" ? one.checked : one.value));
}

async function begin() {
  listen();
  choices = await call("GET", "choices");
  $("target").append(...choices.target.map((name) => new Option(name in TARGETS ? `${name}: ${TARGETS[name]}` : name, name)));
  $("effort").append(new Option("", ""), ...choices.effort.map((name) => new Option(EFFORTS[name] ?? name, name)));
  offer();
  recall();
  takes("model");
  takes("calib");
  drops();
  $("which").addEventListener("input", guess);
  $("preset").addEventListener("input", () => { preferred = true; about(); });
  $("preset-text").addEventListener("input", () => {
    $("preset-text").dataset.edited = "yes";
    given.preset = []; // what is read last is what counts
    $("preset-file").value = "";
  });
  $("preset-file").addEventListener("input", async () => {
    give("preset", chosen($("preset-file")));
    const [one] = given.preset;
    if (!one) return;
    $("preset-text").dataset.edited = "yes";
    $("preset-text").value = await one.file.text();
  });
  $("ask").addEventListener("input", () => { check(); remember(); });
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); compress(); });
  $("cancel").addEventListener("click", cancel);
  leaving();
  check();
  if (sessionStorage.getItem("left")) {
    sessionStorage.removeItem("left");
    notice("The page was left while files were sent, so no run has begun, and what was sent is removed. Give the files again.");
  }
  await join();
}

begin().catch(fail);
