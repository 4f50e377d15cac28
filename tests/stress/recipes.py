"""Mutated YAML recipes: each is a recipe, or is refused by `SettingsError` that names the file; nothing is executed.

    python tests/stress/recipes.py --cases 15000

Values are exchanged for tags that would run something, aliases that multiply, numbers out of range, deep and long
content; text is cut, spliced and overwritten.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import fuzzing
import mutations
import probe
import yaml
from own_pictures import DESCRIPTION

from isnet_trt.recipes import Recipe, recipe

FILE = "own.yaml"
_LAUGHS = (
    "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], "
    + ", ".join(f"&{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("cdefghi", "defghij", strict=True))
    + "]"
)
FRAGMENTS = (
    *("!!python/object/apply:os.system ['touch canary']", "!!python/object/new:os.system ['touch canary']"),
    *(
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1]",
        "!own x",
        "!!binary aGVsbG8=",
        "!!set {a}",
    ),
    *("!!python/object/apply:builtins.exec [\"open('canary','w')\"]", "!!int x", "!!float 'x'", "!!timestamp x"),
    *("&x [*x]", "*nothing", "{<<: {name: y}}", "{<<: 3}", _LAUGHS, "[" * 3000 + "]" * 3000, "{a: " * 500 + "}" * 500),
    *("1e999", ".inf", "-.inf", ".nan", "9" * 5000, "0x" + "f" * 4000, "1" + "_0" * 3000, "1:59:59", "2026-02-30", "~"),
    *('"\\ud800"', '"\\uDC00x"', '"\\0"', '"\\x1b[31m"', "'unfinished", "? [a, b]\n: c", "|\n  text", ">-\n  text"),
    *("yes", "0", "-1", "1e308", "''", "[]", "{}", "[0, 0]", "[1e9, 1e9]", "[x, y]", "../../x", "{split}/{split}/{x}"),
    *(
        "{name}" * 2000,
        "'" + "x" * 5000 + "'",
        "[" + "a," * 20_000 + "b]",
        "{0: a, 0: b}",
        "{-1: a, 70000: b}",
        "{1.5: a}",
    ),
    *("**/**/**/**/*.jpg", "'[z-a]'", "'(?P<'", "/", "%", "@", "`", "--- x", "...", "%YAML 9.9\n---\nx"),
)


class Recipes:
    """Mutations of the description of one's own pictures, for `recipe`."""

    memory = 256 << 20

    def __init__(self) -> None:
        self.text = yaml.safe_dump(DESCRIPTION, sort_keys=False)

    def start(self, folder: Path) -> None:
        """Read the sound file."""
        mutations.put(folder / FILE, self.text.encode())
        recipe(str(folder / FILE))

    def write(self, number: int, folder: Path) -> str:
        """Write mutation ``number``."""
        chance, path = random.Random(number), folder / FILE
        if chance.random() < 0.01:
            return mutations.special_file(chance, path)
        kind = chance.choices(("fragment", "tree", "text"), (50, 25, 25))[0]
        if kind == "text":
            content = mutations.mutated_bytes(chance, self.text.encode(), header=len(self.text))
        elif kind == "tree":
            changed = mutations.mutated_tree(chance, DESCRIPTION)
            content = yaml.safe_dump(changed, allow_unicode=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        else:
            content = self._with_fragment(chance)
        mutations.put(path, content)
        return kind

    def _with_fragment(self, chance: random.Random) -> bytes:
        """The description with one to three values, or keys, exchanged for fragments."""
        values = {
            key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in DESCRIPTION.items()
        }
        values = {key: value.removesuffix("\n").removesuffix("\n...") for key, value in values.items()}
        for _ in range(chance.choice((1, 1, 2, 3))):
            key = chance.choice(list(values))
            if chance.random() < 0.1:
                values[chance.choice(FRAGMENTS)] = values.pop(key)
            else:
                values[key] = chance.choice(FRAGMENTS)
        return "".join(f"{key}: {value}\n" for key, value in values.items()).encode("utf-8", "surrogatepass")

    def read(self, folder: Path) -> str:
        """Read it, as `build --recipe FILE.yaml` does."""
        result = recipe(str(folder / FILE))
        sound = isinstance(result, Recipe) and result.labels.count == result.architecture.num_classes > 0
        return fuzzing.RIGHT if sound else f"no recipe: {result}"

    def subject(self, folder: Path) -> str:
        """The file's path."""
        return str(folder / FILE)


if __name__ == "__main__":
    sys.exit(fuzzing.run(Recipes(), probe.parser(__doc__, 15_000).parse_args()))
