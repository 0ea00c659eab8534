"""A whole madpo stack on this machine: the same services, a Valkey server from a wheel and a directory as object store.

    with EmbeddedStack(Path("state")) as stack, stack.client() as client:
        ...

Only settings differ from a deployment in containers; there is no second implementation of anything.
"""

from madpo_client.embedded.stack import EmbeddedStack, ProcessStatus

__all__ = ["EmbeddedStack", "ProcessStatus"]
