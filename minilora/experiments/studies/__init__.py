"""One module a study; each defines STUDY."""
