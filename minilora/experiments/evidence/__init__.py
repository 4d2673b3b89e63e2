"""Deciding: settings, runs and their statistics, the claims of the article, and the verdicts on them."""
