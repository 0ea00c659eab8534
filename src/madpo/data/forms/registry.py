"""All forms, and which of them a row has. It depends on the row alone, never on its neighbours or on any order.

To add a form, write it in a module of this package; every module is looked at.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import NoReturn

from madpo.data.columns import PAIR_COLUMNS, ROW_COLUMNS
from madpo.data.forms.form import Form
from madpo.data.raw_row import RawRow
from madpo.discovery import declared_by_name

_MOST_COLUMNS = 20
"""Names of columns in one message."""
_OTHER_MODULES = ("form", "implicit", "registry", "system")

_UNSUPPORTED = (
    ({"images"}, "holds images, which models here do not read"),
    ({"image"}, "holds an image, which models here do not read"),
    ({"videos"}, "holds videos, which models here do not read"),
    ({"label", "completion"}, "marks single completions as good or bad; pairs are needed: chosen and rejected"),
    ({"labels", "completions"}, "marks the steps of a completion; pairs are needed: chosen and rejected"),
    ({"chosen_ids"}, "holds token ids; give text or messages, for every model has its own tokens"),
    ({"chosen_input_ids"}, "holds token ids; give text or messages, for every model has its own tokens"),
    ({"ref_chosen_logps"}, "holds log-probabilities of a reference unknown here; leave it unread: it is computed"),
)
"""Columns that some trainers read and we do not: to leave them out in silence would train on something else."""

_NEEDED = (
    "give prompt, chosen and rejected to compare; prompt and completion, messages, conversations, instruction and "
    "output, or text to learn from; prompt alone to ask"
)
_MEANT = {
    "prompt": ("question", "query", "instruction", "input", "ask", "user"),
    "completion": ("response", "answer", "output", "target", "reply", "assistant"),
    "chosen": ("preferred", "accepted", "winner", "better", "best", "positive", "good", "response_chosen"),
    "rejected": ("dispreferred", "loser", "worse", "worst", "negative", "bad", "response_rejected"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "text": ("content", "document", "body"),
}
"""Other names that people have for columns, to be asked about."""

_PROMPTS = frozenset({"prompt", "question", "instruction", "input", "context", "conversations"})
_FOUND = declared_by_name("madpo.data.forms", Form, besides=_OTHER_MODULES)

FORMS: Mapping[str, Form] = MappingProxyType(dict(sorted(_FOUND.items())))

SIGNATURES: frozenset[str] = frozenset().union(*(form.requires for form in FORMS.values() if not form.gives_way))
"""Columns that say of which form a row is."""

WEAK_SIGNATURES: frozenset[str] = (
    frozenset().union(*(form.requires for form in FORMS.values() if form.gives_way)) - SIGNATURES
)
"""Columns that do so where no form fits by the others."""

KNOWN_COLUMNS: frozenset[str] = frozenset(
    {
        *SIGNATURES,
        *WEAK_SIGNATURES,
        *PAIR_COLUMNS,
        *ROW_COLUMNS,
        "history",
        *(name for names, _ in _UNSUPPORTED for name in names),
    }
)
"""Columns that are read at all."""


def detect(row: RawRow) -> Form:
    """The form of a row.

    Raises:
        InvalidPairError: It has none, or could have several; names them.
    """
    for names, reason in _UNSUPPORTED:
        if all(row.values.get(name) not in (None, []) for name in names):
            row.refuse(min(names), reason)
    given = SIGNATURES & row.values.keys()
    fits = [form for form in FORMS.values() if not form.gives_way and _fits(form, given, row)]
    if not fits:
        weakly = given | (WEAK_SIGNATURES & row.values.keys())
        fits = [form for form in FORMS.values() if form.gives_way and _fits(form, weakly, row)]
    if not fits:
        _explain(given, row)
    if len(fits) > 1:
        row.refuse("", f"could be {_listed(fits)}: say which columns are meant (map them, or leave some unread)")
    return fits[0]


def _fits(form: Form, given: frozenset[str], row: RawRow) -> bool:
    if not form.requires <= given <= form.requires | form.allows:
        return False
    return form.accepts(row) and not (form.is_implicit and _PROMPTS & row.nulls)


def _explain(given: frozenset[str], row: RawRow) -> NoReturn:
    """Refuse a row, naming what is missing or too much."""
    if not given:
        row.refuse("", f"has no column that says what it is: {_NEEDED}{_unread(_MEANT, row)}")
    if "completions" in given and "prompt" in row:
        row.refuse("completions", _meant_by_completions(row))
    nulls = sorted(_PROMPTS & row.nulls)
    implicit = [form for form in FORMS.values() if form.is_implicit and form.requires <= given and form.accepts(row)]
    if nulls and implicit:
        row.refuse(
            nulls[0], f"is null (to take the prompt from the responses, {implicit[0].name}, leave {nulls[0]} unread)"
        )
    overlap = max(len(form.requires & given) for form in FORMS.values() if not form.gives_way)
    nearest = [form for form in FORMS.values() if len(form.requires & given) == overlap and not form.gives_way]
    whole = [form for form in nearest if form.requires <= given and form.accepts(row)]
    if not whole:
        form = min(nearest, key=lambda form: (len(form.requires - given), form.name))
        missing = min(form.requires - given, default="")
        names = " or ".join(other.name for other in nearest if other.requires == form.requires)
        columns = ", ".join(sorted(form.requires))
        reason = f"{'is missing for' if missing else 'does not fit'} {names} ({columns})"
        row.refuse(missing, f"{reason}{_unread(sorted(form.requires - given), row)}")
    left = sorted(given - whole[0].requires - whole[0].allows)
    if len(whole) == 1 and left:
        row.refuse(left[0], f"is left over by {_listed(whole)}: leave it unread, or say which columns are meant")
    row.refuse("", f"could be {_listed(whole)}: say which columns are meant (map them, or leave some unread)")


def _meant_by_completions(row: RawRow) -> str:
    """Of a column that is read beside `context` alone, in a row with a prompt."""
    value, given, prompt = row["completions"], row.name("completions"), row.name("prompt")
    if isinstance(value, str):
        return f"is one text: is it the completion? (--map completion={given})"
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return f"goes with a column context, as nemo-rl has them: is {prompt} that one? (--map context={prompt})"
    return (
        f"goes with a column context, as nemo-rl has them; several responses to a prompt are {{prompt, responses, "
        f"scores}}: with a column of scores --map responses={given}; without, give chosen and rejected"
    )


def _unread(missing: Iterable[str], row: RawRow) -> str:
    """What the row has that is not read, and which of it may be what is missing."""
    if not row.unread:
        return ""
    found: dict[str, str] = {}
    for ours in missing:
        like = [given for given in row.unread if given.lower() in _MEANT.get(ours, ())]
        like += get_close_matches(row.name(ours), row.unread, n=1, cutoff=0.7)
        if like and like[0] not in found.values():
            found[ours] = like[0]
    columns = ", ".join(sorted(row.unread)[:_MOST_COLUMNS])
    if not found:
        return f"; not read: {columns:.500}; map one of them, if it is meant"
    mapped = " ".join(f"--map {ours}={given}" for ours, given in found.items())
    meant = f"{'is' if len(found) == 1 else 'are'} {' and '.join(found.values())} meant"
    return f"; not read: {columns:.500}; {meant}? ({mapped:.500})"


def _listed(forms: Iterable[Form]) -> str:
    return " or ".join(f"{form.name} ({', '.join(sorted(form.requires))})" for form in forms)
