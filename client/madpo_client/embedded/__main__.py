"""`python -m madpo_client.embedded HOME OPTIONS [lifeline]`: the supervisor of a stack."""

import sys

from madpo_client.embedded.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
