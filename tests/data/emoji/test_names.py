"""Names and articles, against what one would say."""

import pytest

from daguerre.data.emoji.archive import EmojiEntry
from daguerre.data.emoji.names import thing_names, with_article


@pytest.mark.parametrize(
    ("official", "subgroup", "expected"),
    [
        ("flag: France", "country-flag", "the flag of France"),
        ("flag: Cook Islands", "country-flag", "the flag of the Cook Islands"),
        ("flag: St. Kitts & Nevis", "country-flag", "the flag of St. Kitts and Nevis"),
        ("keycap: #", "keycap", "a keycap hash"),
        ("person: blond hair", "person", "a person with blond hair"),
        ("man: beard", "person", "a man with a beard"),
        ("woman: bald", "person", "a bald woman"),
        ("kiss: woman, man", "family", "a woman and man kissing"),
        ("couple with heart: man, man", "family", "two men with heart"),
        ("family: man, woman, girl, boy", "family", "a family of man, woman, girl and boy"),
        ("one o’clock", "time", "a clock showing one o'clock"),
        ("A button (blood type)", "alphanum", "an A button"),
        ("Japanese “secret” button", "alphanum", "a Japanese secret button"),
        ("no smoking", "transport-sign", "a no smoking sign"),
        ("Aries", "zodiac", "an Aries sign"),
        ("face with tears of joy", "face-smiling", "a face with tears of joy"),
        ("cat face", "animal-mammal", "a cat face"),
        ("hourglass done", "time", "an hourglass done"),
        ("unicorn", "animal-mammal", "a unicorn"),
        ("ewe", "animal-mammal", "a ewe"),
        ("SOS button", "alphanum", "an SOS button"),
        ("octopus", "animal-marine", "an octopus"),
        ("grapes", "food-fruit", "grapes"),
        ("rice", "food-asian", "rice"),
        ("thumbs up", "hand-fingers-closed", "thumbs up"),
        ("Mount Fuji", "place-geographic", "Mount Fuji"),
        ("waving hand: light skin tone", "hand-fingers-open", "a waving hand with light skin tone"),
        ("man: dark skin tone, beard", "person", "a man with a beard and dark skin tone"),
        ("kiss: person, person, light skin tone, dark skin tone", "family", "two people kissing with light skin tone and dark skin tone"),
    ],
)
def test_everyday_names_with_articles(official: str, subgroup: str, expected: str):
    (name,) = thing_names([EmojiEntry("?", (official,), "group", subgroup)])
    assert with_article(name.main) == expected


def test_best_known_country_of_a_flag_comes_first():
    (name,) = thing_names([EmojiEntry("?", ("flag: Bouvet Island", "flag: Norway"), "Flags", "country-flag")])
    assert name.main == "flag of Norway"
    assert "Bouvet Island flag" in name.others


def test_synonyms_do_not_include_other_main_names():
    apple = EmojiEntry("?", ("red apple",), "g", "s")
    assert thing_names([apple])[0].others == ("apple",)
    assert thing_names([apple, EmojiEntry("?", ("apple",), "g", "s")])[0].others == ()


@pytest.mark.parametrize(("name", "base"), [("red apple", "apple"), ("large blue diamond", "large diamond"), ("blackbird", "blackbird")])
def test_base_name_has_no_colour_word(name: str, base: str):
    assert thing_names([EmojiEntry("?", (name,), "g", "s")])[0].base == base
