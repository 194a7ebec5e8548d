// What the page gains with a script: sorting, filters, tooltips, copying. Without it everything is shown and readable.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  // Sorting: numbers by their exact value; what has none goes last in both directions.
  const value = (row, column, number) => {
    const found = row.cells[column];
    const raw = found === undefined ? "" : found.dataset.sort ?? found.textContent.trim();
    if (!number) return raw.toLowerCase();
    const parsed = raw === "" ? NaN : Number(raw);
    return Number.isFinite(parsed) ? parsed : null;
  };
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  };
  const sort = (header) => {
    const table = header.closest("table"), body = table.tBodies[0];
    const number = header.dataset.kind === "number";
    const next = header.ariaSort === "ascending" ? "descending" : header.ariaSort === "descending" ? "ascending" : number ? "descending" : "ascending";
    all("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", next);
    const rows = [...body.rows].map((row) => [row, value(row, header.cellIndex, number)]);
    rows.sort((a, b) => compare(a[1], b[1], next === "ascending" ? 1 : -1));
    body.append(...rows.map((pair) => pair[0]));
  };
  all(".sortable .sort").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));

  // Filters: every select narrows what carries the same data attribute.
  const filter = (box) => {
    const chosen = all("[data-filter]", box).filter((select) => select.value !== "");
    const items = all("li[data-task], tr[data-recipe]", box);
    items.forEach((item) => { item.hidden = chosen.some((select) => item.dataset[select.dataset.filter] !== select.value); });
    const left = items.filter((item) => !item.hidden).length;
    all("output", box).forEach((output) => { output.textContent = chosen.length ? `${left} of ${items.length}` : ""; });
  };
  all(".filterable").forEach((box) => all("[data-filter]", box).forEach((select) => select.addEventListener("change", () => filter(box))));

  // One panel of the speed chart at a time.
  all("[data-switch]").forEach((select) => {
    const show = () => all("[data-case]", select.closest("figure")).forEach((each) => { each.hidden = each.dataset.case !== select.value; });
    select.selectedIndex = select.options.length - 1;
    select.addEventListener("change", show);
    show();
  });

  // Tooltips: the same text that a browser without scripts takes from <title>, at once and on focus and touch too.
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (point) => {
    tip.textContent = point.dataset.tip;
    tip.hidden = false;
    const at = point.querySelector(".mark").getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - tip.offsetWidth / 2), document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 12;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 4 ? above : at.bottom + 12) + scrollY}px`;
  };
  all(".point, .spot").forEach((point) => {
    const title = point.querySelector("title");
    point.dataset.tip = title.textContent;
    title.remove();
    ["pointerenter", "focus", "click"].forEach((name) => point.addEventListener(name, () => show(point)));
    ["pointerleave", "blur"].forEach((name) => point.addEventListener(name, hide));
  });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // Copying: the clipboard where the browser gives it to a local file, else the selection.
  all("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: press Ctrl-C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  }));

  // Paper shows everything.
  let closed = [];
  addEventListener("beforeprint", () => { closed = all("details:not([open])"); closed.forEach((each) => { each.open = true; }); });
  addEventListener("afterprint", () => { closed.forEach((each) => { each.open = false; }); closed = []; });
})();
