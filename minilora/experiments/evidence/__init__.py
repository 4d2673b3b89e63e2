"""Deciding: settings, runs and what contrasts measure of them, the claims of the article, and the verdicts on them."""
