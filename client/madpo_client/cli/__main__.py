"""`python -m madpo_client.cli`: the `madpo` command."""

from madpo_client.cli import main

if __name__ == "__main__":
    main()
