"""What callers are told of errors that a model's own code and files raise, or the machine it runs on."""

import logging

import torch

from madpo.errors import FailedPreconditionError, MadpoError, UnavailableError
from madpo.models.memory import is_out_of_memory
from madpo_reward.batcher import ShortOfMemoryError

logger = logging.getLogger(__name__)

_MEMORY_RETRY_S = 1.0
"""After which memory that others use may be free."""


def told(error: Exception, what: str) -> MadpoError:
    """The error to raise instead: none of them is a defect of ours that is worth a retry for ever.

    Args:
        error: Whatever was raised; errors of ours say already what they are.
        what: Could not be done, such as "model-1 cannot be loaded".
    """
    if isinstance(error, MadpoError):
        return error
    logger.warning("a model failed", exc_info=error, extra={"what": what})
    if is_out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        advice = "give the service more, or lower MADPO_REWARD_MAX_TOKENS or MADPO_REWARD_BATCH_TOKENS"
        return ShortOfMemoryError(f"not enough memory: {what} ({advice}): {error}", retry_after_s=_MEMORY_RETRY_S)
    if isinstance(error, OSError):  # a full disk, or no file left to open
        return UnavailableError(f"{what}: {error}")
    return FailedPreconditionError(f"{what}: {type(error).__name__}: {error}")
