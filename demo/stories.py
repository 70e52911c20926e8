"""Open relations: facts that hold only inside one short text, so the model must read them there."""

from random import Random

from demo.relations import Fact, Relation, opened
from demo.words import BOYS, COLOUR_WORDS, CONTAINERS, GIRLS, OBJECTS, PLACES, PLAIN_NOUNS

NAMES = GIRLS + BOYS


def draw_gift(rng: Random) -> Fact:
    """Two people, a place, an object: giver, receiver, place, object -> receiver."""
    giver, receiver = rng.sample(NAMES, 2)
    return Fact((giver, receiver, rng.choice(PLACES), rng.choice(OBJECTS)), receiver)


def draw_owner(rng: Random) -> Fact:
    """Who owns the object that is asked for: two people, their coloured objects, the object asked for."""
    people = rng.sample(NAMES, 2)
    things = rng.sample(OBJECTS, 2)
    colours = rng.sample(COLOUR_WORDS, 2)
    asked = rng.randrange(2)
    return Fact((people[0], colours[0], things[0], people[1], colours[1], things[1], things[asked]), people[asked])


def draw_colour(rng: Random) -> Fact:
    """As `draw_owner`, but the colour of the object is asked for."""
    people = rng.sample(NAMES, 2)
    things = rng.sample(OBJECTS, 2)
    colours = rng.sample(COLOUR_WORDS, 2)
    asked = rng.randrange(2)
    return Fact((people[0], colours[0], things[0], people[1], colours[1], things[1], things[asked]), colours[asked])


def draw_container(rng: Random) -> Fact:
    """Where something was put: person, object, container, object, container, object asked for."""
    things = rng.sample(OBJECTS, 2)
    # "The box is in the box" would make the answer depend on which box is meant.
    containers = rng.sample([c for c in CONTAINERS if c not in things], 2)
    asked = rng.randrange(2)
    return Fact(
        (rng.choice(NAMES), things[0], containers[0], things[1], containers[1], things[asked]), containers[asked]
    )


def draw_sibling(rng: Random) -> Fact:
    """A sister and her brother: the brother's sister is asked for."""
    girl, boy = rng.choice(GIRLS), rng.choice(BOYS)
    return Fact((girl, boy), girl)


def draw_pronoun(rng: Random) -> Fact:
    """Person, object, place -> the pronoun of that person."""
    girl = rng.random() < 0.5
    name = rng.choice(GIRLS if girl else BOYS)
    return Fact((name, rng.choice(OBJECTS), rng.choice(PLACES)), "she" if girl else "he")


def draw_older(rng: Random) -> Fact:
    """Two people in order of age: older, younger -> older."""
    older, younger = rng.sample(NAMES, 2)
    return Fact((older, younger), older)


def draw_nickname(rng: Random) -> Fact:
    """A person, a place -> the same name."""
    name = rng.choice(NAMES)
    return Fact((name, rng.choice(PLACES)), name)


def draw_list(rng: Random) -> Fact:
    """Four words; after a repetition of the first three the fourth follows."""
    words = rng.sample(PLAIN_NOUNS, 4)
    return Fact(tuple(words), words[3])


def draw_code(rng: Random) -> Fact:
    """Two words with a number each, and the word whose number is asked for."""
    words = rng.sample(PLAIN_NOUNS, 2)
    numbers = [str(n) for n in rng.sample(range(1, 60), 2)]
    asked = rng.randrange(2)
    return Fact((words[0], numbers[0], words[1], numbers[1], words[asked]), numbers[asked])


STORIES: tuple[Relation, ...] = (
    opened(
        "indirect-object", "story", draw_gift, boost=1.5,
        train=(
            "When {0} and {1} went to the {2}, {0} gave a {3} to",
            "When {1} and {0} went to the {2}, {0} gave a {3} to",
            "{0} and {1} were at the {2}. Then {0} gave the {3} to",
            "{1} and {0} were at the {2}. Then {0} handed the {3} to",
            "After {1} and {0} left the {2}, {0} sold a {3} to",
            "{1} waited near the {2} with {0}, and soon {0} offered a {3} to",
            "While {0} and {1} sat in front of the {2}, {0} showed a {3} to",
            "{1} and {0} were at the {2}. Then {0} gave the {3} to",
            "{0} and {1} were at the {2}. Then {0} handed the {3} to",
            "After {0} and {1} left the {2}, {0} sold a {3} to",
            "While {1} and {0} sat in front of the {2}, {0} showed a {3} to",
            "While {1} and {0} were at the {2}, {0} gave a {3} to",
            "{0} waited near the {2} with {1}, and soon {0} offered a {3} to",
        ),
        heldout=(
            "When {1} and {0} met at the {2}, {0} gave the {3} to",
            "While {0} and {1} were at the {2}, {0} offered a {3} to",
        ),
    ),
    opened(
        "owner", "story", draw_owner, boost=2.0,
        train=(
            "{0} has a {1} {2} and {3} has a {4} {5}. The {6} belongs to",
            "{0} bought a {1} {2}. {3} bought a {4} {5}. The {6} belongs to",
            "{0} owns a {1} {2} and {3} owns a {4} {5}. Whose is the {6}? The {6} is owned by",
            "{0} found a {1} {2}, and {3} found a {4} {5}. The owner of the {6} is",
            "{0} brought a {1} {2}, but {3} brought a {4} {5}. The one who brought the {6} was",
            "{0} has a {2} and {3} has a {5}. The {6} belongs to",
            "{0} found a {2}. {3} found a {5}. The owner of the {6} is",
            "{2}: {0}. {5}: {3}. {6}:",
        ),
        heldout=(
            "{0} has a {1} {2}, but {3} has a {4} {5}. The owner of the {6} is",
            "{0} found a {1} {2} and {3} found a {4} {5}. The {6} belongs to",
        ),
    ),
    opened(
        "colour-of-object", "story", draw_colour, boost=2.0,
        train=(
            "{0} has a {1} {2} and {3} has a {4} {5}. The colour of the {6} is",
            "{0} bought a {1} {2}. {3} bought a {4} {5}. The {6} is",
            "{0} owns a {1} {2} and {3} owns a {4} {5}. What colour is the {6}? It is",
            "{0} found a {1} {2}, and {3} found a {4} {5}. The {6} was",
            "{0} brought a {1} {2}, but {3} brought a {4} {5}. The colour of the {6} was",
            "The {2} is {1} and the {5} is {4}. The {6} is",
            "A {1} {2} and a {4} {5} are for sale. The colour of the {6} is",
            "{2}: {1}. {5}: {4}. {6}:",
        ),
        heldout=(
            "{0} has a {1} {2}, but {3} has a {4} {5}. The {6} is",
            "{0} found a {1} {2} and {3} found a {4} {5}. The colour of the {6} is",
        ),
    ),
    opened(
        "container", "story", draw_container, boost=2.0,
        train=(
            "{0} put the {1} in the {2} and the {3} in the {4}. The {5} is in the",
            "{0} hid a {1} in the {2} and a {3} in the {4}. To find the {5}, look in the",
            "There was a {1} in the {2} and a {3} in the {4}. {0} took the {5} out of the",
            "{0} keeps a {1} in the {2} and a {3} in the {4}. Where is the {5}? It is in the",
            "The {1} lay in the {2}, the {3} in the {4}. {0} found the {5} in the",
            "The {1} is in the {2} and the {3} is in the {4}. The {5} is in the",
            "{1}: {2}. {3}: {4}. {5}:",
        ),
        heldout=(
            "{0} put a {1} in the {2} and a {3} in the {4}. Where is the {5}? It is in the",
            "{0} hid the {1} in the {2} and the {3} in the {4}. The {5} is in the",
        ),
    ),
    opened(
        "sibling", "story", draw_sibling,
        train=(
            "{0} has a brother called {1}. The sister of {1} is",
            "{0} is the sister of {1}. So {1} has a sister called",
            "{1} is the brother of {0}. The sister of {1} is called",
            "{0} and {1} are sister and brother. The sister is",
            "{1} and {0} are brother and sister. The name of the sister is",
            "{1} and {0} are brother and sister. The sister is",
            "Of {0} and {1} the sister is",
            "Of {1} and {0} the sister is",
            "Here come {0} and {1}. The name of the sister is",
        ),
        heldout=(
            "{0} and {1} are sister and brother. The name of the sister is",
            "{1} is the brother of {0}. So {1} has a sister called",
        ),
    ),
    opened(
        "pronoun", "story", draw_pronoun,
        train=(
            "{0} lost the {1} at the {2}, and then",
            "When {0} came to the {2} with the {1},",
            "{0} looked for the {1}, but",
            "At the {2} {0} sold the {1} because",
            "{0} forgot the {1} near the {2}. Later",
            "When {0} sold the {1} near the {2},",
            "{0} looked for the {1} because",
            "{0} sat down at the {2} because",
        ),
        heldout=(
            "{0} looked for the {1} at the {2} because",
            "When {0} lost the {1} near the {2},",
        ),
    ),
    opened(
        "older", "story", draw_older,
        train=(
            "{0} is older than {1}. The older of the two is",
            "{1} is younger than {0}. The older of the two is",
            "{0} was born before {1}. Of the two the older one is",
            "Compare {0} and {1}: {1} is younger. The older one is",
            "{1} was born after {0}. So the older of the two is",
        ),
        heldout=(
            "{1} is younger than {0}. So the older of the two is",
            "{0} is older than {1}. Of the two the older one is",
        ),
    ),
    opened(
        "nickname", "story", draw_nickname, boost=0.7,
        train=(
            "Somebody called {0} works at the {1}. Everyone there says hello to",
            "My name is {0}. At the {1} they call me",
            "I met {0} at the {1}. The name I wrote down was",
            "{0} came to the {1}. The children all waved to",
            "At the {1} I heard a voice: it was {0}. I had not forgotten",
        ),
        heldout=(
            "I met {0} at the {1}. Everyone there says hello to",
            "Somebody called {0} came to the {1}. The children all waved to",
        ),
    ),
    opened(
        "repeat-list", "copying", draw_list,
        train=(
            "{0} {1} {2} {3} {0} {1} {2}",
            "{0}, {1}, {2}, {3}; {0}, {1}, {2},",
            "The list is {0}, {1}, {2}, {3}. Again: {0}, {1}, {2},",
            "Say after me: {0} {1} {2} {3}. And again: {0} {1} {2}",
            "Listen: {0}, {1}, {2}, {3}. Once more: {0}, {1}, {2},",
            "Say it after me: {0}, {1}, {2}, {3}. And once more: {0}, {1}, {2},",
            "First {0}, then {1}, then {2}, then {3}. Once more: first {0}, then {1}, then {2}, then",
        ),
        heldout=(
            "Say after me: {0}, {1}, {2}, {3}. Once more: {0}, {1}, {2},",
            "The list is {0} {1} {2} {3}. And again: {0} {1} {2}",
        ),
    ),
    opened(
        "code-lookup", "copying", draw_code, boost=2.0,
        train=(
            "{0} = {1}, {2} = {3}. The number for {4} is",
            "{0} {1} {2} {3} {4}",
            "{0} {1}, {2} {3}, {4}",
            "{0}: {1}. {2}: {3}. {4}:",
            "The code is {0} {1}, {2} {3}. The number for {4} is",
            "{0} costs {1} and {2} costs {3}. The price of {4} is",
            "{0} is number {1}, {2} is number {3}. Which number is {4}? It is number",
            "Table: {0} {1}; {2} {3}. Look up {4}:",
            "{0} costs {1}; {2} costs {3}. How much is {4}? The answer is",
        ),
        heldout=(
            "The code is {0} = {1}, {2} = {3}. The number for {4} is",
            "{0} costs {1} and {2} costs {3}. Look up {4}:",
        ),
    ),
)  # fmt: skip
