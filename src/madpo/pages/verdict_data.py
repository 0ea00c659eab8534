"""Of a verdict's page: what the data did, and what is wrong with them."""

from collections.abc import Iterable, Iterator
from html import escape

from madpo.evaluation.verdict import DataFinding, PairShown, PairsThatMattered


def pairs(found: Iterable[PairsThatMattered]) -> Iterator[str]:
    """The pairs that mattered, a section for each policy."""
    shown = "".join(map(_of_policy, found))
    if shown:
        yield f'<h2>Pairs that mattered</h2><section id="pairs">{shown}</section>'


def _of_policy(found: PairsThatMattered) -> str:
    contradicted = (
        f"The reward model contradicts the label of {found.contradicted_ratio:.1%} of {found.pairs:,} pairs; they had "
        f"{found.contradicted_weight_ratio:.1%} of all weight."
        if found.contradicted_ratio
        else f"The reward model contradicts none of the {found.pairs:,} pairs."
    )
    return (
        f"<h3>{escape(found.policy)}</h3><p>{contradicted}</p>"
        + _list("Largest weights", found.heaviest)
        + _list("Contradicted most", found.contradicted)
    )


def _list(title: str, shown: Iterable[PairShown]) -> str:
    items = "".join(map(_pair, shown))
    return f"<details><summary>{title}</summary>{items}</details>" if items else ""


def _pair(pair: PairShown) -> str:
    figures = f"reward margin {pair.reward_margin:+.3g}, weight {pair.weight:.3g}, implicit margin "
    figures += f"{pair.implicit_margin:+.3g}"
    return (
        f'<p class="rows">row {pair.row:,}: {figures}</p><pre>{escape(pair.prompt)}\n\n'
        f"<b>+</b> {escape(pair.chosen)}\n<b>-</b> {escape(pair.rejected)}</pre>"
    )


def findings(found: Iterable[DataFinding]) -> str:
    """What checks of the datasets found, the worst first."""
    order = ("error", "warning", "info")
    rows = "".join(map(_finding, sorted(found, key=lambda each: order.index(each.severity))))
    if not rows:
        return '<h2>Data</h2><p id="data">The checks of the datasets found nothing.</p>'
    head = '<tr><th></th><th>dataset</th><th>what</th><th class="n">rows</th></tr>'
    return f'<h2>Data</h2><div class="scroll"><table id="data">{head}{rows}</table></div>'


def _finding(found: DataFinding) -> str:
    said = escape(found.title[:1].upper() + found.title[1:])
    if found.advice:
        said += f'<div class="soft">{escape(found.advice[:1].upper() + found.advice[1:])}.</div>'
    if found.rows:
        more = ", ..." if found.count > len(found.rows) else ""
        said += f'<div class="rows">rows {", ".join(f"{row:,}" for row in found.rows)}{more}</div>'
    return (
        f'<tr><td class="{found.severity}">{found.severity}</td><td>{escape(found.dataset)}</td><td>{said}</td>'
        f'<td class="n">{found.count:,}</td></tr>'
    )
