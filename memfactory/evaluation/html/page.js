"use strict";
// Comfort only: without it everything is there, in the order of the report.
(() => {
  const root = document.documentElement;

  // Which page is open, for the title and for whoever tests this.
  const opened = () => {
    const sample = document.querySelector(".sample:target");
    root.dataset.page = sample && getComputedStyle(sample).display !== "none" ? sample.id : "front";
    if (sample) scrollTo(0, 0);
  };
  addEventListener("hashchange", opened);
  addEventListener("load", opened);  // while the document is read no address is open yet

  // The theme: the system's until it is chosen.
  const button = document.getElementById("theme");
  button.hidden = false;
  const dark = () => (root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "light" : "dark"; };
  button.addEventListener("click", () => { root.style.colorScheme = dark() ? "light" : "dark"; name(); });
  name();

  // A click on a heading sorts the lines under each group by that column.
  const key = (row, at) => {
    const text = row.cells[at].textContent.trim().replace("−", "-").replace(/,/g, "");
    const number = parseFloat(text);
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  for (const table of document.querySelectorAll("table.samples")) {
    [...table.tHead.rows[0].cells].forEach((cell, at) => {
      let up = false;
      cell.style.cursor = "pointer";
      cell.addEventListener("click", () => {
        up = !up;
        for (const body of table.tBodies) {
          const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
          rows.sort((a, b) => {
            const [x, y] = [key(a, at), key(b, at)];
            return (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1) * (up ? 1 : -1);
          });
          body.append(...rows);
        }
      });
    });

    // A word in the box leaves only the samples that have it.
    const find = document.createElement("input");
    find.id = "find";
    find.type = "search";
    find.placeholder = "find a sample";
    find.setAttribute("aria-label", find.placeholder);
    table.parentElement.before(find);
    find.addEventListener("input", () => {
      const words = find.value.toLowerCase();
      for (const row of table.querySelectorAll("tbody tr:not(.group)")) row.hidden = !row.textContent.toLowerCase().includes(words);
    });
  }
})();
