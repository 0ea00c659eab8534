"""A verdict as one HTML page: what was compared, what can be said of it, and what speaks against it."""

from collections.abc import Iterable
from html import escape
from itertools import starmap

from madpo.evaluation.report import Comparison, Estimate
from madpo.evaluation.verdict import REWARD, Measured, PolicyVerdict, Verdict, figure
from madpo.pages import svg, verdict_data
from madpo.pages.style import page

_OPEN = 2
"""Examples that are unfolded."""


def render_verdict(verdict: Verdict) -> str:
    """The whole page."""
    body = "".join(
        [
            f"<h1>{escape(verdict.name)}</h1>",
            _sentences(verdict),
            _warnings(verdict.warnings),
            _table(verdict),
            _seeds(verdict),
            _frontier(verdict),
            _rounds(verdict),
            _examples(verdict),
            "".join(verdict_data.pairs(verdict.pairs)),
            verdict_data.findings(verdict.data),
            _cost(verdict),
            _policies(verdict.policies),
        ]
    )
    return page(f"{verdict.name}: verdict", f'<main class="several">{body}</main>')


def _sentences(verdict: Verdict) -> str:
    said = "".join(map(_sentence, verdict.sentences))
    undecided = "; ".join(verdict.undecided)
    if undecided:
        said += f'<p id="undecided"><b>Not significant:</b> {escape(undecided)} cannot be told apart here.</p>'
    judged = "" if verdict.metric == REWARD else f"Policies are compared by {escape(verdict.metric)}. "
    return (
        f'<section id="verdict">{said}</section><p class="soft">{judged}Rewards are logits of the reward model '
        f"{escape(verdict.reward_model)}: higher is better for it, not always for people. Intervals are 95 %, "
        "bootstrapped over prompts; each stands alone, so that of many policies some look ahead by chance.</p>"
    )


def _sentence(sentence: str) -> str:
    name, said = sentence.split(": ", maxsplit=1)
    return f'<p class="verdict sentence"><b>{escape(name)}</b>: {escape(said)}</p>'


def _warnings(warnings: Iterable[str]) -> str:
    listed = "".join(f'<li class="warning">{escape(warning)}</li>' for warning in warnings)
    return f'<h2>Warnings</h2><ul id="warnings">{listed}</ul>' if listed else ""


def _table(verdict: Verdict) -> str:
    first, *others = verdict.metrics
    columns = (first, "against the start", "wins", "against the first policy", *others, "KL, nats", "tokens")
    columns += ("finished", "implicit accuracy")
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in columns)
    measured = (verdict.start, *(policy.measured for policy in verdict.policies))
    rows = "".join(_row(each, first, others) for each in measured)
    return (
        f'<h2>Policies</h2><div class="scroll"><table id="policies"><tr><th></th>{head}</tr>{rows}</table></div>'
        f'<p class="soft">wins: share of responses with more {escape(first)} than the start\'s to the same prompt, '
        "ties half.</p>"
    )


def _row(measured: Measured, first: str, others: Iterable[str]) -> str:
    start, accuracy = measured.against_start, measured.accuracy
    cells = (
        _estimate(measured.score(first)),
        _comparison(start),
        "" if start is None else _with_interval(f"{start.win_rate:.1%}", start.win_rate_ci, "{:.1%}"),
        _comparison(measured.against_first),
        *(_estimate(measured.score(name)) for name in others),
        "" if measured.kl is None else _estimate(measured.kl),
        f"{measured.response_tokens.mean:.4g}",
        f"{measured.finished_ratio:.1%}",
        "" if accuracy is None else _with_interval(f"{accuracy.accuracy:.1%}", accuracy.ci, "{:.1%}"),
    )
    figures = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f"<tr><th>{escape(measured.name)}</th>{figures}</tr>"


def _seeds(verdict: Verdict) -> str:
    rows = "".join(
        f'<tr><th>{escape(each.name)}</th><td class="n">{len(each.seeds)}</td><td class="n">{each.mean:.3g}</td>'
        f'<td class="n">{each.spread:.2g}</td><td class="n">{each.lowest:.3g} to {each.highest:.3g}</td>'
        f'<td class="n">{_or_nothing(each.kl)}</td><td class="n">{_or_nothing(each.kl_spread)}</td></tr>'
        for each in verdict.seeds
    )
    if not rows:
        return ""
    names = ("seeds", f"mean {verdict.metric}", "spread", "range", "KL, nats", "its spread")
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in names)
    return (
        f'<h2>Over seeds</h2><div class="scroll"><table id="seeds"><tr><th></th>{head}</tr>{rows}</table></div>'
        '<p class="soft">spread: standard deviation between trainings that differ in their seed alone. A difference '
        "between methods that is not clearly larger may be chance, whatever one seed's interval says.</p>"
    )


def _or_nothing(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _comparison(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    return _with_interval(f"{comparison.difference:+.3g}", comparison.difference_ci, "{:+.3g}")


def _estimate(estimate: Estimate) -> str:
    return _with_interval(figure(estimate), estimate.ci, "{:.3g}")


def _with_interval(value: str, interval: tuple[float, float] | None, form: str) -> str:
    if interval is None:
        return value
    return f'{value}<div class="soft">{form.format(interval[0])} to {form.format(interval[1])}</div>'


def _frontier(verdict: Verdict) -> str:
    """Score against KL: the start, and the way of every policy over its checkpoints and rounds."""
    ways = {policy.name: _way(policy, verdict.metric) for policy in verdict.policies}
    ways = {name: way for name, way in ways.items() if way}
    if not ways or verdict.start.kl is None:
        return ""
    plot = svg.paths(
        f"{verdict.metric} against KL",
        _point(verdict.start, verdict.metric, is_end=True),
        list(ways.values()),
        x_label="KL to the start, nats",
        y_label=verdict.metric,
    )
    legend = "".join(
        f'<li class="{svg.series(number)}">{escape(name)}</li>'
        for number, name in enumerate([verdict.start.name, *ways])
    )
    return (
        f'<h2>Frontier</h2><figure class="wide" id="frontier"><figcaption>{_what_is_drawn(verdict)}</figcaption>'
        f'<ul class="legend">{legend}</ul>{plot}</figure>'
    )


def _what_is_drawn(verdict: Verdict) -> str:
    said = f"<b>{escape(verdict.metric)} against KL.</b> Higher is better; at the same KL two policies are as far from "
    said += "the start."
    checkpoints = [each for policy in verdict.policies for each in policy.checkpoints]
    if checkpoints or any(len(policy.path) > 1 for policy in verdict.policies):
        said += " Hollow: on the way."
    fewer = {each.prompts for each in checkpoints} - {verdict.start.prompts, None}
    if fewer:
        said += f" Checkpoints answered the first {', '.join(map(str, fewer))} prompts alone."
    return said


def _way(policy: PolicyVerdict, metric: str) -> list[svg.Point]:
    last = policy.measured.evaluation_job_id
    measured = [each for each in policy.path if each.kl is not None]
    return [_point(each, metric, is_end=each.evaluation_job_id == last) for each in measured]


def _point(measured: Measured, metric: str, *, is_end: bool) -> svg.Point:
    assert measured.kl is not None
    score, name = measured.score(metric), measured.name
    if measured.round is not None and measured.step is None:
        name += f" after round {measured.round}"
    return svg.Point(name, measured.kl.mean, score.mean, measured.kl.ci, score.ci, is_end=is_end)


def _rounds(verdict: Verdict) -> str:
    tables = []
    for policy in verdict.policies:
        if policy.rounds:
            rows = "".join(
                f'<tr><td>{number}</td><td class="n">{_estimate(each.score(verdict.metric))}</td>'
                f'<td class="n">{"" if each.kl is None else _estimate(each.kl)}</td>'
                f'<td class="n">{each.finished_ratio:.1%}</td></tr>'
                for number, each in enumerate(policy.rounds, start=1)
            )
            head = "".join(f'<th class="n">{name}</th>' for name in (escape(verdict.metric), "KL, nats", "finished"))
            table = f'<div class="scroll"><table><tr><th>round</th>{head}</tr>{rows}</table></div>'
            tables.append(f"<h3>{escape(policy.name)}</h3>{table}")
    return f'<h2>Rounds</h2><section id="rounds">{"".join(tables)}</section>' if tables else ""


def _examples(verdict: Verdict) -> str:
    shown = []
    for number, example in enumerate(verdict.examples):
        answers = "".join(
            f'<p class="beside"><b>{escape(name)}</b> <span class="soft">{escape(verdict.metric)} '
            f"{example.rewards[name]:.3g}</span></p><pre>{escape(text)}</pre>"
            for name, text in example.responses.items()
        )
        is_open = " open" if number < _OPEN else ""
        shown.append(f"<details{is_open}><summary>{escape(example.prompt)}</summary>{answers}</details>")
    return f'<h2>Side by side</h2><section id="examples">{"".join(shown)}</section>' if shown else ""


def _cost(verdict: Verdict) -> str:
    cost = verdict.cost
    figures = {
        "of jobs' work": _span(cost.job_seconds),
        "in optimizer steps": _span(cost.training_seconds),
        "tokens trained on": f"{cost.trained_tokens:,}",
        "tokens sampled": f"{cost.sampled_tokens:,}",
        "jobs": f"{len(verdict.jobs):,}",
    }
    cards = "".join(f'<div class="card"><b>{value}</b>{name}</div>' for name, value in figures.items())
    return f'<h2>Cost</h2><section class="cards" id="cost">{cards}</section>'


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _parameter(name: str, value: object) -> str:
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _policies(policies: Iterable[PolicyVerdict]) -> str:
    rows = "".join(
        f"<tr><td>{escape(policy.name)}</td><td><code>{escape(policy.method)}</code></td>"
        f"<td>{escape(', '.join(starmap(_parameter, policy.params.items())))}</td>"
        f'<td class="n">{policy.seed}</td><td><code>{escape(policy.model_id or "")}</code></td></tr>'
        for policy in policies
    )
    head = '<tr><th></th><th>method</th><th>parameters</th><th class="n">seed</th><th>model</th></tr>'
    return f'<h2>Models</h2><div class="scroll"><table id="models">{head}{rows}</table></div>'
