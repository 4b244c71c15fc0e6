"""Colours of the picture, and its style sheet.

No meaning is shown by a colour alone: each state also has a shape and a word, and each kind of line a pattern. The hues
are those of Okabe and Ito (2008), which people with any form of colour blindness can distinguish. Here the hues are
darker or lighter, for contrast with the background.
"""

from __future__ import annotations

from collections.abc import Mapping

from netspace.fleet.seen import Mark

LIGHT: Mapping[str, str] = {
    "ground": "#ffffff",
    "panel": "#f3f6f8",
    "box": "#f8fafb",
    "edge": "#7b8894",
    "text": "#17212b",
    "muted": "#4d5b68",
    "focus": "#0b57d0",
    "messages": "#2b6491",
    "packets": "#8a5a00",
    "well": "#00694a",
    "odd": "#8a5a00",
    "bad": "#a83200",
    "off": "#56636f",
    "unknown": "#6d3b92",
    "added": "#0b57d0",
    "changed": "#8a5a00",
    "removed": "#a83200",
}
DARK: Mapping[str, str] = {
    "ground": "#11171d",
    "panel": "#1a222a",
    "box": "#171f26",
    "edge": "#74818d",
    "text": "#e8eef3",
    "muted": "#a9b5c0",
    "focus": "#8ab4f8",
    "messages": "#8bbce0",
    "packets": "#e3a94b",
    "well": "#3fc594",
    "odd": "#e8b13c",
    "bad": "#ff9063",
    "off": "#9aa7b3",
    "unknown": "#cfa5ee",
    "added": "#8ab4f8",
    "changed": "#e8b13c",
    "removed": "#ff9063",
}
WORDS: Mapping[Mark, str] = {
    "bad": "needs attention",
    "unknown": "not seen",
    "odd": "changing or unusual",
    "well": "well",
    "off": "stopped, as declared",
}
"""Words for the states, those first that need attention first."""
SHAPES: Mapping[Mark, str] = {
    "bad": "M3.5 0h7L14 3.5v7L10.5 14h-7L0 10.5v-7zM3.6 4.8 5.8 7 3.6 9.2l1.2 1.2L7 8.2l2.2 2.2 1.2-1.2L8.2 7l2.2-2.2"
    "-1.2-1.2L7 5.8 4.8 3.6z",
    "unknown": "M7 0l7 7-7 7-7-7zM7 2.6 2.6 7 7 11.4 11.4 7z",
    "odd": "M7 0l7 13H0zM6.2 4.6v4.2h1.6V4.6zM6.2 10v1.6h1.6V10z",
    "well": "M7 0a7 7 0 1 0 .01 0zM6 10.6 2.8 7.4 4 6.2l2 2 4.2-4.2 1.2 1.2z",
    "off": "M7 0a7 7 0 1 0 .01 0zM3 6.1v1.8h8V6.1z",
}
"""Shapes of the states, in a square of 14: an octagon with a cross, a hollow diamond, a triangle, a disc with a tick, a
disc with a bar."""


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


_CHOSEN = {
    **{f".{mark}": f"--own:var(--{mark})" for mark in WORDS},
    **{f".l.{by}": f"--own:var(--{by})" for by in ("messages", "packets")},
    **{f".{change},.l.{change}": f"--own:var(--{change})" for change in ("added", "changed", "removed")},
}

SHEET = (
    f":root{{color-scheme:light;{_variables(LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root:not([data-scheme=light]){{color-scheme:dark;{_variables(DARK)}}}}}\n"
    f":root[data-scheme=dark]{{color-scheme:dark;{_variables(DARK)}}}\n"
    + "\n".join(f"{where}{{{rule}}}" for where, rule in _CHOSEN.items())
    + """
*{box-sizing:border-box}
html,body{margin:0;height:100%}
body{display:grid;grid-template:auto minmax(0,1fr)/17rem minmax(0,1fr) 20rem;font:14px/1.45 system-ui,sans-serif;
color:var(--text);background:var(--ground)}
header{grid-column:1/-1;display:flex;flex-wrap:wrap;gap:.4rem .7rem;align-items:center;padding:.5rem .8rem;
background:var(--panel);border-bottom:1px solid var(--edge)}
h1{font-size:1.05rem;margin:0 .4rem 0 0}
h2{font-size:1rem;margin:.1rem 0 .4rem;overflow-wrap:anywhere}
h3{font-size:.85rem;margin:.9rem 0 .2rem;color:var(--muted)}
label{display:inline-flex;gap:.3rem;align-items:center;color:var(--muted)}
input,select,button{font:inherit;color:var(--text);background:var(--ground);border:1px solid var(--edge);
border-radius:4px;padding:.2rem .45rem;max-width:13rem}
button{cursor:pointer}
:focus-visible{outline:2px solid var(--focus);outline-offset:1px}
svg:focus-visible,aside:focus-visible{outline-offset:-3px}
nav,aside{overflow:auto;background:var(--panel);padding:.6rem .8rem;min-width:0}
nav{border-right:1px solid var(--edge)}
aside{border-left:1px solid var(--edge)}
main{position:relative;min-width:0;min-height:0;overflow:hidden}
main>svg{display:block;width:100%;height:100%;touch-action:none;background:var(--ground)}
.zoom{position:absolute;right:.6rem;bottom:.6rem;display:flex;gap:.3rem}
.zoom button{min-width:2rem}
ul{list-style:none;margin:0;padding:0}
li>button{display:flex;gap:.45rem;align-items:center;width:100%;max-width:none;text-align:left;background:none;
border-color:transparent;padding:.15rem .3rem;overflow-wrap:anywhere}
li>button:hover,li>button[aria-current=true]{background:var(--ground);border-color:var(--edge)}
li.in>button{padding-left:1.2rem}
li.host>button{font-weight:600}
li small{color:var(--muted);font-weight:400}
.dot{flex:none;width:14px;height:14px;fill:var(--own,var(--edge))}
dl{display:grid;grid-template-columns:minmax(5rem,auto) minmax(0,1fr);gap:.15rem .7rem;margin:.4rem 0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere;white-space:pre-line}
.note{color:var(--muted);margin:.3rem 0}
.state{color:var(--own,var(--text));font-weight:600;display:flex;gap:.4rem;align-items:center}
summary{cursor:pointer;color:var(--muted)}
.legend{margin-top:.8rem}
.legend svg{width:34px;height:14px;flex:none;overflow:visible}
.legend li{display:flex;gap:.5rem;align-items:center;padding:.1rem 0}
svg text{font-family:system-ui,sans-serif;font-size:13.5px;fill:var(--text)}
svg text.far{font-size:inherit}
.b>rect{fill:var(--box);stroke:var(--edge)}
.b.bad>rect,.b.unknown>rect,.b.odd>rect{stroke:var(--own);stroke-width:2}
.b.added>rect,.b.removed>rect,.b.changed>rect{stroke:var(--own);stroke-width:2.5}
.b.removed>rect,.n.removed>rect{stroke-dasharray:3 3}
.b .t{font-size:15px;font-weight:600}
.b .v{font-size:12px;fill:var(--muted)}
.b .far{display:none;font-weight:600;text-anchor:middle;paint-order:stroke;stroke:var(--box);
stroke-width:14px;pointer-events:none}
.s{fill:var(--own,var(--muted))}
.h{font-size:11.5px;fill:var(--muted)}
.n,.b{cursor:pointer}
.n>rect{fill:var(--ground);stroke:var(--own,var(--edge))}
.n.outside>rect{stroke-dasharray:none;rx:14px}
.n.remote>rect{stroke-dasharray:6 3}
.n.added>rect,.n.removed>rect,.n.changed>rect{stroke-width:2.5}
.n .r{font-size:11px;fill:var(--bad);font-weight:600;text-anchor:end}
.n.sel>rect,.b.sel>rect{stroke:var(--focus);stroke-width:3.5}
.l{fill:none;stroke:var(--own);stroke-width:1.5}
.l.packets{stroke-dasharray:6 4}
.l.seal{stroke-width:3}
.l.possible{stroke-dasharray:1.5 3}
.l.added,.l.changed{stroke-width:3.5}
.l.removed{stroke-dasharray:1.5 4;stroke-width:3.5}
.l.bad,.l.odd,.l.unknown{stroke:var(--bad)}
.w{font-size:11px;fill:var(--muted);text-anchor:middle;paint-order:stroke;stroke:var(--ground);stroke-width:4px;
pointer-events:none}
marker path{stroke:none;fill:context-stroke}
.many .l{display:none}
.many .l.on,.every .l{display:inline}
.none .l:not(.on){display:none}
.none .w{display:none}
.dim{opacity:.17}
.picked .l:not(.on),.picked .w:not(.on){opacity:.18}
.picked .n:not(.on):not(.sel){opacity:.45}
.isfar .w,.isfar .n>text,.isfar .h,.isfar .b>.t,.isfar .b>.v,.isfar .b>.s{display:none}
.isfar .b>.far{display:inline}
.isfar .n>rect{fill:var(--own,var(--ground));fill-opacity:.15}
.isfar .n.odd>rect,.isfar .n.unknown>rect{fill-opacity:.6}
.isfar .n.bad>rect{fill-opacity:1}
noscript{display:block;padding:.4rem 0;color:var(--muted)}
@media (max-width:60rem){
body{height:auto;min-height:100%;grid-template:auto minmax(20rem,58vh) auto auto/minmax(0,1fr)}
nav,aside{border:0;border-top:1px solid var(--edge);overflow:visible}
main{grid-row:2}
aside{grid-row:3}
nav{grid-row:4}
nav ul.hits{max-height:18rem;overflow:auto}
}
@media (min-width:60.01rem) and (max-width:80rem){body{grid-template-columns:13rem minmax(0,1fr) 16rem}}
@media (forced-colors:active){.l{stroke:CanvasText}}
"""
)
