// Reads the inputs and outputs of an ONNX file, and leaves its weights where they are: a GraphProto of nothing else.
// Wire format: protobuf.dev/programming-guides/encoding. Numbers of fields: onnx.proto.
const GRAPH = 7; // of ModelProto
const [INITIALIZER, INPUT, OUTPUT] = [5, 11, 12]; // of GraphProto
const [TENSOR_NAME, VALUE_NAME] = [8, 1]; // of TensorProto and ValueInfoProto
const BLOCK = 1 << 16;
const MOST_FIELDS = 1e6;
const MOST_BYTES = 2e6; // of what is sent to the server

class Reader {
  constructor(file) {
    this.file = file;
    this.start = 0;
    this.block = new Uint8Array();
    this.fields = 0;
  }

  async bytes(from, to) {
    if (to > this.file.size) throw new Error("it ends too early");
    if (from < this.start || to > this.start + this.block.length) {
      const until = Math.max(to, Math.min(from + BLOCK, this.file.size));
      this.block = new Uint8Array(await this.file.slice(from, until).arrayBuffer());
      this.start = from;
    }
    return this.block.subarray(from - this.start, to - this.start);
  }

  // A number of at most 10 bytes, and where the next begins. Above 2^53 it is inexact, and refused as a size.
  async varint(at) {
    const bytes = await this.bytes(at, Math.min(at + 10, this.file.size));
    let value = 0;
    for (const [i, byte] of bytes.entries()) {
      value += (byte & 127) * 2 ** (7 * i);
      if (byte < 128) return [value, at + i + 1];
    }
    throw new Error("it is damaged");
  }

  async text(from, to) {
    return new TextDecoder().decode(await this.bytes(from, to));
  }

  // Each field of a message: its number, where its value begins and ends, and where the field itself begins.
  async *message(from, to) {
    for (let at = from, end; at < to; at = end) {
      if (++this.fields > MOST_FIELDS) throw new Error("it has too many parts");
      let [tag, value] = await this.varint(at);
      const wire = tag % 8;
      let size = { 1: 8, 5: 4 }[wire];
      if (wire === 0) size = (await this.varint(value))[1] - value;
      if (wire === 2) [size, value] = await this.varint(value);
      end = value + size;
      if (!(end <= to)) throw new Error("it is damaged"); // NaN where the kind of field is unknown
      yield { field: Math.floor(tag / 8), begin: at, from: value, to: end };
    }
  }

  async named(part, field) {
    for await (const inner of this.message(part.from, part.to)) {
      if (inner.field === field) return this.text(inner.from, inner.to);
    }
    return "";
  }
}

// The bytes in base64. Throws an Error for what is no ONNX file.
export async function inputsOf(file) {
  const reader = new Reader(file);
  const [stored, inputs, parts] = [new Set(), [], []];
  let found = false;
  for await (const { field, from, to } of reader.message(0, file.size)) {
    if (field !== GRAPH) continue;
    found = true;
    for await (const part of reader.message(from, to)) {
      if (part.field === INITIALIZER) stored.add(await reader.named(part, TENSOR_NAME));
      if (part.field === INPUT) inputs.push([await reader.named(part, VALUE_NAME), part]);
      if (part.field === OUTPUT) parts.push(part);
    }
  }
  if (!found) throw new Error("it holds no graph");
  parts.push(...inputs.filter(([name]) => !stored.has(name)).map(([, part]) => part)); // others are weights
  if (parts.reduce((sum, { begin, to }) => sum + to - begin, 0) > MOST_BYTES) throw new Error("its inputs are too large");
  let binary = "";
  for (const { begin, to } of parts) {
    for (const byte of await reader.bytes(begin, to)) binary += String.fromCharCode(byte);
  }
  return btoa(binary);
}
