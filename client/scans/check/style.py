"""What the page of a check adds to the look of the run report."""

from __future__ import annotations

from typing import Final

CHECK_STYLE: Final = """
main { max-width: 980px; }
.fine { --tone: var(--good); --tint: var(--good-tint); }
.look { --tone: var(--warn); --tint: var(--warn-tint); }
.stop { --tone: var(--bad); --tint: var(--bad-tint); }
h3 { font-size: 1rem; margin: 0 0 2px; font-weight: 650; }
section section { border: 0; padding: 0; margin-top: 20px; background: none; }
section > h2 + section { margin-top: 4px; }

.remarks { list-style: none; margin: 0; padding: 0; }
.remarks li { display: grid; grid-template-columns: auto 1fr; gap: 2px 12px; padding: 10px 0;
  border-top: 1px solid var(--rule); }
.remarks li:first-child { border-top: 0; padding-top: 4px; }
.remarks li:last-child { padding-bottom: 0; }
.remarks .mark { color: var(--tone); background: var(--tint); border: 1px solid var(--tone);
  border-radius: 5px; font-size: .76rem; font-weight: 700; line-height: 1.3; padding: 2px 8px;
  align-self: start; margin-top: 2px; min-width: 82px; text-align: center; }
.remarks p { grid-column: 2; margin: 0; }
.passed { columns: 2; column-gap: 32px; margin: 0; padding-left: 20px; color: var(--soft);
  font-size: .92rem; }
.passed li { break-inside: avoid; margin-bottom: 4px; }

.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr));
  gap: 24px 32px; align-items: start; }
.columns > * { min-width: 0; margin: 0; }
caption { text-align: left; font-weight: 650; padding: 0 0 4px; }
.columns table { margin: 0; font-size: .94rem; }
.columns th, .columns td { padding-top: 5px; padding-bottom: 5px; }
.columns tbody th { font-weight: 400; } .columns thead th:first-child { font-weight: 650;
  color: var(--ink); }
.scroll { overflow-x: auto; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 24px 40px; }
.columns + p { margin-top: 12px; }
.scroll + .columns, figure + .charts, .columns + dl, .scroll + dl { margin-top: 24px; }
.values td small { display: inline-block; margin-left: 8px; min-width: 4.2em; }
.tiles small { text-wrap: balance; }
svg.share { display: block; width: 100%; min-width: 56px; height: 5px; margin-top: 5px;
  border-radius: 3px; }
svg.share rect { fill: var(--together); } svg.share .rest { fill: var(--rule); }
svg .bar { fill: var(--together); }
svg .levels { fill: var(--together); fill-opacity: .28; stroke: var(--together);
  stroke-width: 1.4; stroke-linejoin: round; }

.sheet ul { list-style: none; margin: 8px 0 0; padding: 0; display: grid; gap: 10px; }
.sheet .tiles-of-scans { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
.sheet .pairs { grid-template-columns: repeat(auto-fill, minmax(232px, 1fr)); gap: 14px; }
.sheet .pair { border: 1px solid var(--rule); border-radius: 8px; padding: 8px; }
.sheet .pair ul { margin: 0; grid-template-columns: 1fr 1fr; gap: 8px; }
.sheet img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
  background: #000; border-radius: 4px; }
.sheet .coarse { image-rendering: pixelated; }
.sheet li span { display: block; margin-top: 3px; font-size: .72rem; line-height: 1.3;
  color: var(--soft); }
.sheet li b { display: inline-block; font-weight: 400; margin-right: 4px; }

@media (max-width: 760px) { .charts { grid-template-columns: 1fr; } }
@media (max-width: 640px) {
  .passed { columns: 1; }
  tbody td::before { overflow-wrap: anywhere; min-width: 0; } tbody td > span { flex: none; }
  .remarks li { grid-template-columns: 1fr; }
  .remarks p { grid-column: 1; } .remarks .mark { justify-self: start; }
  svg.share { display: none; }
  caption { display: block; }
}
@media print {
  .sheet li, .remarks li { break-inside: avoid; } h3 { break-after: avoid; }
  .sheet .tiles-of-scans { grid-template-columns: repeat(8, 1fr); gap: 6px; }
  .sheet .pairs { grid-template-columns: repeat(3, 1fr); }
  .charts { grid-template-columns: 1fr 1fr; }
}
"""
