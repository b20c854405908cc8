"""How the page looks: a narrow column, the system's own fonts, readable without color."""

__all__ = ["STYLE"]

STYLE = """
:root { --ink: #1f2328; --soft: #57606a; --line: #d0d7de; --pale: #f6f8fa; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.55;
  font: 1.0625rem/1.55 Charter, "Bitstream Charter", "Iowan Old Style", Georgia, serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3, table, nav, .badge, dl, footer, figcaption, caption, .next b {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans",
  sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0; }
p { margin: .7rem 0; overflow-wrap: break-word; }
.lead { color: var(--soft); margin-top: 0; }
a { color: #0a58a8; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem;
  margin: 1.2rem 0 1.6rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
section { border-top: 1px solid var(--line); margin-top: 2.6rem; padding-top: 1.6rem; }
.head { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: baseline;
  justify-content: space-between; }
.badge { display: inline-block; font-size: .82rem; font-weight: 600; line-height: 1.3;
  white-space: nowrap; padding: .12rem .55rem; border: 1.5px solid; border-radius: 1rem; }
.good { color: #0b5c2b; background: #e7f6ec; }
.doubtful { color: #7a4a00; background: #fff4da; border-style: dashed; }
.bad, .failed { color: #fff; background: #a40e1f; border-color: #a40e1f; }
.no-verdict, .does-not-apply { color: #48505a; background: var(--pale); }
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; line-height: 1.4; }
caption { caption-side: top; text-align: left; color: var(--soft); font-size: .88rem;
  padding-bottom: .35rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .9rem .38rem 0;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th:last-child, td:last-child { padding-right: 0; }
.next b { font-size: .9em; }
.next { background: var(--pale); border-left: 3px solid #6e7781; padding: .6rem .9rem; }
.remark { color: var(--soft); font-size: .95rem; }
figure { margin: 1.4rem 0 0; }
figure .scroll { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: var(--soft); font-size: .85rem; line-height: 1.45; margin-top: .4rem; }
footer { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1rem;
  color: var(--soft); font-size: .85rem; }
@media (max-width: 34rem) {
  main { padding: 1.4rem 1rem 3rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .45rem; }
  figure img { max-width: none; width: 30rem; }
  nav thead { display: none; }
  nav tr { display: grid; grid-template-columns: 1fr max-content; gap: .2rem .8rem;
    padding: .55rem 0; border-bottom: 1px solid var(--line); }
  nav th, nav td { border: 0; padding: 0; }
  nav td:last-child { grid-column: 1 / -1; color: var(--soft); }
}
@media print { section { break-inside: avoid-page; } .scroll { overflow: visible; } }
"""
