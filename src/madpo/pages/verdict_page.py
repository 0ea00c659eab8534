"""A verdict as one HTML page: what was compared, what can be said of it, and what speaks against it."""

from collections.abc import Iterable, Iterator
from html import escape

from madpo.evaluation.report import Comparison, Estimate
from madpo.evaluation.verdict import Measured, PolicyVerdict, Verdict
from madpo.pages import svg
from madpo.pages.style import page

_COLUMNS = (
    "reward",
    "against the start",
    "wins",
    "against the first policy",
    "KL, nats",
    "tokens",
    "finished",
    "implicit accuracy",
)


def render_verdict(verdict: Verdict) -> str:
    """The whole page."""
    body = "".join(
        [
            f"<h1>{escape(verdict.name)}</h1>",
            f'<section id="verdict">{"".join(map(_line, verdict.sentences))}</section>',
            f'<p class="soft">Rewards are logits of the reward model {escape(verdict.reward_model)}: higher is '
            "better for it, not always for people. Intervals are 95 %, bootstrapped over prompts; each "
            "stands alone, so that of many policies some look ahead by chance.</p>",
            _warnings(verdict.warnings),
            _table(verdict),
            _plots(verdict),
            _rounds(verdict.policies),
            _examples(verdict),
            _cost(verdict),
            _policies(verdict.policies),
        ]
    )
    return page(f"{verdict.name}: verdict", body)


def _line(sentence: str) -> str:
    return f'<p class="verdict">{escape(sentence)}</p>'


def _warnings(warnings: Iterable[str]) -> str:
    listed = "".join(f'<li class="warning">{escape(warning)}</li>' for warning in warnings)
    return f'<h2>Warnings</h2><ul id="warnings">{listed}</ul>' if listed else ""


def _table(verdict: Verdict) -> str:
    head = "".join(f'<th class="n">{name}</th>' for name in _COLUMNS)
    rows = "".join(_row(each) for each in (verdict.start, *(policy.measured for policy in verdict.policies)))
    return (
        f'<h2>Policies</h2><div class="scroll"><table id="policies"><tr><th></th>{head}</tr>{rows}</table></div>'
        '<p class="soft">wins: share of responses the reward model scores higher than the start\'s to the same prompt, '
        "ties half.</p>"
    )


def _row(measured: Measured) -> str:
    start, accuracy = measured.against_start, measured.accuracy
    cells = (
        _estimate(measured.reward),
        _comparison(start),
        "" if start is None else _with_interval(f"{start.win_rate:.1%}", start.win_rate_ci, "{:.1%}"),
        _comparison(measured.against_first),
        "" if measured.kl is None else _estimate(measured.kl),
        f"{measured.response_tokens.mean:.4g}",
        f"{measured.finished_ratio:.1%}",
        "" if accuracy is None else _with_interval(f"{accuracy.accuracy:.1%}", accuracy.ci, "{:.1%}"),
    )
    figures = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f"<tr><td>{escape(measured.name)}</td>{figures}</tr>"


def _comparison(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    return _with_interval(f"{comparison.difference:+.3g}", comparison.difference_ci, "{:+.3g}")


def _estimate(estimate: Estimate) -> str:
    return _with_interval(f"{estimate.mean:.3g}", estimate.ci, "{:.3g}")


def _with_interval(value: str, interval: tuple[float, float] | None, form: str) -> str:
    if interval is None:
        return value
    return f'{value}<div class="soft">{form.format(interval[0])} to {form.format(interval[1])}</div>'


def _plots(verdict: Verdict) -> str:
    """Reward against KL, of the start and every policy, with the rounds on the way."""
    points = [_point(each, name) for name, each in _measured(verdict) if each.kl is not None]
    if len(points) < 2:
        return ""
    plot = svg.scatter("reward against KL", points, x_label="KL to the start, nats", y_label="reward")
    note = "up is better for the reward model; at the same KL two policies are as far from the start"
    return (
        '<h2>Frontier</h2><div class="plots" id="frontier"><figure><figcaption><b>Reward against KL</b> '
        f"{note}</figcaption>{plot}</figure></div>"
    )


def _measured(verdict: Verdict) -> Iterator[tuple[str, Measured]]:
    yield verdict.start.name, verdict.start
    for policy in verdict.policies:
        for number, each in enumerate(policy.rounds[:-1], start=1):
            yield f"{policy.name} {number}", each
        yield policy.name, policy.measured


def _point(measured: Measured, name: str) -> svg.Point:
    assert measured.kl is not None
    return svg.Point(name, measured.kl.mean, measured.reward.mean, measured.kl.ci, measured.reward.ci)


def _rounds(policies: Iterable[PolicyVerdict]) -> str:
    tables = []
    for policy in policies:
        if policy.rounds:
            rows = "".join(
                f'<tr><td>{number}</td><td class="n">{_estimate(each.reward)}</td>'
                f'<td class="n">{"" if each.kl is None else _estimate(each.kl)}</td>'
                f'<td class="n">{each.finished_ratio:.1%}</td></tr>'
                for number, each in enumerate(policy.rounds, start=1)
            )
            head = "".join(f'<th class="n">{name}</th>' for name in ("reward", "KL, nats", "finished"))
            tables.append(f"<h3>{escape(policy.name)}</h3><table><tr><th>round</th>{head}</tr>{rows}</table>")
    return f'<h2>Rounds</h2><section id="rounds">{"".join(tables)}</section>' if tables else ""


def _examples(verdict: Verdict) -> str:
    shown = []
    for example in verdict.examples:
        rows = "".join(
            f'<tr><td>{escape(name)}</td><td class="n">{example.rewards[name]:.3g}</td>'
            f"<td><pre>{escape(text)}</pre></td></tr>"
            for name, text in example.responses.items()
        )
        head = '<tr><th></th><th class="n">reward</th><th>response</th></tr>'
        shown.append(f"<details open><summary>{escape(example.prompt)}</summary><table>{head}{rows}</table></details>")
    return f'<h2>Side by side</h2><section id="examples">{"".join(shown)}</section>' if shown else ""


def _cost(verdict: Verdict) -> str:
    cost = verdict.cost
    figures = {
        "of jobs' work": _span(cost.job_seconds),
        "in optimizer steps": _span(cost.training_seconds),
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


def _policies(policies: Iterable[PolicyVerdict]) -> str:
    rows = "".join(
        f"<tr><td>{escape(policy.name)}</td><td><code>{escape(policy.method)}</code></td>"
        f"<td>{escape(', '.join(f'{name} {value}' for name, value in policy.params.items()))}</td>"
        f'<td class="n">{policy.seed}</td><td><code>{escape(policy.model_id or "")}</code></td></tr>'
        for policy in policies
    )
    head = '<tr><th></th><th>method</th><th>parameters</th><th class="n">seed</th><th>model</th></tr>'
    return f'<h2>Models</h2><div class="scroll"><table id="models">{head}{rows}</table></div>'
