"""The report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape

from madpo.data.check.report import CheckReport, Finding, LengthBias, Phrase, RenderedExample, TokenFigures
from madpo.pages import svg
from madpo.pages.style import page

_VERDICTS = {
    "clean": "Clean: nothing was found that should stop a training.",
    "warnings": "Usable, with warnings worth a look.",
    "refused": "Refused: it cannot be trained on as it is.",
}


def render_page(report: CheckReport) -> str:
    """The whole page."""
    body = "".join(
        [
            f"<h1>{escape(report.name)}</h1>",
            f'<p class="verdict {report.verdict}">{_VERDICTS[report.verdict]}</p>',
            _cards(report),
            _forms(report),
            _findings(report.findings),
            _bias(report),
            _lengths(report),
            "" if report.tokens is None else _tokens(report.tokens),
            _texts(report),
        ]
    )
    return page(f"{report.name}: dataset check", body)


def _cards(report: CheckReport) -> str:
    rows, duplicates = report.rows, report.duplicates
    figures = {
        "rows read": f"{rows.read:,}",
        "kept": f"{rows.kept:,}",
        "refused": f"{rows.refused:,}",
        "distinct prompts": f"{duplicates.distinct_prompts:,}",
        "duplicates": f"{duplicates.exact:,}",
        "near-duplicates": f"{duplicates.near:,}",
        "contradictory pairs": f"{duplicates.contradictory:,}",
    }
    if report.leakage is not None:
        figures["held-out prompts found"] = f"{report.leakage.exact:,} + {report.leakage.near:,} near"
    cards = "".join(f'<div class="card"><b>{value}</b>{name}</div>' for name, value in figures.items())
    return f'<section class="cards" id="figures">{cards}</section>'


def _forms(report: CheckReport) -> str:
    return "".join(
        f"<p>{form.rows:,} rows have the form <b>{escape(form.name)}</b>: "
        + ", ".join(f"{escape(ours)} from <code>{escape(theirs)}</code>" for ours, theirs in form.columns.items())
        + ".</p>"
        for form in report.rows.forms
    )


def _findings(findings: Iterable[Finding]) -> str:
    rows = "".join(map(_finding, findings))
    if not rows:
        return '<h2>Findings</h2><p id="findings">None.</p>'
    head = '<tr><th></th><th>What</th><th class="n">Rows</th></tr>'
    return f'<h2>Findings</h2><table id="findings">{head}{rows}</table>'


def _finding(finding: Finding) -> str:
    listed = ", ".join(f"{row:,}" for row in finding.rows)
    more = ", ..." if finding.count > len(finding.rows) else ""
    title = finding.title if finding.code == "refused" else finding.title[:1].upper() + finding.title[1:]
    parts = [escape(title)]
    if finding.advice:
        parts.append(f'<div class="soft">{escape(finding.advice[:1].upper() + finding.advice[1:])}.</div>')
    if finding.rows:
        parts.append(f'<div class="rows">rows {listed}{more}</div>')
    if finding.example:
        parts.append(f"<details><summary>First of them</summary><pre>{escape(finding.example)}</pre></details>")
    return (
        f'<tr data-code="{escape(finding.code)}"><td class="{finding.severity}">{finding.severity}</td>'
        f'<td>{"".join(parts)}</td><td class="n">{finding.count:,}</td></tr>'
    )


def _bias(report: CheckReport) -> str:
    found = [bias for bias in (report.length_bias, report.tokens and report.tokens.length_bias) if bias]
    if not found:
        return ""
    plot = svg.bars("how often the longer response is chosen", [_bias_bar(bias) for bias in found])
    return (
        '<h2>Length bias</h2><p class="soft">How often the longer response is the chosen one; without a bias, half of '
        f'the time. Pairs of equal length are left out.</p><div class="plots" id="length-bias">{plot}</div>'
    )


def _bias_bar(bias: LengthBias) -> tuple[str, float, str]:
    text = f"{bias.longer_chosen_ratio:.1%} ({bias.low:.1%}-{bias.high:.1%})"
    return f"in {bias.unit}", bias.longer_chosen_ratio, text


def _lengths(report: CheckReport) -> str:
    plots = svg.histogram("length", report.text.characters, unit="characters")
    if report.text.turns is not None:
        plots += svg.histogram("messages", {"messages per prompt": report.text.turns}, unit="messages")
    if not plots:
        return ""
    note = "The dashed line is the median; the last bar holds everything up to the largest."
    return f'<h2>Lengths in characters</h2><p class="soft">{note}</p><div class="plots" id="characters">{plots}</div>'


def _texts(report: CheckReport) -> str:
    text = report.text
    plots = [
        _counts("Scripts", text.scripts, "rows by the script most letters are in"),
        _counts("Roles", text.roles, "messages by role"),
        _phrases("Orders of roles", text.role_sequences),
        *(_phrases(f"First words of {name}", words) for name, words in text.first_words.items()),
        _counts("Personal data", report.personal, "rows with what looks like it; never shown"),
    ]
    shown = "".join(plot for plot in plots if plot)
    notes = [
        f"{text.system_prompts:,} rows have a system prompt ({text.distinct_system_prompts:,} different, "
        f"{text.empty_system_prompts:,} empty)."
    ]
    if text.shared_first_word_ratio is not None:
        notes.append(f"In {text.shared_first_word_ratio:.1%} of the pairs both responses begin with the same word.")
    return f'<h2>Texts</h2><p>{" ".join(notes)}</p><div class="plots" id="texts">{shown}</div>'


def _counts(title: str, counts: Mapping[str, int], note: str) -> str:
    total = max(counts.values(), default=0)
    shares = [(name, count / total, f"{count:,}") for name, count in list(counts.items())[:8]]
    return _figure(title, note, svg.bars(title, shares)) if shares else ""


def _phrases(title: str, phrases: Iterable[Phrase]) -> str:
    shares = [(phrase.text or "(nothing)", phrase.ratio, f"{phrase.ratio:.1%}") for phrase in phrases]
    return _figure(title, "the most frequent", svg.bars(title, shares)) if shares else ""


def _figure(title: str, note: str, plot: str) -> str:
    return f"<figure><figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>{plot}</figure>"


def _tokens(tokens: TokenFigures) -> str:
    plots = svg.histogram("tokens", tokens.lengths, unit="tokens", mark=tokens.max_tokens)
    if tokens.shared_response_prefix is not None:
        shared = {"leading tokens both responses share": tokens.shared_response_prefix}
        plots += svg.histogram("shared prefix", shared, unit="tokens")
    return "".join(
        [
            f'<h2>Tokens</h2><p class="soft">By the tokenizer of {escape(tokens.model)}; its chat template is '
            f"{tokens.template_sha256[:12]}. The red line is max_tokens, {tokens.max_tokens:,}.</p>",
            f'<div class="plots" id="tokens">{plots}</div>',
            _overlong(tokens),
            _template(tokens),
            "<h3>What the model sees</h3><p>The loss is taken on the <mark>marked</mark> tokens.</p>",
            *map(_example, tokens.examples),
        ]
    )


def _overlong(tokens: TokenFigures) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{'training refused' if outcome.refused else 'trains'}</td>"
        f'<td class="n">{outcome.kept:,}</td><td class="n">{outcome.truncated:,}</td>'
        f'<td class="n">{outcome.dropped:,}</td><td class="n">{outcome.lost_tokens:,}</td></tr>'
        for name, outcome in tokens.overlong.items()
    )
    head = "".join(f'<th class="n">{name}</th>' for name in ("kept", "truncated", "dropped", "tokens lost"))
    return (
        f"<h3>Rows over max_tokens={tokens.max_tokens:,}, by policy</h3>"
        f'<table id="overlong"><tr><th>overlong</th><th></th>{head}</tr>{rows}</table>'
    )


def _template(tokens: TokenFigures) -> str:
    if not tokens.template:
        return ""
    rows = "".join(
        f'<tr><td class="{"clean" if check.passed else "error"}">{"ok" if check.passed else "fails"}</td>'
        f"<td>{escape(check.name)}</td><td>{escape(check.detail)}</td></tr>"
        for check in tokens.template
    )
    return f'<h3>Chat template</h3><table id="template">{rows}</table>'


def _example(example: RenderedExample) -> str:
    spans = "".join(_spans(example))
    caption = f"row {example.row}, {example.side}: {example.tokens:,} tokens, {example.loss_tokens:,} in the loss"
    return f'<figure class="example"><figcaption>{caption}</figcaption><pre>{spans}</pre></figure>'


def _spans(example: RenderedExample) -> Iterator[str]:
    for span in example.spans:
        yield f"<mark>{escape(span.text)}</mark>" if span.in_loss else escape(span.text)
