"use strict";

// Tables sort by the numbers that their cells carry. What is missing comes last in either direction.
function compare(a, b, numeric, sign) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
}

function sort(table, header) {
  const headers = [...header.parentElement.children];
  const column = headers.indexOf(header);
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of headers) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows];
  const numeric = rows.every((row) => key(row) === undefined || !Number.isNaN(Number(key(row))));
  rows.sort((a, b) => compare(key(a), key(b), numeric, ascending ? 1 : -1));
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    header.firstElementChild.addEventListener("click", () => sort(table, header));
  }
}

// The buttons of the legend hide a method in all figures.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    const parts = document.querySelectorAll(`.figures [data-method="${button.dataset.method}"]`);
    for (const part of parts) part.classList.toggle("method-off", !shown);
  });
}

// A figure is saved as it is drawn, black on nothing, for a paper.
for (const button of document.querySelectorAll("button.save")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure").querySelector("svg").cloneNode(true);
    for (const part of figure.querySelectorAll(".method-off")) part.remove();
    figure.setAttribute("color", "black");
    const text = new XMLSerializer().serializeToString(figure);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${button.dataset.name}.svg`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
