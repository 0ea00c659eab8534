import re
import subprocess
import sys
from typing import Any

import pytest

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.losses.madpo import MadpoConfig
from madpo.losses.method import Requirements, requirement_names
from madpo.losses.registry import METHODS, get_method, parse_params


def test_methods_carry_their_own_name_source_and_requirements() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}
    assert METHODS["dpo"].requires == Requirements(reference=True)
    assert METHODS["madpo"].requires == Requirements(reference=True, margin=True)
    for method in METHODS.values():
        assert re.search(r"arXiv:\d{4}\.\d{5}", method.source) or method.evidence == "own"


def test_parameters_switch_requirements_on_and_off() -> None:
    def needs(name: str, **params: Any) -> set[str]:
        return set(requirement_names(METHODS[name].requirements(parse_params(name, params))))

    assert needs("dpo", reference_free=True) == set()
    assert needs("ipo") == {"reference", "lengths"}
    assert needs("ipo", average_log_prob=False) == {"reference"}
    assert needs("madpo", normalize_weights=True) == {"reference", "margin", "global_batch"}
    assert needs("tr_dpo") == {"reference", "outer_loop"}
    assert needs("slic", sft_target="gold") == {"gold"}


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_has_a_default_and_every_one_but_switches_a_description(name: str) -> None:
    config = parse_params(name, {})

    assert config == METHODS[name].config()
    assert all(field.description for field in METHODS[name].config.model_fields.values())


def test_madpo_defaults_to_the_papers_tau() -> None:
    config = parse_params("madpo", {})

    assert isinstance(config, MadpoConfig)
    assert config.tau == pytest.approx(6.906754778648554, abs=1e-15)
    assert (config.beta, config.c_max, config.c_min, config.lam) == (0.1, 2.0, 0.5, 1.0)


def test_an_unknown_method_is_refused_with_those_most_like_it() -> None:
    wanted = r"'maddpo'; did you mean madpo, .* or .*\? `madpo methods list` lists all"
    with pytest.raises(InvalidArgumentError, match=wanted) as caught:
        get_method("maddpo")
    assert [violation.field for violation in caught.value.violations] == ["spec.policy_training.method.name"]


def test_an_unknown_parameter_lists_the_names_there_are() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_params("dpo", {"tau": 2.0})
    assert caught.value.violations == (
        FieldViolation(
            "spec.policy_training.method.params.tau",
            "dpo has no such parameter; parameters: beta, label_smoothing, reference_free",
        ),
    )


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"tau": 0}, "tau"),
        ({"tau": float("nan")}, "tau"),
        ({"beta": float("inf")}, "beta"),
        ({"c_max": 0.99}, "c_max"),
        ({"c_min": 0}, "c_min"),
        ({"c_min": 1.01}, "c_min"),
        ({"lam": -1}, "lam"),
        ({"mode": "half"}, "mode"),
        ({"beta": "strong"}, "beta"),
    ],
)
def test_a_parameter_outside_its_range_is_named_with_its_value(params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(f"got {params[field]!r}")) as caught:
        parse_params("madpo", params, path="method")
    assert [violation.field for violation in caught.value.violations] == [f"method.params.{field}"]


def test_all_wrong_parameters_are_reported_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_params("madpo", {"tau": -1, "lam": 0, "gamma": 3})
    assert len(caught.value.violations) == 3


def test_parameters_are_checked_where_torch_is_not_installed() -> None:
    code = """
import sys
sys.modules["torch"] = None  # makes every `import torch` fail
from madpo.losses.registry import METHODS, parse_params
for name in METHODS:
    METHODS[name].requirements(parse_params(name, {}))
try:
    parse_params("madpo", {"tau": -1})
except ValueError as error:
    assert "params.tau" in str(error), error
else:
    raise SystemExit("accepted tau=-1")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
