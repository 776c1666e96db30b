"""The style sheet of the page: light, dark and printed, without a font or a file from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --text: #1d2126; --quiet: #5d6670; --line: #dfe2e6; --head: #f2f4f6;
  --link: #0b5cad; --first: #bfe3c8; --second: #dcefdf; --third: #eff7f0; --gap: #b3261e; --bar: #2e7d4f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1b1f23; --text: #e4e7ea; --quiet: #9aa4ae; --line: #343a41; --head: #23282d;
    --link: #7db7f0; --first: #23573a; --second: #1f4331; --third: #1e3229; --gap: #f2938c; --bar: #5fb784;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 108rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
p { margin: .4rem 0; max-width: 75ch; }
.quiet, figcaption, .notes, dt { color: var(--quiet); }
.bar { height: .5rem; max-width: 24rem; border-radius: .25rem; background: var(--line); overflow: hidden; }
.bar, h2 + .wide { margin: .6rem 0; }
.bar span { display: block; height: 100%; background: var(--bar); }
nav ul { list-style: none; margin: .8rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; }
.key { display: inline-block; padding: 0 .45rem; border-radius: .2rem; margin-right: .3rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
section { padding: 1.2rem; margin-top: 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .48rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { background: var(--head); font-weight: 600; text-align: center; white-space: normal; min-width: 5.2rem; }
thead tr:last-child th { border-bottom: 2px solid var(--line); }
thead .sub { min-width: 0; font-weight: 400; color: var(--quiet); text-align: right; }
th[scope=row], thead th.corner {
  text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--card); z-index: 1;
}
thead th.corner { background: var(--head); vertical-align: bottom; }
.start { border-left: 1px solid var(--line); }
.first { background: var(--first); font-weight: 650; }
.second { background: var(--second); font-weight: 550; }
.third { background: var(--third); }
.missing, .nan, .seeds { color: var(--gap); }
.missing { font-style: italic; }
.paper, .interval { color: var(--quiet); }
.paper.first, .paper.second, .paper.third { color: inherit; }
small { display: block; font-size: .82em; line-height: 1.25; }
sup { font-size: .7em; line-height: 0; margin-left: .25em; }
.notes { font-size: .84rem; margin-top: .7rem; }
details { margin-top: .8rem; font-size: .86rem; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0 0; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1.6rem; }
figure:last-child { margin-bottom: 0; }
figure img { display: block; max-width: 100%; height: auto; }
figure img { background: #ffffff; border-radius: .35rem; padding: .5rem; }
figcaption { font-size: .86rem; margin-top: .4rem; max-width: 75ch; }
@media print {
  :root {
    color-scheme: light; --page: #ffffff; --card: #ffffff; --text: #000000; --quiet: #444444; --line: #bbbbbb;
    --head: #f2f2f2; --first: #bfe3c8; --second: #dcefdf; --third: #eff7f0; --gap: #b3261e; --link: #000000;
  }
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 9pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  section { border: 0; padding: 0; }
  .wide { overflow: visible; }
  th, td { padding: .15rem .3rem; }
  th[scope=row], thead th.corner { position: static; }
  figure, tr { break-inside: avoid; }
}
"""
