"""The page about methods is the registry's."""

from pathlib import Path

from madpo.losses.catalogue import also_needs, parameters, to_markdown
from madpo.losses.method import Method
from madpo.losses.registry import METHODS
from tests.unit.losses.configurations import methods

PAGE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()


def test_the_committed_page_is_the_generated_one() -> None:
    assert to_markdown() == PAGE, "run `make docs`"


def test_the_readme_counts_them() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()

    assert f"{len(METHODS)} methods train through one loop" in readme


@methods
def test_every_method_has_its_section(method: Method) -> None:
    section = PAGE.split(f"\n### {method.name}\n")[1].split("\n### ")[0]

    for text in (
        method.summary,
        method.source,
        f"`{method.evidence}`",
        *(f"`{each.name}`" for each in parameters(method)),
    ):
        assert text in section


def test_ranges_and_what_other_parameters_need() -> None:
    allowed = {each.name: (each.default, each.allowed) for each in parameters(METHODS["madpo"])}

    assert allowed["c_min"] == ("0.5", "> 0, <= 1")
    assert allowed["tau"] == ("6.906754778648554", '> 0, <= 1000000 or {"quantile": q} or "auto"')
    assert allowed["mode"] == ('"full"', "full, amp_only, reg_only")
    assert also_needs(METHODS["sppo"]) == ("list", "outer_loop")
    assert also_needs(METHODS["slic"]) == ("gold",)
    assert also_needs(METHODS["dpo"]) == ()
