"""A judge as the operator of an evaluator sets it up. Jobs give its name alone: they cannot have others called."""

from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Judge(BaseModel):
    """A model behind a chat endpoint that speaks OpenAI's protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    url: str
    """Where the endpoint is, up to `/chat/completions`: `https://host/v1`. Redirects are not followed."""
    model: str = Field(min_length=1)
    """What the endpoint calls the model."""
    allow_plaintext: bool = False
    """Whether texts, and the key, may go over `http` to a host other than this one."""
    ca: Path | None = None
    """Authority that the endpoint's certificate is checked against, in the place of the system's."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Questions on their way at a time."""
    timeout_s: float = Field(default=60.0, gt=0)
    """How long an answer may take, from connecting to its last byte, in seconds."""
    outage_s: float = Field(default=900.0, ge=0)
    """How long a question is asked again while the judge is away or refuses for the time being, in seconds."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer."""
    options: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Further fields of requests, as a JSON object; null takes one of ours away: `{"max_tokens": null,
    "max_completion_tokens": 512, "temperature": null}`."""
    prompt_price: float | None = Field(default=None, ge=0)
    """What a million tokens of questions cost, in any currency."""
    completion_price: float | None = Field(default=None, ge=0)
    """What a million tokens of answers cost."""

    @field_validator("url")
    @classmethod
    def _is_an_endpoint(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be https://host/path or http://host/path")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("holds a user, a password or a query: give the key in judge_keys, other things in options")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not self.allow_plaintext and parts.hostname not in _LOOPBACK:
            raise ValueError("url: is http, which anybody on the way can read: use https, or set allow_plaintext")
        return self

    @model_validator(mode="after")
    def _has_both_prices(self) -> Self:
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("prompt_price and completion_price come together")
        return self

    def body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """A request of the protocol."""
        ours = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        return {name: value for name, value in (ours | self.options).items() if value is not None}

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What tokens cost by the prices; None without them."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


_LOOPBACK = ("localhost", "127.0.0.1", "::1")
