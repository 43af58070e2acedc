"use strict";
const said = (text, ms) => { const place = document.getElementById("said"); place.textContent = text; if (ms) setTimeout(() => { if (place.textContent === text) place.textContent = ""; }, ms); };

function sortBy(table, column, direction) {
  const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // what is not known comes last, either way
    const [m, n] = [Number(x), Number(y)];
    return direction * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y, "en", { numeric: true }) : m - n);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  for (const [number, head] of [...table.tHead.rows[0].cells].entries()) {
    if (number === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (button && "sort" in button.dataset) {
    const head = button.closest("th");
    const now = head.getAttribute("aria-sort");
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const next = now ? (now === "ascending" ? -1 : 1) : (first === "ascending" ? 1 : -1);
    sortBy(head.closest("table"), head.cellIndex, next);
  } else if (button && "copy" in button.dataset) {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      said("Copied.", 2000);
    } catch {
      getSelection().selectAllChildren(code);
      said("Selected: copy it with the keyboard.", 4000);
    }
  }
});

const openAt = () => { const place = document.getElementById(decodeURIComponent(location.hash.slice(1))); if (place?.tagName === "DETAILS") { place.open = true; place.scrollIntoView(); } };
addEventListener("hashchange", openAt);
openAt();

let folded = [];
addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("details:not([open])")]; folded.forEach((each) => { each.open = true; }); });
addEventListener("afterprint", () => { folded.forEach((each) => { each.open = false; }); });

const every = Number(document.body.dataset.every ?? 0);
let tag = "";
function take(text) {
  const main = new DOMParser().parseFromString(text, "text/html").querySelector("main");
  if (!main) return;
  const open = [...document.querySelectorAll("details[open]")].map((each) => each.id);
  const sorted = [...document.querySelectorAll("table.sortable")].map((table) => {
    const head = table.querySelector("[aria-sort]");
    return head && [table.id, head.textContent, head.getAttribute("aria-sort") === "ascending" ? 1 : -1];
  });
  const focused = document.activeElement?.closest?.("[id]")?.id;
  document.querySelector("main").replaceWith(main);
  open.forEach((id) => { const place = document.getElementById(id); if (place) place.open = true; });
  for (const [id, title, direction] of sorted.filter(Boolean)) {
    const table = document.getElementById(id);
    const column = table ? [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === title) : -1;
    if (column >= 0) sortBy(table, column, direction);
  }
  if (focused) document.getElementById(focused)?.querySelector("button, summary")?.focus({ preventScroll: true });
}
async function refresh() {
  try {
    const answer = await fetch(location.href.split("#")[0], { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (answer.status === 200) { tag = answer.headers.get("ETag") ?? ""; take(await answer.text()); }
    else if (answer.status !== 304) said(`This page is no longer kept up to date (${answer.status}).`);
    if (answer.ok || answer.status === 304) said("");
  } catch {
    said("The server has ended: this page stays as it was.");
  }
  setTimeout(refresh, 1000 * every);
}
if (every) setTimeout(refresh, 1000 * every);
