"""What a gateway keeps, and for how long."""

from collections.abc import Iterator

from madpo.types import Removal
from madpo_client.lookup import References
from madpo_client.session import Session


class Retention:
    """Retention of a gateway; its rules are settings of the gateway."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._references = References(session)

    def apply(self, *, dry_run: bool = False) -> Iterator[Removal]:
        """Remove what the rules say, now; each thing as it goes. For admins.

        What unfinished jobs need, what kept jobs refer to or have made, and what is pinned stays.

        Args:
            dry_run: Only say what would be removed.

        Raises:
            PermissionDeniedError: This client's token is not an admin's.
        """
        return self._session.iterate(self._session.gateway.apply_retention(dry_run=dry_run))

    def pin(self, thing: str) -> str:
        """Keep a job, a model or a dataset, whatever the rules say, with all it refers to; returns its id.

        Raises:
            NotFoundError: There is no such thing.
        """
        thing_id = self._references.any_id(thing)
        self._session.run(self._session.gateway.pin(thing_id))
        return thing_id

    def unpin(self, thing: str) -> str:
        """Leave it to the rules again; returns its id."""
        thing_id = self._references.any_id(thing)
        self._session.run(self._session.gateway.unpin(thing_id))
        return thing_id

    def pins(self) -> list[str]:
        """Ids of all that is pinned."""
        return self._session.run(self._session.gateway.list_pins())
