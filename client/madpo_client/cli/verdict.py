"""A verdict on a terminal: figures side by side, and what can be said of them."""

from functools import partial

from rich.text import Text

from madpo.evaluation.verdict import Measured, Verdict, figure
from madpo_client.cli.output import Column, console, table


def show_verdict(verdict: Verdict) -> None:
    """Figures, sentences and warnings."""
    out = console()
    metrics = verdict.metrics
    columns = (
        Column("", lambda each: each.name),
        *(
            Column(name, partial(_score, metric=name), rank=0 if name == verdict.metric else 7, is_right=True)
            for name in metrics
        ),
        Column("against start", lambda each: _difference(each, "against_start"), rank=1, is_right=True),
        Column("wins", lambda each: "" if each.against_start is None else f"{each.against_start.win_rate:.1%}", rank=2),
        Column("against first", lambda each: _difference(each, "against_first"), rank=3, is_right=True),
        Column("KL, nats", lambda each: "" if each.kl is None else f"{each.kl.mean:.3g}", rank=4, is_right=True),
        Column("tokens", lambda each: f"{each.response_tokens.mean:.4g}", rank=6, is_right=True),
        Column("finished", lambda each: f"{each.finished_ratio:.1%}", rank=5, is_right=True),
    )
    out.print()
    table([verdict.start, *(policy.measured for policy in verdict.policies)], columns, as_json=False)
    out.print()
    for sentence in verdict.sentences:
        out.print(Text(sentence), soft_wrap=True)
    for seeds in verdict.seeds:
        out.print(Text(f"{seeds.name}: {seeds}"), soft_wrap=True)
    for warning in verdict.warnings:
        out.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _score(measured: Measured, *, metric: str) -> str:
    return figure(measured.score(metric))


def _difference(measured: Measured, name: str) -> str:
    comparison = getattr(measured, name)
    if comparison is None:
        return ""
    if comparison.difference_ci is None:
        return f"{comparison.difference:+.3g}"
    low, high = comparison.difference_ci
    return f"{comparison.difference:+.3g} ({low:+.3g} to {high:+.3g})"
