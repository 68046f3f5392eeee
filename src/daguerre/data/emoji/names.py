"""Everyday names for Unicode's official emoji names: "flag: France" is the flag of France, "man: beard" a man with a beard.

Each thing has one unique main name and sometimes other names. Names have no article; `with_article` adds it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from daguerre.data.emoji.archive import EmojiEntry

# Another name for a main name; none of them is the main name of another thing.
_SYNONYMS = {
    "red apple": "apple", "red heart": "heart", "automobile": "car", "airplane": "plane", "bicycle": "bike", "motorcycle": "motorbike",
    "hot beverage": "cup of coffee", "pile of poo": "poop", "hot pepper": "chili pepper", "honeybee": "bee", "lady beetle": "ladybug",
    "flying saucer": "UFO", "doughnut": "donut", "french fries": "fries", "hamburger": "burger", "mobile phone": "smartphone",
    "television": "TV", "ear of corn": "corn", "kiwi fruit": "kiwi", "baby chick": "chick", "T-Rex": "tyrannosaurus",
    "wrapped gift": "gift", "deciduous tree": "tree", "evergreen tree": "fir tree", "fire engine": "fire truck",
    "locomotive": "steam engine", "eggplant": "aubergine", "light bulb": "bulb", "beer mug": "mug of beer",
    "wine glass": "glass of wine", "crescent moon": "moon", "droplet": "drop of water", "fire": "flame", "collision": "explosion",
    "gem stone": "diamond", "open book": "book", "steaming bowl": "bowl of noodles", "cooked rice": "bowl of rice",
    "flexed biceps": "strong arm", "folded hands": "praying hands", "ewe": "sheep", "ox": "bull", "roll of paper": "toilet paper",
    "hourglass done": "hourglass", "sport utility vehicle": "SUV", "magnifying glass tilted left": "magnifying glass",
    "soccer ball": "football", "water wave": "wave", "pizza": "slice of pizza", "milky way": "galaxy", "birthday cake": "cake",
    "flag in hole": "golf hole", "bullseye": "dart target", "shrimp": "prawn", "computer mouse": "PC mouse",
    "Christmas tree": "decorated fir tree", "sauropod": "brontosaurus", "lollipop": "sweet on a stick",
    "hatching chick": "chick in an egg", "delivery truck": "truck", "watermelon": "slice of watermelon", "speedboat": "motorboat",
    "thumbs up": "thumb up", "thumbs down": "thumb down", "grinning face": "smiley",
}  # fmt: skip
_MAIN_FLAGS = ("Australia", "Norway", "France", "British Indian Ocean Territory", "Spain", "United States")
_THE = re.compile(
    r"(.* )?(Islands|Republic|Emirates|Kingdom|States|Territory|Territories|Union|Nations|Sahara|Netherlands|Philippines|Bahamas|Maldives|"
    r"Gambia|Vatican City|Isle of Man|Comoros|Seychelles)"
)
# Official names that are not nouns.
_RENAMED = {
    "star-struck": "star-struck face", "rolling on the floor laughing": "face rolling on the floor laughing", "mx claus": "Mx Claus",
    "mount fuji": "Mount Fuji", "breast-feeding": "woman breast-feeding", "dizzy": "dizzy star", "ZZZ": "ZZZ letters",
    "foggy": "foggy bridge", "locked": "locked padlock", "unlocked": "unlocked padlock", "locked with pen": "padlock with pen",
    "locked with key": "padlock with key", "construction": "construction barrier", "high voltage": "lightning bolt",
    "cooking": "pan with an egg", "hundred points": "hundred points sign",
}  # fmt: skip
# Pictograms are signs: "a no smoking sign", "an infinity sign", "an Aries sign".
_SIGN_GROUPS = ("transport-sign", "warning", "zodiac", "math")
_SIGNS = (
    "om", "cinema", "wireless", "vibration mode", "mobile phone off", "copyright", "registered", "trade mark", "information",
    "currency exchange",
)  # fmt: skip
COLOUR_WORD = re.compile(r"\b(light blue|red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ea]y) ")

# The words before these decide whether a name is plural: "face with tears" is one face.
_TAIL = re.compile(
    r" (with|without|of|in|on|at|behind|over|holding|wearing|blowing|savoring|screaming|showing|juggling|lifting|gesturing|feeding|"
    r"bouncing|and)\b.*"
)
_SINGULAR_S = re.compile(r".*(ss|us|lis|rhinoceros)")
# Names that begin or end with these words are plural or uncountable and have no article.
_PLURAL_FIRST = ("thumbs", "men", "women", "people", "two", "nail")
_UNCOUNTABLE_LAST = {
    "bacon", "badminton", "blood", "bowling", "bread", "broccoli", "butter", "camping", "candy", "clothes", "construction", "coral",
    "corn", "cream", "dango", "dna", "fencing", "fog", "fondue", "food", "garlic", "hockey", "ice", "lacrosse", "luggage", "mail",
    "mate", "meat", "milk", "money", "music", "oden", "paper", "polish", "pong", "popcorn", "racing", "rain", "rice", "sake", "salt",
    "snow", "soap", "spaghetti", "sunrise", "sunset", "sushi", "tea", "tennis", "thread", "volume", "water", "wood", "yarn",
}  # fmt: skip
_PROPER = re.compile(
    r"(Santa Claus|Mrs\. Claus|Mx Claus|Statue of Liberty|Mount Fuji|Tokyo tower|(?!clock).*(o'clock|-thirty)|blood type .*|number \d+|"
    r"Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|Pisces|Ophiuchus)"
)


@dataclass(frozen=True)
class EmojiName:
    """The main name of a thing, its other names, and its name without a colour word ("apple" for "red apple")."""

    main: str
    others: tuple[str, ...]
    base: str


def thing_names(entries: Iterable[EmojiEntry]) -> list[EmojiName]:
    """The names of all entries. Main names are unique; other names that equal a main name are left out."""
    named = [
        [everyday for official in _main_first(entry.names) for everyday in _everyday_names(official, entry.subgroup)] for entry in entries
    ]
    mains = {names[0] for names in named}
    assert len(mains) == len(named), "two things have the same main name"
    result = []
    for names in named:
        others = [*names[1:], *([_SYNONYMS[names[0]]] if names[0] in _SYNONYMS else [])]
        base = COLOUR_WORD.sub("", names[0], count=1)
        result.append(EmojiName(names[0], tuple(other for other in others if other not in mains), base))
    return result


def _main_first(officials: tuple[str, ...]) -> list[str]:
    """If several countries have the same flag, the best-known one comes first."""
    return sorted(officials, key=lambda name: name.removeprefix("flag: ") not in _MAIN_FLAGS)


def _everyday_names(official: str, subgroup: str) -> list[str]:
    """Everyday names for an official name, the best first."""
    name = official.replace("’", "'").replace("“", "").replace("”", "").replace("&", "and")
    head, _, tail = name.partition(": ")
    if "skin tone" in tail:
        tones = [part for part in tail.split(", ") if "skin tone" in part]
        rest = [part for part in tail.split(", ") if part not in tones]
        plain = _everyday_names(f"{head}: {', '.join(rest)}" if rest else head, subgroup)[0]
        return [f"{plain} {'and' if ' with ' in plain else 'with'} {_listed(tones)}"]
    parts = tail.split(", ")
    if not tail:
        if subgroup == "time" and re.search(r"o'clock|-thirty", name):
            return [f"clock showing {name}", name]
        if match := re.fullmatch(r"(\w+) button \(blood type\)", name):
            return [f"{match[1]} button", f"blood type {match[1]}"]
        if name in _SIGNS or (subgroup in _SIGN_GROUPS and not name.endswith(("sign", "symbol"))):
            return [f"{name} sign", *([name] if subgroup == "zodiac" else [])]
        return [_RENAMED.get(name, name)]
    if head == "flag":
        return [f"flag of {'the ' if _THE.fullmatch(tail) else ''}{tail}", f"{tail} flag"]
    if head == "keycap":
        digit = {"#": "hash", "*": "asterisk"}.get(tail, tail)
        return [f"keycap {digit}", *([f"number {digit}"] if digit.isdigit() else [])]
    if head == "family":
        return [f"family of {_listed(parts)}"]
    if head in ("kiss", "couple with heart"):
        couple = _listed(parts) if parts[0] != parts[1] else {"man": "two men", "woman": "two women", "person": "two people"}[parts[0]]
        return [f"{couple} {'kissing' if head == 'kiss' else 'with heart'}"]
    if tail == "bald":
        return [f"bald {head}"]
    return [f"{head} with {'a beard' if tail == 'beard' else tail}"]


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def with_article(name: str) -> str:
    """Prefix a name with "a" or "an", a flag with "the", and a plural, uncountable or proper name with nothing."""
    if name.startswith("flag of "):
        return f"the {name}"
    head = _TAIL.sub("", name).split()
    plural = head[-1].endswith("s") and not _SINGULAR_S.fullmatch(head[-1])
    if plural or head[0] in _PLURAL_FIRST or head[-1] in _UNCOUNTABLE_LAST or _PROPER.fullmatch(name):
        return name
    return f"{'an' if _begins_with_vowel(name) else 'a'} {name}"


def _begins_with_vowel(name: str) -> bool:
    """Whether a name is pronounced with a vowel first: "an hourglass", "an SOS button", "a unicorn"."""
    word = name.split()[0]
    if word in ("SOS", "SUV", "NG", "x-ray") or word.startswith("hour"):
        return True
    return word[0] in "aeiouAEIOU" and not re.match(r"uni|one\b|one-|eu|ewe|UFO|use", word)
