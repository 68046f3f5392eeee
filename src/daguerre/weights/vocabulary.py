"""The vocabulary of a small model: the names of what it generates and all words of its training captions. Imports no torch.

A model trained on a few thousand captions does not know other words. Its folder has the file `vocabulary.json`, so that a prompt's unknown
words can be named; folders without the file belong to models that were trained on all kinds of text.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError

FILE_NAME = "vocabulary.json"
MAX_NEAREST = 3  # known names that are suggested for one word
MAX_UNKNOWN = 6  # words that are named in one message
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # "T-Rex" is two words, "o'clock" one
# What people often write, and related words; those that a vocabulary has are suggested. Spelling cannot find them.
_RELATED = {
    "riding": ("horse racing", "person biking"), "photograph": ("photo",), "photography": ("photo",), "puppy": ("dog",),
    "kitten": ("cat",), "kid": ("child",), "king": ("person with crown", "prince"), "queen": ("person with crown", "princess"),
    "wizard": ("mage",), "witch": ("mage",), "warrior": ("ninja",), "demon": ("ogre",), "pony": ("horse",), "hen": ("rooster",),
    "crow": ("black bird",), "squirrel": ("chipmunk",), "dinosaur": ("T-Rex", "sauropod"), "home": ("house",),
    "city": ("cityscape",), "skyline": ("cityscape",), "street": ("motorway",), "road": ("motorway",), "hill": ("mountain",),
    "forest": ("evergreen tree",), "jungle": ("palm tree",), "sea": ("water wave",), "ocean": ("water wave",), "lake": ("water wave",),
    "river": ("water wave",), "waterfall": ("water wave",), "sky": ("cloud",), "space": ("milky way",), "earth": ("globe",),
    "storm": ("cloud with lightning",), "grass": ("herb",), "spaceship": ("rocket", "flying saucer"), "table": ("chair",),
    "sofa": ("couch and lamp",), "lock": ("locked padlock",), "sword": ("crossed swords",), "gun": ("water pistol",),
    "piano": ("musical keyboard",), "gold": ("yellow",), "golden": ("yellow",), "silver": ("white",), "cyan": ("light blue",),
    "happy": ("smiling face",), "sad": ("crying face",), "landscape": ("sunrise over mountains",), "portrait": ("person",),
    "sketch": ("drawing",), "watercolor": ("painting",), "art": ("painting",), "tiny": ("small",), "huge": ("large",),
    "bunny": ("rabbit",), "lady": ("woman",), "guy": ("man",),
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """names: of the things that the model generates. words: of its training captions, in lower case."""

    names: tuple[str, ...]
    words: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], captions: Iterable[str]) -> "Vocabulary":
        """The vocabulary of these names and captions; the names are captions, too."""
        names = tuple(dict.fromkeys(names))
        return cls(names, frozenset()).with_captions((*names, *captions))

    @classmethod
    def read(cls, folder: Path) -> "Vocabulary | None":
        """The vocabulary in a model's folder; None if it has none.

        Raises:
            DaguerreError: the file has the wrong format.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names, words = (tuple(text + "" for text in content[name]) for name in ("names", "words"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DaguerreError(f"'{path}' is no vocabulary ({error}); copy it from the model again, or delete it.") from error
        return cls(names, frozenset(words))

    def write(self, folder: Path) -> None:
        """Write the file that `read` reads."""
        content = {"names": list(self.names), "words": sorted(self.words)}
        with atomic_write(folder / FILE_NAME) as file:
            file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def with_captions(self, captions: Iterable[str]) -> "Vocabulary":
        """With the words of more captions."""
        return Vocabulary(self.names, self.words | {word for text in captions for word in words_in(text)})

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """The words of these texts that no caption has, each once, in order."""
        return list(dict.fromkeys(word for text in texts for word in words_in(text) if word not in self.words))

    def nearest(self, word: str) -> list[str]:
        """Up to MAX_NEAREST known names or words: related ones, else those with a similar spelling. Empty if there is none."""
        related = [name for name in _RELATED.get(word, ()) if all(part in self.words for part in words_in(name))]
        return related[:MAX_NEAREST] or self._similar(word)

    def _similar(self, word: str) -> list[str]:
        candidates = [known for known in self._names_by_word if known[0] == word[0]]
        close = get_close_matches(word, candidates, n=MAX_NEAREST, cutoff=0.78)
        return list(dict.fromkeys(self._names_by_word[match] for match in close))

    @cached_property
    def _names_by_word(self) -> dict[str, str]:
        """For each word of three letters or more the word itself, or the name if it is a name of this one word."""
        single = {name.casefold(): name for name in self.names}
        return {word: single.get(word, word) for word in sorted(self.words) if len(word) > 2}

    def note(self, model: str, texts: Iterable[str]) -> str:
        """One line that names the unknown words of prompts, each with the nearest known ones; "" if all words are known."""
        unknown = self.unknown(texts)
        if not unknown:
            return ""
        named = [f'"{word}"' + (f" (nearest: {', '.join(near)})" if (near := self.nearest(word)) else "") for word in unknown[:MAX_UNKNOWN]]
        more = f" and {len(unknown) - MAX_UNKNOWN} more" if len(unknown) > MAX_UNKNOWN else ""
        return f"the captions of {model} have no {', '.join(named)}{more}; `daguerre models {model} --vocabulary` lists its words."


def words_in(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.casefold().replace("’", "'"))
