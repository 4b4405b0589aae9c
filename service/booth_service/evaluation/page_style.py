"""How a report's page looks."""

STYLE = """
:root { --ink: #1c1d21; --soft: #6a6d76; --paper: #fcfcfa; --line: #e3e3de; --card: #fff; --warn: #a8480a }
:root { --cell: 9rem }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e8e4; --soft: #9d9fa8; --paper: #17181b; --line: #33353b; --card: #1f2024; --warn: #ffa45c }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 84rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem }
.sub, .beside, figcaption { color: var(--soft); font-size: .8rem; font-weight: normal }
.scroll { overflow-x: auto }
table { border-collapse: collapse; background: var(--card); font-variant-numeric: tabular-nums; min-width: 100% }
th, td { text-align: left; vertical-align: top; padding: .5rem .75rem; border: 1px solid var(--line) }
td { white-space: nowrap }
tbody th { min-width: 10rem }
thead th { font-size: .85rem; white-space: nowrap }
summary { cursor: pointer }
summary h2 { display: inline-block; margin: 1.5rem 0 .25rem }
.prompt { margin: .75rem 0 }
.text { margin-bottom: .25rem; overflow-wrap: anywhere }
.cells { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(min(var(--cell), 30vw), 1fr)) }
@media (min-width: 48rem) {
  .prompt { display: grid; grid-template-columns: 13rem 1fr; gap: 1rem }
  .cells { grid-template-columns: repeat(auto-fill, minmax(var(--cell), var(--cell))) }
}
figure { margin: 0 }
figure img { width: 100%; display: block; border-radius: 4px; background: var(--line) }
figure.wide { margin: 1rem 0 }
figure.memorised img { outline: 3px solid var(--warn) }
figure.memorised figcaption, .warn, #warnings { color: var(--warn) }
#warnings { border-left: 3px solid var(--warn); padding-left: 1rem }
#warnings h2 { margin-top: 1rem }
.gone { aspect-ratio: 1; display: grid; place-items: center; background: var(--line); border-radius: 4px }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .35rem 1rem }
dt { font-weight: 600 }
dd { margin: 0; overflow-wrap: anywhere }
@media print { details { break-inside: avoid } }
"""
