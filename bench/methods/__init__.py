"""Which method is better, measured: paired seeds, exact KL, reward at equal KL. `make bench-methods`."""
