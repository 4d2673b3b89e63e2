"""Showing: figures, the ledger, the files that a study leaves, what the ledger advises."""
