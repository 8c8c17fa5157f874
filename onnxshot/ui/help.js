// Buttons that show and hide an explanation: by a click, a touch, Enter or Space; Escape hides it again.
const open = (button, shown) => {
  button.setAttribute("aria-expanded", String(shown));
  document.getElementById(button.getAttribute("aria-controls")).hidden = !shown;
};
const isOpen = (button) => button.getAttribute("aria-expanded") === "true";

export function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".help");
    if (button) open(button, !isOpen(button));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const button of document.querySelectorAll(".help[aria-expanded=true]")) open(button, false);
  });
}

// A button and its explanation, for what is made by a script.
export function help(id, what, about) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "help", textContent: "?" });
  const names = { "aria-expanded": "false", "aria-controls": `about-${id}`, "aria-label": `What is this: ${what}` };
  for (const [name, value] of Object.entries(names)) button.setAttribute(name, value);
  const text = Object.assign(document.createElement("p"), { id: `about-${id}`, className: "about", hidden: true, textContent: about });
  return [button, text];
}
