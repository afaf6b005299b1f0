"""The look of the page: light, dark, narrow and printed, in one inline style sheet."""

from __future__ import annotations

_LIGHT = """
  --ink: #1b2430; --soft: #566273; --rule: #d8dee6; --card: #ffffff; --ground: #f3f5f8;
  --together: #1d5cba; --alone: #b2530b; --good: #18794a; --bad: #b3261e; --warn: #855600;
  --good-tint: #e7f5ed; --bad-tint: #fceceb; --warn-tint: #fdf3dd;
"""

_DARK = """
  --ink: #e6ebf1; --soft: #9fabba; --rule: #353e4a; --card: #1a2028; --ground: #11151a;
  --together: #82b2ff; --alone: #f2a765; --good: #63d294; --bad: #ff958b; --warn: #e8b95c;
  --good-tint: #16302a; --bad-tint: #3a1f20; --warn-tint: #34290f;
"""

STYLE = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n"
    """
* { box-sizing: border-box; }
body { margin: 0; padding: 24px 16px 48px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main { max-width: 860px; margin: 0 auto; display: grid; gap: 16px; }
main > * { min-width: 0; }
section, header { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 20px 24px; }
h1 { font-size: 1.45rem; line-height: 1.3; margin: 4px 0 8px; font-weight: 650; }
h2 { font-size: 1.1rem; margin: 0 0 8px; font-weight: 650; }
p { margin: 0 0 8px; }
p:last-child, ul:last-child { margin-bottom: 0; }
.soft, figcaption, small { color: var(--soft); }
small { font-size: .82rem; }
abbr { text-decoration: underline dotted; text-underline-offset: 3px; cursor: help; }
code { font: .88em ui-monospace, "Cascadia Mono", Consolas, monospace; }

header { border-left: 8px solid var(--tone); background: var(--tint); }
.finished { --tone: var(--good); --tint: var(--good-tint); }
.incomplete, .failed, .stopped { --tone: var(--bad); --tint: var(--bad-tint); }
.offered { --tone: var(--together); --tint: var(--card); }
.outcome { color: var(--tone); font-weight: 700; margin: 0; }
.icon { display: inline-block; width: 1.5em; height: 1.5em; line-height: 1.5em; margin-right: 6px;
  border-radius: 50%; text-align: center; background: var(--tone); color: var(--card); }
.notice { margin: 0; padding: 12px 24px; border: 1px solid var(--warn); border-radius: 10px;
  background: var(--warn-tint); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 0; padding: 0; list-style: none; }
.tiles li { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 16px; }
.tiles span, .tiles small { display: block; }
.tiles strong { display: block; font-size: 1.55rem; line-height: 1.3; font-weight: 650; }

table { width: 100%; border-collapse: collapse; margin-bottom: 12px; }
th, td { text-align: right; padding: 8px 0 8px 12px; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
th:first-child { text-align: left; padding-left: 0; font-weight: 600; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-size: .88rem; vertical-align: bottom; line-height: 1.25; }
thead th:first-child { font-weight: 400; }
tbody td strong { font-weight: 600; }
td small, thead small { display: block; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.total > * { border-top: 2px solid var(--rule); }
.good { color: var(--good); } .bad { color: var(--bad); }

figure { margin: 0; }
figcaption { margin-top: 8px; font-size: .92rem; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 8px; font-size: .92rem; }
.legend svg { width: 30px; height: 12px; vertical-align: -1px; margin-right: 6px; }
.chart svg { display: block; width: 100%; height: auto; }
.chart .slim { display: none; max-width: 480px; }
svg text { fill: var(--ink); font-size: 13px; font-family: inherit; }
svg .tick, svg .axis { fill: var(--soft); }
svg .label, svg .value { font-weight: 600; }
svg line { stroke: var(--rule); stroke-width: 1; }
svg .chance { stroke: var(--soft); stroke-dasharray: 3 4; }
svg .span { stroke-width: 2.5; stroke-linecap: round; }
svg .together.span, svg .together.line { stroke: var(--together); }
svg .alone.span { stroke: var(--alone); }
svg .together.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
svg .together.mark { fill: var(--together); }
svg .alone.mark { fill: var(--card); stroke: var(--alone); stroke-width: 2.2; }

dl { display: grid; grid-template-columns: minmax(110px, max-content) 1fr; gap: 6px 20px;
  margin: 0; }
dt { color: var(--soft); } dd { margin: 0; } dl + p { margin-top: 12px; }
.glossary dt { color: var(--ink); font-weight: 600; }
.problems li { margin-bottom: 4px; } .problems { padding-left: 20px; margin: 0; }

@media (max-width: 760px) {
  .chart .full { display: none; } .chart .slim { display: block; }
}
@media (max-width: 640px) {
  body { padding: 10px 10px 32px; }
  section, header { padding: 16px; } .notice { padding: 12px 16px; }
  h1 { font-size: 1.2rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  table, tbody, tr, th, td { display: block; }
  thead { display: none; }
  tbody tr { padding: 10px 0; border-bottom: 1px solid var(--rule); }
  tbody tr:last-child { border-bottom: 0; }
  .total { border-top: 2px solid var(--rule); }
  tbody th, tbody td, .total > * { border: 0; padding: 2px 0; }
  tbody td { display: flex; justify-content: space-between; gap: 12px; }
  tbody td::before { content: attr(data-head); color: var(--soft); text-align: left; }
  tbody td:empty { display: none; }
  td small { display: inline; margin-left: 6px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
}
@media print {
"""
    f"  :root {{ color-scheme: light; {_LIGHT} }}\n"
    """
  @page { margin: 14mm; }
  body { padding: 0; background: none; font-size: 9.5pt;
    print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { display: block; } main > * + * { margin-top: 10px !important; }
  header, .tiles li, figure, tr, dt, dd { break-inside: avoid; } h2 { break-after: avoid; }
  section, .tiles li { border-color: #bbb; }
  .chart .full { display: block; } .chart .slim { display: none; }
  .tiles { grid-template-columns: repeat(4, 1fr); }
  abbr { text-decoration: none; }
}
"""
)
