"""From scored responses to preference pairs: which responses are fit, which of them are compared, and their labels.

Importable without torch, so that a rule's parameters are checked anywhere.
"""
