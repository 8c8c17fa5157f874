// Time ONNX files in onnxruntime-web, in turns: `node web.mjs JOB.json`, as web.py calls it.
//
// JOB: {package: folder of onnxruntime-web, threads, seconds, models: [paths], feeds: [[{name, type, dims, file}]], out}.
// The first model is the float one. In each round every model runs one sample, another one first. Writes the outputs of
// every model for every sample to `out`, and prints {version, models: [{error} or {ms, ratio}]}: medians of the rounds.
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const ort = await import(pathToFileURL(join(job.package, 'dist', 'ort.wasm.bundle.min.mjs')).href);
ort.env.wasm.numThreads = job.threads;
ort.env.logLevel = 'error';

const arrays = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, int64: BigInt64Array, bool: Uint8Array,
};

function tensor({ type, dims, file }) {
  const bytes = readFileSync(file);
  const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return new ort.Tensor(type, new arrays[type](copy), dims);
}

const median = (values) => {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

const feeds = job.feeds.map((feed) => Object.fromEntries(feed.map((input) => [input.name, tensor(input)])));
const sessions = [];
for (const [i, model] of job.models.entries()) {
  try {
    const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), { executionProviders: ['wasm'] });
    for (const [j, feed] of feeds.entries()) {
      const made = await session.run(feed);
      for (const [k, name] of session.outputNames.entries())
        if (made[name].type === 'float32') writeFileSync(join(job.out, `${i}-${j}-${k}.f32`), made[name].data);
    }
    sessions.push({ session, times: [] });
  } catch (error) {
    sessions.push({ error: String(error.message ?? error).split('\n')[0] });
  }
}

const able = sessions.filter((one) => one.session);
const end = performance.now() + 1000 * job.seconds * able.length;
for (let round = 0; round < 5 || performance.now() < end; round++)
  for (let i = 0; i < able.length; i++) {
    const one = able[(i + round) % able.length];
    const start = performance.now();
    await one.session.run(feeds[round % feeds.length]);
    one.times.push(performance.now() - start);
  }

const float = sessions[0].times;
const models = sessions.map(({ error, times }) =>
  error ? { error } : { ms: median(times), ratio: float ? median(times.map((ms, i) => float[i] / ms)) : null });
console.log(JSON.stringify({ version: ort.env.versions.web ?? ort.env.versions.common, models }));
process.exit(0); // worker threads would keep the process
