"""The object store behind a gateway."""

from collections.abc import Callable, Iterator

from madpo.types import StoreCheckProgress, StoreFinding
from madpo_client.session import Session


class Store:
    """What lies in the gateway's object store."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def check(
        self, *, repair: bool = False, on_progress: Callable[[StoreCheckProgress], None] = lambda progress: None
    ) -> Iterator[StoreFinding]:
        """Read every stored byte and compare it with its digest; what is wrong, as it is found. For admins.

        Args:
            repair: Remove damaged objects that will be made again when they are needed: token ids, reference
                log-probs, and of jobs that are not over checkpoints (the job goes on from the one before) and the
                responses of an evaluation. End removals whose note is damaged: what is whole is shown again.
            on_progress: Told now and then, and at the end, how much was read.

        Raises:
            PermissionDeniedError: This client's token is not an admin's.
        """
        for said in self._session.iterate(self._session.gateway.check_store(repair=repair)):
            if isinstance(said, StoreCheckProgress):
                on_progress(said)
            else:
                yield said
