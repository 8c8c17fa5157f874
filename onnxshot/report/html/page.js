"use strict";
// The page is complete without this. It adds filters, sorting, tooltips for touch and keys, jumps between errors and
// nodes, and a choice of nodes to exclude.
const all = (where, what) => [...where.querySelectorAll(what)];
const make = (tag, values, ...inside) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
};

for (const box of all(document, ".filterable")) {
  const rows = all(box, "li");
  if (rows.length < 13) continue;
  const input = make("input", { type: "search", placeholder: "filter by name or op", "aria-label": "filter by name or op" });
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    for (const part of all(box, "details")) part.open = wanted !== "";
  });
  box.querySelector("ol").before(input);
}

for (const table of all(document, "table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent) return;
    const button = make("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent;
      const order = new Intl.Collator("en", { numeric: true });
      const compare = (a, b) => {
        const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
        return isNaN(x) || isNaN(y) ? order.compare(text(a), text(b)) : x - y;
      };
      body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b)));
    });
  });
}

// ---- tooltips
const tip = make("div", { id: "tip", role: "tooltip", hidden: "" });
document.querySelector("main").append(tip); // its place on the page is absolute
let shown = null;
function hide() {
  tip.hidden = true;
  shown?.classList.remove("at");
  shown = null;
}
function say(item, text, hint) {
  hide();
  shown = item;
  item.classList.add("at");
  tip.replaceChildren(text, ...(hint ? [make("small", {}, hint)] : []));
  tip.hidden = false;
  const [spot, wide] = [item.getBoundingClientRect(), document.documentElement.clientWidth];
  const left = Math.min(Math.max(spot.left + spot.width / 2 - tip.offsetWidth / 2, 8), wide - tip.offsetWidth - 8);
  const below = spot.bottom + 8 + tip.offsetHeight <= innerHeight;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(below ? spot.bottom + 8 : spot.top - 8 - tip.offsetHeight) + scrollY}px`;
}
tip.addEventListener("pointerleave", hide);
addEventListener("keydown", (event) => event.key === "Escape" && hide());

// One stop of the Tab key: arrow keys move between the items of a box, and each has a tooltip.
let count = 0;
function tour(box, items, { name, facts, find, enter, space, hint = () => "" }) {
  const place = new Map(items.map((item, i) => [item, i]));
  let [at, touched] = [0, false];
  for (const [key, value] of [["role", "listbox"], ["aria-label", name], ["tabindex", 0], ["aria-multiselectable", !!space]])
    box.setAttribute(key, value);
  box.removeAttribute("aria-hidden");
  items.forEach((item, i) => {
    item.id ||= `i${count++}`;
    for (const [key, value] of [["role", "option"], ["tabindex", -1], ["aria-label", facts(i)], ["aria-selected", false]])
      item.setAttribute(key, value);
  });
  const show = (i) => {
    at = Math.min(Math.max(i, 0), items.length - 1);
    box.setAttribute("aria-activedescendant", items[at].id);
    say(items[at], facts(at), hint(at));
  };
  const under = (event) => (find ? find(event) : (place.get(event.target.closest("[role=option]")) ?? -1));
  box.addEventListener("focus", () => show(at));
  box.addEventListener("blur", hide);
  box.addEventListener("pointermove", (event) => {
    const i = under(event);
    if (event.pointerType !== "touch" && i >= 0 && shown !== items[i]) show(i);
  });
  box.addEventListener("pointerleave", () =>
    setTimeout(() => !tip.matches(":hover") && document.activeElement !== box && place.has(shown) && hide(), 200));
  box.addEventListener("pointerdown", (event) => {
    const i = under(event);
    touched = event.pointerType === "touch" && shown !== items[i];
    if (i >= 0) at = i;
  });
  box.addEventListener("click", (event) => {
    const i = under(event);
    if (i < 0) return;
    event.preventDefault();
    box.focus({ preventScroll: true });
    show(i);
    if (!touched) enter?.(i); // the first touch shows, the second goes
  });
  const row = (step) => {
    const groups = all(box, ".group").map((group) => place.get(group.querySelector("[role=option]")));
    const now = groups.findLastIndex((first) => first <= at);
    return groups.length ? (groups[now + step] ?? at) : at + step;
  };
  const keys = {
    ArrowRight: () => show(at + 1), ArrowLeft: () => show(at - 1), Home: () => show(0), End: () => show(items.length - 1),
    ArrowDown: () => show(row(1)), ArrowUp: () => show(row(-1)), Enter: () => enter?.(at),
  };
  box.addEventListener("keydown", (event) => {
    const act = event.key === " " && space ? () => space(at, event.shiftKey) : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
    if (shown === items[at]) items[at].scrollIntoView({ block: "nearest" });
  });
  return (i) => {
    at = i;
    box.focus({ preventScroll: true });
    items[i].scrollIntoView({ block: "center" });
    show(i);
  };
}

// ---- jumps: an address #n5 is a node of the map, #e5 the row of an error
const arrivals = new Map();
function arrive(id = decodeURIComponent(location.hash.slice(1))) {
  const goal = document.getElementById(id);
  if (!goal) return;
  goal.hidden = false;
  for (let part = goal.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  if (arrivals.has(id)) return arrivals.get(id)();
  goal.scrollIntoView({ block: "center" });
  goal.querySelector("a")?.focus({ preventScroll: true });
}
function go(id) {
  const there = location.hash === `#${id}`;
  location.hash = id;
  if (there || location.hash !== `#${id}`) arrive(id); // some frames keep their address
}
addEventListener("hashchange", () => arrive());
document.addEventListener("click", (event) => {
  const link = event.target.closest("li a, td a");
  if (!link) return;
  event.preventDefault();
  go(link.hash.slice(1));
});

// ---- nodes to exclude
const chosen = new Set();
const redraws = [];
const field = make("textarea", { readonly: "", rows: 2, "aria-label": "options for the next run" });
const copy = make("button", { type: "button" }, "Copy --exclude");
const clear = make("button", { type: "button" }, "Clear");
const told = make("span", { role: "status" });
const bar = make("div", { id: "chosen", role: "region", "aria-label": "nodes to exclude", hidden: "" }, field, copy, clear, told);
document.querySelector("main").append(bar);
function redraw(text) {
  for (const each of redraws) each();
  // A control character becomes ?, which matches any one character; ' is quoted as shells need it.
  const quoted = [...chosen].map((x) => `--exclude '${x.replace(/[\0-\x1f\x7f]/g, "?").replaceAll("'", "'\\''")}'`);
  field.value = quoted.join(" ");
  told.textContent = text ?? `${chosen.size} chosen`;
  bar.hidden = !chosen.size;
  document.body.classList.toggle("choosing", !bar.hidden);
}
const flip = (x, on) => (on ? chosen.add(x) : chosen.delete(x));
copy.addEventListener("click", async () => {
  field.select();
  let done = document.execCommand("copy"); // needs no permission, and works in frames
  if (!done) done = await navigator.clipboard?.writeText(field.value).then(() => true, () => false);
  told.textContent = done ? `Copied ${chosen.size}` : "Selected: press Ctrl+C";
});
clear.addEventListener("click", () => { chosen.clear(); redraw(""); });
function checkbox(row, name, isOn, change) {
  const box = make("input", { type: "checkbox", "aria-label": `exclude: ${name}` });
  box.addEventListener("change", () => { change(box.checked); redraw(); });
  redraws.push(() => (box.checked = isOn()));
  row.querySelector(".what").prepend(make("label", {}, box, "exclude"));
}
for (const row of all(document, "li[data-x]"))
  checkbox(row, row.querySelector(".name").textContent, () => chosen.has(row.dataset.x), (on) => flip(row.dataset.x, on));

// ---- the map, and charts along the network
const escape = (name) => name.replace(/[*?[]/g, "[$&]");
const units = { work: " of the work", zeros: " zeros", bits: " bits" };
const tours = new Map();
for (const map of all(document, ".map")) {
  const [cells, rows, blocks] = [all(map, ".cells a"), all(map, "tbody tr"), all(map, ".group")];
  const heads = all(map, "th").map((head) => head.textContent);
  const nodes = rows.map((row, i) => {
    const values = [...row.cells].map((cell) => cell.textContent);
    const rest = values.slice(4).map((value, k) => value && !value.startsWith("0.0 %") && value + (units[heads[k + 4]] ?? ""));
    cells[i].id = row.id;
    row.removeAttribute("id");
    return {
      id: cells[i].id, x: row.dataset.x ?? escape(values[1]), facts: [`${values[1]} (${values[2]}): ${values[3]}`, ...rest.filter(Boolean)].join(", "),
      error: row.querySelector("a")?.hash.slice(1), fixed: cells[i].matches(".float"), block: null,
    };
  });
  const index = new Map(cells.map((cell, i) => [cell, i]));
  const groups = blocks.map((group) => {
    const label = group.querySelector(".scope");
    const block = { x: label.dataset.x, nodes: all(group, "a").map((cell) => nodes[index.get(cell)]).filter((node) => !node.fixed) };
    for (const node of block.nodes) node.block = block;
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", label.textContent);
    if (block.nodes.length) {
      label.classList.add("pick");
      label.addEventListener("click", () => { setBlock(block); redraw(); });
    }
    return block;
  });
  const isOut = (node) => chosen.has(node.x) || (node.block?.x && chosen.has(node.block.x));
  const setNode = (node, on) => {
    if (node.fixed) return;
    if (!on && node.block.x && chosen.delete(node.block.x)) for (const other of node.block.nodes) chosen.add(other.x);
    flip(node.x, on);
  };
  const setBlock = (block) => {
    const on = !block.nodes.every(isOut);
    for (const node of block.nodes) flip(node.x, on && !block.x);
    if (block.x && block.nodes.length) flip(block.x, on);
  };
  redraws.push(() => nodes.forEach((node, i) => {
    cells[i].classList.toggle("out", !!isOut(node));
    cells[i].setAttribute("aria-selected", !!isOut(node));
  }));
  const box = make("div", {});
  blocks[0].before(box);
  box.append(...blocks);
  const show = tour(box, cells, {
    name: "nodes, by blocks", facts: (i) => nodes[i].facts,
    hint: (i) => [nodes[i].error && "Enter, or tap again: its error", !nodes[i].fixed && "Space: exclude"].filter(Boolean).join(" · "),
    enter: (i) => nodes[i].error && go(nodes[i].error),
    space: (i, block) => { if (block) { if (nodes[i].block) setBlock(nodes[i].block); } else setNode(nodes[i], !isOut(nodes[i])); redraw(); },
  });
  nodes.forEach((node, i) => {
    arrivals.set(node.id, () => show(i));
    tours.set(node.id, node);
    const row = node.error && document.getElementById(node.error);
    if (row && !node.fixed) checkbox(row, row.querySelector(".name").textContent, () => isOut(node), (on) => setNode(node, on));
  });
  const keys = [
    "Arrow keys move from node to node.", nodes.some((node) => node.error) && "Enter goes to the error of one.",
    !nodes.every((node) => node.fixed) && "Space chooses it to be excluded; Shift+Space, or a click on the name, its block.",
  ];
  box.before(make("p", { class: "muted keys" }, keys.filter(Boolean).join(" ")));
}
for (const chart of all(document, "svg.columns, svg.scatter")) {
  const items = all(chart, "rect, circle");
  const own = items.map((item) => item.getAttribute("aria-label") ?? item.querySelector("title")?.textContent);
  for (const title of all(chart, "title")) title.remove();
  const node = (i) => tours.get(items[i].dataset.n);
  const caption = chart.closest("figure")?.querySelector("figcaption").textContent ?? chart.getAttribute("aria-label");
  tour(chart, items, {
    name: caption, facts: (i) => own[i] ?? node(i)?.facts ?? "",
    hint: (i) => (node(i) ? "Enter, or tap again: in the map" : ""),
    enter: (i) => node(i) && go(node(i).id),
    find: chart.matches(".columns") && ((event) => {
      const spot = chart.getBoundingClientRect();
      return Math.min(Math.floor(((event.clientX - spot.left) / spot.width) * items.length), items.length - 1);
    }),
  });
}
if (location.hash) arrive();
