"""The report of an audit as one page of HTML that needs nothing else."""

from collections.abc import Mapping
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Contamination audit</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1d2330; background: #fff }
h1 { font-size: 1.5rem } h1 small { color: #5b6472; font-weight: normal; font-size: 1rem }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0 }
.figures div { border: 1px solid #d8dce3; border-radius: .5rem; padding: .5rem 1rem;
  min-width: 8rem }
.figures b { display: block; font-size: 1.4rem }
.warning { border-left: 4px solid #c77700; background: #fff6e5; padding: .5rem 1rem;
  margin: .5rem 0 }
details { border: 1px solid #d8dce3; border-radius: .5rem; margin: .5rem 0; padding: .4rem .8rem }
summary { cursor: pointer } pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0;
  padding: .5rem; background: #f5f6f8; border-radius: .3rem;
  font: 13px/1.45 ui-monospace, monospace }
.tag { display: inline-block; min-width: 4.2rem; text-align: center; border-radius: 1rem;
  color: #fff; padding: 0 .6rem; margin-right: .6rem }
.learnt { background: #b3261e } .present { background: #9a6700 } .clean { background: #4f6f52 }
.dim { color: #5b6472; font-size: .9rem }
</style>
<h1>Contamination audit <small>{{ benchmark.verdict }}</small></h1>
<div class="figures">
<div><b>{{ benchmark.flagged }} / {{ benchmark.problems }}</b>problems flagged</div>
<div><b>{{ benchmark.learnt }}</b>learnt</div>
<div><b>{{ benchmark.present }}</b>merely present</div>
<div><b>{{ "%.1f" | format(100 * benchmark.leaked_share) }} %</b>leaked, 95 %:
 {{ "%.1f" | format(100 * benchmark.leaked_share_ci95[0]) }} to
 {{ "%.1f" | format(100 * benchmark.leaked_share_ci95[1]) }}</div>
<div><b>{{ "%.1f" | format(benchmark.expected_false_alarms) }}</b>false alarms at most, on
 average</div>
</div>
<p class="dim">{{ settings.train }} training rows; {{ settings.clean }} clean problems for
comparison; a clean problem is flagged with a chance of {{ settings.rate }} at most.
{% if control.rows %}Of {{ control.rows }} training rows that were asked as if they were problems,
{{ "%.0f" | format(100 * control.flagged) }} % are flagged, and
{{ "%.0f" | format(100 * control.by_effect) }} % are told by their effect alone.{% endif +%}
An effect is by how much the answer's loss would rise without the rows, in units of what the
problem's typical group of rows does to it.</p>
{% for warning in warnings %}<p class="warning">{{ warning }}</p>
{% endfor %}
{% for own in problems %}{% if own.verdict != "clean" or loop.index <= 10 %}
<details{% if own.verdict != "clean" and loop.index <= 3 %} open{% endif %}>
<summary><span class="tag {{ own.verdict }}">{{ own.verdict }}</span>{{ own.id }}
 <span class="dim">p {{ "%.3f" | format(own.p) }} · words {{ "%.0f" | format(100 * own.overlap) }} %
 · loss {{ "%.2f" | format(own.loss_per_token) }} nats a token · effect
 {{ "%.1f" | format(own.times) }} ×</span></summary>
<pre>{{ own.text }}</pre>
{% for one in own.replicas %}
<div class="dim">{{ one.copies }} {{ "row" if one.copies == 1 else "copies" }}
 ({{ one.rows | map("join", "; ") | join(", ") }}), words
 {{ "%.0f" | format(100 * one.overlap) }} %, effect
 {{ "%.1f" | format(one.times) }} ×</div>
<pre>{{ one.text }}</pre>
{% endfor %}</details>
{% endif %}{% endfor %}
<p class="dim">Of problems without any sign, those among the ten most suspicious of all are shown;
the JSON report has every one.</p>
</html>
"""


def page(report: Mapping[str, Any]) -> str:
    """A report (`audit_report.report`) as a page; texts of data can't change it.

    >>> none = {"verdict": "<b>", "flagged": 0, "problems": 1, "learnt": 0, "present": 0,
    ...     "leaked_share": 0.0, "leaked_share_ci95": (0.0, 0.1), "expected_false_alarms": 0.0}
    >>> rest = {"control": {"rows": 0}, "warnings": [], "problems": []}
    >>> settings = {"train": 5, "clean": 99, "rate": 0.02}
    >>> "<small>&lt;b&gt;</small>" in page({"benchmark": none, "settings": settings, **rest})
    True
    """
    from jinja2 import Environment, StrictUndefined

    own = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return own.from_string(_PAGE).render(**report)
