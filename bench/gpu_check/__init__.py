"""What a person with any CUDA host runs once: whether all of madpo that computes is right there, and how fast."""
