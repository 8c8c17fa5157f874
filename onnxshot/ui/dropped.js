// Files that were chosen or dropped, each with its path below its folder.

// Hidden files that an operating system adds to folders are skipped.
const wanted = ({ path }) => !path.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");

export const chosen = (input) =>
  [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })).filter(wanted);

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

// The entries must be taken before anything is awaited: afterwards the event has lost them.
export async function dropped(event) {
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  return (await Promise.all(entries.map(below))).flat().filter(wanted);
}

const TOLD_APART = ["tokenizer.json", "preprocessor_config.json"];

// How many files there are of each suffix, as the server takes them.
export function kindsOf(files) {
  const kinds = {};
  for (const { path } of files) {
    const name = path.split("/").pop();
    const kind = TOLD_APART.includes(name) ? name : /\.[^.]*$/.exec(name.toLowerCase())?.[0] ?? "";
    kinds[kind] = (kinds[kind] ?? 0) + 1;
  }
  return kinds;
}

export const isModel = ({ path }) => /\.onnx$/i.test(path);

// The files without the other models and their data files, which are named after them.
export function withModel(files, path) {
  const others = files.filter((one) => isModel(one) && one.path !== path).map((one) => one.path);
  return files.filter((one) => one.path === path || !others.some((other) => one.path.startsWith(other)));
}

export const sizeOf = (bytes) => (bytes < 1e5 ? (bytes / 1e3).toFixed(1) + " kB" : (bytes / 1e6).toFixed(2) + " MB");
export const allBytes = (files) => files.reduce((sum, { file }) => sum + file.size, 0);
