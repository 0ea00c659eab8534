"""What is wrong with a dataset, found before it costs a training: one report, the same wherever it is made."""
