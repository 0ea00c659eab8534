"""The frame of all pages: one HTML file that needs nothing else, light or dark as the reader's system is."""

from html import escape

_STYLE = """
:root { --ink: #1c2329; --soft: #5b6670; --paper: #fff; --card: #f5f6f7; --line: #d9dde1; --bar: #4878a8;
  --error: #b3261e; --warning: #9a6200; --info: #3a6ea5; --clean: #22753a; --loss: #cfe8d5; --s0: #5b6670;
  --s1: #2f6fb0; --s2: #c2571a; --s3: #2b8a4b; --s4: #8a4fb5; --s5: #b08900; --s6: #b8336a; --s7: #1b8a8f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa5af; --paper: #15191c; --card: #1e2428;
  --line: #343c42; --bar: #6d9ecf; --error: #ff8a80; --warning: #f0b14a; --info: #8ab8e8; --clean: #7fce97;
  --loss: #24502f; --s0: #9aa5af; --s1: #6fb1f2; --s2: #f29a63; --s3: #74cf92; --s4: #c49bea; --s5: #e2c04f;
  --s6: #f084ac; --s7: #5fd0d4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; } p { margin: .4rem 0; }
.soft, figcaption { color: var(--soft); } figcaption b { color: var(--ink); }
.verdict { border-left: .35rem solid; padding: .6rem .9rem; background: var(--card); margin: 1rem 0; font-weight: 600; }
.error { color: var(--error); } .warning, .warnings { color: var(--warning); } .info { color: var(--info); }
.refused { color: var(--error); } .clean { color: var(--clean); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--soft); font-weight: 500; }
td, th { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
.rows { font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; }
.card { background: var(--card); padding: .6rem .8rem; border-radius: .3rem; }
.card b { display: block; font-size: 1.2rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem 1.6rem; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
.range { stroke: var(--soft); } .scroll { overflow-x: auto; }
svg text { font-size: 11px; fill: var(--soft); } .bar { fill: var(--bar); } .axis { stroke: var(--line); }
.median { stroke: var(--ink); stroke-dasharray: 3 3; } .limit { stroke: var(--error); stroke-width: 2; }
.way { fill: none; stroke: var(--c); stroke-width: 1.5; opacity: .7; } .end { fill: var(--c); }
.on { fill: var(--paper); stroke: var(--c); stroke-width: 1.5; } g .range { stroke: var(--c); opacity: .45; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0; list-style: none; }
.legend li::before { content: ""; display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  background: var(--c); margin-right: .4rem; }
.wide { max-width: 40rem; } .beside { margin: .6rem 0 0; } .beside + pre { margin: .1rem 0; }
.several > p, .several > ul { max-width: 62rem; } .sentence { font-weight: 400; max-width: 62rem; }
body:has(.several) { max-width: 80rem; } #policies th:first-child, #seeds th:first-child { position: sticky; left: 0;
  background: var(--paper); min-width: 6rem; color: var(--ink); padding-right: .8rem; }
@media (max-width: 30rem) { body { padding: 1.2rem 1rem 3rem; } .wide svg text { font-size: 17px; } }
#policies { font-size: .88rem; } #policies td, #policies th { padding-right: .6rem; }
#rounds table { max-width: 40rem; }
details { margin: .5rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
pre { background: var(--card); padding: .8rem; border-radius: .3rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.55 ui-monospace, monospace; margin: .3rem 0 1rem; }
mark { background: var(--loss); color: inherit; border-radius: .15rem; }
"""


def page(title: str, body: str) -> str:
    """A whole page: no script, no font, no picture from anywhere."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
