"""Numbers that say how good videos are, each under a protocol that it can be repeated by."""
