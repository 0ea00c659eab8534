"""What is not supported is refused, in words that say what to do."""

from pathlib import Path

import pytest

from madpo.errors import MadpoError
from tests.families.flows import Flows
from tests.families.refusals import REFUSALS, Refusal


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_what_is_not_supported_is_refused(flows: Flows, tmp_path: Path, refusal: Refusal):
    with pytest.raises(MadpoError) as caught:
        refusal.attempt(flows, tmp_path / "model")

    print(refusal.what, "|", type(caught.value).__name__, caught.value)
    assert refusal.says in str(caught.value)
