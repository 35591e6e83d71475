"""How the HTML report looks; it follows the light or dark setting of the reader."""

STYLE = """\
:root { --ink: #1c2430; --dim: #667085; --line: #e3e7ee; --ground: #f6f7f9; --card: #fff;
  --before: #b9c2d0; --after: #2f6fed; --good: #12805c; --bad: #c0362c; --warn: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf3; --dim: #98a2b3; --line: #2c3543;
  --ground: #12161d; --card: #1a202a; --before: #4a566a; --after: #6b9bff; --good: #4cc38a;
  --bad: #ff7b72; --warn: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 12px; }
p { margin: 4px 0; color: var(--dim); overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin-top: 16px; }
.badge { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 13px;
  border: 1px solid currentColor; vertical-align: 2px; margin-left: 8px; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px;
  margin-top: 20px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; }
.card span { color: var(--dim); font-size: 13px; }
.card strong { display: block; font-size: 22px; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.card em { font-style: normal; font-size: 13px; }
.bar { height: 6px; border-radius: 3px; background: var(--before); margin-top: 8px;
  overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--after); border-radius: 3px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--dim); font-weight: 500; border-bottom: 1px solid var(--line); }
th, td { padding: 4px 14px 4px 0; vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 5em; }
td.n { min-width: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.meter { width: 30%; min-width: 110px; }
.meter i { display: block; height: 7px; border-radius: 3px; background: var(--after);
  margin: 3px 0 2px; }
.meter i.old { background: var(--before); }
details { margin-top: 6px; }
summary { cursor: pointer; }
code, pre { font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow-x: auto; background: var(--ground); padding: 10px; border-radius: 6px; }
ul { margin: 6px 0; padding-left: 20px; overflow-wrap: anywhere; }
footer { color: var(--dim); font-size: 13px; margin-top: 20px; }
"""
