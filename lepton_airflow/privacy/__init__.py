"""Differentially private releases: contribution bounds, exact noise, and the budget ledger."""
