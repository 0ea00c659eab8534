"""Why a model hub shows a repository to some alone, and what to do, from what its library raised."""

from collections.abc import Iterator


def hub_refusal(error: BaseException, what: str, *, asker: str) -> str | None:
    """What to do where the hub refuses a repository; None where the error is another.

    Args:
        error: Of `huggingface_hub`, or of a library that raised its own from it.
        what: The repository: `model owner/name`.
        asker: Whose token is meant: `the gateway`.
    """
    for each in _chain(error):
        if type(each).__name__ == "GatedRepoError":
            return (
                f"{what} is gated: accept its terms on its page of the hub, and give {asker} a token of that "
                "account as HF_TOKEN"
            )
        status = getattr(getattr(each, "response", None), "status_code", None)
        # The hub answers 401 also for what it does not have, which its library tells apart.
        if status in (401, 403) and type(each).__name__ == "HfHubHTTPError":
            return f"the hub refuses {what} (HTTP {status}): give {asker} a token that may read it as HF_TOKEN"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
