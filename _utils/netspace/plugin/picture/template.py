"""Template of the picture's page. jinja2 escapes every value except the style, the script and the JSON."""

TEXT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<label>Search <input id="q" type="search" placeholder="name, host, image" autocomplete="off" aria-keyshortcuts="/"></label>
{% if marks %}
<label>State <select id="fm"><option value="">all</option><option value="!">needs attention</option>
{% for mark, word in marks %}<option value="{{ mark }}">{{ word }}</option>{% endfor %}</select></label>
{% endif %}
{% if levels|length > 1 %}
<label>Trust <select id="fl"><option value="">all</option>
{% for level in levels %}<option value="{{ level }}">{{ level }}</option>{% endfor %}</select></label>
{% endif %}
{% if teams|length > 1 %}
<label>Group <select id="ft"><option value="">all</option>
{% for team in teams %}<option value="{{ team }}">{{ team }}</option>{% endfor %}</select></label>
{% endif %}
{% if planned %}
<label>Plan <select id="fc"><option value="">all</option><option value="!">what changes</option></select></label>
{% endif %}
<label>Links <select id="lines"><option value="every">all</option><option value="many"{{ " selected" if many }}>of the
selection</option><option value="none">none</option></select></label>
<label>Colours <select id="scheme"><option value="">as the system</option><option value="light">light</option>
<option value="dark">dark</option></select></label>
<output id="count" aria-live="polite"></output>
</header>
<nav aria-label="Hosts and environments">
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
<noscript>Search, filters and details need JavaScript.</noscript>
<ul id="hits" class="hits"></ul>
<details class="legend"{{ " open" if not many }}><summary>Legend</summary><ul>
{% for mark, word in marks %}
<li class="{{ mark }}"><svg viewBox="0 0 34 14"><path class="s" d="{{ shapes[mark] }}"/></svg>{{ word }}</li>
{% endfor %}
{% for kind, word in legend %}
<li><svg viewBox="0 0 34 14"><path class="l {{ kind }}" d="M0 7H32" marker-end="url(#a)"/></svg>{{ word }}</li>
{% endfor %}
</ul></details>
</nav>
<main>
<svg id="map" viewBox="0 0 {{ width }} {{ height }}" class="{{ "many" if many else "every" }}" tabindex="0" role="group" aria-label="{{ told }}">
<defs><marker id="a" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z"/></marker>
{% for mark, word in marks %}<path id="s-{{ mark }}" d="{{ shapes[mark] }}"/>{% endfor %}</defs>
{% for box in boxes %}
<g id="b{{ loop.index0 }}" class="b {{ box.kind }}"><rect x="{{ box.x }}" y="{{ box.y }}" width="{{ box.width }}" height="{{ box.height }}" rx="6"/>
<text class="t" x="{{ box.x + 12 }}" y="{{ box.y + 18 }}">{{ box.title }}</text><text class="v" x="{{ box.x + 12 }}" y="{{ box.y + 33 }}">{{ box.under }}</text>
{% if box.mark %}<use class="s" href="#s-{{ box.mark }}" x="{{ box.x + box.width - 24 }}" y="{{ box.y + 7 }}"/>{% endif %}
</g>
{% endfor %}
{% for head in headings %}
<text class="h" x="{{ head.x }}" y="{{ head.y }}">{{ head.text }}</text>
{% endfor %}
{% for one in lines %}
<path id="l{{ loop.index0 }}" class="l {{ one.kind }}" d="{{ one.path }}" marker-end="url(#a)"/>
{% endfor %}
{% for node in nodes %}
<g id="n{{ loop.index0 }}" class="n {{ node.kind }}" transform="translate({{ node.x }} {{ node.y }})"><rect width="{{ wide }}" height="{{ high }}" rx="4"/>
{%- if node.mark %}<use class="s" href="#s-{{ node.mark }}" x="7" y="7"/>{% endif %}
<text x="{{ 27 if node.mark else 9 }}" y="18.5">{{ node.label }}</text>
{%- if node.refused %}<text class="r" x="{{ wide - 6 }}" y="18.5">{{ node.refused }}</text>{% endif %}
{%- if node.cut %}<title>{{ node.title }}</title>{% endif %}</g>
{% endfor %}
{% for label in labels %}
<text class="w" id="w{{ label.line }}" x="{{ label.x }}" y="{{ label.y }}">{{ label.text }}</text>
{% endfor %}
{% for box in boxes %}
{% if box.title %}<g class="b" font-size="{{ box.far }}"><text class="far" x="{{ box.x + box.width // 2 }}" y="{{ box.y + box.height // 2 + 16 }}">{{ box.title }}</text></g>{% endif %}
{% endfor %}
</svg>
<div class="zoom"><button id="in" aria-label="zoom in">+</button><button id="out" aria-label="zoom out">&#8722;</button><button id="fit">all</button></div>
</main>
<aside id="more" aria-label="Details" tabindex="-1"><p class="note">Choose a host, an environment or a link. Keys: / searches, arrows move
the picture, + and &#8722; zoom, 0 shows all, Escape goes back.</p></aside>
<script type="application/json" id="data">{{ data }}</script>
<script>{{ script }}</script>
</body>
</html>
"""
