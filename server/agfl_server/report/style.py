"""How the page and a notebook's output look, in light and in dark."""

from agfl_server.report.charts import CHART_CSS

PAGE_CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #16191f; --muted: #565d6b;
  --line: #dfe3ea; --curve0: #2563c9; --curve1: #c2500a; --limit: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1e24; --ink: #eceff4;
  --muted: #a7b0bf; --line: #323944; --curve0: #7fb0ff; --curve1: #ff9f5a; --limit: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 1.25rem; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.15rem; }
h1 small { display: block; color: var(--muted); font-size: .9rem; font-weight: 400; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0; }
dl div, figure, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
dl div { padding: .65rem .9rem; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: .75rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; padding: .6rem; }
.scroll { overflow: auto; max-height: 36rem; }
.scroll:focus-visible { outline: 2px solid var(--curve0); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--card); color: var(--muted); vertical-align: bottom;
  white-space: normal; }
tbody tr:last-child > * { border-bottom: 0; }
caption { padding: .5rem .7rem 0; color: var(--muted); text-align: left; }
tbody th { font-weight: 600; }
.texts th, .texts td { text-align: left; white-space: normal; vertical-align: top; }
.texts td { overflow-wrap: anywhere; }
.texts th { min-width: 8rem; }
.texts bdi, .texts code { white-space: pre-wrap; }
.answer { margin: 0 0 .75rem; font-size: 1.1rem; }
.note { margin: .75rem 0; color: var(--muted); font-size: .9rem; }
.beside { display: grid; gap: .75rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.beside th[scope=row], .beside thead th:first-child { text-align: left; }
.beside th[scope=row] { min-width: 8rem; white-space: normal; overflow-wrap: anywhere; }
.worse { color: var(--limit); font-weight: 600; }
pre { margin: 0; padding: .9rem; font: .85rem/1.5 ui-monospace, monospace; }
"""

# In a notebook the colors follow its theme, and no rule reaches what is not ours.
NOTEBOOK_CSS = f"""
.agfl-history {{ --ink: var(--jp-content-font-color1, var(--vscode-foreground, CanvasText));
  --muted: var(--jp-content-font-color2, var(--vscode-descriptionForeground, GrayText));
  --line: var(--jp-border-color2, var(--vscode-widget-border, #dfe3ea));
  --curve0: #3b78dc; --curve1: #d1661c; --limit: #b3261e;
  max-width: 70rem; color: var(--ink); font: 14px/1.5 system-ui, sans-serif;
  dl {{ display: flex; flex-wrap: wrap; gap: .25rem 2rem; margin: 0 0 .5rem; }}
  dt, dd {{ display: block; float: none; width: auto; margin: 0; padding: 0; text-align: left; }}
  dt, p {{ color: var(--muted); font-size: .85rem; font-weight: 400; }}
  p {{ margin: 0 0 .25rem; }}
  dd {{ font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; }}
  .charts {{ display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }}
  figure {{ margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: 8px; }}
{CHART_CSS}
}}
"""
