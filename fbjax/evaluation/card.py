"""A card: a JSON file of metrics with the protocol that they were measured under.

protocol   what two cards must share to be compared: the real clips, how they were cut, how many;
           under `metrics`, settings and weights' digest of each metric that needs a network
subject    what was measured: weights, sampler, evaluations, guidance, seed
numbers    set ("made", "still", "truth") -> metric -> [value, standard error]
digest     of the three above
made_by    version and time
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from fbjax import digest as digests
from fbjax import errors, places
from fbjax.evaluation.numbers import Number

LABELS = {"made": "made", "still": "still image", "truth": "truth"}
SURE = 2  # deviations apart


def make(
  protocol: Mapping[str, Any],
  subject: Mapping[str, Any],
  numbers: Mapping[str, Mapping[str, Number]],
  made_by: Mapping[str, Any],
) -> dict[str, Any]:
  """A card of plain values."""
  plain = {whose: {k: [*number] for k, number in of.items()} for whose, of in numbers.items()}
  card = {"protocol": dict(protocol), "subject": dict(subject), "numbers": plain}
  return card | {"digest": digest(card), "made_by": dict(made_by)}


def digest(card: Mapping[str, Any]) -> str:
  """16 hexadecimal digits that stand for protocol, subject and numbers."""
  return digests.of_json({name: card[name] for name in ("protocol", "subject", "numbers")})


def write(file: str, card: Mapping[str, Any]) -> None:
  places.write_json(file, card)


def place(stem: str, card: Mapping[str, Any]) -> str:
  """The file of a card: `<stem>.json`, or `<stem>-2.json` and so on where cards of other evaluations are.

  An evaluation under the same protocol of the same subject, which is a repetition, keeps its file.
  """
  names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
  return next(f"{name}.json" for name in names if _is_place(f"{name}.json", card))


def _is_place(file: str, card: Mapping[str, Any]) -> bool:
  """Whether there is no file, or the card of the same evaluation."""
  if not places.exists(file):
    return True
  try:
    return all(read(file)[name] == card[name] for name in ("protocol", "subject"))
  except errors.UserError:
    return False


def read(file: str) -> dict[str, Any]:
  """A card that `write` wrote.

  Raises:
    UserError: for a file that is none, or whose numbers were changed.
  """
  try:
    card = json.loads(places.absolute(file).read_text())
    if digest(card) == card["digest"]:
      return card
  except OSError as error:
    raise errors.UserError(f"no card {file}: {error.strerror}") from None
  except (ValueError, KeyError, TypeError):
    raise errors.UserError(f"{file} is no card that --mode=evaluate wrote") from None
  raise errors.UserError(f"{file} was changed after it was measured: its digest is another")


def table(card: Mapping[str, Any]) -> str:
  """The numbers of a card as text: a row per metric, a column per set of clips."""
  numbers = card["numbers"]
  names = list(dict.fromkeys(name for of in numbers.values() for name in of))
  rows = [["", *(LABELS[whose] for whose in numbers)]]
  for name in names:
    rows.append([name, *(told(of.get(name)) for of in numbers.values())])
  return aligned(rows)


def compare(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str]) -> str:
  """A text table of the made clips of two cards: values, differences, and the still image's values.

  Raises:
    UserError: where they were measured under different protocols; names the first field.
  """
  protocols = comparable(a["protocol"], b["protocol"])
  # What was measured against what comes before the digests that follow from it.
  fields = sorted(set().union(*protocols), key=lambda field: ("digest" in field, field))
  for field in fields:
    one, two = (protocol.get(field) for protocol in protocols)
    if one != two:
      raise errors.UserError(
        f"{names[0]} and {names[1]} cannot be compared: {field} is {one!r} in the one and {two!r} in "
        "the other. Measure both under one protocol"
      )
  rows = [["", *names, "difference"]]
  for name in [name for name in a["numbers"]["made"] if name in b["numbers"]["made"]]:
    one, two = (card["numbers"]["made"][name] for card in (a, b))
    error = (one[1] ** 2 + two[1] ** 2) ** 0.5
    sure = "  *" if differ(one, two) else ""
    rows.append([name, told(one), told(two), told([two[0] - one[0], error]) + sure])
  if still := a["numbers"].get("still"):  # of the same clips in both
    rows[0].append(LABELS["still"])
    for row in rows[1:]:
      row.append(told(still.get(row[0])))
  return f"{aligned(rows)}\n* more than {SURE} deviations apart"


def comparable(*protocols: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Flattens protocols to the fields that must be equal for their cards to be compared.

  Of the metrics' own protocols, those of the metrics that all cards have.
  """
  measures = [protocol.get("metrics", {}) for protocol in protocols]
  common = set(measures[0]).intersection(*measures)
  flat = []
  for protocol, own in zip(protocols, measures, strict=True):
    fields = {field: x for field, x in protocol.items() if field != "metrics"}
    fields |= {f"{name}.{field}": x for name in common for field, x in own[name].items()}
    flat.append(fields)
  return flat


def differ(one: list[float] | None, two: list[float] | None) -> bool:
  """Whether two [value, error] differ by more than `SURE` standard errors of their difference.

  False where one is None, or where both errors are 0.
  """
  if one is None or two is None:
    return False
  return abs(two[0] - one[0]) > SURE * (one[1] ** 2 + two[1] ** 2) ** 0.5 > 0


def told(number: list[float] | None) -> str:
  """`12.3 +- 0.4`."""
  if number is None:
    return "-"
  value, error = number
  return f"{value:.4g} +- {error:.2g}" if error else f"{value:.4g}"


def aligned(rows: list[list[str]]) -> str:
  """Cells in columns: the first at the left, the others at the right."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = []
  for row in rows:
    cells = [
      row[0].ljust(widths[0]),
      *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True)),
    ]
    lines.append("  ".join(cells).rstrip())
  return "\n".join(lines)
