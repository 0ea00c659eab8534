"""`madpo methods`: what can be trained, with which parameters, and what its loss is."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from madpo.errors import InvalidArgumentError
from madpo_client.cli.output import AsJson, show, table

app = typer.Typer(invoke_without_command=True, help="List and explain the preference-optimisation methods.")


@app.callback()
def list_methods(context: typer.Context, as_json: AsJson = False) -> None:
    """List the preference-optimisation methods."""
    if context.invoked_subcommand is not None:
        return
    from madpo.losses.registry import METHODS

    rows = [describe(name) for name in METHODS]
    table(rows, ("name", "needs", "summary"), as_json=as_json)


@app.command("show")
def show_method(name: str, as_json: AsJson = False) -> None:
    """Show a method's purpose, formula, parameters, source and evidence."""
    from madpo.losses.method import EVIDENCE
    from madpo.losses.registry import get_method

    method = get_method(name)
    fields = method.config.model_json_schema().get("properties", {})
    parameters = {field: _parameter(schema) for field, schema in fields.items()}
    described = describe(name)
    described |= {"evidence": f"{method.evidence}: {EVIDENCE[method.evidence]}", "params": parameters}
    show(described, as_json=as_json)


@app.command("eval")
def evaluate(
    vectors: Annotated[Path, typer.Option(help="JSON file with `batch` and `cases`; - reads standard input.")],
) -> None:
    """Compute methods on given numbers, in float64, as JSON."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise InvalidArgumentError("computing losses needs torch: pip install 'madpo[torch]'")
    from madpo.losses.vectors import evaluate_cases

    try:
        document = json.loads(sys.stdin.read() if str(vectors) == "-" else vectors.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read {vectors}: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgumentError(f"{vectors} must hold a JSON object with batch and cases")
    print(json.dumps(evaluate_cases(document), indent=2))


def describe(name: str) -> dict[str, Any]:
    """A method as a row."""
    from madpo.losses.method import requirement_names
    from madpo.losses.registry import get_method

    method = get_method(name)
    config = method.config()
    return {
        "name": name,
        "summary": method.summary,
        "formula": method.formula,
        "source": method.source,
        "evidence": method.evidence,
        "needs": ", ".join(requirement_names(method.requirements(config))),
        "params": " ".join(f"{field}={info.default}" for field, info in method.config.model_fields.items()),
    }


def _parameter(schema: dict[str, Any]) -> str:
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    if "enum" in schema:
        limits.append("one of " + ", ".join(map(str, schema["enum"])))
    text = " ".join(str(schema.get("description", "")).split())
    return " ".join([str(schema.get("default")), *([f"({', '.join(limits)})"] if limits else []), text]).rstrip()
