"use strict";
(() => {
  document.documentElement.classList.add("live");
  const about = document.getElementById("about");
  const details = JSON.parse(document.getElementById("details").textContent);
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  // Sorting: a column's best first, then reversed, then the order of the page. Cells without a number stay last.
  for (const table of document.querySelectorAll("table:has(.sort)")) {
    const body = table.tBodies[0], original = [...body.rows];
    const headers = [...table.querySelectorAll(".sort")].map((button) => button.closest("th"));
    headers.forEach((header, column) => header.addEventListener("click", (event) => {
      if (!event.target.closest(".sort")) return;
      const numeric = !header.querySelector(".text");
      const steps = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
      const next = steps[(steps.indexOf(header.getAttribute("aria-sort")) + 1) % 3];
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) header.setAttribute("aria-sort", next);
      const value = (row) => row.cells[column].dataset.value;
      const rows = !next ? original : [...original].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
        const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
        return next === "ascending" ? order : -order;
      });
      body.append(...rows);
    }));
  }

  for (const group of document.querySelectorAll(".filter")) {
    const table = group.nextElementSibling.querySelector("table");
    group.addEventListener("click", (event) => {
      const show = event.target.dataset.show;
      if (!show) return;
      for (const button of group.children) button.setAttribute("aria-pressed", String(button === event.target));
      for (const row of table.tBodies[0].rows) row.hidden = show !== "all" && !row.classList.contains(show);
    });
  }

  // Details of a cell: they open on hover and focus; a click keeps them open; Escape closes them.
  let current = null, kept = false, timer = 0;
  const list = (facts) => {
    const dl = document.createElement("dl");
    for (const [term, text] of facts) dl.append(make("dt", term), make("dd", text));
    return dl;
  };
  const close = () => {
    clearTimeout(timer);
    if (!current) return;
    current.removeAttribute("aria-describedby");
    current.removeAttribute("aria-expanded");
    current = null;
    kept = false;
    about.hidePopover();
  };
  const place = () => {
    if (!current) return;
    const cell = current.getBoundingClientRect(), size = about.getBoundingClientRect();
    const right = cell.right + 10 + size.width < innerWidth;  // beside the cell, which stays in sight
    about.style.left = `${Math.max(8, right ? cell.right + 10 : cell.left - size.width - 10)}px`;
    about.style.top = `${Math.max(8, Math.min(cell.top - 8, innerHeight - size.height - 8))}px`;
  };
  const open = (cell) => {
    clearTimeout(timer);
    if (cell === current) return;
    close();
    current = cell;
    const one = details[cell.dataset.about];
    about.replaceChildren(make("h4", one.title), list(one.facts));
    if (one.seeds.length) about.append(make("h5", "Seeds"), list(one.seeds.map(([name, value]) => [name, value.toFixed(2)])));
    for (const [name, facts] of one.groups) about.append(make("h5", name), list(facts));
    about.showPopover();
    about.scrollTop = 0;
    place();
    cell.setAttribute("aria-describedby", "about");
    cell.setAttribute("aria-expanded", "true");
  };
  const later = (action, wait) => { clearTimeout(timer); timer = setTimeout(action, wait); };
  const leave = () => { if (!kept) later(close, 200); };
  about.addEventListener("mouseenter", () => clearTimeout(timer));
  about.addEventListener("mouseleave", leave);
  for (const cell of document.querySelectorAll(".cell")) {
    cell.addEventListener("mouseenter", () => { if (!kept) later(() => open(cell), 120); });
    cell.addEventListener("mouseleave", leave);
    cell.addEventListener("focus", () => { if (cell.matches(":focus-visible")) open(cell); });
    cell.addEventListener("blur", () => later(close, 0));
    cell.addEventListener("click", () => {
      if (cell === current && kept) return close();
      open(cell);
      kept = true;
    });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  addEventListener("scroll", (event) => { if (event.target !== about) place(); }, true);
  addEventListener("resize", place);
  addEventListener("pointerdown", (event) => { if (!event.target.closest("#about, .cell")) close(); });

  // One stop of the tabulator key in each table; arrow keys move between its cells.
  for (const body of document.querySelectorAll("tbody:has(.cell)")) {
    body.querySelectorAll(".cell").forEach((cell, index) => { cell.tabIndex = index ? -1 : 0; });
    body.addEventListener("focusin", (event) => {
      if (!event.target.matches(".cell")) return;
      for (const cell of body.querySelectorAll('.cell[tabindex="0"]')) cell.tabIndex = -1;
      event.target.tabIndex = 0;
    });
    body.addEventListener("keydown", (event) => {
      const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
      if (across === undefined || !event.target.matches(".cell")) return;
      event.preventDefault();
      const rows = [...body.rows].filter((row) => !row.hidden);
      let y = rows.indexOf(event.target.closest("tr")), x = event.target.closest("td").cellIndex;
      while (rows[(y += down)]?.cells[(x += across)]) {
        const cell = rows[y].cells[x].querySelector(".cell");
        if (cell) return cell.focus();
      }
    });
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open], .extra)")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
