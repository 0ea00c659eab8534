"""How far ahead of the training step margins are asked for, from how long both take."""

import math

_SMOOTHING = 0.3


class LookAhead:
    """Sizes the look-ahead so that a margin is there when its step comes, and no further than that.

    A request sent `steps` ahead has `steps` steps of time to come back. Latency follows a rise at once and a fall
    slowly, since one late margin costs more than several early ones.

    Args:
        bound: Most steps ahead; also what is asked for until both times are known.
        message_steps: Steps whose pairs fill a message well.
    """

    def __init__(self, *, bound: int, message_steps: int) -> None:
        self._bound, self._message_steps = bound, message_steps
        self._latency_s: float | None = None
        self._step_s: float | None = None

    def observe_latency(self, latency_s: float) -> None:
        """A request came back, and its margins are kept."""
        previous = latency_s if self._latency_s is None else self._latency_s
        self._latency_s = max(latency_s, previous + _SMOOTHING * (latency_s - previous))

    def observe_step(self, step_s: float) -> None:
        """A step took this long, the wait for its margins not counted."""
        previous = step_s if self._step_s is None else self._step_s
        self._step_s = previous + _SMOOTHING * (step_s - previous)

    @property
    def least(self) -> int:
        """Steps that must be on their way or known, this one included; below it, ask."""
        if self._latency_s is None or not self._step_s:
            return self._bound
        return min(self._bound, 1 + math.ceil(self._latency_s / self._step_s))

    @property
    def most(self) -> int:
        """Steps to ask up to once asking: twice the least, or a message's worth more."""
        return min(self._bound, self.least + max(self.least, self._message_steps))
