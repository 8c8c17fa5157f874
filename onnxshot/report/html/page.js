"use strict";
// The page is complete without this: it adds filters, sorts tables, and opens everything for print.
for (const box of document.querySelectorAll(".filterable")) {
  const rows = [...box.querySelectorAll("li")];
  if (rows.length < 13) continue;
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "filter by name or op";
  input.setAttribute("aria-label", "filter by name or op");
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    for (const part of box.querySelectorAll("details")) part.open = wanted !== "";
  });
  box.querySelector("ol").before(input);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
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
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
