// Tables of the catalogue: sorted by a click on a head, filtered by words and by choices.
// Without this script they are plain tables with every row.

const key = (text) => text.toLowerCase().replace(/[-_,]/g, "");

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const given = [...body.rows];
  const order = new Intl.Collator("en", { numeric: true });
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.value;
    return number === undefined ? cell.textContent.trim() : Number(number);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      const rows = given.map((row) => [valueOf(row, column), row]);
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === ""); // nothing known: last either way
        return direction * (typeof a === "number" ? a - b : order.compare(a, b));
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function filterable(part) {
  const controls = part.querySelector("form");
  const words = controls.querySelector("input");
  const choices = [...controls.querySelectorAll("select")];
  const output = controls.querySelector("output");
  const rows = [...part.querySelector("tbody").rows].map((row) => [row, key(row.textContent)]);
  const filter = () => {
    const wanted = words.value.split(/\s+/).map(key);
    let shown = 0;
    for (const [row, text] of rows) {
      const fits =
        wanted.every((word) => text.includes(word)) &&
        choices.every(({ value, dataset }) => !value || row.dataset[dataset.key] === value);
      row.hidden = !fits;
      shown += fits;
    }
    output.textContent = `${shown} of ${rows.length} ${part.dataset.unit}`;
  };
  const reveal = () => {
    const row = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!row || !part.contains(row)) return;
    words.value = "";
    for (const choice of choices) {
      choice.value = choice.dataset.key === part.dataset.by ? row.dataset[part.dataset.by] : "";
    }
    filter();
    row.scrollIntoView();
  };
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", filter);
  controls.hidden = false;
  filter();
  reveal();
  addEventListener("hashchange", reveal);
}

for (const part of document.querySelectorAll(".catalogue")) {
  sortable(part.querySelector("table"));
  filterable(part);
}
