// The figures, the verdict and the files of a run that is done.
import { sizeOf } from "./dropped.js";
import { help } from "./help.js";

const $ = (id) => document.getElementById(id);
const ABOUT = {
  size: "Megabytes of the .onnx file and its data files, before and after.",
  bits: "Size of the weights and their scales by the number of weights: 32 in a float file, a little more than 8 in int8.",
  sqnr: "Signal to quantization noise ratio, on held-out samples: how much larger the outputs are than their error. 20 dB: the error is a tenth of the outputs; 40 dB: a hundredth. Below 15 dB a result counts as not good enough.",
  agreement: "Agreement: the share of held-out samples to which the result gives the same answer as the float model. The answers themselves may be right or wrong.",
  share: "The share of the work (multiply-accumulates) that really runs in int8. What stays in float, and why, is in the report.",
  perplexity: "How surprised a language model is by held-out text; lower is better. The rise against the float model counts.",
  divergence: "How far the result's probabilities of the next token are from those of the float model. 0 is the same.",
  speed: "How many times as fast the result is on this machine, and the milliseconds of a run, before and after: medians of runs in turns.",
};
const TITLES = { ready: "Done: download the result", caution: "Done, but look closer" };

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

const percent = (share) => (100 * share).toFixed(1) + " %";
const digits = (ms) => ms.toFixed(ms < 1 ? 3 : ms < 10 ? 2 : ms < 100 ? 1 : 0); // as many as on the terminal
const times = ({ speedup, float_ms: before, ms: after }) =>
  `${speedup.toFixed(2)}x (${digits(before)} → ${digits(after)} ms)`;

// [key of ABOUT, name, value or null]
function figuresOf(report) {
  const { tokens, decoding } = report;
  const [artifact] = report.outputs; // of another runtime than ONNX Runtime, it has figures of its own
  const { latency, int8_macs_share: share } = artifact.format === "onnx" ? report : artifact;
  const written = report.outputs.reduce((sum, artifact) => sum + artifact.bytes, 0);
  const bits = report.bits_per_weight ?? null;
  return [
    ["size", "size", `${sizeOf(report.input_bytes)} → ${sizeOf(written)}`],
    ["bits", "bits a weight", bits === null ? null : bits.toFixed(2)],
    ["sqnr", "SQNR of the outputs", report.sqnr_db === null ? null : report.sqnr_db.toFixed(1) + " dB"],
    ["agreement", "same answer as the float model", report.agreement === null ? null : percent(report.agreement)],
    ["share", "work in int8", share === null ? null : percent(share)],
    ["perplexity", "perplexity", tokens.perplexity === undefined ? null
      : `${tokens.float_perplexity.toPrecision(4)} → ${tokens.perplexity.toPrecision(4)} (${percent(tokens.perplexity_rise)})`],
    ["divergence", "divergence", tokens.kl_nats === undefined ? null : `${tokens.kl_nats.toPrecision(3)} nats`],
    ["speed", "a token", decoding.token ? times(decoding.token) : null],
    ["speed", `a prompt of ${decoding.prompt_tokens}`, decoding.prompt ? times(decoding.prompt) : null],
    ["speed", "speed", latency.speedup === undefined ? null : times(latency)],
  ].filter(([, , value]) => value !== null);
}

function linkTo(address, name, size) {
  const link = element("a", name);
  link.href = address;
  link.download = name;
  return element("li", null, link, size === undefined ? "" : ` ${sizeOf(size)}`);
}

// job: what the server tells of it. report: its report.json.
export function showResult(job, report, place) {
  const loaded = report.outputs.map(({ path }) => path.split("/").pop()); // the others are read by these
  const files = [...job.outputs].sort((a, b) => loaded.includes(b.name) - loaded.includes(a.name));
  const stem = files[0].name.replace(/\.[^.]*$/, "");
  $("figures").replaceChildren(...figuresOf(report).map(([key, name, value], i) => {
    const [button, about] = help(`figure-${i}`, name, ABOUT[key]);
    return element("div", null, element("dt", null, element("span", name), button), element("dd", value), element("dd", null, about));
  }));
  $("outputs").replaceChildren(
    ...files.map(({ name, bytes }) => linkTo(place + encodeURIComponent(name), name, bytes)),
    ...["html", "json"].map((kind) => linkTo(`${place}report.${kind}`, `${stem}.report.${kind}`)),
  );
  const { level, next } = report.verdict;
  const reasons = report.verdict.reasons.filter((reason) => !job.missed.length || !reason.startsWith("the goal was missed"));
  const missed = job.missed.length > 0;
  $("verdict").textContent = missed && level === "ready" ? "Done, but it misses a goal" : TITLES[level] ?? "Done, but not good enough";
  $("verdict").className = missed && level === "ready" ? "caution" : level;
  const said = [...job.missed.map((text) => `Missed: ${text}.`), ...(level === "ready" ? [] : [`${reasons.map((text) => `${text}; `).join("").replace(/; $/, ". ").replace(/^[a-z]/, (first) => first.toUpperCase())}Next: ${next}`])];
  $("against").replaceChildren(...said.map((text) => element("span", text)));
  $("report").href = $("report-frame").src = place + "report.html";
}
