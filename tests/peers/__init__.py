"""Comparisons with the libraries whose formats we read; a package, so that its modules may be called like others."""
