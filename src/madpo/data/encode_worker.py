"""A process that turns rows into token ids: `python -m madpo.data.encode_worker MODEL_DIRECTORY`.

Chunks of rows come in on standard input, what was made of them goes out on standard output, both pickled: the pipe is
between two processes of ours. Started afresh rather than forked, so that no thread or lock of the parent is in it.
"""

import os
import pickle
import sys
from pathlib import Path
from typing import Any


def main(directory: Path) -> None:
    """Work until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    # The parallelism is that of several workers; and the tokenizer would bring torch along where it is installed, some
    # seconds and hundreds of megabytes for each of them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.modules["torch"] = None  # type: ignore[assignment]
    from madpo.data.encoding import examine_chunk
    from madpo.data.tokenizer import load_tokenizer
    from madpo.errors import MadpoError

    tokenizer = load_tokenizer(directory)
    while True:
        try:
            chunk: Any = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        try:
            answer: Any = examine_chunk(tokenizer, *chunk)
        except MadpoError as error:
            answer = error
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
