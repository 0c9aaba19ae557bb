// What was found after a search or a filter is said to those who do not see the table change.
"use strict";
document.addEventListener("htmx:afterSettle", () => {
  const said = document.getElementById("said");
  const found = document.querySelector(".pager p")?.textContent ?? "";
  if (said && said.textContent !== found) said.textContent = found;
});

// Links out of the frame. Airflow shows plugins in a sandboxed frame that may not navigate the window (Airflow 3.3:
// no allow-top-navigation), but is of the same origin: a link of Airflow's own document takes the reader there.
(() => {
  const framed = window.top !== window.self;

  const leave = (href) => {
    const link = window.top.document.createElement("a");
    link.href = href;
    window.top.document.body.append(link);
    link.click();
    link.remove();
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[target="_top"]');
    if (!framed || !link || event.defaultPrevented || event.button !== 0) return;
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    try {
      leave(link.href);
      event.preventDefault();
    } catch {
      // of another origin: somebody else's frame, which has its own rules
    }
  });
})();
