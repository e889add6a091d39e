"""The checker of annotations in tests: beartype, to which an int is a float as to Python's own."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
