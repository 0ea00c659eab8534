"""The transformers pipeline in process, in turns: python -m bench.peers.pipeline pipeline_BATCH TASK.

pipeline_32 is padded batches of 32 texts as they arrive; pipeline_1 pads nothing.
"""

from typing import Any

import torch
from transformers import pipeline

from bench import models
from bench.meters import Meter
from bench.scoring.task import ScoringTask
from bench.turns import Turns


def score(pipe: Any, texts: list[tuple[str, str, str]], *, batch_size: int) -> list[float]:
    """Raw scores: chosen and rejected of the first pair, of the second..."""
    whole = [prompt + response for prompt, *responses in texts for response in responses]
    return [results[0]["score"] for results in pipe(whole, batch_size=batch_size)]


def main() -> None:
    turns = Turns()
    task, variant = ScoringTask.parse()
    batch_size = int(variant.rpartition("_")[2])
    torch.set_num_threads(task.threads)
    size = models.SIZES[task.size]
    pipe = pipeline(
        "text-classification",
        model=models.reward_model(size),
        tokenizer=models.tokenizer(size.vocabulary),
        function_to_apply="none",
        top_k=None,
        device=-1,
    )
    score(pipe, task.texts(-1)[:2], batch_size=batch_size)
    meter, more, number = Meter(), turns.done({}), 0
    while more:
        texts = task.texts(number)
        meter.start()
        scores = score(pipe, texts, batch_size=batch_size)
        more = turns.done(meter.stop().as_json() | {"scores": scores})
        number += 1


if __name__ == "__main__":
    main()
