// Requests to the server, and their errors, which carry a message and a hint.

export class Refused extends Error {
  constructor({ error, message, hint }, status) {
    super(message ?? error);
    this.hint = hint ?? "";
    this.status = status;
  }
}

export class Gone extends Error {
  hint = "run onnxshot ui again, open the address that it prints, and give the files again.";

  constructor() {
    super("The server does not answer: it was stopped, or its machine cannot be reached.");
  }
}

export async function call(method, address, values) {
  const body = values === undefined ? undefined : JSON.stringify(values);
  const answer = await fetch(address, { method, body }).catch(() => { throw new Gone(); });
  const told = await answer.json();
  if (!answer.ok) throw new Refused(told, answer.status);
  return told;
}

// Upload a file. began: gets the request, which can be aborted. progress: gets the bytes that were sent.
export function send({ path, file }, address, began, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    began(request);
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onload = () =>
      request.status === 200 ? resolve() : reject(new Refused(JSON.parse(request.responseText), request.status));
    request.onerror = () => reject(new Refused({ message: `${path} could not be sent.`, hint: "it may have been moved or changed since it was chosen: choose it again." }));
    request.onabort = () => reject(new Error("cancelled"));
    request.open("PUT", address);
    request.send(file);
  });
}
