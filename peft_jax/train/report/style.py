"""How the page looks, on paper, on a phone and at night too."""

STYLE = """\
:root {
  color-scheme: light dark;
  --words: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  --page: #ffffff; --panel: #f5f6f8; --text: #1c1f23; --muted: #5a626b;
  --line: #dfe3e7; --accent: #2457c5; --right: #17713f; --wrong: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --panel: #1d2125; --text: #e6e9ec; --muted: #9ba4ae;
    --line: #30363c; --accent: #82abff; --right: #67d29a; --wrong: #ff8f85;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 var(--words);
}
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 48px 0 12px; font-size: 1.15rem; }
.method { margin: 0 0 4px; color: var(--accent); font-weight: 600; }
.note { margin: 0 0 12px; color: var(--muted); }
.tiles {
  display: grid; gap: 12px; margin: 28px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr));
}
.tiles div {
  padding: 14px 16px; border-radius: 10px; background: var(--panel);
}
.tiles dt { color: var(--muted); font-size: 0.9rem; }
.tiles dd { margin: 0; color: var(--muted); font-size: 0.85rem; }
.tiles .value {
  color: var(--text); font-size: 1.7rem; font-weight: 600; white-space: nowrap;
}
.charts {
  display: grid; gap: 28px 32px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr));
}
figure { margin: 0; min-width: 0; }
figcaption { display: flex; justify-content: space-between; gap: 12px; }
figcaption span { overflow-wrap: anywhere; }
.last { color: var(--accent); font-weight: 600; white-space: nowrap; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
svg text { fill: var(--muted); font-size: 11px; }
.grid { stroke: var(--line); }
.baseline { stroke: var(--muted); stroke-dasharray: 4 4; }
.curve, .raw { fill: none; stroke: var(--accent); stroke-linejoin: round; }
.curve { stroke-width: 2; }
.raw { opacity: 0.3; }
.end { fill: var(--accent); }
.broken { stroke: var(--wrong); }
.warning { margin: 4px 0 0; color: var(--wrong); font-size: 0.9rem; }
table { width: 100%; border-collapse: collapse; font-size: 0.92rem; }
caption {
  position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap;
}
th, td {
  padding: 8px 16px 8px 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; overflow-wrap: break-word;
}
th:last-child, td:last-child { padding-right: 0; }
th { color: var(--muted); font-weight: 500; }
.number {
  text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
}
.code, .long { overflow-wrap: anywhere; }
td.code { font: 0.86rem/1.6 ui-monospace, Menlo, Consolas, monospace; }
.named { table-layout: fixed; }
.named th, .named td { padding-top: 5px; padding-bottom: 5px; }
.named th { width: 34%; }
.named td { white-space: pre-wrap; }
.text { white-space: pre-wrap; }
.long { width: 50%; }
summary { cursor: pointer; }
details[open] summary .text { display: none; }
details[open] summary::after { content: "Show less"; color: var(--muted); }
.empty { color: var(--muted); font-style: italic; }
.mark { display: block; font-size: 0.78rem; font-weight: 600; }
.mark.right { color: var(--right); }
.mark.wrong { color: var(--wrong); }
@media (max-width: 640px) {
  main { padding-top: 24px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles .value { font-size: 1.2rem; }
  .named th { width: 42%; }
  .cards thead { position: absolute; clip-path: inset(50%); }
  .cards, .cards tbody, .cards tr, .cards td { display: block; width: auto; }
  .cards tr {
    margin-bottom: 12px; padding: 8px 14px;
    border: 1px solid var(--line); border-radius: 10px;
  }
  .cards td {
    display: grid; grid-template-columns: 6rem minmax(0, 1fr);
    padding: 4px 0; border: 0;
  }
  .cards td::before {
    content: attr(data-label); color: var(--muted);
    font: 0.92rem/1.5 var(--words);
  }
  .cards .number { text-align: left; }
}
@media print {
  main { max-width: none; padding: 0; }
  figure, tr, .tiles div { break-inside: avoid; }
}
"""
