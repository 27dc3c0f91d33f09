"""The page: its style, and its HTML for Jinja with escaping on. No script, nothing fetched."""

_LIGHT = """
  --paper: #fdfdfb; --card: #ffffff; --ink: #1c2127; --soft: #5b6570; --line: #dfe2e6; --grid: #d8dce1; --accent: #0b6e8a;
  --good: #1b7a3d; --bad: #b3261e; --mark: #fbe3e0; --series-1: #0b6e8a; --series-2: #c8552b; --series-3: #6a4fb3;
  --series-4: #2e8b57; --series-5: #b8860b; --series-6: #a83279; --series-7: #4f6d8f; --series-8: #7a5c3e;
"""
_DARK = """
  --paper: #14181c; --card: #1b2026; --ink: #e6e9ec; --soft: #a0a9b3; --line: #323a43; --grid: #3b444e; --accent: #5cc0dc;
  --good: #6fcf8e; --bad: #ff8a80; --mark: #4a2320; --series-1: #5cc0dc; --series-2: #ff9b6e; --series-3: #b29bf0;
  --series-4: #6fcf8e; --series-5: #e5bd4f; --series-6: #f08cc4; --series-7: #9dbbe0; --series-8: #cfa97f;
"""
_SCREEN = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 3.5rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink); font-size: 16px; line-height: 1.55;
  font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
}
main, header > div, nav > div { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
header { padding: 2rem 0 1rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 2px solid var(--accent); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; }
a, summary { color: var(--accent); }
code { font-size: .9em; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
li { overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; }
footer { margin: 3rem 0 2rem; }
.soft, .note, small, footer { color: var(--soft); }
.note, footer { font-size: .86rem; overflow-wrap: anywhere; }
.absent { border-left: 4px solid var(--line); padding: .3rem .9rem; color: var(--soft); }

nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line); }
nav > div { display: flex; gap: 1.1rem; overflow-x: auto; padding-top: .6rem; padding-bottom: .6rem; white-space: nowrap; }
nav a { text-decoration: none; font-size: .92rem; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tile dt { font-size: .82rem; color: var(--soft); }
.tile dd { margin: 0; font-size: 1.55rem; font-weight: 600; line-height: 1.3; }
.tile small { display: block; font-size: .78rem; font-weight: 400; }

.scroll { overflow-x: auto; margin: .3rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; min-width: min(100%, 30rem); }
th, td { padding: .34rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
.word { text-align: left; }
td.word { overflow-wrap: anywhere; min-width: 6rem; }
td.word:last-child { min-width: 12rem; }
td.word.short { overflow-wrap: normal; }
td.short:last-child { min-width: 4rem; }
td small, th small { display: block; font-size: .76rem; font-weight: 400; white-space: nowrap; }
.word small { white-space: normal; }
.best { font-weight: 700; }
.bad { color: var(--bad); font-weight: 600; }
.muted { color: var(--soft); }
.group th { text-align: left; color: var(--soft); font-size: .82rem; padding-top: .9rem; }

.lead { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
.lead > div { flex: 0 1 auto; min-width: 0; max-width: 100%; }
.lead > figure { flex: 1 1 22rem; max-width: 34rem; margin-top: 1.6rem; }
.grid, .cards { display: grid; gap: 1rem; align-items: start; margin-top: 1rem; }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.card { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem; min-width: 0; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .4rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
.picture { display: block; max-width: 100%; height: auto; border-radius: 5px; margin-bottom: .6rem; }
.still { width: 12rem; }
.small { width: 7rem; }
audio { display: block; width: 100%; height: 2.4rem; margin-bottom: .6rem; }
.ask { font-weight: 600; margin: 0 0 .4rem; overflow-wrap: anywhere; }
.texts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .8rem; margin: .2rem 0 0; font-size: .93rem; }
.texts dt { color: var(--soft); }
.texts dd { margin: 0; overflow-wrap: anywhere; }
.wrong { background: var(--mark); color: var(--bad); border-radius: 3px; padding: 0 .1em; text-decoration: underline; }
.yes { color: var(--good); }
.no { color: var(--bad); }

@media (max-width: 34rem) {
  body { font-size: 15px; }
  h1 { font-size: 1.5rem; }
  table { font-size: .84rem; }
  th, td { padding: .3rem .35rem; }
  td small { font-size: .7rem; white-space: normal; }
  tbody tr:not(.group) th.word { position: sticky; left: 0; background: var(--paper); }
  .card { padding: .7rem; }
  .lead > figure { margin-top: .5rem; }
}
"""
_PRINT = """
@page { size: A4; margin: 14mm; }
@media print {
  body { font-size: 10pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  nav, audio, summary { display: none; }
  main, header > div { max-width: none; padding: 0; }
  header { padding-top: 0; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; width: 100%; }
  th, td { padding: .2rem .35rem; }
  td small { white-space: normal; }
  thead { display: table-header-group; }
  tr, .card, figure, .tile { break-inside: avoid; }
  h2, h3, thead, .samples { break-after: avoid; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: .4rem; }
  .tile { padding: .4rem .5rem; }
  .tile dd { font-size: 1.15rem; }
  .lead { display: block; }
  .lead > figure { max-width: 11cm; }
  .grid { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .cards { grid-template-columns: repeat(4, 1fr); gap: .5rem; }
  .card { padding: .5rem; }
  .cards .texts { font-size: 8pt; gap: .1rem .4rem; }
  .still { width: 3.2cm; }
  .small { width: 2cm; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""

CSS = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n"
    f"@media print {{ :root {{ color-scheme: light; }} }}\n{_SCREEN}{_PRINT}"
)

_MACROS = """
{%- macro show_table(table) -%}
<h3>{{ table.title }}</h3>
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.title }}"><table>
<thead><tr>
{%- for column in table.columns %}
<th scope="col"{% if loop.index0 in table.words %} class="word"{% endif %}>{{ column }}</th>
{%- endfor %}
</tr></thead>
<tbody>
{%- for row in table.rows %}
{%- if row.group %}
<tr class="group"><th scope="rowgroup" colspan="{{ table.columns|length }}">{{ row.cells[0].text }}</th></tr>
{%- else %}
<tr>
{%- for cell in row.cells %}
{%- set kind = ['word' if loop.index0 in table.words, 'short' if cell.text|length < 16, cell.mark]|select|join(' ') %}
{%- if loop.first %}<th scope="row" class="{{ kind }}">{% else %}<td class="{{ kind }}">{% endif %}
{{- cell.text }}{% if cell.small %}<small>{{ cell.small }}</small>{% endif %}
{%- if loop.first %}</th>{% else %}</td>{% endif %}
{%- endfor %}</tr>
{%- endif %}
{%- endfor %}
</tbody></table></div>
{%- if table.note %}
<p class="note">{{ table.note }}</p>
{%- endif %}
{%- endmacro -%}

{%- macro show_text(text) -%}
<dt>{{ text.who }}</dt><dd lang="zh">
{%- for letters, wrong in text.letters -%}
{%- if wrong %}<span class="wrong">{{ letters }}</span>{% else %}{{ letters }}{% endif -%}
{%- endfor -%}
{%- if text.right is not none %}
 <span class="{{ 'yes' if text.right else 'no' }}" role="img" aria-label="{{ 'right' if text.right else 'wrong' }}">
{{- '✓' if text.right else '✗' }}</span>
{%- endif -%}
</dd>
{%- endmacro -%}

{%- macro show_sample(sample) -%}
<article class="card">
<p class="ask" lang="zh">{{ sample.question or sample.id }}</p>
{%- for medium in sample.media %}
{%- if medium.kind == 'audio' %}
<audio controls preload="metadata" src="{{ medium.address }}" aria-label="recording {{ medium.words }}"></audio>
{%- else %}
{%- set kind = 'small' if sample.figure else 'still' if medium.kind == 'image' else '' %}
<img class="picture {{ kind }}" src="{{ medium.address }}" alt="{{ medium.words }}">
{%- endif %}
{%- endfor %}
{{ sample.figure }}
<dl class="texts">
{%- if sample.said %}
<dt>spoken</dt><dd lang="zh">{{ sample.said }}</dd>
{%- endif %}
{%- if sample.reference %}
<dt>reference</dt><dd lang="zh">{{ sample.reference }}</dd>
{%- endif %}
{%- for text in sample.texts %}
{{ show_text(text) }}
{%- endfor %}
</dl>
</article>
{%- endmacro -%}
"""
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="xllm-speech {{ version }}">
<title>{{ name }}: report</title>
<link rel="icon" href="data:,">
<style>{{ css }}</style>
</head>
<body>
<header><div>
<h1>{{ name }}</h1>
<p class="soft">Multimodal speech recognition with a language model: results, trainings, alignments, samples and cost.
Made from <code>{{ folder }}</code> on {{ date }}.</p>
{%- if tiles %}
<dl class="tiles">
{%- for tile in tiles %}
<div class="tile"><dt>{{ tile.title }}</dt><dd>{{ tile.value }}<small class="soft">{{ tile.small }}</small></dd></div>
{%- endfor %}
</dl>
{%- endif %}
</div></header>
<nav aria-label="sections"><div>
{%- for section in sections %}
<a href="#{{ section.id }}">{{ section.title }}</a>
{%- endfor %}
</div></nav>
"""
_BODY = """<main>
{%- for section in sections %}
<section id="{{ section.id }}">
<h2>{{ section.title }}</h2>
{%- for text in section.absent %}
<p class="absent">
{%- for part in text.split('`') %}{% if loop.index0 % 2 %}<code>{{ part }}</code>{% else %}{{ part }}{% endif %}{% endfor -%}
</p>
{%- endfor %}
{%- for table in section.tables %}
{%- if loop.first and section.beside %}
<div class="lead"><div>
{{ show_table(table) }}
</div><figure class="card">{{ section.beside }}</figure></div>
{%- else %}
{{ show_table(table) }}
{%- endif %}
{%- endfor %}
{%- if section.figures %}
<div class="grid">
{%- for title, figure in section.figures %}
<figure class="card"><figcaption>{{ title }}</figcaption>{{ figure }}</figure>
{%- endfor %}
</div>
{%- endif %}
{%- for group in section.groups %}
<h3>{{ group.title[0]|upper }}{{ group.title[1:] }}</h3>
<p class="note samples">{{ group.note }}</p>
<div class="{{ group.layout }}">
{%- for sample in group.samples %}
{{ show_sample(sample) }}
{%- endfor %}
</div>
{%- endfor %}
{%- if section.details %}
<details><summary>{{ section.details_title }}</summary>
{%- for table in section.details %}
{{ show_table(table) }}
{%- endfor %}
</details>
{%- endif %}
{%- if section.items %}
<ul>
{%- for where, what in section.items %}
<li><code>{{ where }}</code>: {{ what }}</li>
{%- endfor %}
</ul>
{%- endif %}
</section>
{%- endfor %}
<footer>Written by <code>xllm-speech report</code>, version {{ version }}. The page holds all that it shows; nothing is
fetched.</footer>
</main>
</body>
</html>
"""
HTML = _MACROS + _HEAD + _BODY
