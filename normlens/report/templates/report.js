"use strict";
(() => {
  const theme = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    theme.textContent = "theme: " + next;
  });

  const form = document.getElementById("filter");
  const rows = Array.from(document.querySelectorAll("tr[data-layer]"));
  const input = document.getElementById("layer");
  const count = document.getElementById("count");
  const show = () => {
    const wanted = input.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.dataset.layer.toLowerCase().includes(wanted);
      if (!row.hidden) shown += 1;
    }
    count.textContent = shown + " of " + rows.length + " table rows";
  };
  if (rows.length) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    input.addEventListener("input", show);
    show();
  }

  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  window.addEventListener("hashchange", open);
  open();

  window.addEventListener("beforeprint", () => {
    for (const note of document.querySelectorAll("details.method")) note.open = true;
  });
})();
