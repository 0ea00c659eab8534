"""What the scorer does with the real vLLM: python vllm_program.py REQUEST, where vLLM is; prints one line of JSON.

The request names model directories, texts, and where packages are that this environment lacks.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

REQUEST: dict[str, Any] = json.loads(sys.argv[1])
sys.path += REQUEST["packages"]

import torch  # noqa: E402

from madpo.errors import MadpoError  # noqa: E402
from madpo_reward.encoding import Text  # noqa: E402
from madpo_reward.scorer import Scorer, ScorerConfig, load_scorer  # noqa: E402


def load(name: str, base: str | None = None) -> Scorer:
    config = ScorerConfig(dtype="fp32", max_tokens=256, engine="vllm")
    directory = Path(REQUEST["root"], name)
    return load_scorer(name, directory, base_directory=base and Path(REQUEST["root"], base), config=config)


def scores(scorer: Scorer, texts: list[tuple[str, str]]) -> list[float]:
    tokens = scorer.encode_texts([Text("text", *each) for each in texts])
    return [reward for rewards in scorer.forward(scorer.plan(tokens)) for reward in rewards]


def once_out_of_memory(scorer: Scorer, texts: list[tuple[str, str]]) -> str:
    """The error where memory runs out in a step that vLLM has noted as done."""
    executor = scorer.layout._engine.engine_core.engine_core.model_executor  # type: ignore[attr-defined]
    execute = executor.execute_model

    def fail(*_: Any, **__: Any) -> None:
        executor.execute_model = execute
        raise torch.OutOfMemoryError("out of memory, it is said")

    executor.execute_model = fail
    try:
        scores(scorer, texts)
    except MadpoError as error:
        return type(error).__name__
    return "none"


def main() -> None:
    torch.set_num_threads(1)
    texts = [tuple(each) for each in REQUEST["texts"]]
    answer: dict[str, Any] = {}
    scorer = load("whole")
    answer["whole"] = scores(scorer, texts)
    answer["alone"] = [scores(scorer, [each])[0] for each in texts]
    answer["ids"] = [each.ids for each in scorer.encode_texts([Text("text", *each) for each in texts])]
    answer["revision"], answer["layout"] = scorer.revision, scorer.layout.name
    fresh = [(prompt + " film" * 150, response) for prompt, response in texts]
    answer["short_of_memory"] = once_out_of_memory(scorer, fresh)
    answer["fresh"] = scores(scorer, fresh)
    scorer.close()
    del scorer
    gc.collect()
    scorer = load("adapter", base="whole")
    answer["adapter"] = scores(scorer, texts)
    scorer.close()
    del scorer
    gc.collect()
    try:
        load("unsupported").close()
    except MadpoError as error:
        answer["refusal"] = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
    os._exit(0)  # what vLLM leaves running waits for nobody


if __name__ == "__main__":
    main()
