"""What an evaluation reports; readable without torch."""
