"""What each kind of training optimises: one module a kind, from its spec to an objective over its rows."""
