// The browser of flipped items: search, filters, and the keyboard. Without a script all items are listed and open by hand.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  all(".browser").forEach((box) => {
    const items = all(".flips > li", box), search = box.querySelector("[data-search]"), choices = all("[data-choose]", box);
    const texts = new Map();
    const text = (item) => {
      if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
      return texts.get(item);
    };
    const narrow = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = choices.filter((select) => select.value !== "");
      items.forEach((item) => {
        item.hidden = chosen.some((select) => item.dataset[select.dataset.choose] !== select.value) || words.some((word) => !text(item).includes(word));
      });
      const left = items.filter((item) => !item.hidden).length;
      box.querySelector("output").textContent = words.length || chosen.length ? `${left} of ${items.length}` : "";
    };
    search.addEventListener("input", narrow);
    choices.forEach((select) => select.addEventListener("change", narrow));
    const steps = { ArrowDown: (at) => at + 1, ArrowUp: (at) => at - 1, Home: () => 0, End: (at, last) => last };
    box.querySelector(".flips").addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step || event.target.tagName !== "SUMMARY") return;
      const heads = items.filter((item) => !item.hidden).map((item) => item.querySelector("summary"));
      const next = heads[step(heads.indexOf(event.target), heads.length - 1)];
      event.preventDefault();
      if (next) next.focus();
    });
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { search.value = ""; narrow(); }
      const first = event.key === "ArrowDown" && items.find((item) => !item.hidden);
      if (first) { event.preventDefault(); first.querySelector("summary").focus(); }
    });
  });
  addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
    const open = document.querySelector(".browser[open] [data-search]");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey || !open) return;
    event.preventDefault();
    open.focus();
  });
})();
