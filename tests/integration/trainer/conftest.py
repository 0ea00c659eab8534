from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.integration.trainer.training_site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, make_toy_lm: Any, make_toy_tokenizer: Any) -> Iterator[Site]:
    """A place for the trainings of a test file, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Site.make(tmp_path_factory.mktemp("site"), make_toy_lm(), make_toy_tokenizer())
    torch.set_num_threads(before)
