"""Running text between the facts, by a small grammar: at many positions many words can follow."""

from random import Random

from demo.facts import cells
from demo.words import BOYS, COLOUR_WORDS, CONTAINERS, GIRLS, OBJECTS, PLACES, PLAIN_NOUNS, WEEKDAYS, split_words

WEATHER = cells(
    "It was raining.|The sun was shining.|A cold wind blew from the north.|There was snow on the roofs.|"
    "The evening was warm and quiet.|Fog lay over the fields.|The sky was grey all day.|It was a bright morning.|"
    "Thunder rolled in the distance.|The air smelled of bread."
)
TIMES = cells(
    "In the morning|In the evening|After lunch|Before school|At noon|Late at night|A week later|The next day|"
    "Last winter|In the summer|One day|That afternoon"
)
PEOPLE = cells(
    "the teacher|the baker|the old man|the farmer|the doctor|the girl next door|the gardener|a stranger|the captain|"
    "the librarian|the neighbour|a tired traveller"
)
QUALITIES = split_words(
    "small old heavy broken beautiful strange new wooden dusty expensive round empty shiny simple famous"
)
DEEDS = cells(
    "carried|bought|painted|repaired|lost|found|hid|cleaned|opened|watched|described|borrowed|sold|forgot|drew|"
    "dropped|wanted|admired|measured|returned"
)
WALKS = cells("walked|ran|drove|went|hurried|came|travelled|wandered|cycled|returned")
FEELINGS = cells("happy|tired|hungry|proud|nervous|curious|surprised|calm|angry|lonely|cheerful|worried")
LINKS = cells("because|so|but|and|while|although|until")
OPENERS = cells(
    "Here is what we learned this week.|These are the notes from the lesson.|Questions and answers follow.|"
    "Some things are worth knowing.|The test was not hard.|Let us begin.|We read a page of the big book.|"
    "Nobody in the class was late.|I keep a list of such things.|This page is about many things."
)
REMARKS = cells(
    "That was easy.|Nobody was surprised.|The class laughed.|Then we turned the page.|We wrote it down.|"
    "Not everybody knew that.|The teacher nodded.|I had to think about it.|There was a short silence.|"
    "Let us go on.|The next question was harder.|Somebody at the back had fallen asleep.|"
    "We looked at the map again.|Remember it well.|My sister already knew."
)
SPEECH = cells("said|knew|wrote|explained|remembered|read|repeated|believed|shouted|whispered")
THINGS = tuple(dict.fromkeys(PLAIN_NOUNS + OBJECTS))
NUMERALS = tuple(str(n) for n in range(1, 60))
# How a thing and its value are told, and what values there are.
PAIR_FORMS = (
    ("{0} {1}", NUMERALS),
    ("{0}: {1}", GIRLS + BOYS),
    ("{0} = {1}", NUMERALS),
    ("{0}: {1}", COLOUR_WORDS),
    ("the {0} is {1}", COLOUR_WORDS),
    ("the {0} belongs to {1}", GIRLS + BOYS),
    ("the {0} is in the {1}", CONTAINERS),
    ("{0} costs {1}", NUMERALS),
    ("{0} {1}", PLAIN_NOUNS),
)
QUOTES = ("said", "shouted", "whispered", "answered", "repeated")
TAILS = cells(
    ", and nobody was surprised|, as we read in the book|, and that was the end of the lesson|, I believe|"
    ", as everybody knows|, and we wrote it down|, and then it was time to go|, of course"
)


def thing(rng: Random) -> str:
    """An object with a quality or a colour."""
    quality = rng.choice(QUALITIES) if rng.random() < 0.6 else rng.choice(COLOUR_WORDS)
    article = rng.choice(("the", "the", "his", "her", "a"))
    if article == "a" and quality[0] in "aeiou":
        article = "an"
    return f"{article} {quality} {rng.choice(OBJECTS)}"


def clause(rng: Random, who: str) -> str:
    """A main clause about one person, without its full stop."""
    kind = rng.randrange(4)
    if kind == 0:
        return f"{who} {rng.choice(WALKS)} to the {rng.choice(PLACES)}"
    if kind == 1:
        return f"{who} {rng.choice(DEEDS)} {thing(rng)}"
    if kind == 2:
        return f"{who} was {rng.choice(FEELINGS)}"
    return f"{who} {rng.choice(DEEDS)} {thing(rng)} at the {rng.choice(PLACES)}"


def cast(rng: Random) -> tuple[str, str]:
    """Two different people for one document."""
    first, second = rng.sample(GIRLS + BOYS, 2)
    return first, second


def sentence(rng: Random, people: tuple[str, str]) -> str:
    """A sentence of running text about the people of a document, or about somebody else."""
    who = rng.choice(people) if rng.random() < 0.7 else rng.choice(PEOPLE)
    match rng.randrange(8):
        case 0:
            text = rng.choice(WEATHER)
        case 1:
            text = f"{rng.choice(TIMES)} {clause(rng, who)}."
        case 2:
            other = people[1] if who == people[0] else people[0]
            text = f"{capitalised(clause(rng, who))}, {rng.choice(LINKS)} {clause(rng, other)}."
        case 3:
            text = f"On {rng.choice(WEEKDAYS)} {clause(rng, who)} and {rng.choice(DEEDS)} {thing(rng)}."
        case 4:
            text = f'"I {rng.choice(DEEDS)} {thing(rng)}," {rng.choice(QUOTES)} {who}.'
        case 5:
            text = rng.choice(REMARKS)
        case _:
            text = f"{capitalised(clause(rng, who))}."
    return text


def capitalised(text: str) -> str:
    """The text with its first letter as a capital, the rest as it is."""
    return text[:1].upper() + text[1:]
