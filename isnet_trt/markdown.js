// A click on a column's head sorts the table by that column: numbers by value, largest first, other cells by text.
"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.querySelectorAll("th")];
  if (!body || body.rows.length < 2) continue;
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const text = row => row.cells[column].textContent.trim();
    const value = row => parseFloat(text(row).replace(/,/g, "").replace("−", "-").replace(/^[^\d.+-]+/, ""));
    const rows = [...body.rows];
    const numeric = rows.filter(row => !Number.isNaN(value(row))).length * 2 > rows.length;
    const up = head.getAttribute("aria-sort") === (numeric ? "descending" : null);
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const low = -Infinity;
    rows.sort((a, b) => numeric
      ? (Number.isNaN(value(b)) ? low : value(b)) - (Number.isNaN(value(a)) ? low : value(a)) || 0
      : text(b).localeCompare(text(a)));
    if (up) rows.reverse();
    body.append(...rows);
  }));
}
