"""A page that asks people which of two clips they prefer, and does not say which is whose.

  python -m studies.blind --a=clips/bridge --b=clips/diffusion --out=blind
  python -m studies.blind --out=blind --results=results.json

The first writes blind/page.html, one file that needs no server and nothing else, and blind/key.json, which says
which clip was on which side: whoever answers is given the page alone. Clips of both folders that have the same
name are a pair; pairs and sides are in random order. The page ends with a file of answers, which the second
command counts.
"""

import base64
import html
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from scipy import stats

from fbjax import errors
from fbjax.data import video
from studies import asked

OWN = flags.FlagValues()  # apart from those of the program, some of which have the same names
A = flags.DEFINE_string("a", "", "Folder of clips", flag_values=OWN)
B = flags.DEFINE_string("b", "", "Another one, whose clips have the same names", flag_values=OWN)
OUT = flags.DEFINE_string("out", "blind", "Folder of the page and of the key", flag_values=OWN)
QUESTION = flags.DEFINE_string(
  "question", "Which clip looks better?", "What is asked", flag_values=OWN
)
SEED = flags.DEFINE_integer("seed", 0, "Of the order", flag_values=OWN)
RESULTS = flags.DEFINE_list("results", [], "Files of answers to count", flag_values=OWN)

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{question}</title>
<style>
  :root {{ color-scheme: light dark; font: 18px/1.5 system-ui, sans-serif; }}
  body {{ max-width: 900px; margin: auto; padding: 1rem; text-align: center; }}
  div {{ display: flex; gap: 1rem; }}
  button {{ flex: 1; min-width: 0; padding: .5rem; font: inherit; border: 2px solid gray; border-radius: 8px; }}
  button:hover, button:focus {{ border-color: #27f; }}
  img {{ width: 100%; image-rendering: pixelated; }}
</style>
<h1>{question}</h1>
<p id="where"></p>
<div id="choice"></div>
<p><button id="same" hidden>Neither</button></p>
<script>
const pairs = {pairs}, answers = [];
const where = document.getElementById("where"), choice = document.getElementById("choice");
const same = document.getElementById("same");
function answer(side) {{ answers.push(side); show(); }}
function show() {{
  choice.replaceChildren();
  const n = answers.length;
  same.hidden = n === pairs.length;
  if (n < pairs.length) {{
    where.textContent = `${{n + 1}} of ${{pairs.length}}`;
    for (const side of ["left", "right"]) {{
      const button = document.createElement("button"), img = document.createElement("img");
      img.src = pairs[n][side]; img.alt = `the ${{side}} clip`;
      button.append(img); button.onclick = () => answer(side); choice.append(button);
    }}
    return;
  }}
  where.textContent = "Thank you. Save your answers:";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({{page: {page}, answers}})]));
  link.download = "results.json"; link.textContent = "results.json"; choice.append(link);
}}
same.onclick = () => answer("neither");
onkeydown = (e) => {{
  const side = {{ArrowLeft: "left", ArrowRight: "right"}}[e.key];
  if (side && answers.length < pairs.length) answer(side);
}};
show();
</script>
"""


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  try:
    print(counted(OUT.value, RESULTS.value) if RESULTS.value else made(OUT.value))
  except errors.UserError as error:
    raise SystemExit(f"error: {error}") from None


def made(out: str) -> str:
  """Writes the page and its key; returns what there is to say."""
  names = pairs(A.value, B.value)
  rng = np.random.default_rng(SEED.value)
  order = [names[i] for i in rng.permutation(len(names))]
  left = ["ab"[int(x)] for x in rng.integers(0, 2, len(names))]
  folders = {"a": A.value, "b": B.value}
  shown = [
    {
      side: uri(pathlib.Path(folders[letter]) / name)
      for side, letter in (("left", first), ("right", "ba"["ab".index(first)]))
    }
    for name, first in zip(order, left, strict=True)
  ]
  home = pathlib.Path(out)
  home.mkdir(parents=True, exist_ok=True)
  page = f"{rng.integers(2**32):08x}"
  text = PAGE.format(
    question=html.escape(QUESTION.value), pairs=json.dumps(shown), page=json.dumps(page)
  )
  (home / "page.html").write_text(text)
  key = {"page": page, "a": A.value, "b": B.value, "names": order, "left": left}
  (home / "key.json").write_text(json.dumps(key, indent=2) + "\n")
  return (
    f"{len(order)} pairs in {home / 'page.html'}; keep {home / 'key.json'} from whoever answers."
  )


def pairs(a: str, b: str) -> list[str]:
  """Names of the clips that both folders have.

  Raises:
    UserError: when a folder is not there, or they share none.
  """
  there = []
  for flag, folder in (("a", a), ("b", b)):
    if not folder or not pathlib.Path(folder).is_dir():
      raise errors.UserError(f"--{flag}={folder}: there is no such folder of clips")
    there.append({f.name for f in pathlib.Path(folder).iterdir() if f.suffix in (".mp4", ".gif")})
  names = sorted(there[0] & there[1])
  if not names:
    raise errors.UserError(f"{a} and {b} have no clips (mp4, gif) of the same name")
  return names


def uri(file: pathlib.Path) -> str:
  """A clip as a GIF inside the page: it plays by itself, and its name and size say nothing."""
  if file.suffix == ".gif":
    data = file.read_bytes()
  else:
    with tempfile.TemporaryDirectory() as folder:
      part = pathlib.Path(folder) / "part.gif"
      video.write_gif(part, video.read_all(str(file)), fps=8)
      data = part.read_bytes()
  return f"data:image/gif;base64,{base64.b64encode(data).decode()}"


def counted(out: str, files: Sequence[str]) -> str:
  """How often each side was preferred, with the exact binomial interval of 95 %.

  Raises:
    UserError: for answers to another page.
  """
  key = json.loads((pathlib.Path(out) / "key.json").read_text())
  votes = {"a": 0, "b": 0, "neither": 0}
  for file in files:
    for name, n in tally(key, json.loads(pathlib.Path(file).read_text()), file).items():
      votes[name] += n
  decided = votes["a"] + votes["b"]
  line = f"{key['a']}: {votes['a']}, {key['b']}: {votes['b']}, neither: {votes['neither']}"
  if not decided:
    return line
  test = stats.binomtest(votes["a"], decided)
  ends = test.proportion_ci()
  return (
    f"{line}; {key['a']} is preferred in {votes['a'] / decided:.0%} of {decided} "
    f"({ends.low:.0%} to {ends.high:.0%}, p = {test.pvalue:.2g})"
  )


def tally(key: Mapping, results: Mapping, file: str) -> dict[str, int]:
  """Votes of one file of answers."""
  if results.get("page") != key["page"]:
    raise errors.UserError(f"{file} holds answers to another page than {key['page']}")
  votes = {"a": 0, "b": 0, "neither": 0}
  for side, left in zip(results["answers"], key["left"], strict=False):
    other = "ba"["ab".index(left)]
    votes[{"left": left, "right": other}.get(side, "neither")] += 1
  return votes


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
