"""Running causal models over packed rows: no padding, every prompt once, the head only where it is scored."""
