// Filters the list of operations; without this script the list is whole.
const filter = document.getElementById("filter");
filter.hidden = false;
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const section of document.querySelectorAll("nav section")) {
    let shown = 0;
    for (const item of section.querySelectorAll("li")) {
      const link = item.firstElementChild;
      item.hidden = !`${link.textContent} ${link.title}`.toLowerCase().includes(wanted);
      shown += item.hidden ? 0 : 1;
    }
    section.hidden = shown === 0;
  }
});
